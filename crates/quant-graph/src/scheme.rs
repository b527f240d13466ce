//! What a plan wants done to every linear and to the cache: the question a format answers with yes or no.

use crate::{LinearId, ModelSpec, OnlineScheme, Outer};
use quant_core::{
    ActOrder, ActQuant, ActRule, Bits, ChannelRanges, ClipRatio, EntryQuant, FloatType, KvGranularity,
    KvQuant, KvSide,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// What the stored numbers of a weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightForm {
    /// Integer levels of one width.
    Integer,
    /// One-bit levels around a mean, whose zero level is no integer.
    Binary,
    /// Levels whose width is one more or less than the nominal one in as many groups each: the mean over groups is the nominal
    /// width. Groups of one bit are as [`Self::Binary`].
    MixedInteger,
    /// Binary codes, with a second one for the residual of salient columns: see [`quant_core::binary`].
    BinaryResidual,
}

impl WeightForm {
    /// In words, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer levels",
            Self::Binary => "one-bit levels around a mean",
            Self::MixedInteger => "groups of different bit widths",
            Self::BinaryResidual => "binary residual codes",
        }
    }
}

/// Storage of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WeightScheme {
    /// Bit width; nominal for [`WeightForm::MixedInteger`], of one code for [`WeightForm::BinaryResidual`].
    pub bits: Bits,
    /// Whether the zero level is the constant `2^(b−1)`.
    pub symmetric: bool,
    /// Columns per group (of a block, for binary residual codes); none is one scale per output channel.
    pub group: Option<usize>,
    /// Order in which columns were rounded.
    pub act_order: ActOrder,
    /// What is stored.
    pub form: WeightForm,
}

impl WeightScheme {
    /// Integer levels of one width, columns in their order.
    #[must_use]
    pub fn integer(bits: Bits, symmetric: bool, group: Option<usize>) -> Self {
        Self { bits, symmetric, group, act_order: ActOrder::None, form: WeightForm::Integer }
    }
    /// Stored bits per weight of a matrix `[out, in]` under this scheme, with scales of `scale_bits`: what
    /// [`LinearWeight::storage_bits`](crate::LinearWeight::storage_bits) will be for each of its weights.
    ///
    /// Where the widths of groups are found only while rounding, it is the most that they can make: at two bits half of the
    /// groups have one, and a mean in place of a zero level; and, where groups do not divide the columns, a narrow last one.
    #[must_use]
    pub fn bits_per_weight(&self, (outputs, inputs): (usize, usize), scale_bits: usize) -> f64 {
        let groups = self.group.map_or(1, |size| inputs.div_ceil(size));
        let bits = self.bits.get() as usize;
        let zero_bits = match (self.symmetric, self.form) {
            (_, WeightForm::Binary) => scale_bits,
            (true, _) => 0,
            (false, _) => bits,
        };
        let plain = outputs * inputs * bits + outputs * groups * (scale_bits + zero_bits);
        let total = match self.form {
            WeightForm::Integer | WeightForm::Binary => {
                let indexed = self.group.is_some() && self.act_order == ActOrder::Dynamic;
                plain + if indexed { 32 * inputs } else { 0 }
            }
            WeightForm::MixedInteger => {
                let means = if bits == 2 { groups / 2 * (scale_bits - 1) } else { 0 };
                let ragged = self.group.map_or(0, |size| groups * size - inputs);
                plain + outputs * (means + ragged) + 8 * groups
            }
            WeightForm::BinaryResidual => {
                let block = self.group.unwrap_or(inputs);
                quant_core::binary::storage_bits((outputs, inputs), block, scale_bits) as usize
            }
        };
        total as f64 / (outputs * inputs).max(1) as f64
    }
}

/// Where the clip ratio of a dynamic quantiser comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clipping {
    /// The recipe: one ratio for both ends.
    Fixed(f32),
    /// Training: every quantiser has [ratios](ClipRatio) of its own.
    Learned,
    /// Training: a ratio for both ends, which all linears of an input share.
    Tied,
}

impl Clipping {
    /// Nothing is clipped.
    pub const NONE: Self = Self::Fixed(1.0);

    /// The ratio, if it is no number of a quantiser's own.
    #[must_use]
    pub fn fixed(self) -> Option<ClipRatio> {
        match self {
            Self::Fixed(ratio) => Some(ratio.into()),
            Self::Learned | Self::Tied => None,
        }
    }
    /// Whether a quantiser with this ratio is one of such a scheme.
    #[must_use]
    pub fn admits(self, ratio: ClipRatio) -> bool {
        let inside = |end: f32| end > 0.0 && end <= 1.0;
        match self {
            Self::Fixed(fixed) => ratio == fixed.into(),
            Self::Learned => inside(ratio.upper) && inside(ratio.lower),
            Self::Tied => inside(ratio.upper) && ratio.lower == ratio.upper,
        }
    }
}

impl From<f32> for Clipping {
    fn from(ratio: f32) -> Self {
        Self::Fixed(ratio)
    }
}

impl std::fmt::Display for Clipping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(ratio) => ratio.fmt(f),
            Self::Learned => f.write_str("learned"),
            Self::Tied => f.write_str("learned, one for both ends"),
        }
    }
}

/// The number, or the word `learned` or `tied`.
impl Serialize for Clipping {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(ratio) => serializer.serialize_f32(*ratio),
            Self::Learned => serializer.serialize_str("learned"),
            Self::Tied => serializer.serialize_str("tied"),
        }
    }
}

