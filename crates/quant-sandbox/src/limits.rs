//! What a program may use, and what became of it.

use std::time::Duration;

/// What one program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Time on the wall, the start of the sandbox (some hundredths of a second) included.
    pub wall: Duration,
    /// Time on the processor of each process, rounded up to whole seconds.
    pub cpu: Duration,
    /// Address space of each process in bytes, and resident memory of all its processes together, which is looked at every 20 ms;
    /// pages that several share count for each.
    pub memory: u64,
    /// Processes and threads at a time, the program itself included.
    pub processes: u32,
    /// Bytes of stdout that are kept, and of stderr; a program that writes more to stdout is stopped, more of stderr is dropped.
    pub output: u64,
    /// Bytes of `/tmp`, the only place that can be written.
    pub scratch: u64,
}

impl Default for Limits {
    /// Ten seconds, 1 GiB, 16 processes, 16 MiB of output and 16 MiB of files.
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(10),
            cpu: Duration::from_secs(10),
            memory: 1 << 30,
            processes: 16,
            output: 16 << 20,
            scratch: 16 << 20,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// With an exit code.
    Exited(u8),
    /// By a signal, or with an exit code above 128, which shells and bubblewrap use for it.
    Signalled(u8),
    /// It was stopped at its time on the wall or on the processor.
    TimedOut,
    /// It was stopped as it wrote too much.
    OutputCapped,
    /// It had no more memory: its processes together held too much, or Python says so (`MemoryError` in its last line).
    OutOfMemory,
}

/// What a program left.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Run {
    /// What it wrote, up to the limit.
    pub stdout: Vec<u8>,
    /// What it complained, up to the limit.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub status: Status,
}
