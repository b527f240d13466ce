//! Finding a sandbox, and believing in it.

use crate::error::SandboxError;
use crate::interpreter::{Interpreter, in_path};
use crate::probe::probe;
use crate::sandbox::Sandbox;
use std::path::PathBuf;

/// Which programs the sandbox is made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SandboxOptions {
    /// The interpreter; none takes the first of `python3` in `PATH` and `/usr/bin/python3` that runs in the sandbox. It must lie where
    /// an unprivileged user can read it.
    pub python: Option<PathBuf>,
    /// Bubblewrap, 0.8 or newer, by its path or its name in `PATH`.
    pub bwrap: PathBuf,
    /// `setpriv` of util-linux; for root only.
    pub setpriv: PathBuf,
    /// Root becomes this user and the 99 behind it, in turns. They should own nothing.
    pub first_user: u32,
}

impl Default for SandboxOptions {
    /// `bwrap`, `setpriv`, users 64000 to 64099.
    fn default() -> Self {
        Self { python: None, bwrap: "bwrap".into(), setpriv: "setpriv".into(), first_user: 64_000 }
    }
}

impl Sandbox {
    /// Finds what a sandbox is made of and tries each of its walls once, from inside.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Unavailable`] with the part that is missing, or the wall that does not hold.
    pub fn find(options: &SandboxOptions) -> Result<Self, SandboxError> {
        let missing = |what: &str, why: &str, advice: &str| SandboxError::Unavailable {
            what: what.to_owned(),
            why: why.to_owned(),
            advice: advice.to_owned(),
        };
        let bwrap = in_path(&options.bwrap).ok_or_else(|| {
            let why = format!("{} is not there", options.bwrap.display());
            missing("bubblewrap", &why, "install version 0.8 or newer (Debian: apt-get install bubblewrap)")
        })?;
        let drop_to = if rustix::process::geteuid().is_root() {
            let setpriv = in_path(&options.setpriv).ok_or_else(|| {
                let why = format!("root needs it, and {} is not there", options.setpriv.display());
                missing("setpriv", &why, "install util-linux, or run as another user")
            })?;
            Some((setpriv, options.first_user))
        } else {
            None
        };
        let candidates = match &options.python {
            Some(python) => vec![python.clone()],
            None => vec!["python3".into(), "/usr/bin/python3".into()],
        };
        let mut reasons = Vec::new();
        for candidate in candidates {
            let shown = candidate.display().to_string();
            let Some(python) = in_path(&candidate) else {
                reasons.push(format!("{shown} is not there"));
                continue;
            };
            let interpreter = match Interpreter::locate(&python) {
                Ok(interpreter) => interpreter,
                Err(reason) => {
                    reasons.push(reason);
                    continue;
                }
            };
            let sandbox = Self::of(interpreter, bwrap.clone(), drop_to.clone())?;
            match probe(&sandbox) {
                Ok(()) => return Ok(sandbox),
                Err(Ok(reason)) => reasons.push(format!("{shown}: {reason}")),
                Err(Err(wall)) => return Err(wall),
            }
        }
        Err(missing(
            "Python in bubblewrap",
            &reasons.join("; "),
            "an interpreter that every user can read (Debian: apt-get install python3), a kernel that lets users make namespaces \
             (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0) and bubblewrap 0.8 or newer",
        ))
    }
}
