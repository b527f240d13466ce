//! What a program may use, and what became of it.

use crate::error::SandboxError;
use std::time::Duration;

/// What one program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Time on the wall, the start of the sandbox (some hundredths of a second) included.
    pub wall: Duration,
    /// Time on the processor of each process, rounded up to whole seconds.
    pub cpu: Duration,
    /// Address space of each process in bytes. Several processes may take it several times.
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

impl Limits {
    pub(crate) fn check(&self) -> Result<(), SandboxError> {
        let refused = |name, value: String, expected| Err(SandboxError::Limit { name, value, expected });
        if self.wall.is_zero() {
            return refused("wall", "0".to_owned(), "a time above zero");
        }
        if self.cpu.is_zero() {
            return refused("cpu", "0".to_owned(), "a time above zero");
        }
        // An interpreter alone takes some tens of MiB.
        if !(64 << 20..=1 << 46).contains(&self.memory) {
            return refused("memory", self.memory.to_string(), "64 MiB to 64 TiB");
        }
        if !(1..=32_768).contains(&self.processes) {
            return refused("processes", self.processes.to_string(), "1 to 32768");
        }
        // The program itself lies there.
        if !(64 << 10..=1 << 46).contains(&self.scratch) {
            return refused("scratch", self.scratch.to_string(), "64 KiB to 64 TiB");
        }
        Ok(())
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
    /// Python had no more memory (`MemoryError`, as its last line says).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_nothing_runs_in_are_refused() {
        let refused = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            assert!(limits.check().is_ok());
            change(&mut limits);
            limits.check().unwrap_err().to_string()
        };
        assert_eq!(refused(|l| l.wall = Duration::ZERO), "wall is 0, expected a time above zero");
        assert_eq!(refused(|l| l.cpu = Duration::ZERO), "cpu is 0, expected a time above zero");
        assert_eq!(refused(|l| l.memory = 1), "memory is 1, expected 64 MiB to 64 TiB");
        assert_eq!(refused(|l| l.processes = 0), "processes is 0, expected 1 to 32768");
        assert_eq!(refused(|l| l.scratch = 0), "scratch is 0, expected 64 KiB to 64 TiB");
    }
}
