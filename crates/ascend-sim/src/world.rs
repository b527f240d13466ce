//! The state of a simulator: handles, faults, counts, reports.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::generated::types::*;
use crate::memory::Memory;
use crate::refusal::REPORTED;
pub(crate) use crate::refusal::{Answer, Handle, Refusal, refuse, report};
use crate::streams::Streams;
use crate::tensor::Tensor;

/// What a task does when it runs.
pub(crate) type Run = Arc<dyn Fn(&mut World) -> Answer<()> + Send + Sync>;

/// What an operator will do.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) run: Run,
    pub(crate) reads: Vec<Tensor>,
    pub(crate) writes: Vec<Tensor>,
}

/// An operator behind its first phase.
pub(crate) struct Executor {
    pub(crate) name: &'static str,
    pub(crate) workspace: u64,
    pub(crate) repeatable: bool,
    pub(crate) plan: Plan,
}

/// Everything behind the C interface.
pub(crate) struct World {
    pub(crate) initialised: bool,
    /// How often each device was set and not yet reset.
    pub(crate) devices: BTreeMap<i32, u32>,
    /// Contexts with their devices.
    pub(crate) contexts: BTreeMap<usize, i32>,
    /// Contexts that were told to sum in a fixed order.
    pub(crate) deterministic: BTreeSet<usize>,
    pub(crate) tensors: BTreeMap<usize, Tensor>,
    pub(crate) arrays: BTreeMap<usize, Vec<i64>>,
    pub(crate) lists: BTreeMap<usize, Vec<usize>>,
    pub(crate) executors: BTreeMap<usize, Executor>,
    pub(crate) streams: Streams<Run>,
    pub(crate) memory: Memory,
    /// Handles that were destroyed: using one is a report, using what never was one is a code.
    gone: BTreeSet<usize>,
    next: usize,
    /// Names of all calls that can fail, in order.
    pub(crate) calls: Vec<&'static str>,
    /// The number of the call that is to fail, from 1.
    pub(crate) fail_at: u64,
    /// A name whose next call is to fail with this code.
    pub(crate) fail_name: Option<(String, i32)>,
    pub(crate) switches: [i64; crate::control::SWITCHES],
    pub(crate) reports: Vec<String>,
    pub(crate) keep_reports: bool,
}

static WORLD: Mutex<World> = Mutex::new(World::new());

thread_local! {
    static MESSAGE: RefCell<(Option<CString>, bool)> = const { RefCell::new((None, false)) };
    static CONTEXT: Cell<usize> = const { Cell::new(0) };
}

pub(crate) fn world() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives all memory back, and begins anew: the library is about to be closed.
pub(crate) fn forget() {
    *world() = World::new();
}

/// The text of the last error of this thread; once read it is gone.
pub(crate) fn recent_message() -> *const c_char {
    MESSAGE.with(|slot| {
        let mut slot = slot.borrow_mut();
        if slot.1 {
            *slot = (None, false);
        }
        slot.1 = true;
        slot.0.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())
    })
}

fn say(message: &str) {
    let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
    MESSAGE.with(|slot| *slot.borrow_mut() = (Some(text), false));
}

/// How a call ends that an injected fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It does nothing.
    Before(u32),
    /// It releases what it is to release, and fails all the same.
    After(u32),
}

/// Runs the body of a C function: faults, panics, messages and reports become its code.
pub(crate) fn call(name: &'static str, fault: Fault, body: impl FnOnce(&mut World) -> Answer<()>) -> i32 {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let mut world = world();
        let injected = world.injected(name);
        let (code, release) = match fault {
            Fault::Before(code) => (code, false),
            Fault::After(code) => (code, true),
        };
        if let Some(wanted) = injected {
            if release {
                body(&mut world)?;
            }
            let code = if wanted == 0 { code.cast_signed() } else { wanted };
            return Err(Refusal::Code(code, format!("EE9999: simulated failure of {name}")));
        }
        body(&mut world)
    }));
    match ended {
        Ok(Ok(())) => 0,
        Ok(Err(Refusal::Code(code, message))) => {
            say(&message);
            code
        }
        Ok(Err(Refusal::Report(message))) => end(&format!("{name}: {message}")),
        Err(_) => end(&format!("{name}: the simulator panicked")),
    }
}

/// The same for a function that gives a handle, or null.
pub(crate) fn create<T>(name: &'static str, body: impl FnOnce(&mut World) -> Answer<usize>) -> *mut T {
    let mut made = 0;
    let code = call(name, Fault::Before(ACL_ERROR_BAD_ALLOC), |world| {
        made = body(world)?;
        Ok(())
    });
    if code == 0 { made as *mut T } else { std::ptr::null_mut() }
}

/// The simulator's own end of a test.
fn end(message: &str) -> i32 {
    let mut world = world();
    if !world.keep_reports {
        eprintln!("ascend-sim: {message}");
        std::process::abort();
    }
    world.reports.push(message.to_owned());
    REPORTED
}

