//! Quantisers of the KV cache.
//!
//! Entries are quantised once, before they are written to the cache, and attention reads nothing else: that of the current
//! token too. Keys are quantised behind rope, or before it (KVQuant, arXiv 2401.18079), where a channel keeps its range over all
//! positions; the cache then holds codes to which rope is applied as they are read.

use crate::activation::{clip_level, fake_group, for_rows, static_params};
use crate::convention::level_byte;
use crate::range::{ChannelRanges, all_finite};
use crate::{ActRule, Bits, ClipRatio, FloatType, QParams, Real};
use ndarray::{Array1, ArrayViewMut2};
use serde::{Deserialize, Serialize};

/// How the entries of one side of the cache share parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvGranularity {
    /// Dynamic, one group per token and head.
    TokenHead,
    /// Static, one scale per channel of the flattened `kv_heads · head_dim` axis.
    ChannelStatic,
}

/// Which half of the cache a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSide {
    /// Keys.
    Key,
    /// Values.
    Value,
}

/// Quantisation of the entries of one side, `[tokens, kv_heads · head_dim]`:
/// `x̂ = s · (clip(round(x/s) + z, 0, 2^b − 1) − z)`.
#[derive(Clone, Debug, PartialEq)]
pub enum EntryQuant {
    /// Scale and zero level of every token and head, from its own range.
    TokenHead {
        /// Bit width.
        bits: Bits,
        /// How the range becomes parameters.
        rule: ActRule,
        /// What the ends of the range are multiplied by.
        clip_ratio: ClipRatio,
    },
    /// Fixed scale and zero level of every channel, from calibration.
    Channel {
        /// Bit width.
        bits: Bits,
        /// Scales, `[kv_heads · head_dim]`.
        scales: Array1<f32>,
        /// Unsigned zero levels, `[kv_heads · head_dim]`, whole numbers in `0..2^bits`.
        zeros: Array1<f32>,
    },
}

impl EntryQuant {
    /// Fixed parameters per channel from the range of calibration, scales rounded to what the loader holds them in.
    /// A channel that has seen a NaN gets a NaN scale, which no format accepts.
    #[must_use]
    pub fn from_ranges(bits: Bits, rule: ActRule, scale_type: FloatType, ranges: &ChannelRanges) -> Self {
        let (lowest, highest) = (ranges.lowest(), ranges.highest());
        let params =
            lowest.iter().zip(highest).map(|(&lo, &hi)| static_params(bits, rule, scale_type, lo, hi));
        let (scales, zeros): (Vec<f32>, Vec<f32>) = params.map(|p| (p.scale, p.zero)).unzip();
        Self::Channel { bits, scales: scales.into(), zeros: zeros.into() }
    }
    /// Quantises and dequantises `x` `[tokens, kv_heads · head_dim]` in place. What is not finite becomes NaN, as in
    /// [`ActQuant::fake_quantize`](crate::ActQuant::fake_quantize).
    ///
    /// # Panics
    /// If fixed parameters are not one per column of `x`; whoever takes them from a file checks them there.
    #[inline(always)]
    pub fn fake_quantize<T: Real>(&self, head_dim: usize, x: ArrayViewMut2<'_, T>) {
        match self {
            // Closures are inlined, or they would not be compiled for the instructions that the caller has chosen.
            Self::TokenHead { bits, rule, clip_ratio } => {
                for_rows(
                    x,
                    #[inline(always)]
                    |row: &mut [T]| {
                        for head in row.chunks_mut(head_dim.max(1)) {
                            fake_group(*bits, *rule, *clip_ratio, head);
                        }
                    },
                );
            }
            Self::Channel { bits, scales, zeros } => {
                let top = T::from_f32(bits.max_level());
                assert_eq!(x.ncols(), scales.len(), "KV cache channels and their static scales");
                assert_eq!(x.ncols(), zeros.len(), "KV cache channels and their zero levels");
                for_rows(
                    x,
                    #[inline(always)]
                    |row: &mut [T]| {
                        for (v, (&scale, &zero)) in row.iter_mut().zip(scales.iter().zip(zeros)) {
                            let (scale, zero) = (T::from_f32(scale), T::from_f32(zero));
                            let level = clip_level((*v / scale).round_half_even() + zero, top);
                            // An infinity would be clipped to a level; it becomes NaN (∞ · 0), as a NaN does.
                            *v = scale * (level - zero) + *v * T::zero();
                        }
                    },
                );
            }
        }
    }
    /// The levels of one head of one token, `x` `[head_dim]`, whose first channel is `first` of the flattened axis: what a cache of codes
    /// holds. The scale and zero level of a token and head come back; under fixed parameters the scale that comes back is 0 and to be
    /// added to what a level stands for. It is NaN where the head has a number that is not finite, for which no level stands.
    ///
    /// A cache that reads `scale · (level − zero)` reads what [`Self::fake_quantize`] leaves, to the bit.
    ///
    /// # Panics
    /// If there are not as many levels as numbers, or not as many channels.
    #[inline(always)]
    pub fn levels(&self, first: usize, x: &[f32], levels: &mut [u8]) -> QParams {
        assert_eq!(x.len(), levels.len(), "a level for every number of a head");
        let poison = if all_finite(x) { 0.0 } else { f32::NAN };
        match self {
            Self::TokenHead { bits, rule, clip_ratio } => {
                let params = rule.params(*bits, *clip_ratio, x);
                let top = bits.max_level();
                for (level, &x) in levels.iter_mut().zip(x) {
                    let found = clip_level((x / params.scale).round_ties_even() + params.zero, top);
                    *level = level_byte(found);
                }
                QParams { scale: params.scale + poison, ..params }
            }
            Self::Channel { bits, scales, zeros } => {
                let top = bits.max_level();
                for (i, (level, &x)) in levels.iter_mut().zip(x).enumerate() {
                    let (scale, zero) = (scales[first + i], zeros[first + i]);
                    *level = level_byte(clip_level((x / scale).round_ties_even() + zero, top));
                }
                QParams { scale: poison, zero: 0.0 }
            }
        }
    }
    /// The bit width.
    #[must_use]
    pub fn bits(&self) -> Bits {
        match self {
            Self::TokenHead { bits, .. } | Self::Channel { bits, .. } => *bits,
        }
    }
}

