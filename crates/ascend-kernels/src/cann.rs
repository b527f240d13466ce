//! CANN, opened: initialised once, and every call checked.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{AscendError, Result, meaning};
use crate::ffi::ACL_ERROR_REPEAT_INITIALIZE;
use crate::library::{Groups, OpenOptions, Outcome, RUNTIME, load};

/// A function of a group, or the error that it is missing.
macro_rules! symbol {
    ($cann:expr, runtime, $name:ident) => {
        crate::cann::symbol!(@ $cann, Some(&$cann.groups().runtime), $name)
    };
    ($cann:expr, $group:ident, $name:ident) => {
        crate::cann::symbol!(@ $cann, $cann.groups().$group.as_ref(), $name)
    };
    (@ $cann:expr, $group:expr, $name:ident) => {
        $group
            .filter(|_| $cann.allows(stringify!($name)))
            .and_then(|group| group.$name.as_ref().ok().copied())
            .ok_or_else(|| $cann.missing(stringify!($name)))
    };
}
pub(crate) use symbol;

/// Calls a function and checks its code. To be used in an `unsafe` block: the arguments are the caller's promise.
macro_rules! acl {
    ($cann:expr, $group:ident, $name:ident($($argument:expr),*)) => {
        crate::cann::symbol!($cann, $group, $name)
            .and_then(|function| $cann.check(stringify!($name), function($($argument),*)))
    };
}
pub(crate) use acl;

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Initialisations by the address of `aclInit`: CANN is initialised once a process, and ended when nobody here uses it.
///
/// The one thing in this crate that outlives a value: so does what it counts, inside of CANN.
static INITIALISED: Mutex<BTreeMap<usize, Uses>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Uses {
    count: usize,
    /// Whether it was this crate that initialised it.
    ours: bool,
    /// Of each device, how many contexts of this crate use it.
    devices: BTreeMap<i32, usize>,
}

struct Opened {
    groups: Groups,
    options: OpenOptions,
    closed: bool,
}

/// CANN's libraries, opened and initialised. Clones are the same.
///
/// `Send` and `Sync`: it holds functions, and what they do is bound to the calling thread by each call.
#[derive(Clone)]
pub struct Cann(Arc<Opened>);

impl std::fmt::Debug for Cann {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cann").field("origins", &self.0.groups.origins).finish_non_exhaustive()
    }
}

impl Cann {
    /// Opens the libraries and initialises CANN, if nobody in this process has.
    ///
    /// # Errors
    /// [`AscendError::NotFound`] without a runtime library, [`AscendError::Broken`] if it is there and cannot be opened, or what
    /// `aclInit` says.
    pub fn open(options: &OpenOptions) -> Result<Self> {
        let (groups, attempts) = load(options);
        let Some(groups) = groups else {
            let runtime = || attempts.iter().filter(|attempt| attempt.library == RUNTIME);
            let broken = runtime().find_map(|attempt| match &attempt.outcome {
                Outcome::Broken(reason) => Some((attempt.place.clone(), reason.clone())),
                _ => None,
            });
            return Err(match broken {
                Some((place, reason)) => {
                    AscendError::Broken { library: format!("{RUNTIME} ({place})"), reason }
                }
                None => {
                    let tried: Vec<&str> = runtime().map(|attempt| attempt.place.as_str()).collect();
                    AscendError::NotFound { library: RUNTIME, tried: tried.join(", ") }
                }
            });
        };
        // Not to be finalised before it is initialised.
        let mut opened = Opened { groups, options: options.clone(), closed: true };
        opened.initialise()?;
        opened.closed = false;
        Ok(Self(Arc::new(opened)))
    }

    /// Whether a function is there and may be used.
    #[must_use]
    pub fn has(&self, symbol: &str) -> bool {
        self.symbols().iter().any(|(_, name, present)| *name == symbol && *present)
    }

    /// All functions that this crate can call: group, name, and whether it is there and may be used.
    #[must_use]
    pub fn symbols(&self) -> Vec<(&'static str, &'static str, bool)> {
        let groups = &self.0.groups;
        let mut all = Vec::new();
        let mut add = |group, symbols: Vec<(&'static str, bool)>| {
            all.extend(
                symbols.into_iter().map(|(name, there)| (group, name, there && self.0.options.allows(name))),
            );
        };
        add("runtime", groups.runtime.symbols());
        groups.objects.iter().for_each(|group| add("objects", group.symbols()));
        groups.operators.iter().for_each(|group| add("operators", group.symbols()));
        groups.attention.iter().for_each(|group| add("attention", group.symbols()));
        all
    }

    /// Groups of functions with the library and the place each was loaded from.
    #[must_use]
    pub fn origins(&self) -> Vec<(&'static str, &'static str, String)> {
        self.0.groups.origins.clone()
    }

    /// How many devices there are.
    ///
    /// # Errors
    /// What `aclrtGetDeviceCount` says.
    pub fn device_count(&self) -> Result<u32> {
        let mut count = 0;
        // SAFETY: the pointer is for this number.
        unsafe { acl!(self, runtime, aclrtGetDeviceCount(&mut count)) }?;
        Ok(count)
    }

