//! Work that keeps nothing but the multipliers of a core busy.

use std::hint::black_box;

use pulp::{Simd, WithSimd};

/// Multiply-adds of f32 in registers, `steps` of each of 12 independent chains; gives how many operations that was (a product and its
/// addition are two): whoever times it has the peak of a core.
///
/// ```
/// let start = std::time::Instant::now();
/// let operations = quant_kernels::float_peak_operations(100_000);
/// println!("{:.0} GFLOP/s", operations as f64 / start.elapsed().as_secs_f64() / 1e9);
/// ```
#[must_use]
pub fn float_peak_operations(steps: usize) -> u64 {
    let lanes = pulp::Arch::new().dispatch(Chains { steps });
    2 * (CHAINS * steps * lanes) as u64
}

/// Enough to hide the latency of a multiply-add, and with two constants as few as sixteen registers hold.
const CHAINS: usize = 12;

struct Chains {
    steps: usize,
}

impl WithSimd for Chains {
    type Output = usize;

    /// Runs the chains and gives the number of lanes of a register.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        let (factor, summand) = (simd.splat_f32s(black_box(0.999_9)), simd.splat_f32s(black_box(1e-4)));
        let mut sums = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..self.steps {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, summand);
            }
        }
        black_box(sums);
        S::F32_LANES
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn operations_are_counted_by_whole_registers() {
        let operations = super::float_peak_operations(10);
        assert!(operations >= 2 * 12 * 10 && operations.is_multiple_of(2 * 12 * 10), "{operations}");
    }
}
