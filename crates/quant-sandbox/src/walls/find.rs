//! Finding a sandbox, and believing in it.

use super::interpreter::{Interpreter, in_path};
use super::probe::probe;
use super::sandbox::Sandbox;
use super::tree::is_known;
use crate::error::SandboxError;
use crate::options::SandboxOptions;

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
        if !is_known() {
            let (why, advice) =
                ("/proc does not list the children of a process", "mount /proc, or use another kernel");
            return Err(missing("the sum of memory", why, advice));
        }
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
