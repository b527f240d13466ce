//! Independent tiles of rows on the caller's threads.

use quant_kernels::Par;
use rayon::prelude::*;

/// The results of `work(0)`, …, `work(count − 1)`, in that order, whoever computes them.
pub(super) fn map<R: Send>(par: Par, count: usize, work: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
    match par {
        Par::Seq => (0..count).map(work).collect(),
        // Tiles are long: one at a time, so that a slow thread delays nobody.
        Par::Threads(_) => (0..count).into_par_iter().with_max_len(1).map(work).collect(),
    }
}