/// Quantisation of a linear's input.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct InputScheme {
    /// Bit width.
    pub bits: Bits,
    /// How the range becomes scale and zero.
    pub rule: ActRule,
    /// Per token when it arrives, or one fixed scale per tensor.
    pub dynamic: bool,
    /// Factor on the range, dynamic only.
    pub clip_ratio: Clipping,
    /// Equal parts of a token with parameters of their own, dynamic only; 1 is the whole token.
    pub shards: usize,
}

impl InputScheme {
    /// The quantiser, if nothing of it comes from calibration.
    #[must_use]
    pub fn dynamic(&self) -> Option<ActQuant> {
        self.clipped(self.clip_ratio.fixed()?)
    }
    /// The dynamic quantiser with a clip ratio, if it is one.
    #[must_use]
    pub fn clipped(&self, clip_ratio: ClipRatio) -> Option<ActQuant> {
        let Self { bits, rule, shards, .. } = *self;
        self.dynamic.then_some(ActQuant::Dynamic { bits, rule, clip_ratio, shards })
    }
}

/// Storage of a linear: nothing set means float.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize)]
pub struct LinearScheme {
    /// The weight.
    pub weight: Option<WeightScheme>,
    /// Its input.
    pub input: Option<InputScheme>,
}

impl LinearScheme {
    /// Whether nothing is quantised.
    #[must_use]
    pub fn is_float(&self) -> bool {
        self.weight.is_none() && self.input.is_none()
    }
}

/// Storage of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KvScheme {
    /// Bit width.
    pub bits: Bits,
    /// How the range becomes scale and zero.
    pub rule: ActRule,
    /// What shares a scale among keys.
    pub keys: KvGranularity,
    /// What shares a scale among values.
    pub values: KvGranularity,
    /// Whether keys are quantised before rope.
    pub before_rope: bool,
    /// Whether the bias of the key projection is taken off first, before rope only.
    pub pre_bias: bool,
    /// Factor on the ranges of dynamic scales.
    pub clip_ratio: Clipping,
}

impl KvScheme {
    /// Keys, behind rope, and values alike, with whole ranges.
    #[must_use]
    pub fn new(bits: Bits, rule: ActRule, granularity: KvGranularity) -> Self {
        let (keys, values) = (granularity, granularity);
        Self { bits, rule, keys, values, before_rope: false, pre_bias: false, clip_ratio: Clipping::NONE }
    }
    /// What shares a scale on one side.
    #[must_use]
    pub fn granularity(&self, side: KvSide) -> KvGranularity {
        match side {
            KvSide::Key => self.keys,
            KvSide::Value => self.values,
        }
    }
    /// The quantiser of a side with a scale per token and head, with a clip ratio.
    #[must_use]
    pub fn clipped(&self, clip_ratio: ClipRatio) -> EntryQuant {
        EntryQuant::TokenHead { bits: self.bits, rule: self.rule, clip_ratio }
    }
    /// Whether a range of it comes from calibration.
    #[must_use]
    pub fn is_static(&self) -> bool {
        [self.keys, self.values].contains(&KvGranularity::ChannelStatic)
    }
    /// The quantiser, given the ranges of keys and values where they are static; their scales are rounded to what the loader
    /// holds them in. None where a range is wanted and not given, or a clip ratio is learned.
    #[must_use]
    pub fn quant(&self, ranges: Option<[&ChannelRanges; 2]>, scale_type: FloatType) -> Option<KvQuant> {
        let side = |granularity, at: usize| match granularity {
            KvGranularity::TokenHead => Some(self.clipped(self.clip_ratio.fixed()?)),
            KvGranularity::ChannelStatic => {
                Some(EntryQuant::from_ranges(self.bits, self.rule, scale_type, ranges?[at]))
            }
        };
        let (keys, values) = (side(self.keys, 0)?, side(self.values, 1)?);
        Some(KvQuant { keys, values, before_rope: self.before_rope, pre_bias: self.pre_bias })
    }
}

/// Storage of a whole model.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct ModelScheme {
    /// Per block, every linear.
    pub blocks: Vec<BTreeMap<LinearId, LinearScheme>>,
    /// Per block, what it multiplies activations by while the model runs; empty where no block does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub online: Vec<OnlineScheme>,
    /// The cache of all blocks.
    pub kv: Option<KvScheme>,
    /// The embedding and the head, as far as they are quantised. They multiply floats.
    pub tables: BTreeMap<Outer, WeightScheme>,
    /// Whether a transform of the whole model was fused into embedding, final norm and head, so that they hold other numbers than
    /// those of the input.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fused: bool,
}

impl ModelScheme {
    /// Every linear with its block, in execution order.
    pub fn linears(&self) -> impl Iterator<Item = (usize, LinearId, &LinearScheme)> {
        self.blocks.iter().enumerate().flat_map(|(i, block)| block.iter().map(move |(id, s)| (i, *id, s)))
    }
    /// The shape of the model as it is stored: a tied head gets a table of its own where one of the two is quantised or
    /// something is fused into them, since the other then holds other numbers.
    #[must_use]
    pub fn stored(&self, spec: &ModelSpec) -> ModelSpec {
        ModelSpec { tied: spec.tied && self.tables.is_empty() && !self.fused, ..spec.clone() }
    }
    /// The first linear whose scheme differs from those its loader fuses it with.
    #[must_use]
    pub fn unequal_fusion(&self, spec: &ModelSpec) -> Option<(usize, LinearId, LinearId)> {
        self.blocks.iter().enumerate().find_map(|(i, schemes)| {
            let block = spec.block(i);
            schemes.iter().find_map(|(id, scheme)| {
                let other = block.loaded_with(*id).iter().find(|o| schemes.get(o) != Some(scheme))?;
                Some((i, *id, *other))
            })
        })
    }
}
