//! compressed-tensors: `quantization_config` in `config.json`, weights under their own names.
//!
//! | format of a group | scheme | tensors |
//! |---|---|---|
//! | `int-quantized` | 8-bit weights per channel and 8-bit inputs, per token or static per tensor | `weight` int8, `weight_scale`, `weight_zero_point`, `input_scale`, `input_zero_point` |
//! | `pack-quantized` | weights of 2 to 8 bits, per channel or group | `weight_packed`, `weight_shape`, `weight_scale`, `weight_zero_point`, `weight_g_idx` |
//!
//! Zero points exist only where the scheme is asymmetric. int8 tensors hold `level − 2^(b−1)`; packed words hold our
//! unsigned levels as they are, least significant bits first, running on across words; packed zero points run down the
//! outputs. Scales, norms and biases have the model's type. vLLM has kernels for packed weights of 4 and 8 bits and for
//! symmetric int8 weights; the other combinations run in transformers.
//!
//! Per-token inputs use [`ActRule::SymmetricFull`]: what the library computes when transformers runs a folder.

mod codec;
pub(crate) mod config;
mod section;

use std::collections::BTreeMap;

use quant_core::operators::Profile;
use quant_core::{ActRule, FloatType, KvGranularity};
use quant_graph::{
    ActOrder, BlockParams, InputScheme, LinearId, LinearScheme, ModelScheme, ModelSpec, WeightForm,
    WeightScheme,
};
use safetensors::Dtype;
use serde_json::Value;

use self::config::{Config, Layout};
use super::bytes::float_dtype;
use super::layout::{ExpectedTensor, Item, Slot, norm_slot, outer_decls, outer_expected};
use super::{
    BlockSideData, ConfigNotes, Decoder, Encoded, Format, TensorDecl, Unsupported, declare_dtype, declare_tie,
};
use crate::error::Result;
use crate::formats::ascend_description::Description;
use crate::source::Checkpoint;
use crate::writer::ShardNaming;

pub(crate) const ID: &str = "compressed-tensors";

/// The format of llm-compressor, loaded by vLLM and transformers.
#[derive(Clone, Copy, Debug)]
pub struct CompressedTensors;

fn unsupported(what: impl Into<String>, alternatives: impl Into<String>) -> Unsupported {
    Unsupported { format: ID, what: what.into(), alternatives: alternatives.into() }
}

/// Everything a block stores.
fn slots(spec: &ModelSpec, index: usize, layout: impl Fn(LinearId) -> Option<Layout>) -> Vec<Slot> {
    let float = float_dtype(spec.dtype);
    let mut slots = Vec::new();
    for linear in spec.block(index).linears {
        let parts = match layout(linear.id) {
            Some(layout) => layout.parts(&linear, spec.dtype),
            None => {
                let mut parts =
                    vec![super::layout::Part::new("weight", float, [linear.outputs, linear.inputs])];
                if linear.bias {
                    parts.push(super::layout::Part::new("bias", float, [linear.outputs]));
                }
                parts
            }
        };
        slots.extend(parts.into_iter().map(|p| p.slot(&linear)));
    }
    slots.extend(spec.norms().into_iter().map(|(norm, width)| norm_slot(spec, index, norm, width, float)));
    slots
}

/// Group sizes that divide a number of inputs: multiples of 8, or all divisors if there are none.
fn group_sizes(inputs: usize) -> String {
    let divisors = |step: usize| -> Vec<String> {
        (1..=inputs.min(1024))
            .filter(|g| g % step == 0 && inputs.is_multiple_of(*g))
            .map(|g| g.to_string())
            .collect()
    };
    let nice = divisors(8);
    if nice.is_empty() { divisors(1).join(", ") } else { nice.join(", ") }
}

