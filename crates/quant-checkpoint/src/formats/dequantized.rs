//! The values of the quantised weights in f32, and the quantisers of activations and cache beside them.
//!
//! For research: any scheme at all can be stored, and any program that reads Hugging Face folders can load the weights
//! (the activation and cache quantisers are then left out; this crate's readers apply them). What the weights were
//! quantised with, and the quantisers themselves, stand in `ptq_scheme.json`; its numbers read back bit by bit.

use std::collections::BTreeMap;

use ndarray::Array1;
use quant_core::{ActQuant, ActRule, Bits, FloatType, KvGranularity, KvQuant, QParams};
use quant_graph::{
    ActOrder, BlockParams, InputScheme, KvScheme, LinearId, LinearScheme, LinearWeight, ModelScheme,
    ModelSpec, WeightForm, WeightScheme,
};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::block::check;
use super::bytes::{Loss, dequantized_bytes, float_bytes};
use super::layout::{ExpectedTensor, Item, Part, Slot, norm_slot, outer_decls, plain_expected};
use super::{BlockSideData, ConfigNotes, Decoder, Encoded, Format, TensorDecl, Unsupported, declare_dtype};
use crate::error::{CheckpointError, Result};
use crate::json::{LARGE_JSON_BYTES, parse_strict_json, read_json_text};
use crate::source::Checkpoint;
use crate::writer::ShardNaming;

const ID: &str = "dequantized";
/// Name of the side file.
const FILE: &str = "ptq_scheme.json";
/// Version of the side file.
const VERSION: u32 = 1;

/// f32 values of quantised weights.
#[derive(Clone, Copy, Debug)]
pub struct Dequantized;

