//! What a sandbox is made of.

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
