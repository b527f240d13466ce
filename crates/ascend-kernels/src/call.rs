//! The two phases of an operator as one value.

use std::ffi::{CString, c_char, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use crate::cann::{acl, locked, symbol};
use crate::device::{Context, Device, Raw};
use crate::error::{AscendError, Result};
use crate::ffi::{aclIntArray, aclOpExecutor, aclTensor, aclTensorList, aclnnStatus, aclrtStream};
use crate::stream::{Keep, Stream};
use crate::tensor::{Described, Tensor, null};

/// The second phase of every operator.
pub(crate) type Second =
    unsafe extern "C" fn(*mut c_void, u64, *mut aclOpExecutor, aclrtStream) -> aclnnStatus;

/// Arguments of a first phase: descriptions for CANN, held as long as the call.
pub(crate) struct Arguments {
    pub(crate) context: Arc<Context>,
    keep: Vec<Keep>,
    inputs: Vec<usize>,
}

impl Arguments {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        device.context.enter()?;
        Ok(Self { context: Arc::clone(&device.context), keep: Vec::new(), inputs: Vec::new() })
    }

    fn described(&self, tensor: &Tensor) -> Result<Described> {
        Device::same(&self.context, &tensor.memory.context, "a tensor")?;
        Described::new(&self.context, tensor)
    }

    fn describe(&mut self, tensor: &Tensor) -> Result<*mut aclTensor> {
        let described = self.described(tensor)?;
        let raw = described.raw();
        self.keep.push(Box::new(described));
        Ok(raw)
    }

    pub(crate) fn input(&mut self, tensor: &Tensor) -> Result<*const aclTensor> {
        self.inputs.push(tensor.memory.at.0 as usize);
        self.describe(tensor).map(<*mut aclTensor>::cast_const)
    }

    pub(crate) fn optional(&mut self, tensor: Option<&Tensor>) -> Result<*const aclTensor> {
        tensor.map_or(Ok(std::ptr::null()), |tensor| self.input(tensor))
    }

    /// A tensor that is written: its memory may be no other argument's.
    pub(crate) fn output(&mut self, tensor: &Tensor) -> Result<*mut aclTensor> {
        let at = tensor.memory.at.0 as usize;
        if self.inputs.contains(&at) {
            return Err(AscendError::shape("memory of an output", "none of another argument", "that of one"));
        }
        self.inputs.push(at);
        self.describe(tensor)
    }

    /// A list of one tensor.
    pub(crate) fn list(&mut self, tensor: &Tensor) -> Result<*const aclTensorList> {
        self.inputs.push(tensor.memory.at.0 as usize);
        let mut described = self.described(tensor)?;
        let create = symbol!(self.context.cann, objects, aclCreateTensorList)?;
        let tensors = [described.raw().cast_const()];
        // SAFETY: one live tensor.
        let raw = unsafe { create(tensors.as_ptr(), 1) };
        if raw.is_null() {
            return Err(null(&self.context, "aclCreateTensorList"));
        }
        described.give_to_list();
        self.keep.push(Box::new(List {
            context: Arc::clone(&self.context),
            raw: Raw(raw.cast()),
            _tensor: described,
        }));
        Ok(raw.cast_const())
    }

    /// An array of lengths; none for an empty one.
    pub(crate) fn lengths(&mut self, lengths: &[usize]) -> Result<*const aclIntArray> {
        if lengths.is_empty() {
            return Ok(std::ptr::null());
        }
        let values: Vec<i64> = lengths.iter().map(|&l| i64::try_from(l).unwrap_or(i64::MAX)).collect();
        let create = symbol!(self.context.cann, objects, aclCreateIntArray)?;
        // SAFETY: the length is that of the numbers.
        let raw = unsafe { create(values.as_ptr(), values.len() as u64) };
        if raw.is_null() {
            return Err(null(&self.context, "aclCreateIntArray"));
        }
        // CANN may keep the address: whether it copies is not documented.
        self.keep.push(Box::new(Lengths {
            context: Arc::clone(&self.context),
            raw: Raw(raw.cast()),
            _values: values,
        }));
        Ok(raw.cast_const())
    }

    /// A text; operators take it as if they could write to it, so it is one of the call's own.
    pub(crate) fn text(&mut self, text: &str) -> *mut c_char {
        let mut bytes = CString::new(text).unwrap_or_default().into_bytes_with_nul();
        let at = bytes.as_mut_ptr().cast();
        self.keep.push(Box::new(bytes));
        at
    }

    /// Holds something else as long as the call.
    pub(crate) fn hold(&mut self, value: Keep) {
        self.keep.push(value);
    }

    pub(crate) fn into_call(
        self,
        name: &'static str,
        executor: *mut aclOpExecutor,
        bytes: u64,
        second: Second,
    ) -> Call {
        let Self { context, keep, .. } = self;
        Call { context, name, executor: Raw(executor.cast()), bytes, second, keep, _not_sync: PhantomData }
    }
}

