//! A device, as a context of it.

use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use crate::cann::{Cann, acl, locked};
use crate::error::{AscendError, Result};
use crate::ffi::{
    ACL_DDR_MEM, ACL_HBM_MEM, ACL_OPT_DETERMINISTIC, ACL_RT_OVERFLOW_MODE_INFNAN,
    ACL_RT_OVERFLOW_MODE_SATURATION,
};

/// A handle of CANN, kept to be given back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Raw(pub(crate) *mut c_void);

// SAFETY: a handle is a value that only CANN looks into, and every call is made after its context was set on the calling thread.
unsafe impl Send for Raw {}
// SAFETY: as above; types that may not be used by two threads at a time say so themselves.
unsafe impl Sync for Raw {}

/// A context: what everything on a device lives in.
pub(crate) struct Context {
    pub(crate) cann: Cann,
    id: i32,
    raw: Raw,
    /// The first release that failed and could not be told.
    late: Mutex<Option<AscendError>>,
    closed: bool,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("device", &self.id).finish_non_exhaustive()
    }
}

impl Context {
    /// Makes this the context of the calling thread; before every call.
    pub(crate) fn enter(&self) -> Result<()> {
        // SAFETY: the context is alive as long as this value is.
        unsafe { acl!(self.cann, runtime, aclrtSetCurrentContext(self.raw.0)) }
    }

    /// Releases something. That the context cannot be set is no reason to leak: it is tried once more, then released all the same.
    pub(crate) fn release(&self, release: impl FnOnce() -> Result<()>) {
        if let Err(error) = self.enter() {
            self.released(Err(error));
            self.released(self.enter());
        }
        self.released(release());
    }

    /// Notes a release that failed: it is told by the next synchronisation, or when the device is closed.
    pub(crate) fn released(&self, result: Result<()>) {
        if let Err(error) = result {
            locked(&self.late).get_or_insert(error);
        }
    }

    /// The first release that failed since this was last asked.
    pub(crate) fn late(&self) -> Result<()> {
        locked(&self.late).take().map_or(Ok(()), Err)
    }

    fn close(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        // SAFETY: the context is alive, and everything in it held it and is gone.
        let destroyed = unsafe { acl!(self.cann, runtime, aclrtDestroyContext(self.raw.0)) };
        let reset = reset(&self.cann, self.id);
        self.late().and(destroyed).and(reset)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nobody is left to hear of it; `Device::close` tells.
        let _ = self.close();
    }
}

/// Gives a device back when its last context here is gone.
fn reset(cann: &Cann, id: i32) -> Result<()> {
    cann.with_devices(|devices| {
        let Some(count) = devices.get_mut(&id) else { return Ok(()) };
        *count -= 1;
        if *count > 0 {
            return Ok(());
        }
        devices.remove(&id);
        // SAFETY: this crate set the device, and no context of this crate is left on it.
        unsafe { acl!(cann, runtime, aclrtResetDevice(id)) }
    })
}

/// A device of CANN with a context of its own. Clones are the same.
///
/// `Send` and `Sync`: each call on it or on what lives in it first sets its context on the calling thread.
///
/// ```no_run
/// use ascend_kernels::{Cann, Device, OpenOptions};
///
/// let cann = Cann::open(&OpenOptions::new())?;
/// let device = Device::open(&cann, 0)?;
/// println!("{:?}: {} bytes", cann.soc_name(), device.memory()?.1);
/// # Ok::<(), ascend_kernels::AscendError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) context: Arc<Context>,
}

impl Device {
    /// Opens a device by its number.
    ///
    /// # Errors
    /// [`AscendError::NoDevice`] if there is none of this number, or what CANN says.
    pub fn open(cann: &Cann, id: i32) -> Result<Self> {
        let count = cann.device_count()?;
        if !u32::try_from(id).is_ok_and(|id| id < count) {
            return Err(AscendError::NoDevice { device: id, count });
        }
        cann.with_devices(|devices| {
            let users = devices.get(&id).copied().unwrap_or(0);
            if users == 0 {
                // SAFETY: there is a device of this number.
                unsafe { acl!(cann, runtime, aclrtSetDevice(id)) }?;
            }
            devices.insert(id, users + 1);
            Ok(())
        })?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is for this handle.
        if let Err(error) = unsafe { acl!(cann, runtime, aclrtCreateContext(&mut raw, id)) } {
            // The first error is the one to tell.
            let _ = reset(cann, id);
            return Err(error);
        }
        let context =
            Context { cann: cann.clone(), id, raw: Raw(raw), late: Mutex::new(None), closed: false };
        Ok(Self { context: Arc::new(context) })
    }

