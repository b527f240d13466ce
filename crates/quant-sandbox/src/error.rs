//! The one error type of this crate.

/// Why a program was not run, or tests could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// A wall that untrusted programs need cannot be had here. Nothing is run without it.
    #[error("no sandbox: {what}: {why}; {advice}")]
    Unavailable {
        /// Which part is missing.
        what: String,
        /// How that was seen.
        why: String,
        /// What to do.
        advice: String,
    },
    /// The sandbox was there, and then the system refused something.
    #[error("cannot {what}: {source}; the system may be short of processes or memory: run fewer at a time")]
    System {
        /// What was tried.
        what: &'static str,
        /// Reason given by the operating system.
        source: std::io::Error,
    },
    /// A limit that no program can be run in.
    #[error("{name} is {value}, expected {expected}")]
    Limit {
        /// The field of [`Limits`](crate::Limits).
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Tests that are not what they should be.
    #[error("{what}: expected {expected}, found {found}; is this a file of LiveCodeBench?")]
    Tests {
        /// Which of them.
        what: &'static str,
        /// What they should be.
        expected: String,
        /// What they are.
        found: String,
    },
}

impl SandboxError {
    /// Whether the sandbox, or a part of it, is missing on this machine.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
