//! Rotary position embedding: inverse frequencies under every scaling, and tables of cosines and sines.

use ndarray::{Array2, ArrayView2};
use quant_core::Real;
use quant_core::elementary::{self, ln, pow_f32};
use quant_graph::{ModelSpec, RopeScaling, RopeSpec};
use quant_kernels::views;
use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::PI;

/// Inverse frequencies `f_i`, `i < d / 2`, and the factor on cosines and sines; `d` is the rotated width of a head
/// ([`RopeSpec::rotary_width`]).
///
/// Base frequencies are `theta^(-2i/d)` (Su et al. 2021). `positions` is the length of the sequence:
/// [`RopeScaling::Dynamic`] depends on it beyond `max_position_embeddings`, and [`RopeScaling::LongRope`] on whether it
/// is beyond the context before scaling.
///
/// - linear: `f / factor` (Chen et al. 2023);
/// - dynamic: `theta' = theta (factor · n / max − (factor − 1))^(d/(d−2))` for a length `n > max` (NTK-aware);
/// - llama3: with wavelength `w = 2π/f`, `f` if `w < L/high`, `f/factor` if `w > L/low`, else
///   `(1−t) f/factor + t f`, `t = (L/w − low)/(high − low)`;
/// - yarn: `f/factor · r + f (1 − r)` with the ramp `r` between the dimensions that turn `beta_fast` and `beta_slow`
///   times within the original context (Peng et al. 2023, equation 23);
/// - longrope: `f_i / factor_i`, with the short or the long factors (Ding et al. 2024).
///
/// Every step is rounded to f32, in the order of transformers' `modeling_rope_utils`, because a model is served with those
/// frequencies: the relative error of 6e-8 is an angle of 0.004 at position 65536. Only the powers go through f64, so that
/// each is the f32 nearest to the true one. Numbers that Python computes before a tensor is met stay f64.
#[must_use]
pub fn inverse_frequencies(
    rope: &RopeSpec,
    head_dim: usize,
    max_position_embeddings: usize,
    positions: usize,
) -> (Vec<f32>, f32) {
    let width = rope.rotary_width(head_dim);
    // theta^(2i/d); its reciprocal is the base frequency.
    let powers = |theta: f32| (0..width / 2).map(move |i| pow_f32(theta, (2 * i) as f32 / width as f32));
    let base = |theta: f32| powers(theta).map(f32::recip);
    let theta = rope.theta as f32;
    match &rope.scaling {
        RopeScaling::Default => (base(theta).collect(), 1.0),
        &RopeScaling::Linear { factor } => (base(theta).map(|f| f / factor as f32).collect(), 1.0),
        &RopeScaling::Dynamic { factor } => {
            let theta = match positions > max_position_embeddings {
                true => dynamic_theta(theta, factor, width, max_position_embeddings, positions),
                false => theta,
            };
            (base(theta).collect(), 1.0)
        }
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            let scale = |f: f32| {
                // Torch divides a number by a tensor as the reciprocal times the number.
                let wavelength = f.recip() * (2.0 * PI) as f32;
                if wavelength < (original / high) as f32 {
                    f
                } else if wavelength > (original / low) as f32 {
                    f / factor as f32
                } else {
                    let t = (wavelength.recip() * original as f32 - low as f32) / (high - low) as f32;
                    (1.0 - t) * f / factor as f32 + t * f
                }
            };
            (base(theta).map(scale).collect(), 1.0)
        }
        &RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate,
            original_max_position_embeddings: original,
        } => {
            let dim = width as f64;
            // The dimension that turns `rotations` times within the original context.
            let dimension =
                |rotations: f64| dim * ln(original / (rotations * 2.0 * PI)) / (2.0 * ln(rope.theta));
            let (low, high) = (dimension(beta_fast), dimension(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(dim - 1.0));
            // An empty ramp becomes a step.
            let high = if low == high { high + 0.001 } else { high };
            let scaled = powers(theta).enumerate().map(|(i, power)| {
                let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let kept = 1.0 - ramp;
                (factor as f32 * power).recip() * (1.0 - kept) + power.recip() * kept
            });
            (scaled.collect(), attention_factor as f32)
        }
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            attention_factor,
            original_max_position_embeddings: original,
        } => {
            let factors = if positions > longest_short(*original) { long_factor } else { short_factor };
            let scaled = powers(theta).zip(factors).map(|(power, &factor)| (factor as f32 * power).recip());
            (scaled.collect(), *attention_factor as f32)
        }
    }
}

/// The longest sequence that takes the short factors of longrope.
fn longest_short(original_max_position_embeddings: f64) -> usize {
    original_max_position_embeddings as usize
}

