//! The most a machine does.

use super::best;
use quant_kernels::{
    IntegerLevel, Level, Par, float_peak_operations, integer_peak_operations, tasks, vectorized,
};
use serde::Serialize;
use std::hint::black_box;

/// Rates that no kernel exceeds, on as many threads as the kernels have; but operands that lie in a cache are read faster than memory is.
#[derive(Clone, Debug, Serialize)]
pub struct Peaks {
    /// Threads.
    pub threads: usize,
    /// Multiply-adds of f32 in registers, GFLOP/s.
    pub float: f64,
    /// Instructions of the float kernels.
    pub float_level: String,
    /// Sums of products of bytes in registers, GOP/s; none where the level has no such instruction.
    pub integer: Option<f64>,
    /// Instructions of the integer kernels.
    pub integer_level: String,
    /// Reading memory that no cache holds, GB/s.
    pub reading: f64,
    /// Copying an f32 tensor of 2048 x 1536, GB/s of what is read.
    pub copying: f64,
}

/// Beyond every cache.
const READ_BYTES: usize = 1 << 30;

impl Peaks {
    /// Measures them.
    #[must_use]
    pub fn measure(par: Par) -> Self {
        let threads = par.threads();
        let everywhere = |work: &(dyn Fn() + Sync)| best(|| tasks::for_each(0..threads, par, |_| work()));
        let steps = 1_000_000;
        let float_operations = float_peak_operations(1) * steps as u64 * threads as u64;
        let float = everywhere(&|| {
            black_box(float_peak_operations(steps));
        });
        let operations = integer_peak_operations(IntegerLevel::detect(), steps);
        let integer = operations.map(|operations| {
            let seconds = everywhere(&|| {
                black_box(integer_peak_operations(IntegerLevel::detect(), steps));
            });
            (operations * threads as u64) as f64 / seconds / 1e9
        });
        let plain: Vec<u64> = vec![1; READ_BYTES / size_of::<u64>()];
        let reading = best(|| {
            let parts = plain.chunks(plain.len().div_ceil(8 * threads));
            black_box(tasks::map(parts, par, |part| {
                vectorized(
                    #[inline(always)]
                    || part.iter().fold(0_u64, |sum, &x| sum.wrapping_add(x)),
                )
            }));
        });
        drop(plain);
        let x = vec![1.0_f32; 2048 * 1536];
        let mut copy = vec![0.0_f32; x.len()];
        let copying = best(|| {
            let part = x.len().div_ceil(threads);
            tasks::for_each(copy.chunks_mut(part).zip(x.chunks(part)), par, |(to, from)| {
                to.copy_from_slice(from);
            });
            black_box(&copy);
        });
        Self {
            threads,
            float: float_operations as f64 / float / 1e9,
            float_level: Level::detect().to_string(),
            integer,
            integer_level: IntegerLevel::detect().to_string(),
            reading: READ_BYTES as f64 / reading / 1e9,
            copying: size_of_val(&*x) as f64 / copying / 1e9,
        }
    }
}