/// Quantisation of the KV cache of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct KvQuant {
    /// Of the keys, behind their norm where the model has one.
    pub keys: EntryQuant,
    /// Of the values.
    pub values: EntryQuant,
    /// Whether keys are quantised before rope instead of behind it.
    pub before_rope: bool,
    /// Whether the bias of the key projection is taken off before keys are quantised and added again afterwards; only
    /// before rope, behind which a constant depends on the position.
    pub pre_bias: bool,
}

impl KvQuant {
    /// One quantiser of both sides, keys behind rope.
    #[must_use]
    pub fn both(entries: EntryQuant) -> Self {
        Self { keys: entries.clone(), values: entries, before_rope: false, pre_bias: false }
    }
    /// The quantiser of a side.
    #[must_use]
    pub fn side(&self, side: KvSide) -> &EntryQuant {
        match side {
            KvSide::Key => &self.keys,
            KvSide::Value => &self.values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn levels_stand_for_what_a_simulation_leaves() {
        let (heads, head_dim) = (3, 10);
        let width = heads * head_dim;
        let x = Array2::from_shape_fn((5, width), |(i, j)| ((i * 131 + j * 57) % 89) as f32 * 0.07 - 2.9);
        let bits = Bits::new(8).unwrap();
        let mut quantisers: Vec<EntryQuant> = [ActRule::Asymmetric, ActRule::Symmetric]
            .map(|rule| EntryQuant::TokenHead { bits, rule, clip_ratio: 0.95.into() })
            .into();
        quantisers.push(EntryQuant::Channel {
            bits: Bits::new(4).unwrap(),
            scales: (0..width).map(|j| 0.1 + 0.01 * j as f32).collect(),
            zeros: (0..width).map(|j| (j % 16) as f32).collect(),
        });
        for entries in quantisers {
            let mut want = x.clone();
            entries.fake_quantize(head_dim, want.view_mut());
            for (token, row) in x.rows().into_iter().enumerate() {
                let row = row.to_vec();
                for head in 0..heads {
                    let first = head * head_dim;
                    let mut levels = vec![0; head_dim];
                    let found = entries.levels(first, &row[first..first + head_dim], &mut levels);
                    for (i, &level) in levels.iter().enumerate() {
                        let value = match &entries {
                            EntryQuant::TokenHead { .. } => found.value(f32::from(level)),
                            EntryQuant::Channel { scales, zeros, .. } => {
                                scales[first + i] * (f32::from(level) - zeros[first + i]) + found.scale
                            }
                        };
                        assert_eq!(value.to_bits(), want[(token, first + i)].to_bits(), "{entries:?}");
                    }
                    let mut broken = row[first..first + head_dim].to_vec();
                    broken[3] = f32::INFINITY;
                    assert!(entries.levels(first, &broken, &mut levels).scale.is_nan());
                }
            }
        }
    }
}