// A number is written as the f64 it is exactly equal to: a reader whose last digit is off still rounds to the same f32.

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemeFile {
    version: u32,
    kv: Option<KvEntry>,
    blocks: Vec<BlockEntry>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvEntry {
    bits: Bits,
    rule: ActRule,
    granularity: KvGranularity,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockEntry {
    linears: BTreeMap<String, LinearEntry>,
    kv_scales: Option<KvScales>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvScales {
    key: Vec<f64>,
    value: Vec<f64>,
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
    clip_ratio: f64,
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
    fn read(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Self> {
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
        Ok(parsed)
    }
    fn linear(&self, spec: &ModelSpec, index: usize, id: LinearId) -> Option<&LinearEntry> {
        self.blocks.get(index)?.linears.get(spec.layout.module(id))
    }
    fn scheme(&self, spec: &ModelSpec, index: usize, id: LinearId) -> Result<LinearScheme> {
        let Some(entry) = self.linear(spec, index, id) else { return Ok(LinearScheme::default()) };
        let weight = entry.weight.as_ref().map(WeightEntry::scheme);
        let input = entry.input.as_ref().map(|i| -> Result<InputScheme> {
            let clip_ratio = number("clip_ratio", i.clip_ratio, true)?;
            Ok(InputScheme { bits: i.bits, rule: i.rule, dynamic: i.dynamic, clip_ratio })
        });
        Ok(LinearScheme { weight, input: input.transpose()? })
    }
    fn input(&self, spec: &ModelSpec, index: usize, id: LinearId) -> Result<Option<ActQuant>> {
        let Some(entry) = self.linear(spec, index, id).and_then(|l| l.input.as_ref()) else {
            return Ok(None);
        };
        if entry.dynamic {
            return Ok(self.scheme(spec, index, id)?.input.and_then(|i| i.dynamic()));
        }
        let Some(params) = entry.params else {
            let subject = format!("{FILE}: block {index}, {}", spec.layout.module(id));
            return Err(bad(subject, "params of a static input", "none"));
        };
        let scale = number("scale", params.scale, true)?;
        let params = QParams { scale, zero: number("zero", params.zero, false)? };
        Ok(Some(ActQuant::Static { bits: entry.bits, params }))
    }
    fn kv(&self, spec: &ModelSpec, index: usize) -> Result<Option<KvQuant>> {
        let Some(kv) = self.kv else { return Ok(None) };
        if kv.granularity == KvGranularity::TokenHead {
            return Ok(Some(KvQuant::TokenHead { bits: kv.bits, rule: kv.rule }));
        }
        let Some(scales) = self.blocks.get(index).and_then(|b| b.kv_scales.as_ref()) else {
            return Err(bad(format!("{FILE}: block {index}"), "kv_scales", "none"));
        };
        let side = |values: &[f64]| -> Result<Array1<f32>> {
            if values.len() != spec.kv_width() {
                let subject = format!("{FILE}: block {index}, kv_scales");
                return Err(bad(subject, format!("{} scales", spec.kv_width()), values.len().to_string()));
            }
            values.iter().map(|&v| number("kv_scales", v, true)).collect()
        };
        Ok(Some(KvQuant::Channel { bits: kv.bits, key: side(&scales.key)?, value: side(&scales.value)? }))
    }
}

fn write_scheme(spec: &ModelSpec, scheme: &ModelScheme, blocks: &[BlockSideData]) -> Vec<u8> {
    let input = |id: &LinearId, input: InputScheme, data: Option<&BlockSideData>| InputEntry {
        bits: input.bits,
        rule: input.rule,
        dynamic: input.dynamic,
        clip_ratio: input.clip_ratio.into(),
        params: match data.and_then(|d| d.inputs.get(id)) {
            Some(ActQuant::Static { params, .. }) => {
                Some(Params { scale: params.scale.into(), zero: params.zero.into() })
            }
            _ => None,
        },
    };
    let wide = |values: &Array1<f32>| values.iter().map(|&v| f64::from(v)).collect();
    let block = |(index, linears): (usize, &BTreeMap<LinearId, LinearScheme>)| {
        let data = blocks.get(index);
        let linear = |(id, s): (&LinearId, &LinearScheme)| {
            let weight = s.weight.map(WeightEntry::of);
            let entry = LinearEntry { weight, input: s.input.map(|i| input(id, i, data)) };
            (spec.layout.module(*id).to_owned(), entry)
        };
        let kv_scales = match data.and_then(|d| d.kv.as_ref()) {
            Some(KvQuant::Channel { key, value, .. }) => {
                Some(KvScales { key: wide(key), value: wide(value) })
            }
            _ => None,
        };
        BlockEntry { linears: linears.iter().map(linear).collect(), kv_scales }
    };
    let file = SchemeFile {
        version: VERSION,
        kv: scheme.kv.map(|kv| KvEntry { bits: kv.bits, rule: kv.rule, granularity: kv.granularity }),
        blocks: scheme.blocks.iter().enumerate().map(block).collect(),
    };
    // Every number is finite and every key a string, so this cannot fail.
    let mut text = serde_json::to_vec_pretty(&file).unwrap_or_default();
    text.push(b'\n');
    text
}

fn slots(spec: &ModelSpec, index: usize) -> Vec<Slot> {
    let mut slots = Vec::new();
    for linear in spec.block(index).linears {
        slots.push(Part::new("weight", Dtype::F32, [linear.outputs, linear.inputs]).slot(&linear));
        if linear.bias {
            slots.push(Part::new("bias", Dtype::F32, [linear.outputs]).slot(&linear));
        }
    }
    slots.extend(
        spec.norms().into_iter().map(|(norm, width)| norm_slot(spec, index, norm, width, Dtype::F32)),
    );
    slots
}

impl Format for Dequantized {
    fn id(&self) -> &'static str {
        ID
    }
    fn summary(&self) -> &'static str {
        "f32 values of the quantised weights, for research"
    }
    fn tier(&self) -> u8 {
        2
    }
    fn schemes(&self) -> &'static str {
        "everything"
    }
    fn clients(&self) -> &'static [&'static str] {
        &["ptq eval", "transformers (weights only: activation and cache quantisers are not applied)"]
    }
    fn scale_type(&self, _: &ModelSpec) -> FloatType {
        FloatType::F32
    }
    fn float_type(&self, _: &ModelSpec) -> FloatType {
        FloatType::F32
    }
    fn activation_rule(&self, _: bool, symmetric: Option<bool>) -> Result<ActRule, Unsupported> {
        Ok(if symmetric == Some(true) { ActRule::Symmetric } else { ActRule::Asymmetric })
    }
    fn kv_granularity(&self) -> KvGranularity {
        KvGranularity::TokenHead
    }
    fn supports(&self, _: &ModelSpec, _: &ModelScheme) -> Result<(), Unsupported> {
        Ok(())
    }
    fn naming(&self) -> ShardNaming {
        ShardNaming::hugging_face()
    }

    fn declare(
        &self,
        spec: &ModelSpec,
        _: &ModelScheme,
        source_dtype: &dyn Fn(&str) -> Option<Dtype>,
    ) -> Vec<TensorDecl> {
        let block = |index| slots(spec, index).into_iter().map(|s| s.decl);
        (0..spec.layers).flat_map(block).chain(outer_decls(spec, source_dtype)).collect()
    }
    fn encode_block(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        index: usize,
        block: &BlockParams,
    ) -> Result<Vec<Encoded>> {
        check(ID, spec, scheme, index, block, FloatType::F32)?;
        let encode = |slot: Slot| {
            let decl = slot.decl;
            let floats = |values: &mut dyn Iterator<Item = f32>| {
                float_bytes(ID, &decl.name, values, FloatType::F32, Loss::None)
            };
            let bytes = match slot.item {
                Item::Linear(id, "bias") => floats(&mut block.linears[&id].bias.iter().flatten().copied())?,
                Item::Linear(id, _) => match &block.linears[&id].weight {
                    LinearWeight::Float(values) => floats(&mut values.iter().copied())?,
                    rounded => dequantized_bytes(rounded),
                },
                Item::Norm(norm) => floats(&mut block.norms[&norm].iter().copied())?,
                Item::KvScale(_) | Item::KvOffset(_) => Vec::new(),
            };
            Ok(Encoded { name: decl.name, dtype: decl.dtype, shape: decl.shape, bytes })
        };
        slots(spec, index).into_par_iter().map(encode).collect()
    }
    fn config(&self, _: &ModelSpec, _: &ModelScheme, config: &Value, _: &ConfigNotes) -> Value {
        let mut config = config.clone();
        if let Some(object) = config.as_object_mut() {
            object.shift_remove("quantization_config");
            declare_dtype(object, FloatType::F32, true);
        }
        config
    }
    fn side_files(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        _: &[TensorDecl],
        blocks: &[BlockSideData],
    ) -> Vec<(String, Vec<u8>)> {
        vec![(FILE.to_owned(), write_scheme(spec, scheme, blocks))]
    }

    fn detect(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.path().join(FILE).symlink_metadata().is_ok()
    }
    fn scheme(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme> {
        let file = SchemeFile::read(checkpoint, spec)?;
        let block = |index| {
            let linears = spec.block(index).linears.into_iter();
            linears.map(|linear| Ok((linear.id, file.scheme(spec, index, linear.id)?))).collect()
        };
        let blocks = (0..spec.layers).map(block).collect::<Result<_>>()?;
        let kv = file.kv.map(|kv| KvScheme { bits: kv.bits, rule: kv.rule, granularity: kv.granularity });
        Ok(ModelScheme { blocks, kv })
    }
    fn expected(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Vec<ExpectedTensor>> {
        SchemeFile::read(checkpoint, spec)?;
        Ok(plain_expected(spec))
    }
    fn decoder(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(SchemeFile::read(checkpoint, spec)?))
    }
}

impl Decoder for SchemeFile {
    fn block(&self, checkpoint: &Checkpoint, spec: &ModelSpec, index: usize) -> Result<BlockParams> {
        let mut block = super::plain::read_block(checkpoint, spec, index, None)?;
        for (id, linear) in &mut block.linears {
            linear.input = self.input(spec, index, *id)?;
        }
        block.kv = self.kv(spec, index)?;
        Ok(block)
    }
}