/// Runs a first phase: looks both functions up, then calls it with the arguments and the two outputs that all have.
macro_rules! first_phase {
    ($arguments:ident, $group:ident, $first:ident, $second:ident, ($($argument:expr),* $(,)?)) => {{
        let context = std::sync::Arc::clone(&$arguments.context);
        let first = crate::cann::symbol!(context.cann, $group, $first)?;
        let second = crate::cann::symbol!(context.cann, $group, $second)?;
        let (mut bytes, mut executor) = (0_u64, std::ptr::null_mut());
        context.enter()?;
        // SAFETY: the arguments have been checked by the rules of the operator, and what they point to is held by `$arguments`,
        // which lives as long as the call.
        let code = unsafe { first($($argument,)* &mut bytes, &mut executor) };
        context.cann.check(stringify!($first), code)?;
        Ok($arguments.into_call(stringify!($second), executor, bytes, second))
    }};
}
pub(crate) use first_phase;

struct List {
    context: Arc<Context>,
    raw: Raw,
    _tensor: Described,
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: made by the sister of this function, destroyed once; its tensor goes with it.
        self.context.release(|| unsafe {
            acl!(self.context.cann, objects, aclDestroyTensorList(self.raw.0.cast_const().cast()))
        });
    }
}

struct Lengths {
    context: Arc<Context>,
    raw: Raw,
    _values: Vec<i64>,
}

impl Drop for Lengths {
    fn drop(&mut self) {
        // SAFETY: made by the sister of this function, destroyed once.
        self.context.release(|| unsafe {
            acl!(self.context.cann, objects, aclDestroyIntArray(self.raw.0.cast_const().cast()))
        });
    }
}

/// An operator between its phases: its arguments were accepted, its executor made, and it can be launched once.
///
/// One that is dropped gives its executor back. `Send`, not `Sync`: an executor belongs to one thread at a time.
pub struct Call {
    context: Arc<Context>,
    name: &'static str,
    /// Null once it is used up.
    executor: Raw,
    bytes: u64,
    second: Second,
    keep: Vec<Keep>,
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("name", &self.name)
            .field("workspace", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Call {
    /// The operator's function in CANN.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The workspace that it asks for.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts the operator on a stream, in the stream's workspace.
    ///
    /// # Errors
    /// [`AscendError::OtherDevice`], no memory for the workspace, or what CANN says; the call is used up in any case.
    pub fn launch(mut self, stream: &Stream) -> Result<()> {
        Device::same(&self.context, stream.context(), "an operator")?;
        // Held to the end, so that two threads do not take the workspace in another order than the stream.
        let mut workspace = locked(stream.workspace());
        let memory = workspace.reserve(&self.context, self.bytes)?;
        self.context.enter()?;
        let executor = std::mem::replace(&mut self.executor, Raw(std::ptr::null_mut()));
        let at = memory.as_ref().map_or(std::ptr::null_mut(), |memory| memory.at.0);
        let uses = std::mem::take(&mut self.keep).into_iter();
        stream.queue(uses.chain(memory.map(|memory| Box::new(memory) as Keep)), || {
            // SAFETY: the executor is this call's and was not used; workspace and arguments are held by the stream.
            let code = unsafe { (self.second)(at, self.bytes, executor.0.cast(), stream.raw().0) };
            self.context.cann.check(self.name, code)
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.executor.0.is_null() {
            return;
        }
        let cann = &self.context.cann;
        let executor = self.executor.0.cast();
        // Only what was made repeatable is its caller's to destroy.
        // SAFETY: the executor is this call's, and goes here.
        self.context.release(|| unsafe {
            acl!(cann, objects, aclSetAclOpExecutorRepeatable(executor))
                .and_then(|()| acl!(cann, objects, aclDestroyAclOpExecutor(executor)))
        });
    }
}
