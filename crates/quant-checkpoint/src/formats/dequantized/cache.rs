//! The cache in `ptq_scheme.json`: its scheme, and what a block stores of its quantisers.

use ndarray::Array1;
use quant_core::{ActRule, Bits, EntryQuant, KvGranularity, KvQuant, KvSide};
use quant_graph::{Clipping, KvScheme};
use serde::{Deserialize, Serialize};

use super::numbers::{Ends, FILE, bad, ends, is_false, learned, number};
use crate::error::Result;

/// The scheme of the cache. Keys that came later are left out where they say what was always so: such a file is the one of
/// before, byte by byte.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KvEntry {
    bits: Bits,
    rule: ActRule,
    /// Of keys, and of values where nothing else is said.
    granularity: KvGranularity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_granularity: Option<KvGranularity>,
    #[serde(default, skip_serializing_if = "is_false")]
    before_rope: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pre_bias: bool,
    #[serde(default, skip_serializing_if = "KvClip::is_one")]
    clip_ratio: KvClip,
}

/// The clip ratio of all dynamic quantisers of the cache, or that each block has its own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum KvClip {
    Fixed(f64),
    Own(Own),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Own {
    Learned,
    Tied,
}

impl Default for KvClip {
    fn default() -> Self {
        Self::Fixed(1.0)
    }
}

impl KvClip {
    pub(super) fn is_one(&self) -> bool {
        *self == Self::default()
    }
}

impl KvEntry {
    pub(super) fn of(kv: KvScheme) -> Self {
        Self {
            bits: kv.bits,
            rule: kv.rule,
            granularity: kv.keys,
            value_granularity: (kv.values != kv.keys).then_some(kv.values),
            before_rope: kv.before_rope,
            pre_bias: kv.pre_bias,
            clip_ratio: match kv.clip_ratio {
                Clipping::Fixed(ratio) => KvClip::Fixed(ratio.into()),
                Clipping::Learned => KvClip::Own(Own::Learned),
                Clipping::Tied => KvClip::Own(Own::Tied),
            },
        }
    }
    pub(super) fn scheme(self) -> Result<KvScheme> {
        if self.pre_bias && !self.before_rope {
            return Err(bad(format!("{FILE}: kv"), "pre_bias with before_rope only", "pre_bias alone"));
        }
        Ok(KvScheme {
            values: self.value_granularity.unwrap_or(self.granularity),
            before_rope: self.before_rope,
            pre_bias: self.pre_bias,
            clip_ratio: match self.clip_ratio {
                KvClip::Fixed(ratio) => Clipping::Fixed(number("kv.clip_ratio", ratio, true)?),
                KvClip::Own(Own::Learned) => Clipping::Learned,
                KvClip::Own(Own::Tied) => Clipping::Tied,
            },
            ..KvScheme::new(self.bits, self.rule, self.granularity)
        })
    }
}

/// Learned clip ratios of a block.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KvClipRatios {
    /// None where a side has static scales.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Ends>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Ends>,
}

impl KvClipRatios {
    pub(super) fn of(kv: &KvQuant) -> Self {
        let side = |side| match kv.side(side) {
            EntryQuant::TokenHead { clip_ratio, .. } => Some(ends(*clip_ratio)),
            EntryQuant::Channel { .. } => None,
        };
        Self { key: side(KvSide::Key), value: side(KvSide::Value) }
    }
}

/// Static scales of a block.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KvScales {
    /// Empty where a side has none; so with the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    key: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    value: Vec<f64>,
    /// Zero levels, asymmetric only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    key_zero: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    value_zero: Vec<f64>,
}

impl KvScales {
    pub(super) fn of(kv: &KvQuant, rule: ActRule) -> Option<Self> {
        let wide = |values: &Array1<f32>| values.iter().map(|&v| f64::from(v)).collect();
        let side = |side| match kv.side(side) {
            EntryQuant::Channel { scales, zeros, .. } => {
                let zeros = if rule == ActRule::Asymmetric { wide(zeros) } else { Vec::new() };
                (wide(scales), zeros)
            }
            EntryQuant::TokenHead { .. } => (Vec::new(), Vec::new()),
        };
        let ((key, key_zero), (value, value_zero)) = (side(KvSide::Key), side(KvSide::Value));
        (!key.is_empty() || !value.is_empty()).then_some(Self { key, value, key_zero, value_zero })
    }
}

/// The quantiser of a block's cache `[width]`, with what is stored of it.
pub(super) fn quantiser(
    kv: KvEntry,
    (stored, own): (Option<&KvScales>, Option<KvClipRatios>),
    (index, width): (usize, usize),
) -> Result<KvQuant> {
    let kv = kv.scheme()?;
    let subject = || format!("{FILE}: block {index}, kv_scales");
    let side = |side| -> Result<EntryQuant> {
        if kv.granularity(side) == KvGranularity::TokenHead {
            let own = own.and_then(|own| if side == KvSide::Key { own.key } else { own.value });
            let ratio = match (kv.clip_ratio.fixed(), own) {
                (Some(ratio), _) => ratio,
                (None, Some(own)) => learned("kv_clip_ratios", own)?,
                (None, None) => {
                    return Err(bad(format!("{FILE}: block {index}"), "kv_clip_ratios", "none"));
                }
            };
            return Ok(kv.clipped(ratio));
        }
        let Some(stored) = stored else {
            return Err(bad(format!("{FILE}: block {index}"), "kv_scales", "none"));
        };
        let (scales, zeros) = match side {
            KvSide::Key => (&stored.key, &stored.key_zero),
            KvSide::Value => (&stored.value, &stored.value_zero),
        };
        let counted = |values: &[f64], what: &str| match values.len() {
            found if found == width => Ok(()),
            found => Err(bad(subject(), format!("{width} {what}"), found.to_string())),
        };
        counted(scales, "scales")?;
        let scales = scales.iter().map(|&v| number("kv_scales", v, true)).collect::<Result<_>>()?;
        let middle = kv.bits.mid_level();
        if kv.rule != ActRule::Asymmetric {
            return Ok(EntryQuant::Channel {
                bits: kv.bits,
                scales,
                zeros: Array1::from_elem(width, middle),
            });
        }
        counted(zeros, "zero levels")?;
        let level = |&zero: &f64| match zero {
            z if z.fract() == 0.0 && (0.0..=f64::from(kv.bits.max_level())).contains(&z) => Ok(z as f32),
            z => Err(bad(subject(), format!("zero levels of {} bits", kv.bits.get()), z.to_string())),
        };
        let zeros = zeros.iter().map(level).collect::<Result<_>>()?;
        Ok(EntryQuant::Channel { bits: kv.bits, scales, zeros })
    };
    let (keys, values) = (side(KvSide::Key)?, side(KvSide::Value)?);
    Ok(KvQuant { keys, values, before_rope: kv.before_rope, pre_bias: kv.pre_bias })
}