fn check_weight(module: &str, inputs: usize, w: WeightScheme) -> Result<(), Unsupported> {
    match w.form {
        WeightForm::Integer if w.bits.get() >= 2 => {}
        WeightForm::Integer | WeightForm::Binary => {
            return Err(unsupported(
                format!("1-bit weights ({module})"),
                "use 2 to 8 bits, or export to dequantized",
            ));
        }
        WeightForm::MixedInteger | WeightForm::BinaryResidual => {
            return Err(unsupported(
                format!("{} ({module})", w.form.name()),
                "export to dequantized, or use a method with levels of one width (gptq, gptaq, awq, rtn)",
            ));
        }
    }
    if w.act_order == ActOrder::Dynamic {
        return Err(unsupported(
            format!("dynamic act-order ({module}; the library refuses it since 0.19)"),
            "use actorder: static or none, or export to dequantized",
        ));
    }
    if let Some(group) = w.group.filter(|g| !inputs.is_multiple_of(*g)) {
        return Err(unsupported(
            format!("groups of {group} in {module}, which has {inputs} inputs"),
            format!(
                "use a group size that divides them ({}), none, or export to dequantized",
                group_sizes(inputs)
            ),
        ));
    }
    Ok(())
}

fn check_input(module: &str, weight: Option<WeightScheme>, input: InputScheme) -> Result<(), Unsupported> {
    const ELSE: &str = "use W8A8 per channel or weight-only WnA16, or export to dequantized";
    let Some(weight) = weight else {
        return Err(unsupported(format!("quantised activations before a float weight ({module})"), ELSE));
    };
    super::input::refuse_shards(ID, module, input.shards)?;
    if (weight.bits.get(), input.bits.get(), weight.group) != (8, 8, None) {
        let group = weight.group.map_or(String::new(), |g| format!(" in groups of {g}"));
        let what = format!(
            "{}-bit weights{group} with {}-bit activations ({module})",
            weight.bits.get(),
            input.bits.get()
        );
        return Err(unsupported(what, ELSE));
    }
    super::input::refuse_clipping(ID, module, input.clip_ratio)?;
    if input.dynamic && input.rule != ActRule::SymmetricFull {
        return Err(unsupported(
            format!("dynamic activations by the {:?} rule ({module})", input.rule),
            "use symmetric: true for dynamic activations, static ones (dynamic: false), or export to dequantized",
        ));
    }
    Ok(())
}