/// The base for a sequence longer than the model's context. The length is a tensor in transformers, so all steps are f32.
fn dynamic_theta(theta: f32, factor: f64, width: usize, max: usize, positions: usize) -> f32 {
    // A width of two has the single frequency 1, whatever the base.
    if width <= 2 {
        return theta;
    }
    let dim = width as f64;
    let stretch = factor as f32 * positions as f32 / max.max(1) as f32 - (factor - 1.0) as f32;
    theta * pow_f32(stretch, (dim / (dim - 2.0)) as f32)
}

/// Cosines and sines of every position, `[positions, rotary width / 2]` each.
///
/// Formed as transformers forms them, in f32 whatever `T` is: the angle is position times frequency, rounded to f32; its
/// cosine and sine are rounded to f32, and multiplied by the factor in f32. The f64 block is the same model in wider
/// arithmetic, so it rotates by the same angles. (Angles of wider arithmetic differ from these by half an ulp, 0.004 at
/// position 131072, which is more than all other f32 errors of a forward pass.)
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable<T> {
    cos: Array2<T>,
    sin: Array2<T>,
}

impl<T: Real> RopeTable<T> {
    /// The table for a sequence of `positions` tokens.
    #[must_use]
    pub fn new(rope: &RopeSpec, head_dim: usize, max_position_embeddings: usize, positions: usize) -> Self {
        let (frequencies, factor) = inverse_frequencies(rope, head_dim, max_position_embeddings, positions);
        Self::from_frequencies(&frequencies, factor, positions)
    }
    /// The table of given inverse frequencies, with a `factor` on cosines and sines.
    #[must_use]
    pub fn from_frequencies(frequencies: &[f32], factor: f32, positions: usize) -> Self {
        let table = |turn: fn(f64) -> f64| {
            Array2::from_shape_fn((positions, frequencies.len()), |(position, i)| {
                let angle = position as f32 * frequencies[i];
                T::from_f32(turn(f64::from(angle)) as f32 * factor)
            })
        };
        Self { cos: table(elementary::cos), sin: table(elementary::sin) }
    }
    /// Number of positions.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.nrows()
    }
    /// Cosines of positions `start..start + tokens`, `[tokens, rotary width / 2]`.
    ///
    /// # Panics
    /// If the table is shorter.
    #[must_use]
    pub fn cos(&self, start: usize, tokens: usize) -> ArrayView2<'_, T> {
        views::rows(self.cos.view(), start..start + tokens)
    }
    /// Sines of positions `start..start + tokens`, `[tokens, rotary width / 2]`.
    ///
    /// # Panics
    /// If the table is shorter.
    #[must_use]
    pub fn sin(&self, start: usize, tokens: usize) -> ArrayView2<'_, T> {
        views::rows(self.sin.view(), start..start + tokens)
    }
}

/// The tables of sequences that each begin at position 0: one for all lengths, unless frequencies depend on the length.
#[derive(Clone, Debug)]
pub struct RopeTables {
    /// Serves every length up to `limit`.
    shared: RopeTable<f32>,
    limit: usize,
    /// By the longest length that each serves, for lengths beyond `limit`.
    beyond: BTreeMap<usize, RopeTable<f32>>,
}

impl RopeTables {
    /// The tables for sequences of these lengths.
    #[must_use]
    pub fn new(spec: &ModelSpec, lengths: impl IntoIterator<Item = usize>) -> Self {
        let Division { limit, shared, beyond } = Division::new(spec, lengths);
        let build = |length| RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, length);
        let beyond = beyond.into_iter().map(|length| (length, build(length))).collect();
        Self { shared: build(shared), limit, beyond }
    }
    /// Bytes of the tables that [`Self::new`] makes.
    #[must_use]
    pub fn bytes(spec: &ModelSpec, lengths: impl IntoIterator<Item = usize>) -> usize {
        let Division { shared, beyond, .. } = Division::new(spec, lengths);
        let positions = shared + beyond.into_iter().sum::<usize>();
        // Cosines and sines of half the rotated width.
        positions * (spec.rope.rotary_width(spec.head_dim) / 2) * 2 * size_of::<f32>()
    }
    /// The table of a sequence of `length` tokens, one of the lengths given to [`Self::new`].
    #[must_use]
    pub fn table(&self, length: usize) -> &RopeTable<f32> {
        if length <= self.limit {
            return &self.shared;
        }
        self.beyond.range(length..).next().map_or(&self.shared, |(_, table)| table)
    }
}

/// Which lengths have tables of their own.
struct Division {
    /// Up to here frequencies do not depend on the length.
    limit: usize,
    /// The longest length that the shared table serves.
    shared: usize,
    /// The longest length of each other table.
    beyond: BTreeSet<usize>,
}

