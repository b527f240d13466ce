//! Ranges of runs of values, and where a gradient of an end of one goes.

use quant_core::elementary::exp;
use quant_kernels::Element;

/// Partial results kept side by side: fixed, so that sums do not depend on the machine.
pub(super) const LANES: usize = 16;

/// Runs of one task of a gradient.
pub(super) const TASK_RUNS: usize = 16;

/// The smallest and the largest value; a NaN is passed over. Infinities of the wrong sign for an empty run.
#[inline(always)]
pub(super) fn extremes<T: Element>(values: &[T]) -> (T, T) {
    let (mut low, mut high) = ([T::infinity(); LANES], [T::neg_infinity(); LANES]);
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            low[l] = if block[l] < low[l] { block[l] } else { low[l] };
            high[l] = if block[l] > high[l] { block[l] } else { high[l] };
        }
    }
    let lowest = low.iter().chain(rest).fold(T::infinity(), |a, &b| if b < a { b } else { a });
    let highest = high.iter().chain(rest).fold(T::neg_infinity(), |a, &b| if b > a { b } else { a });
    (lowest, highest)
}

/// Runs `work` on every value with its gradient and the lane its sums belong to.
#[inline(always)]
pub(super) fn for_lanes<T: Element>(
    values: &[T],
    gradient: &mut [T],
    mut work: impl FnMut(usize, T, &mut T),
) {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let (gradients, gradients_rest) = gradient.as_chunks_mut::<LANES>();
    // Of a fixed length, so that the compiler vectorises them.
    for (block, gradient) in blocks.iter().zip(gradients) {
        for l in 0..LANES {
            work(l, block[l], &mut gradient[l]);
        }
    }
    for ((l, &value), g) in rest.iter().enumerate().zip(gradients_rest) {
        work(l, value, g);
    }
}

/// The sum of lanes.
#[inline(always)]
pub(super) fn total<T: Element>(lanes: &[T; LANES]) -> T {
    lanes.iter().fold(T::zero(), |sum, &lane| sum + lane)
}

/// Adds to the gradient of the first element that has the value of an extreme.
#[inline(always)]
pub(super) fn add_where<T: Element>(values: &[T], extreme: T, gradient: &mut [T], amount: T) {
    if let Some(at) = values.iter().position(|&value| value == extreme) {
        gradient[at] += amount;
    }
}

/// The factor `sigmoid(c)` of one end of a range, and its derivative.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor<T> {
    pub(super) value: T,
    pub(super) slope: T,
}

impl<T: Element> Factor<T> {
    /// A range that is not clipped.
    pub(super) fn one() -> Self {
        Self { value: T::one(), slope: T::zero() }
    }

    pub(super) fn of_logit(c: T) -> Self {
        let value = 1.0 / (1.0 + exp(-c.to_f64_exact()));
        Self { value: T::from_f64(value), slope: T::from_f64(value * (1.0 - value)) }
    }
}