    /// The name of the chip, as `Ascend910B3`; none where no device is set, or the runtime does not say.
    #[must_use]
    pub fn soc_name(&self) -> Option<String> {
        let function = symbol!(self, runtime, aclrtGetSocName).ok()?;
        // SAFETY: the function takes nothing.
        let text = unsafe { function() };
        // SAFETY: null, or a text of CANN that stays.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// The version of the runtime's interface.
    ///
    /// # Errors
    /// What `aclrtGetVersion` says.
    pub fn runtime_version(&self) -> Result<(i32, i32, i32)> {
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        // SAFETY: the pointers are for these numbers.
        unsafe { acl!(self, runtime, aclrtGetVersion(&mut major, &mut minor, &mut patch)) }?;
        Ok((major, minor, patch))
    }

    /// The version of an installed package, as `runtime` or `opp`.
    ///
    /// # Errors
    /// What `aclsysGetVersionStr` says.
    pub fn package_version(&self, package: &str) -> Result<String> {
        let mut name: Vec<u8> = package.bytes().filter(|&byte| byte != 0).chain([0]).collect();
        // Twice what the documents ask for.
        let mut text = vec![0_u8; 256];
        // SAFETY: a text with its zero byte, and a buffer of more than 128 bytes.
        unsafe {
            acl!(self, runtime, aclsysGetVersionStr(name.as_mut_ptr().cast(), text.as_mut_ptr().cast()))
        }?;
        let text = CStr::from_bytes_until_nul(&text).map(|text| text.to_string_lossy().into_owned());
        Ok(text.unwrap_or_default())
    }

    /// Ends CANN if nobody else uses it, and says if that fails; dropping the last clone does the same in silence.
    ///
    /// # Errors
    /// [`AscendError::InUse`] while clones or devices are alive, or what `aclFinalize` says.
    pub fn close(self) -> Result<()> {
        match Arc::try_unwrap(self.0) {
            Ok(mut opened) => opened.finalise(),
            Err(shared) => Err(AscendError::InUse { what: "CANN", users: Arc::strong_count(&shared) - 1 }),
        }
    }

    pub(crate) fn groups(&self) -> &Groups {
        &self.0.groups
    }
    pub(crate) fn allows(&self, symbol: &str) -> bool {
        self.0.options.allows(symbol)
    }
    /// Runs something with the count of contexts on each device, of all that opened these libraries.
    pub(crate) fn with_devices<R>(
        &self,
        run: impl FnOnce(&mut BTreeMap<i32, usize>) -> Result<R>,
    ) -> Result<R> {
        let key = self.0.key()?;
        run(&mut locked(&INITIALISED).entry(key).or_default().devices)
    }
    pub(crate) fn missing(&self, symbol: &'static str) -> AscendError {
        self.0.missing(symbol)
    }
    pub(crate) fn check(&self, call: &'static str, code: i32) -> Result<()> {
        self.0.check(call, code)
    }
}

impl Opened {
    fn groups(&self) -> &Groups {
        &self.groups
    }
    fn allows(&self, symbol: &str) -> bool {
        self.options.allows(symbol)
    }

    fn missing(&self, symbol: &'static str) -> AscendError {
        let libraries: Vec<&str> = self.groups.origins.iter().map(|(_, library, _)| *library).collect();
        AscendError::Missing { symbol, library: libraries.join(", ") }
    }

    /// An error with the message that CANN left on this thread.
    fn check(&self, call: &'static str, code: i32) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut message = String::new();
        if let Ok(recent) = symbol!(self, runtime, aclGetRecentErrMsg) {
            // SAFETY: the function takes nothing.
            let text = unsafe { recent() };
            if !text.is_null() {
                // SAFETY: a text of CANN that stays until the next message of this thread.
                message = unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned();
            }
        }
        if message.is_empty() {
            message.push_str("no message was left");
        }
        Err(AscendError::Cann { call, code, meaning: meaning(code), message })
    }

    fn key(&self) -> Result<usize> {
        Ok(symbol!(self, runtime, aclInit)? as *const () as usize)
    }

    fn initialise(&self) -> Result<()> {
        let mut uses = locked(&INITIALISED);
        let uses = uses.entry(self.key()?).or_default();
        if uses.count == 0 {
            // SAFETY: no configuration is given, which is allowed.
            let ended = unsafe { acl!(self, runtime, aclInit(std::ptr::null())) };
            let repeated = ACL_ERROR_REPEAT_INITIALIZE.cast_signed();
            uses.ours = match ended {
                Ok(()) => true,
                // Another part of this process did it, and will end it.
                Err(AscendError::Cann { code, .. }) if code == repeated => false,
                Err(error) => return Err(error),
            };
        }
        uses.count += 1;
        Ok(())
    }

    fn finalise(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let mut all = locked(&INITIALISED);
        let key = self.key()?;
        let Some(uses) = all.get_mut(&key) else { return Ok(()) };
        uses.count -= 1;
        if uses.count > 0 {
            return Ok(());
        }
        let ours = uses.ours;
        all.remove(&key);
        if !ours {
            return Ok(());
        }
        // SAFETY: everything of this crate that CANN knows of holds an `Arc` to what is dropped here, and is gone.
        unsafe { acl!(self, runtime, aclFinalize()) }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Nobody is left to hear of it; `Cann::close` tells.
        let _ = self.finalise();
    }
}
