//! Bit widths, and the quantisers of activations and cache.

use super::{Bytes, Codec, bad_tag};
use crate::codec_of_fields;
use crate::{ActQuant, ActRule, Bits, ClipRatio, CoreError, EntryQuant, KvQuant, QParams};
use ndarray::Array1;

impl Codec for Bits {
    fn encode(&self, out: &mut Vec<u8>) {
        self.get().encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        Self::new(u32::decode(from)?)
    }
}

codec_of_fields!(QParams { scale, zero });

impl Codec for ActRule {
    fn encode(&self, out: &mut Vec<u8>) {
        let tag: u8 = match self {
            Self::Asymmetric => 0,
            Self::Symmetric => 1,
            Self::SymmetricFull => 2,
        };
        tag.encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Asymmetric),
            1 => Ok(Self::Symmetric),
            2 => Ok(Self::SymmetricFull),
            tag => bad_tag("a rule of dynamic parameters", tag),
        }
    }
}

impl Codec for ActQuant {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Dynamic { bits, rule, clip_ratio, shards } => {
                out.push(0);
                bits.encode(out);
                rule.encode(out);
                clip_ratio.encode(out);
                shards.encode(out);
            }
            Self::Static { bits, params } => {
                out.push(1);
                bits.encode(out);
                params.encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Dynamic {
                bits: Bits::decode(from)?,
                rule: ActRule::decode(from)?,
                clip_ratio: ClipRatio::decode(from)?,
                shards: usize::decode(from)?,
            }),
            1 => Ok(Self::Static { bits: Bits::decode(from)?, params: QParams::decode(from)? }),
            tag => bad_tag("a quantiser of activations", tag),
        }
    }
}

impl Codec for EntryQuant {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::TokenHead { bits, rule, clip_ratio } => {
                out.push(0);
                bits.encode(out);
                rule.encode(out);
                clip_ratio.encode(out);
            }
            Self::Channel { bits, scales, zeros } => {
                out.push(1);
                bits.encode(out);
                scales.encode(out);
                zeros.encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::TokenHead {
                bits: Bits::decode(from)?,
                rule: ActRule::decode(from)?,
                clip_ratio: ClipRatio::decode(from)?,
            }),
            1 => Ok(Self::Channel {
                bits: Bits::decode(from)?,
                scales: Array1::decode(from)?,
                zeros: Array1::decode(from)?,
            }),
            tag => bad_tag("a quantiser of the cache", tag),
        }
    }
}

codec_of_fields!(ClipRatio { upper, lower });
codec_of_fields!(KvQuant { keys, values, before_rope, pre_bias });
