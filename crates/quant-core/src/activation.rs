//! Quantisers of activations.

use crate::range::range_with_zero;
use crate::{Bits, ClipRatio, FloatType, QParams, Real};
use ndarray::{Array1, ArrayViewMut2, Axis};
use serde::{Deserialize, Serialize};

/// How a dynamic quantiser finds scale and zero from the range of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActRule {
    /// `(mx − mn)/(2^b − 1)` with `mx = max(max x, 0)`, `mn = min(min x, 0)`; an all-zero token uses (−1, 1).
    Asymmetric,
    /// `absmax/(2^(b−1) − 1)`, 1 for an all-zero token: what Ascend's dynamic quantisation and vLLM compute.
    Symmetric,
    /// `absmax/((2^b − 1)/2)`: what the compressed-tensors library computes when transformers runs such a folder.
    SymmetricFull,
}

impl ActRule {
    /// The parameters a dynamic quantiser finds for one token (or head) of `values`, the ends of their range multiplied by
    /// `clip_ratio`. The level of a value is then [`QParams::level`].
    #[must_use]
    pub fn params(self, bits: Bits, clip_ratio: impl Into<ClipRatio>, values: &[f32]) -> QParams {
        let (min, max) = range_with_zero(values);
        let (scale, zero) = dynamic_params(bits, self, clip_ratio.into(), min, max);
        QParams { scale, zero }
    }
}

/// Quantisation of one linear's input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ActQuant {
    /// Parameters from every token (row) when it arrives.
    Dynamic {
        /// Bit width.
        bits: Bits,
        /// How the range becomes parameters.
        rule: ActRule,
        /// What the ends of the range are multiplied by.
        clip_ratio: ClipRatio,
        /// Equal parts of a token, each with parameters of its own: what the devices of a tensor-parallel deployment
        /// do to an input of which each holds a part. 1 is the whole token.
        shards: usize,
    },
    /// One scale and zero level for the whole tensor, from calibration; `round(x/s + z)` as the loaders compute it.
    Static {
        /// Bit width.
        bits: Bits,
        /// Fixed parameters, with an unsigned zero level.
        params: QParams,
    },
}

/// Parameters of one token from its extremes, in the arithmetic of `T`.
#[inline(always)]
fn dynamic_params<T: Real>(bits: Bits, rule: ActRule, clip: ClipRatio, min: T, max: T) -> (T, T) {
    let one = T::one();
    let (lower, upper) = (T::from_f32(clip.lower), T::from_f32(clip.upper));
    let (mn, mx) = (min.min(T::zero()) * lower, max.max(T::zero()) * upper);
    let (mid, top) = (T::from_f32(bits.mid_level()), T::from_f32(bits.max_level()));
    let absmax = mx.max(-mn);
    match rule {
        ActRule::Asymmetric => {
            let (mn, mx) = if mn == T::zero() && mx == T::zero() { (-one, one) } else { (mn, mx) };
            let scale = positive((mx - mn) / top);
            (scale, (-mn / scale).round_half_even().min(top))
        }
        ActRule::Symmetric | ActRule::SymmetricFull if absmax == T::zero() => (one, mid),
        // At one bit the restricted range is empty; both rules then use the full one.
        ActRule::Symmetric if bits.get() > 1 => (positive(absmax / (mid - one)), mid),
        ActRule::Symmetric | ActRule::SymmetricFull => (positive(absmax / (top / T::from_f32(2.0))), mid),
    }
}

/// A range so small that its step underflows keeps the smallest positive step instead of dividing by zero.
#[inline(always)]
fn positive<T: Real>(scale: T) -> T {
    if scale > T::zero() { scale } else { T::min_positive_value() }
}

/// `level` held in `0..=top`; a NaN stays one, which `max` and `min` would replace by an end.
#[inline(always)]
pub(crate) fn clip_level<T: Real>(level: T, top: T) -> T {
    let level = if level < T::zero() { T::zero() } else { level };
    if level > top { top } else { level }
}

/// Quantises and dequantises a slice that shares one set of dynamic parameters.
#[inline(always)]
pub(crate) fn fake_group<T: Real>(bits: Bits, rule: ActRule, clip: ClipRatio, values: &mut [T]) {
    let (min, max) = range_with_zero(values);
    let (scale, zero) = dynamic_params(bits, rule, clip, min, max);
    let top = T::from_f32(bits.max_level());
    // A NaN passes through. An infinity makes the scale infinite, and with it every value of the group NaN (∞ · 0).
    for v in values {
        let level = clip_level((*v / scale).round_half_even() + zero, top);
        *v = scale * (level - zero);
    }
}

impl ActQuant {
    /// Quantises and dequantises rows of `x` `[tokens, features]` in place. The last shard is smaller where their number does
    /// not divide the features.
    ///
    /// A NaN stays NaN and an infinity becomes one; under dynamic parameters it takes its whole token along. No integer
    /// stands for either, and a finite result would hide a model that has collapsed.
    #[inline(always)]
    pub fn fake_quantize<T: Real>(&self, x: ArrayViewMut2<'_, T>) {
        // Inlined, or it would not be compiled for the instructions that the caller has chosen.
        for_rows(
            x,
            #[inline(always)]
            |row: &mut [T]| match *self {
                Self::Dynamic { bits, rule, clip_ratio, shards } => {
                    let width = row.len().div_ceil(shards.max(1)).max(1);
                    for shard in row.chunks_mut(width) {
                        fake_group(bits, rule, clip_ratio, shard);
                    }
                }
                Self::Static { bits, params } => {
                    let (scale, zero) = (T::from_f32(params.scale), T::from_f32(params.zero));
                    let top = T::from_f32(bits.max_level());
                    for v in row {
                        *v = fake_static(scale, zero, top, *v);
                    }
                }
            },
        );
    }
    /// The bit width.
    #[must_use]
    pub fn bits(&self) -> Bits {
        match *self {
            Self::Dynamic { bits, .. } | Self::Static { bits, .. } => bits,
        }
    }
}

/// One value under fixed parameters. An infinity would be clipped to a level; it becomes NaN (∞ · 0), as a NaN does.
#[inline(always)]
fn fake_static<T: Real>(scale: T, zero: T, top: T, v: T) -> T {
    let level = clip_level((v / scale + zero).round_half_even(), top);
    scale * (level - zero) + v * T::zero()
}

/// Runs `f` over the rows, copying only where a row is not contiguous.
#[inline(always)]
pub(crate) fn for_rows<T: Real>(mut x: ArrayViewMut2<'_, T>, mut f: impl FnMut(&mut [T])) {
    for mut row in x.axis_iter_mut(Axis(0)) {
        match row.as_slice_mut() {
            Some(slice) => f(slice),
            None => {
                let mut copy = row.to_vec();
                f(&mut copy);
                row.assign(&Array1::from(copy));
            }
        }
    }
}

/// Parameters of a static quantiser on `[min, max]`, zero included (`rtn.md`, "Static activations").
///
/// An end that is NaN makes the scale NaN: a quantiser with it turns everything into NaN, and no format takes it.
#[must_use]
pub fn static_params(bits: Bits, rule: ActRule, scale_type: FloatType, min: f32, max: f32) -> QParams {
    if min.is_nan() || max.is_nan() {
        return QParams { scale: f32::NAN, zero: bits.mid_level() };
    }
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