impl World {
    const fn new() -> Self {
        Self {
            initialised: false,
            devices: BTreeMap::new(),
            contexts: BTreeMap::new(),
            deterministic: BTreeSet::new(),
            tensors: BTreeMap::new(),
            arrays: BTreeMap::new(),
            lists: BTreeMap::new(),
            executors: BTreeMap::new(),
            streams: Streams::new(),
            memory: Memory::new(),
            gone: BTreeSet::new(),
            next: 0,
            calls: Vec::new(),
            fail_at: 0,
            fail_name: None,
            switches: crate::control::DEFAULTS,
            reports: Vec::new(),
            keep_reports: false,
        }
    }

    /// Counts a call; the code (0: that of the function) if it is to fail.
    fn injected(&mut self, name: &'static str) -> Option<i32> {
        self.calls.push(name);
        if let Some((wanted, code)) = &self.fail_name
            && wanted == name
        {
            let code = *code;
            self.fail_name = None;
            return Some(code);
        }
        (self.calls.len() as u64 == self.fail_at).then_some(0)
    }

    pub(crate) fn set_switch(&mut self, switch: crate::Switch, value: i64) {
        self.switches[switch as usize] = value;
        self.memory.saturates = self.switch(crate::Switch::Saturation) != 0;
    }

    pub(crate) fn switch(&self, switch: crate::Switch) -> i64 {
        self.switches[switch as usize]
    }

    pub(crate) fn ready(&self) -> Answer<()> {
        if self.initialised { Ok(()) } else { refuse(ACL_ERROR_UNINITIALIZE, "aclInit was not called") }
    }

    /// A new handle, never given before.
    pub(crate) fn handle(&mut self) -> usize {
        self.next += 1;
        0x7_0000_0000 + self.next * 64
    }

    /// Marks a handle as destroyed.
    pub(crate) fn bury(&mut self, handle: usize) {
        self.gone.insert(handle);
    }

    /// The refusal of a handle that is not alive.
    pub(crate) fn dead<T>(&self, kind: Handle, handle: usize) -> Answer<T> {
        if self.gone.contains(&handle) {
            return report(format!("a {kind:?} is used after it was destroyed"));
        }
        let objects =
            matches!(kind, Handle::Tensor | Handle::IntArray | Handle::TensorList | Handle::Executor);
        match (handle, objects) {
            (0, true) => refuse(ACLNN_ERR_PARAM_NULLPTR, format!("a {kind:?} is a null pointer")),
            (_, true) => report(format!("what is given as a {kind:?} was never one")),
            (0, false) => refuse(ACL_ERROR_INVALID_PARAM, format!("a {kind:?} is a null pointer")),
            (_, false) => refuse(ACL_ERROR_RT_INVALID_HANDLE, format!("what is given as a {kind:?} is none")),
        }
    }

    /// The context of the calling thread.
    pub(crate) fn context(&self) -> Answer<usize> {
        let context = CONTEXT.get();
        if self.contexts.contains_key(&context) {
            Ok(context)
        } else if context != 0 && self.gone.contains(&context) {
            report("the current context of this thread was destroyed")
        } else {
            refuse(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no current context")
        }
    }

    pub(crate) fn set_context(&mut self, context: usize) -> Answer<()> {
        if !self.contexts.contains_key(&context) {
            return self.dead(Handle::Context, context);
        }
        CONTEXT.set(context);
        Ok(())
    }

    /// A stream of the current context.
    pub(crate) fn stream(&self, stream: *mut c_void) -> Answer<usize> {
        let context = self.context()?;
        match self.streams.context_of(stream as usize) {
            Some(found) if found == context => Ok(stream as usize),
            Some(_) => refuse(ACL_ERROR_RT_STREAM_CONTEXT, "the stream is not in the current context"),
            None => self.dead(Handle::Stream, stream as usize),
        }
    }

    /// A live tensor.
    pub(crate) fn tensor(&self, tensor: *const aclTensor) -> Answer<Tensor> {
        match self.tensors.get(&(tensor as usize)) {
            Some(tensor) => Ok(tensor.clone()),
            None => self.dead(Handle::Tensor, tensor as usize),
        }
    }

    /// A tensor that may be absent.
    pub(crate) fn optional(&self, tensor: *const aclTensor) -> Answer<Option<Tensor>> {
        if tensor.is_null() { Ok(None) } else { self.tensor(tensor).map(Some) }
    }

    /// How many there are of a kind.
    pub(crate) fn live(&self, kind: Handle) -> usize {
        match kind {
            Handle::Context => self.contexts.len(),
            Handle::Stream => self.streams.streams(),
            Handle::Event => self.streams.events(),
            Handle::Tensor => self.tensors.len(),
            Handle::IntArray => self.arrays.len(),
            Handle::TensorList => self.lists.len(),
            Handle::Executor => self.executors.len(),
        }
    }
}
