//! Observers: what a static quantiser learns about a tensor's range during calibration.

use crate::activation::static_params;
use crate::range::{all_finite, range_with_zero};
use crate::{ActRule, Bits, FloatType, QParams};
use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Which range a static quantiser takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObserverKind {
    /// Minimum and maximum over all calibration tokens.
    Minmax,
    /// The 99.99th percentile of `|x|` over all values, cutting both ends.
    Percentile,
    /// The shrink factor from 1.0 down to 0.5 (100 steps) with the least squared error over all values.
    Mse,
}

/// Fraction of `|x|` kept by [`ObserverKind::Percentile`].
const PERCENTILE: f64 = 0.9999;
/// Low bits of an f32 that the histogram rounds away; 10 bits of the mantissa stay, as many as an f16 has.
const ROUNDED: u32 = 13;
/// Sign, exponent and what is left of the mantissa.
const BINS: usize = 1 << (32 - ROUNDED);

/// Collects the range of one tensor, batch by batch.
///
/// What is kept does not depend on the order of values, on how tokens are divided into batches, or on threads: the extremes,
/// and for [`ObserverKind::Percentile`] and [`ObserverKind::Mse`] a count of *all* values by their 11 significant bits. No
/// value is left out, so no channel is. Values that f16 or bf16 can hold are counted as they are, others within one part
/// in 2048.
///
/// A NaN or an infinity makes the extremes NaN, and with them all parameters: a collapsed activation never becomes a range.
#[derive(Clone, Debug)]
pub struct Observer {
    kind: ObserverKind,
    min: f32,
    max: f32,
    /// Values by the upper bits of their rounded representation, `[BINS]`; empty where only the extremes count. 4 MiB of
    /// address space, of which the exponents that occur are touched.
    counts: Vec<u64>,
}

impl Observer {
    /// An observer that has seen nothing; zero is always inside its range.
    #[must_use]
    pub fn new(kind: ObserverKind) -> Self {
        let bins = if kind == ObserverKind::Minmax { 0 } else { BINS };
        Self { kind, min: 0.0, max: 0.0, counts: vec![0; bins] }
    }

    /// Which range it finds.
    #[must_use]
    pub fn kind(&self) -> ObserverKind {
        self.kind
    }

    /// Takes in what another observer of the same kind has seen: the same as if this one had.
    ///
    /// # Panics
    /// If it is of another kind.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.kind, other.kind, "observers of one kind");
        self.widen(other.min, other.max);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The range with these in it. A NaN comes in and stays: no comparison with it holds.
    #[inline(always)]
    fn widen(&mut self, min: f32, max: f32) {
        if min < self.min || min.is_nan() {
            self.min = min;
        }
        if max > self.max || max.is_nan() {
            self.max = max;
        }
    }

    /// Takes in a batch `[tokens, features]`.
    #[inline(always)]
    pub fn observe(&mut self, x: ArrayView2<'_, f32>) {
        for row in x.rows() {
            let row = row.to_slice().map_or_else(|| Cow::Owned(row.to_vec()), Cow::Borrowed);
            let (min, max) = if all_finite(&row) { range_with_zero(&row) } else { (f32::NAN, f32::NAN) };
            self.widen(min, max);
            if self.kind != ObserverKind::Minmax {
                for &v in row.iter() {
                    self.counts[bin(v)] += 1;
                }
            }
        }
    }

    /// `(min, max)` seen, zero included; NaN if any value was not finite.
    #[must_use]
    pub fn extremes(&self) -> (f32, f32) {
        (self.min, self.max)
    }

    /// The parameters of a static per-tensor quantiser, the scale rounded to `scale_type` before anything uses it.
    ///
    /// The scale is NaN if any value was not finite, infinite if the range does not fit `scale_type`.
    #[must_use]
    pub fn params(&self, bits: Bits, rule: ActRule, scale_type: FloatType) -> QParams {
        let (min, max) = (self.min, self.max);
        match self.kind {
            ObserverKind::Percentile if !min.is_nan() => {
                let bound = self.percentile();
                static_params(bits, rule, scale_type, min.max(-bound), max.min(bound))
            }
            ObserverKind::Mse => self.least_squares(bits, rule, scale_type),
            _ => static_params(bits, rule, scale_type, min, max),
        }
    }

    /// The least bound that [`PERCENTILE`] of all `|x|` do not exceed, one part in 2048 above or below.
    fn percentile(&self) -> f32 {
        let (positive, negative) = self.counts.split_at(BINS / 2);
        let total: u64 = self.counts.iter().sum();
        let cut = total - (PERCENTILE * total as f64).ceil() as u64;
        let mut above = 0;
        for bin in (0..BINS / 2).rev() {
            above += positive[bin] + negative[bin];
            if above > cut {
                return value(bin);
            }
        }
        0.0
    }

    /// The first of 100 shrink factors from 1 to 1/2 with the least summed squared error over all values.
    fn least_squares(&self, bits: Bits, rule: ActRule, scale_type: FloatType) -> QParams {
        let top = bits.max_level();
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let occurring: Vec<(f32, u64)> = counts.map(|(bin, &count)| (value(bin), count)).collect();
        let mut best = static_params(bits, rule, scale_type, self.min, self.max);
        let mut best_error = f64::INFINITY;
        for step in 0..100 {
            let p = 1.0 - 0.5 * (step as f32) / 99.0;
            let candidate = static_params(bits, rule, scale_type, self.min * p, self.max * p);
            let error = occurring.iter().map(|&(x, count)| {
                let level = (x / candidate.scale + candidate.zero).round_ties_even().clamp(0.0, top);
                count as f64 * f64::from(candidate.value(level) - x).powi(2)
            });
            let error: f64 = error.sum();
            if error < best_error {
                best_error = error;
                best = candidate;
            }
        }
        best
    }
}

/// The histogram bin of a number: its representation rounded to a sign, an exponent and 10 bits of mantissa.
#[inline(always)]
fn bin(x: f32) -> usize {
    (x.to_bits().wrapping_add(1 << (ROUNDED - 1)) >> ROUNDED) as usize
}

/// The number a bin stands for. Rounding the largest numbers up would leave the finite ones.
#[inline(always)]
fn value(bin: usize) -> f32 {
    f32::from_bits((bin as u32) << ROUNDED).clamp(-f32::MAX, f32::MAX)
}
