//! Observers: what a static quantiser learns about a tensor's range during calibration.

use crate::{ActRule, Bits, FloatType, QParams};
use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};

/// Which range a static quantiser takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObserverKind {
    /// Minimum and maximum over all calibration tokens.
    Minmax,
    /// The 99.99th percentile of `|x|`, cutting both ends.
    Percentile,
    /// The shrink factor from 1.0 down to 0.5 (100 steps) with the least squared error.
    Mse,
}

/// Fraction of `|x|` kept by [`ObserverKind::Percentile`].
const PERCENTILE: f64 = 0.9999;
/// Most values of a tensor an observer keeps; beyond it every second one is dropped, deterministically.
const SAMPLE: usize = 1 << 18;

/// Collects the range of one tensor, batch by batch. The result depends on the order of batches only through the sample.
#[derive(Clone, Debug)]
pub struct Observer {
    kind: ObserverKind,
    min: f32,
    max: f32,
    seen: u64,
    stride: u64,
    sample: Vec<f32>,
}

impl Observer {
    /// An observer that has seen nothing; zero is always inside its range.
    #[must_use]
    pub fn new(kind: ObserverKind) -> Self {
        Self { kind, min: 0.0, max: 0.0, seen: 0, stride: 1, sample: Vec::new() }
    }

    /// Takes in a batch `[tokens, features]`.
    pub fn observe(&mut self, x: ArrayView2<'_, f32>) {
        for row in x.rows() {
            for &v in row {
                self.min = self.min.min(v);
                self.max = self.max.max(v);
            }
        }
        if self.kind == ObserverKind::Minmax {
            return;
        }
        for &v in x {
            if self.seen.is_multiple_of(self.stride) {
                if self.sample.len() == SAMPLE {
                    let mut keep = false;
                    self.sample.retain(|_| {
                        keep = !keep;
                        keep
                    });
                    self.stride *= 2;
                }
                if self.seen.is_multiple_of(self.stride) {
                    self.sample.push(v);
                }
            }
            self.seen += 1;
        }
    }

    /// `(min, max)` seen, zero included.
    #[must_use]
    pub fn extremes(&self) -> (f32, f32) {
        (self.min, self.max)
    }

    /// The parameters of a static per-tensor quantiser, the scale rounded to `scale_type` before anything uses it.
    #[must_use]
    pub fn params(&self, bits: Bits, rule: ActRule, scale_type: FloatType) -> QParams {
        let (min, max) = (self.min, self.max);
        match self.kind {
            ObserverKind::Minmax => static_params(bits, rule, scale_type, min, max),
            ObserverKind::Percentile => {
                let bound = self.percentile();
                static_params(bits, rule, scale_type, min.max(-bound), max.min(bound))
            }
            ObserverKind::Mse => {
                let top = bits.max_level();
                let mut best = static_params(bits, rule, scale_type, min, max);
                let mut best_error = f64::INFINITY;
                for step in 0..100 {
                    let p = 1.0 - 0.5 * (step as f32) / 99.0;
                    let candidate = static_params(bits, rule, scale_type, min * p, max * p);
                    let error = self.sample.iter().map(|&x| {
                        let level = (x / candidate.scale + candidate.zero).round_ties_even().clamp(0.0, top);
                        f64::from(candidate.value(level) - x).powi(2)
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
    }

    fn percentile(&self) -> f32 {
        let mut sorted: Vec<f32> = self.sample.iter().map(|x| x.abs()).collect();
        if sorted.is_empty() {
            return 0.0;
        }
        sorted.sort_by(f32::total_cmp);
        let rank = (PERCENTILE * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }
}

/// Parameters of a static quantiser on `[min, max]`, zero included (`rtn.md`, "Static activations").
#[must_use]
pub fn static_params(bits: Bits, rule: ActRule, scale_type: FloatType, min: f32, max: f32) -> QParams {
    let (mn, mx) = (min.min(0.0), max.max(0.0));
    let absmax = mx.max(-mn);
    let (mid, top) = (bits.mid_level(), bits.max_level());
    match rule {
        ActRule::Asymmetric => {
            let (mn, mx) = if absmax == 0.0 { (-1.0, 1.0) } else { (mn, mx) };
            let scale = scale_type.round_scale((mx - mn) / top);
            QParams { scale, zero: (-mn / scale).round_ties_even().clamp(0.0, top) }
        }
        ActRule::Symmetric | ActRule::SymmetricFull => {
            let absmax = if absmax == 0.0 { 1.0 } else { absmax };
            let divisor = if rule == ActRule::Symmetric && bits.get() > 1 { mid - 1.0 } else { top / 2.0 };
            QParams { scale: scale_type.round_scale(absmax / divisor), zero: mid }
        }
    }
}
