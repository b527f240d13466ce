//! `ptq_scheme.json`: the schemes of linears and cache, and their quantisers.

use std::collections::BTreeMap;

use ndarray::Array1;
use quant_core::{ActQuant, ActRule, Bits, ClipRatio, EntryQuant, KvGranularity, KvQuant, KvSide, QParams};
use quant_graph::{
    ActOrder, Clipping, InputScheme, KvScheme, LinearId, LinearScheme, ModelScheme, ModelSpec, OnlineScheme,
    Outer, WeightForm, WeightScheme,
};
use serde::{Deserialize, Serialize};

use super::{BlockSideData, ID};
use crate::error::{CheckpointError, Result};
use crate::json::{LARGE_JSON_BYTES, parse_strict_json, read_json_text};
use crate::source::Checkpoint;

/// Name of the file.
pub(super) const FILE: &str = "ptq_scheme.json";
/// Its version.
const VERSION: u32 = 1;

// A number is written as the f64 it is exactly equal to: a reader whose last digit is off still rounds to the same f32.

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SchemeFile {
    version: u32,
    kv: Option<KvEntry>,
    blocks: Vec<BlockEntry>,
    /// Whether something is fused into embedding, final norm and head.
    #[serde(default, skip_serializing_if = "is_false")]
    fused: bool,
    /// Embedding and head by module; left out where neither is quantised, as before there was this key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tables: BTreeMap<String, WeightEntry>,
}

