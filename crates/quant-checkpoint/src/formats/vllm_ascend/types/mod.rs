//! The types of linears and cache that this crate reads, each a codec in a file of its own.

pub(crate) mod c8;
mod channel;
mod float;
pub(crate) mod static_input;
mod w4a4_dynamic;
pub(crate) mod w4a4_flatquant;
mod w8a16;
mod w8a8;
mod w8a8_dynamic;
mod w8a8_mix;

use quant_core::{ActQuant, ActRule, Bits, ClipRatio, FloatType};
use quant_graph::{
    BlockParams, Clipping, InputScheme, LinearId, LinearParams, LinearScheme, LinearSpec, ModelScheme,
    ModelSpec, WeightScheme,
};

use super::bad;
use crate::error::Result;
use crate::formats::block::linear_scheme;
use crate::formats::layout::Part;
use crate::source::Checkpoint;

/// The type of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AscendType {
    Float,
    /// Static per-tensor input.
    W8A8,
    /// Dynamic per-token input.
    W8A8Dynamic,
    /// Both at once: static on nodes that decode, dynamic on those that prefill.
    W8A8Mix,
    /// Weight only.
    W8A16,
    /// Both in 4 bits, dynamic per-token input.
    W4A4Dynamic,
    /// The same behind a Kronecker pair.
    W4A4FlatQuant,
}

/// How the linears of a type are stored.
pub(super) trait TypeCodec: Sync {
    /// The tensors of a linear in a model of some type, in msmodelslim's order; `shards` are the parts of its input that a pair is for.
    fn parts(&self, linear: &LinearSpec, model: FloatType, shards: usize) -> Vec<Part>;
    /// The bytes of one of them, of this name and suffix.
    ///
    /// # Errors
    /// [`CheckpointError::NotEncodable`](crate::CheckpointError::NotEncodable) for numbers that it does not hold.
    fn bytes(
        &self,
        spec: &ModelSpec,
        tensor: (&str, &str),
        id: LinearId,
        block: &BlockParams,
    ) -> Result<Vec<u8>>;
    /// What a folder says of a linear.
    ///
    /// # Errors
    /// Parameters of its input that are none.
    fn scheme(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearScheme>;
    /// The numbers of a linear.
    ///
    /// # Errors
    /// [`CheckpointError::BadFormat`](crate::CheckpointError::BadFormat) for tensors that are not of this type, and what reading can give.
    fn read(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams>;
}

impl AscendType {
    pub(super) fn codec(self) -> &'static dyn TypeCodec {
        match self {
            Self::Float => &float::Float,
            Self::W8A8 => &w8a8::W8A8,
            Self::W8A8Dynamic => &w8a8_dynamic::CODEC,
            Self::W8A8Mix => &w8a8_mix::W8A8Mix,
            Self::W8A16 => &w8a16::CODEC,
            Self::W4A4Dynamic => &w4a4_dynamic::CODEC,
            Self::W4A4FlatQuant => &w4a4_flatquant::W4A4FlatQuant,
        }
    }
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Float => "FLOAT",
            Self::W8A8 => "W8A8",
            Self::W8A8Dynamic => "W8A8_DYNAMIC",
            Self::W8A8Mix => "W8A8_MIX",
            Self::W8A16 => "W8A16",
            Self::W4A4Dynamic => "W4A4_DYNAMIC",
            Self::W4A4FlatQuant => "W4A4_FLATQUANT_DYNAMIC",
        }
    }
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }
    pub(super) const ALL: [Self; 7] = [
        Self::Float,
        Self::W8A8,
        Self::W8A8Dynamic,
        Self::W8A8Mix,
        Self::W8A16,
        Self::W4A4Dynamic,
        Self::W4A4FlatQuant,
    ];
    /// The type that a linear of a supported scheme is written as.
    pub(crate) fn at(scheme: &ModelScheme, index: usize, id: LinearId) -> Self {
        let linear = linear_scheme(scheme, index, id);
        let online = scheme.online.get(index);
        let transformed = online.is_some_and(|online| online.sites.contains_key(&id.site()));
        match (linear.weight, linear.input) {
            (None, _) => Self::Float,
            (Some(_), None) => Self::W8A16,
            (Some(weight), Some(input)) if input.dynamic && weight.bits.get() == 4 => {
                if transformed {
                    Self::W4A4FlatQuant
                } else {
                    Self::W4A4Dynamic
                }
            }
            (Some(_), Some(input)) if input.dynamic => Self::W8A8Dynamic,
            (Some(_), Some(_)) => Self::W8A8,
        }
    }
    pub(crate) fn has_static_input(self) -> bool {
        matches!(self, Self::W8A8 | Self::W8A8Mix)
    }
}

/// A bit width.
fn bits(count: u32) -> Result<Bits> {
    Bits::new(count).map_err(|e| bad("bits", "1 to 8", e.to_string()))
}

/// Symmetric weights of so many bits per channel before an input.
fn per_channel(bits: Bits, input: Option<InputScheme>) -> LinearScheme {
    LinearScheme { weight: Some(WeightScheme::integer(bits, true, None)), input }
}

/// A symmetric input with a scale per token.
fn per_token(bits: Bits) -> InputScheme {
    InputScheme { bits, rule: ActRule::Symmetric, dynamic: true, clip_ratio: Clipping::NONE, shards: 1 }
}

/// Its quantiser.
fn per_token_quantiser(bits: Bits) -> ActQuant {
    ActQuant::Dynamic { bits, rule: ActRule::Symmetric, clip_ratio: ClipRatio::NONE, shards: 1 }
}
