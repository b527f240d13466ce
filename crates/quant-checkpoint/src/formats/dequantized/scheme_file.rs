//! `ptq_scheme.json`: the schemes of linears and cache, and their quantisers.

use std::collections::BTreeMap;

use quant_core::{ActQuant, ActRule, Bits, ClipRatio, KvQuant, QParams};
use quant_graph::{
    ActOrder, Clipping, InputScheme, KvScheme, LinearId, LinearScheme, ModelScheme, ModelSpec, OnlineScheme,
    Outer, WeightForm, WeightScheme,
};
use serde::{Deserialize, Serialize};

use super::cache::{KvClipRatios, KvEntry, KvScales, quantiser};
use super::numbers::{Ends, FILE, bad, ends, is_false, is_one, learned, number, one};
use super::{BlockSideData, ID};
use crate::error::{CheckpointError, Result};
use crate::json::{LARGE_JSON_BYTES, parse_strict_json, read_json_text};
use crate::source::Checkpoint;

/// Its version.
const VERSION: u32 = 1;

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

/// The clip ratio of an input: one, learned ones of the upper and the lower end, or a learned one of both.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum InputClip {
    Fixed(f64),
    Learned(Ends),
    /// One of both ends.
    Tied([f64; 1]),
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
    /// The quantiser of a block's cache.
    pub(super) fn kv(&self, spec: &ModelSpec, index: usize) -> Result<Option<KvQuant>> {
        let block = self.blocks.get(index);
        let stored = (block.and_then(|b| b.kv_scales.as_ref()), block.and_then(|b| b.kv_clip_ratios));
        self.kv.map(|kv| quantiser(kv, stored, (index, spec.kv_width()))).transpose()
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