impl Format for CompressedTensors {
    fn id(&self) -> &'static str {
        ID
    }
    fn summary(&self) -> &'static str {
        "llm-compressor's format for vLLM and transformers"
    }
    fn tier(&self) -> u8 {
        1
    }
    fn schemes(&self) -> &'static str {
        "WnA16 with n = 2 to 8, per channel or group, symmetric or asymmetric; W8A8 dynamic (symmetric) or static"
    }
    fn clients(&self) -> &'static [&'static str] {
        &["vLLM (W4A16, W8A16, W8A8)", "transformers with compressed-tensors", "vLLM-Ascend (W8A8 symmetric)"]
    }
    fn scale_type(&self, spec: &ModelSpec) -> FloatType {
        spec.dtype.served()
    }
    fn float_type(&self, spec: &ModelSpec) -> FloatType {
        spec.dtype
    }

    fn profile(&self, _: &ModelSpec) -> Profile {
        Profile::CompressedTensors
    }
    fn activation_rule(&self, dynamic: bool, symmetric: Option<bool>) -> Result<ActRule, Unsupported> {
        match (dynamic, symmetric) {
            (true, Some(false)) => Err(unsupported(
                "dynamic asymmetric activations",
                "use symmetric: true, or dynamic: false, or export to dequantized",
            )),
            (true, _) | (false, Some(true)) => Ok(ActRule::SymmetricFull),
            (false, _) => Ok(ActRule::Asymmetric),
        }
    }
    fn kv_granularity(&self) -> KvGranularity {
        KvGranularity::TokenHead
    }

    fn supports(&self, spec: &ModelSpec, scheme: &ModelScheme) -> Result<(), Unsupported> {
        if let Some(kv) = scheme.kv {
            return Err(unsupported(
                format!("an integer KV cache (KV{})", kv.bits.get()),
                "drop the KV part, or export to vllm-ascend (KV8 per channel) or dequantized",
            ));
        }
        if let Some(table) = scheme.tables.keys().next() {
            return Err(unsupported(
                format!("a quantised {} (its loaders keep embedding and head as floats)", table.module()),
                "drop its override, or export to dequantized",
            ));
        }
        super::online::refuse(ID, spec, scheme)?;
        for (index, id, linear) in scheme.linears() {
            let module = spec.module(index, id);
            if let Some(weight) = linear.weight {
                check_weight(&module, spec.site_width(id.site()), weight)?;
            }
            if let Some(input) = linear.input {
                check_input(&module, linear.weight, input)?;
            }
        }
        if let Some((index, id, other)) = scheme.unequal_fusion(spec) {
            return Err(unsupported(
                format!(
                    "different schemes in the fused layer of {} and {}",
                    spec.module(index, id),
                    spec.module(index, other)
                ),
                "give q, k and v one scheme, and gate and up one scheme",
            ));
        }
        Ok(())
    }
    fn naming(&self) -> ShardNaming {
        ShardNaming::hugging_face()
    }

    fn declare(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        source_dtype: &dyn Fn(&str) -> Option<Dtype>,
    ) -> Vec<TensorDecl> {
        let block = |index| codec::slots_of(spec, scheme, index).into_iter().map(|s| s.decl);
        (0..spec.layers).flat_map(block).chain(outer_decls(spec, source_dtype)).collect()
    }
    fn encode_block(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        index: usize,
        block: BlockParams,
    ) -> Result<Vec<Encoded>> {
        codec::encode(spec, scheme, index, block)
    }
    fn config(&self, spec: &ModelSpec, scheme: &ModelScheme, config: &Value, notes: &ConfigNotes) -> Value {
        let mut config = config.clone();
        if let Some(object) = config.as_object_mut() {
            declare_dtype(object, spec.dtype, false);
            declare_tie(object, spec, scheme);
            object.insert("quantization_config".to_owned(), section::write(spec, scheme, notes));
        }
        config
    }
    fn side_files(
        &self,
        _: &ModelSpec,
        _: &ModelScheme,
        _: &[TensorDecl],
        _: &[BlockSideData],
    ) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }

    fn detect(&self, checkpoint: &Checkpoint) -> bool {
        // A description beside the section makes it a (broken) folder of the other format: its loader looks there first.
        Config::section(checkpoint).is_some() && !Description::exists(checkpoint)
    }
    fn scheme(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme> {
        let layouts = Config::read(checkpoint)?.layouts(spec)?;
        let scheme = |module: &str| layouts.get(module).map_or_else(LinearScheme::default, |l| l.scheme);
        let block = |index| {
            let linears = spec.block(index).linears.into_iter();
            linears.map(|linear| (linear.id, scheme(&linear.module))).collect::<BTreeMap<_, _>>()
        };
        Ok(ModelScheme { blocks: (0..spec.layers).map(block).collect(), ..ModelScheme::default() })
    }
    fn expected(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Vec<ExpectedTensor>> {
        let layouts = Config::read(checkpoint)?.layouts(spec)?;
        let block = |index| slots(spec, index, |id| layouts.get(&spec.module(index, id)).copied());
        let tensor = |slot: Slot| match slot.item {
            // The library widens them.
            Item::Linear(_, "input_zero_point") => {
                ExpectedTensor { dtypes: &[Dtype::I8, Dtype::I32], ..ExpectedTensor::of(&slot.decl) }
            }
            _ => ExpectedTensor::of(&slot.decl),
        };
        let mut expected: Vec<_> = (0..spec.layers).flat_map(|i| block(i).into_iter().map(tensor)).collect();
        expected.extend(outer_expected(spec));
        Ok(expected)
    }
    fn decoder(&self, checkpoint: &Checkpoint, _: &ModelSpec) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(Config::read(checkpoint)?))
    }
}