impl Division {
    fn new(spec: &ModelSpec, lengths: impl IntoIterator<Item = usize>) -> Self {
        let (limit, each) = match spec.rope.scaling {
            RopeScaling::Dynamic { .. } => (spec.max_position_embeddings, true),
            RopeScaling::LongRope { original_max_position_embeddings: original, .. } => {
                (longest_short(original), false)
            }
            _ => (usize::MAX, false),
        };
        let (mut shared, mut beyond) = (0, BTreeSet::new());
        for length in lengths {
            if length <= limit {
                shared = shared.max(length);
            } else {
                beyond.insert(length);
            }
        }
        if !each {
            beyond = beyond.pop_last().into_iter().collect();
        }
        Self { limit, shared, beyond }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> RopeSpec {
        RopeSpec { theta: 10_000.0, scaling, rotary_dim: None }
    }

    fn frequencies(scaling: RopeScaling, positions: usize) -> Vec<f32> {
        inverse_frequencies(&rope(scaling), 64, 1024, positions).0
    }

    #[test]
    fn default_and_linear() {
        let plain = frequencies(RopeScaling::Default, 10);
        assert_eq!(plain.len(), 32);
        assert_eq!((plain[0], plain[16]), (1.0, 0.01));
        for (a, b) in plain.iter().zip(frequencies(RopeScaling::Linear { factor: 4.0 }, 10)) {
            assert_eq!(a / 4.0, b);
        }
    }

    #[test]
    fn dynamic_is_default_up_to_the_declared_length() {
        let scaling = RopeScaling::Dynamic { factor: 2.0 };
        assert_eq!(frequencies(scaling.clone(), 1024), frequencies(RopeScaling::Default, 0));
        let longer = frequencies(scaling, 2048);
        // base' = base (2·2 − 1)^(64/62)
        let theta = 10_000.0 * 3.0_f64.powf(64.0 / 62.0);
        assert!((f64::from(longer[1]) * theta.powf(2.0 / 64.0) - 1.0).abs() < 1.5e-7);
    }

    #[test]
    fn llama3_keeps_short_waves_and_divides_long_ones() {
        let scaled = frequencies(
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 1024.0,
            },
            10,
        );
        let plain = frequencies(RopeScaling::Default, 10);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 8.0);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| *s <= *p && *s >= p / 8.0));
        assert!(scaled.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn yarn_ramps_between_the_betas() {
        let (scaled, factor) = inverse_frequencies(
            &rope(RopeScaling::Yarn {
                factor: 4.0,
                attention_factor: 1.25,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true,
                original_max_position_embeddings: 1024.0,
            }),
            64,
            4096,
            10,
        );
        let plain = frequencies(RopeScaling::Default, 10);
        assert_eq!(factor, 1.25);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 4.0);
    }

    #[test]
    fn longrope_divides_by_the_factors_of_the_length() {
        let scaling = RopeScaling::LongRope {
            short_factor: vec![2.0; 32],
            long_factor: vec![8.0; 32],
            attention_factor: 1.5,
            original_max_position_embeddings: 100.0,
        };
        let plain = frequencies(RopeScaling::Default, 10);
        for (positions, divisor) in [(1, 2.0), (100, 2.0), (101, 8.0), (5000, 8.0)] {
            let (scaled, factor) = inverse_frequencies(&rope(scaling.clone()), 64, 1024, positions);
            assert_eq!(factor, 1.5);
            assert!(scaled.iter().zip(&plain).all(|(s, p)| *s == p / divisor), "{positions}");
        }
    }

    #[test]
    fn part_of_a_head_has_the_frequencies_of_a_head_of_its_width() {
        let partial = |width| RopeSpec { rotary_dim: Some(width), ..rope(RopeScaling::Default) };
        let (part, _) = inverse_frequencies(&partial(48), 64, 1024, 10);
        let (whole, _) = inverse_frequencies(&rope(RopeScaling::Default), 48, 1024, 10);
        assert_eq!(part, whole);
        assert_eq!(RopeTable::<f32>::new(&partial(48), 64, 1024, 10).cos(0, 10).dim(), (10, 24));
    }

    #[test]
    fn the_f64_table_is_the_widened_f32_table() {
        let rope = RopeSpec { theta: 1e6, ..rope(RopeScaling::Default) };
        let narrow = RopeTable::<f32>::new(&rope, 16, 131_072, 131_072);
        let wide = RopeTable::<f64>::new(&rope, 16, 131_072, 131_072);
        assert!(narrow.cos.iter().zip(&wide.cos).all(|(n, w)| f64::from(*n) == *w));
        assert!(narrow.sin.iter().zip(&wide.sin).all(|(n, w)| f64::from(*n) == *w));
    }
}