    /// The number of the device.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.context.id
    }

    /// The libraries.
    #[must_use]
    pub fn cann(&self) -> &Cann {
        &self.context.cann
    }

    /// Free and total memory in bytes: of the HBM, or of the DDR where there is none.
    ///
    /// # Errors
    /// What `aclrtGetMemInfo` says.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.enter()?;
        let ask = |kind| {
            let (mut free, mut total) = (0, 0);
            // SAFETY: the pointers are for these numbers.
            unsafe { acl!(self.context.cann, runtime, aclrtGetMemInfo(kind, &mut free, &mut total)) }?;
            Ok((free, total))
        };
        match ask(ACL_HBM_MEM) {
            Ok((free, total)) if total > 0 => Ok((free, total)),
            // Chips without HBM may refuse the question; where both are refused, the first answer is the one to tell.
            first => ask(ACL_DDR_MEM).or(first),
        }
    }

    /// Sums in a fixed order, where operators have a choice (weight-only products), in this context.
    ///
    /// # Errors
    /// What `aclrtCtxSetSysParamOpt` says.
    pub fn set_deterministic(&self, on: bool) -> Result<()> {
        self.context.enter()?;
        // SAFETY: numbers alone.
        unsafe {
            acl!(self.context.cann, runtime, aclrtCtxSetSysParamOpt(ACL_OPT_DETERMINISTIC, i64::from(on)))
        }
    }

    /// Whether numbers that do not fit become the largest that do, and what is no number 0, instead of infinities and NaN; none where the runtime
    /// does not say.
    ///
    /// # Errors
    /// What `aclrtGetDeviceSatMode` says.
    pub fn saturates(&self) -> Result<Option<bool>> {
        if !self.context.cann.has("aclrtGetDeviceSatMode") {
            return Ok(None);
        }
        self.context.enter()?;
        let mut mode = ACL_RT_OVERFLOW_MODE_INFNAN;
        // SAFETY: the pointer is for this number.
        unsafe { acl!(self.context.cann, runtime, aclrtGetDeviceSatMode(&mut mode)) }?;
        Ok(Some(mode == ACL_RT_OVERFLOW_MODE_SATURATION))
    }

    /// Chooses between the two, for streams that are made from now on; some chips have one of them alone.
    ///
    /// # Errors
    /// What `aclrtSetDeviceSatMode` says.
    pub fn set_saturating(&self, on: bool) -> Result<()> {
        self.context.enter()?;
        let mode = if on { ACL_RT_OVERFLOW_MODE_SATURATION } else { ACL_RT_OVERFLOW_MODE_INFNAN };
        // SAFETY: a number alone.
        unsafe { acl!(self.context.cann, runtime, aclrtSetDeviceSatMode(mode)) }
    }

    /// Gives the device back and tells of everything that could not be released; dropping the last clone does the same in silence.
    ///
    /// # Errors
    /// [`AscendError::InUse`] while clones, streams or buffers are alive, or what CANN says.
    pub fn close(self) -> Result<()> {
        match Arc::try_unwrap(self.context) {
            Ok(mut context) => context.close(),
            Err(shared) => {
                Err(AscendError::InUse { what: "a device", users: Arc::strong_count(&shared) - 1 })
            }
        }
    }

    /// Whether two values are of one context.
    pub(crate) fn same(a: &Arc<Context>, b: &Arc<Context>, what: &'static str) -> Result<()> {
        if Arc::ptr_eq(a, b) { Ok(()) } else { Err(AscendError::OtherDevice { what }) }
    }
}