// Keys that came later are left out where they say what was always so: such a file is the one of before, byte by byte.

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvEntry {
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
enum KvClip {
    Fixed(f64),
    Own(Own),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Own {
    Learned,
    Tied,
}

impl Default for KvClip {
    fn default() -> Self {
        Self::Fixed(1.0)
    }
}

impl KvClip {
    fn is_one(&self) -> bool {
        *self == Self::default()
    }
}

/// The clip ratio of an input: one, learned ones of the upper and the lower end, or a learned one of both.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum InputClip {
    Fixed(f64),
    Learned(Ends),
    /// One of both ends.
    Tied([f64; 1]),
}

/// Ratios of the upper and the lower end of a range.
type Ends = [f64; 2];

fn ends(ratio: ClipRatio) -> Ends {
    [ratio.upper.into(), ratio.lower.into()]
}

/// Learned ratios, in (0, 1].
fn learned(what: &str, [upper, lower]: Ends) -> Result<ClipRatio> {
    let ratio = ClipRatio { upper: number(what, upper, true)?, lower: number(what, lower, true)? };
    if Clipping::Learned.admits(ratio) {
        return Ok(ratio);
    }
    Err(bad(format!("{FILE}: {what}"), "clip ratios in (0, 1]", format!("{upper} and {lower}")))
}

fn is_false(flag: &bool) -> bool {
    !flag
}
fn one<T: From<u8>>() -> T {
    T::from(1)
}
fn is_one<T: From<u8> + PartialEq>(value: &T) -> bool {
    *value == one()
}

impl KvEntry {
    fn of(kv: KvScheme) -> Self {
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
    fn scheme(self) -> Result<KvScheme> {
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

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockEntry {
    linears: BTreeMap<String, LinearEntry>,
    kv_scales: Option<KvScales>,
    /// Where they are learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kv_clip_ratios: Option<KvClipRatios>,
    /// What it multiplies activations by; the matrices are tensors of the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    online: Option<OnlineScheme>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvClipRatios {
    /// None where a side has static scales.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Ends>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Ends>,
}

impl KvClipRatios {
    fn of(kv: &KvQuant) -> Self {
        let side = |side| match kv.side(side) {
            EntryQuant::TokenHead { clip_ratio, .. } => Some(ends(*clip_ratio)),
            EntryQuant::Channel { .. } => None,
        };
        Self { key: side(KvSide::Key), value: side(KvSide::Value) }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvScales {
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
    fn of(kv: &KvQuant, rule: ActRule) -> Option<Self> {
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

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinearEntry {
    weight: Option<WeightEntry>,
    input: Option<InputEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightEntry {
    bits: Bits,
    symmetric: bool,
    group: Option<usize>,
    act_order: ActOrder,
    binary: bool,
    /// What the fields above cannot say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    form: Option<EntryForm>,
}

/// Forms that are neither integer levels of one width nor one-bit levels around a mean.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EntryForm {
    MixedInteger,
    BinaryResidual,
}

impl WeightEntry {
    fn of(scheme: WeightScheme) -> Self {
        let WeightScheme { bits, symmetric, group, act_order, form } = scheme;
        let (binary, form) = match form {
            WeightForm::Integer => (false, None),
            WeightForm::Binary => (true, None),
            WeightForm::MixedInteger => (false, Some(EntryForm::MixedInteger)),
            WeightForm::BinaryResidual => (true, Some(EntryForm::BinaryResidual)),
        };
        Self { bits, symmetric, group, act_order, binary, form }
    }
    fn scheme(&self) -> WeightScheme {
        let form = match (self.form, self.binary) {
            (Some(EntryForm::MixedInteger), _) => WeightForm::MixedInteger,
            (Some(EntryForm::BinaryResidual), _) => WeightForm::BinaryResidual,
            (None, true) => WeightForm::Binary,
            (None, false) => WeightForm::Integer,
        };
        let Self { bits, symmetric, group, act_order, .. } = *self;
        WeightScheme { bits, symmetric, group, act_order, form }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputEntry {
    bits: Bits,
    rule: ActRule,
    dynamic: bool,
    clip_ratio: InputClip,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    shards: usize,
    /// Static only.
    params: Option<Params>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    scale: f64,
    zero: f64,
}

fn bad(subject: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> CheckpointError {
    CheckpointError::BadFormat {
        format: ID,
        subject: subject.into(),
        expected: expected.into(),
        found: found.into(),
    }
}

/// A number of the file as f32, which must be finite and, for a scale, positive.
fn number(what: &str, value: f64, scale: bool) -> Result<f32> {
    let narrow = value as f32;
    if narrow.is_finite() && (!scale || narrow > 0.0) {
        return Ok(narrow);
    }
    let expected = if scale { "a positive number" } else { "a finite number" };
    Err(bad(format!("{FILE}: {what}"), expected, value.to_string()))
}

impl SchemeFile {
    /// Reads and checks what is the same for all blocks.
    pub(super) fn read(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Self> {
        let text = read_json_text(
            &checkpoint.path().join(FILE),
            FILE,
            "the schemes of the linears",
            LARGE_JSON_BYTES,
        )?;
        let parsed = Self::deserialize(parse_strict_json(FILE, &text)?)
            .map_err(|e| CheckpointError::Json { file: FILE.to_owned(), detail: e.to_string() })?;
        if parsed.version != VERSION {
            return Err(bad(FILE, format!("version {VERSION}"), parsed.version.to_string()));
        }
        if parsed.blocks.len() != spec.layers {
            return Err(bad(FILE, format!("{} blocks", spec.layers), parsed.blocks.len().to_string()));
        }
        for (index, block) in parsed.blocks.iter().enumerate() {
            for module in block.linears.keys() {
                if !spec.layout.linears.iter().any(|(_, known)| known == module) {
                    let subject = format!("{FILE}: block {index}");
                    return Err(bad(subject, "the linears of a block", module.clone()));
                }
            }
        }
        parsed.tables(spec)?;
        for index in 0..spec.layers {
            crate::formats::online::check_widths(ID, spec, &parsed.online(index), index)?;
        }
        Ok(parsed)
    }
    /// The scheme of the model.
    pub(super) fn model(&self, spec: &ModelSpec) -> Result<ModelScheme> {
        let block = |index| {
            let linears = spec.block(index).linears.into_iter();
            linears.map(|linear| Ok((linear.id, self.scheme(spec, index, linear.id)?))).collect()
        };
        let blocks = (0..spec.layers).map(block).collect::<Result<_>>()?;
        let kv = self.kv.map(KvEntry::scheme).transpose()?;
        let any = self.blocks.iter().any(|block| block.online.is_some());
        let online =
            if any { (0..spec.layers).map(|index| self.online(index)).collect() } else { Vec::new() };
        Ok(ModelScheme { blocks, kv, online, tables: self.tables(spec)?, fused: self.fused })
    }
    /// What a block multiplies activations by.
    pub(super) fn online(&self, index: usize) -> OnlineScheme {
        self.blocks.get(index).and_then(|block| block.online.clone()).unwrap_or_default()
    }
    /// Embedding and head, as far as they are quantised.
    fn tables(&self, spec: &ModelSpec) -> Result<BTreeMap<Outer, WeightScheme>> {
        let subject = || format!("{FILE}: tables");
        let named = |module: &str| Outer::TABLES.into_iter().find(|table| table.module() == module);
        let table = |(module, entry): (&String, &WeightEntry)| match named(module) {
            Some(table) => Ok((table, entry.scheme())),
            None => {
                let known = Outer::TABLES.map(Outer::module).join(" or ");
                Err(bad(subject(), known, module.clone()))
            }
        };
        let tables: BTreeMap<_, _> = self.tables.iter().map(table).collect::<Result<_>>()?;
        if spec.tied && !tables.is_empty() {
            return Err(bad(subject(), "a head of its own", "a config that ties it to the embedding"));
        }
        Ok(tables)
    }
    fn linear(&self, spec: &ModelSpec, index: usize, id: LinearId) -> Option<&LinearEntry> {
        self.blocks.get(index)?.linears.get(spec.layout.module(id))
    }
    fn scheme(&self, spec: &ModelSpec, index: usize, id: LinearId) -> Result<LinearScheme> {
        let Some(entry) = self.linear(spec, index, id) else { return Ok(LinearScheme::default()) };
        let weight = entry.weight.as_ref().map(WeightEntry::scheme);
        let input = entry.input.as_ref().map(|i| -> Result<InputScheme> {
            let clip_ratio = match i.clip_ratio {
                InputClip::Fixed(ratio) => Clipping::Fixed(number("clip_ratio", ratio, true)?),
                InputClip::Learned(_) => Clipping::Learned,
                InputClip::Tied(_) => Clipping::Tied,
            };
            let inputs = spec.site_width(id.site());
            if i.shards == 0 || !inputs.is_multiple_of(i.shards) || (i.shards > 1 && !i.dynamic) {
                let subject = format!("{FILE}: block {index}, {}", spec.layout.module(id));
                let expected = format!("shards of a dynamic input that divide its {inputs} features");
                return Err(bad(subject, expected, i.shards.to_string()));
            }
            Ok(InputScheme { bits: i.bits, rule: i.rule, dynamic: i.dynamic, clip_ratio, shards: i.shards })
        });
        Ok(LinearScheme { weight, input: input.transpose()? })
    }
    /// The quantiser of a linear's input.
    pub(super) fn input(&self, spec: &ModelSpec, index: usize, id: LinearId) -> Result<Option<ActQuant>> {
        let Some(entry) = self.linear(spec, index, id).and_then(|l| l.input.as_ref()) else {
            return Ok(None);
        };
        if entry.dynamic {
            let scheme = self.scheme(spec, index, id)?.input;
            let ratio = match entry.clip_ratio {
                InputClip::Fixed(_) => None,
                InputClip::Learned(ends) => Some(learned("clip_ratio", ends)?),
                InputClip::Tied([both]) => Some(learned("clip_ratio", [both; 2])?),
            };
            return Ok(scheme.and_then(|i| ratio.map_or_else(|| i.dynamic(), |ratio| i.clipped(ratio))));
        }
        let Some(params) = entry.params else {
            let subject = format!("{FILE}: block {index}, {}", spec.layout.module(id));
            return Err(bad(subject, "params of a static input", "none"));
        };
        let scale = number("scale", params.scale, true)?;
        let params = QParams { scale, zero: number("zero", params.zero, false)? };
        Ok(Some(ActQuant::Static { bits: entry.bits, params }))
    }
    /// The quantiser of a block's cache.
    pub(super) fn kv(&self, spec: &ModelSpec, index: usize) -> Result<Option<KvQuant>> {
        let Some(kv) = self.kv.map(KvEntry::scheme).transpose()? else { return Ok(None) };
        let subject = || format!("{FILE}: block {index}, kv_scales");
        let width = spec.kv_width();
        let stored = self.blocks.get(index).and_then(|b| b.kv_scales.as_ref());
        let side = |side| -> Result<EntryQuant> {
            if kv.granularity(side) == KvGranularity::TokenHead {
                let own = self.blocks.get(index).and_then(|b| b.kv_clip_ratios);
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
        Ok(Some(KvQuant { keys, values, before_rope: kv.before_rope, pre_bias: kv.pre_bias }))
    }
}

/// The file.
pub(super) fn write(spec: &ModelSpec, scheme: &ModelScheme, blocks: &[BlockSideData]) -> Vec<u8> {
    let input = |id: &LinearId, input: InputScheme, data: Option<&BlockSideData>| {
        let found = data.and_then(|d| d.inputs.get(id));
        InputEntry {
            bits: input.bits,
            rule: input.rule,
            dynamic: input.dynamic,
            clip_ratio: match (input.clip_ratio, found) {
                (Clipping::Learned, Some(ActQuant::Dynamic { clip_ratio, .. })) => {
                    InputClip::Learned(ends(*clip_ratio))
                }
                (Clipping::Tied, Some(ActQuant::Dynamic { clip_ratio, .. })) => {
                    InputClip::Tied([clip_ratio.upper.into()])
                }
                (clipping, _) => InputClip::Fixed(clipping.fixed().unwrap_or(ClipRatio::NONE).upper.into()),
            },
            shards: input.shards,
            params: match found {
                Some(ActQuant::Static { params, .. }) => {
                    Some(Params { scale: params.scale.into(), zero: params.zero.into() })
                }
                _ => None,
            },
        }
    };
    let block = |(index, linears): (usize, &BTreeMap<LinearId, LinearScheme>)| {
        let data = blocks.get(index);
        let linear = |(id, s): (&LinearId, &LinearScheme)| {
            let weight = s.weight.map(WeightEntry::of);
            let entry = LinearEntry { weight, input: s.input.map(|i| input(id, i, data)) };
            (spec.layout.module(*id).to_owned(), entry)
        };
        let kv_scales = match (scheme.kv, data.and_then(|d| d.kv.as_ref())) {
            (Some(kv), Some(quant)) => KvScales::of(quant, kv.rule),
            _ => None,
        };
        let kv_clip_ratios = match (scheme.kv, data.and_then(|d| d.kv.as_ref())) {
            (Some(KvScheme { clip_ratio: Clipping::Learned | Clipping::Tied, .. }), Some(quant)) => {
                Some(KvClipRatios::of(quant))
            }
            _ => None,
        };
        let online = scheme.online.get(index).filter(|online| !online.is_empty()).cloned();
        BlockEntry { linears: linears.iter().map(linear).collect(), kv_scales, kv_clip_ratios, online }
    };
    let file = SchemeFile {
        version: VERSION,
        kv: scheme.kv.map(KvEntry::of),
        fused: scheme.fused,
        blocks: scheme.blocks.iter().enumerate().map(block).collect(),
        tables: scheme.tables.iter().map(|(t, w)| (t.module().to_owned(), WeightEntry::of(*w))).collect(),
    };
    // Every number is finite and every key a string, so this cannot fail.
    let mut text = serde_json::to_vec_pretty(&file).unwrap_or_default();
    text.push(b'\n');
    text
}
