//! Rotary position embedding: inverse frequencies under every scaling, and tables of cosines and sines.

use crate::views;
use ndarray::{Array2, ArrayView2};
use quant_core::Real;
use quant_graph::{RopeScaling, RopeSpec};
use std::f64::consts::PI;

/// Inverse frequencies `f_i`, `i < head_dim / 2`, and the factor on cosines and sines.
///
/// Base frequencies are `theta^(-2i/head_dim)` (Su et al. 2021). `positions` is the length of the sequence: only
/// [`RopeScaling::Dynamic`] depends on it, and only beyond `max_position_embeddings`.
///
/// - linear: `f / factor` (Chen et al. 2023);
/// - dynamic: `theta' = theta (factor · n / max − (factor − 1))^(d/(d−2))` for a length `n > max` (NTK-aware);
/// - llama3: with wavelength `w = 2π/f`, `f` if `w < L/high`, `f/factor` if `w > L/low`, else
///   `(1−t) f/factor + t f`, `t = (L/w − low)/(high − low)`;
/// - yarn: `f/factor · r + f (1 − r)` with the ramp `r` between the dimensions that turn `beta_fast` and `beta_slow`
///   times within the original context (Peng et al. 2023, equation 23).
#[must_use]
pub fn inverse_frequencies(
    rope: &RopeSpec,
    head_dim: usize,
    max_position_embeddings: usize,
    positions: usize,
) -> (Vec<f64>, f64) {
    let dim = head_dim as f64;
    let half = head_dim / 2;
    let base = |theta: f64| (0..half).map(move |i| theta.powf(-2.0 * i as f64 / dim));
    match rope.scaling {
        RopeScaling::Default => (base(rope.theta).collect(), 1.0),
        RopeScaling::Linear { factor } => (base(rope.theta).map(|f| f / factor).collect(), 1.0),
        RopeScaling::Dynamic { factor } => {
            let ratio = positions.max(max_position_embeddings) as f64 / max_position_embeddings.max(1) as f64;
            // A head of two has the single frequency 1, whatever the base.
            let power = if head_dim > 2 { dim / (dim - 2.0) } else { 0.0 };
            (base(rope.theta * (factor * ratio - (factor - 1.0)).powf(power)).collect(), 1.0)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            let scale = |f: f64| {
                let turns = original * f / (2.0 * PI);
                if turns > high {
                    f
                } else if turns < low {
                    f / factor
                } else {
                    let t = (turns - low) / (high - low);
                    (1.0 - t) * f / factor + t * f
                }
            };
            (base(rope.theta).map(scale).collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate,
            original_max_position_embeddings: original,
        } => {
            // The dimension that turns `rotations` times within the original context.
            let dimension =
                |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
            let (low, high) = (dimension(beta_fast), dimension(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(dim - 1.0));
            // An empty ramp becomes a step.
            let high = if low == high { high + 0.001 } else { high };
            let scaled = base(rope.theta).enumerate().map(|(i, f)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * ramp + f * (1.0 - ramp)
            });
            (scaled.collect(), attention_factor)
        }
    }
}

/// Cosines and sines of every position, `[positions, head_dim / 2]` each.
///
/// Angles are formed in f64 and only the result is rounded to `T`: at position 131072 an angle in f32 would already be
/// wrong in the second decimal.
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
        let angle = |(position, i): (usize, usize)| position as f64 * frequencies[i];
        let shape = (positions, frequencies.len());
        Self {
            cos: Array2::from_shape_fn(shape, |at| T::from_f64(angle(at).cos() * factor)),
            sin: Array2::from_shape_fn(shape, |at| T::from_f64(angle(at).sin() * factor)),
        }
    }
    /// Number of positions.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.nrows()
    }
    /// Cosines of positions `start..start + tokens`, `[tokens, head_dim / 2]`.
    ///
    /// # Panics
    /// If the table is shorter.
    #[must_use]
    pub fn cos(&self, start: usize, tokens: usize) -> ArrayView2<'_, T> {
        views::rows(self.cos.view(), start..start + tokens)
    }
    /// Sines of positions `start..start + tokens`, `[tokens, head_dim / 2]`.
    ///
    /// # Panics
    /// If the table is shorter.
    #[must_use]
    pub fn sin(&self, start: usize, tokens: usize) -> ArrayView2<'_, T> {
        views::rows(self.sin.view(), start..start + tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(scaling: RopeScaling, positions: usize) -> Vec<f64> {
        inverse_frequencies(&RopeSpec { theta: 10_000.0, scaling }, 64, 1024, positions).0
    }

    #[test]
    fn default_and_linear() {
        let plain = frequencies(RopeScaling::Default, 10);
        assert_eq!(plain.len(), 32);
        assert_eq!(plain[0], 1.0);
        assert!((plain[16] - 0.01).abs() < 1e-15);
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
        assert!((longer[1] - theta.powf(-2.0 / 64.0)).abs() < 1e-15);
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
            &RopeSpec {
                theta: 10_000.0,
                scaling: RopeScaling::Yarn {
                    factor: 4.0,
                    attention_factor: 1.25,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    truncate: true,
                    original_max_position_embeddings: 1024.0,
                },
            },
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
    fn f32_table_is_the_rounded_f64_table_at_131072() {
        let rope = RopeSpec { theta: 1e6, scaling: RopeScaling::Default };
        let narrow = RopeTable::<f32>::new(&rope, 16, 131_072, 131_072);
        let wide = RopeTable::<f64>::new(&rope, 16, 131_072, 131_072);
        let last = wide.positions() - 1;
        for (n, w) in narrow.cos(last, 1).iter().zip(wide.cos(last, 1)) {
            assert_eq!(*n, *w as f32);
        }
        for (c, s) in wide.cos(last, 1).iter().zip(wide.sin(last, 1)) {
            assert!((c * c + s * s - 1.0).abs() < 1e-12);
        }
    }
}
