//! How long something takes, on a machine that others may use too.

use quant_core::Par;
use std::time::Instant;

/// Seconds of a call and what it gives: the running time of the calling thread where it works alone and the system tells, because
/// others may take its core meanwhile, and the time on the wall otherwise.
pub fn timed<R>(par: Par, work: impl FnOnce() -> R) -> (f64, R) {
    let (start, before) = (Instant::now(), thread_seconds());
    let result = work();
    let wall = start.elapsed().as_secs_f64();
    match (par, before, thread_seconds()) {
        (Par::Seq, Some(before), Some(after)) if after > before => (after - before, result),
        _ => (wall, result),
    }
}

/// Seconds the calling thread has run, where the system tells.
fn thread_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse::<f64>().ok().map(|nanoseconds| nanoseconds * 1e-9)
}
