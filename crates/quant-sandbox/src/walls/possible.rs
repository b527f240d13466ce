//! Which limits a program can run in.

use crate::error::SandboxError;
use crate::limits::Limits;

/// Refuses limits that nothing runs in.
pub(crate) fn check(limits: &Limits) -> Result<(), SandboxError> {
    let refused = |name, value: String, expected| Err(SandboxError::Limit { name, value, expected });
    if limits.wall.is_zero() {
        return refused("wall", "0".to_owned(), "a time above zero");
    }
    if limits.cpu.is_zero() {
        return refused("cpu", "0".to_owned(), "a time above zero");
    }
    // An interpreter alone takes some tens of MiB.
    if !(64 << 20..=1 << 46).contains(&limits.memory) {
        return refused("memory", limits.memory.to_string(), "64 MiB to 64 TiB");
    }
    if !(1..=32_768).contains(&limits.processes) {
        return refused("processes", limits.processes.to_string(), "1 to 32768");
    }
    // The program itself lies there.
    if !(64 << 10..=1 << 46).contains(&limits.scratch) {
        return refused("scratch", limits.scratch.to_string(), "64 KiB to 64 TiB");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn limits_that_nothing_runs_in_are_refused() {
        let refused = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            assert!(check(&limits).is_ok());
            change(&mut limits);
            check(&limits).unwrap_err().to_string()
        };
        assert_eq!(refused(|l| l.wall = Duration::ZERO), "wall is 0, expected a time above zero");
        assert_eq!(refused(|l| l.cpu = Duration::ZERO), "cpu is 0, expected a time above zero");
        assert_eq!(refused(|l| l.memory = 1), "memory is 1, expected 64 MiB to 64 TiB");
        assert_eq!(refused(|l| l.processes = 0), "processes is 0, expected 1 to 32768");
        assert_eq!(refused(|l| l.scratch = 0), "scratch is 0, expected 64 KiB to 64 TiB");
    }
}
