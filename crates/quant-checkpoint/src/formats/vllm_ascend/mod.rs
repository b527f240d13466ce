//! The layout of msmodelslim, which vLLM-Ascend loads.
//!
//! A linear has one of the types
//!
//! | type | weight | input | tensors beside `weight` (int8) |
//! |---|---|---|---|
//! | `W8A8_DYNAMIC` | 8 bits, per channel, symmetric | 8 bits, per token, symmetric | `weight_scale`, `weight_offset` |
//! | `W8A8` | same | 8 bits, per tensor, static | `quant_bias`, `input_scale`, `input_offset`, `deq_scale` |
//! | `W8A8_MIX` (read) | same | either of the two, by the node's task | all of the above |
//! | `W8A16` | same | float | `weight_scale`, `weight_offset` |
//! | `W4A4_DYNAMIC` | 4 bits, one to a byte, per channel, symmetric | 4 bits, per token, symmetric | `weight_scale`, `weight_offset` |
//! | `W4A4_FLATQUANT_DYNAMIC` | same | same, behind a Kronecker pair, clipped | those, `left_trans`, `right_trans`, `clip_ratio` |
//! | `FLOAT` | float | float | none |
//!
//! and the cache may be `C8`: 8 bits, one static symmetric scale per channel, keys after rope.
//!
//! The static path computes `(x_q · w + quant_bias) · deq_scale` with `x_q = clamp(round(x / input_scale +
//! input_offset), −128, 127)`, `deq_scale = input_scale · weight_scale` and
//! `quant_bias = round(bias / deq_scale − input_offset · Σ w)`; `input_offset` is our zero level minus 128. Scales are
//! held in the model's type by the loader, so they must be exact in it; `deq_scale` is kept in f32.
//!
//! `W8A8_MIX` is read as `W8A8_DYNAMIC`, the path of an ordinary instance (the static one runs only on nodes that
//! decode for others); its static tensors must agree with the dynamic ones.

mod decode;
pub(crate) mod description;
mod encode;
pub(crate) mod flatquant;
pub(crate) mod types;

use quant_core::operators::Profile;
use quant_core::{ActRule, FloatType, KvGranularity, KvSide};
use quant_graph::{
    BlockParams, InputScheme, LinearId, LinearScheme, LinearSpec, ModelScheme, ModelSpec, Norm, PairKernel,
    WeightForm, WeightScheme,
};
use safetensors::Dtype;
use serde_json::Value;

use self::description::Description;
use self::types::{AscendType, c8};
use super::bytes::float_dtype;
use super::layout::{ExpectedTensor, Item, Slot, norm_slot, outer_decls, outer_expected};
use super::{
    BlockSideData, ConfigNotes, Decoder, Encoded, Format, TensorDecl, Unsupported, declare_dtype, declare_tie,
};
use crate::error::{CheckpointError, Result};
use crate::source::Checkpoint;
use crate::writer::ShardNaming;

pub(crate) const ID: &str = "vllm-ascend";
/// Types that int8 weights may have.
const INT8_OR_FLOAT: &[Dtype] = &[Dtype::I8, Dtype::F32, Dtype::F16, Dtype::BF16];

/// msmodelslim's layout for vLLM-Ascend.
#[derive(Clone, Copy, Debug)]
pub struct VllmAscend;

fn unsupported(what: impl Into<String>, alternatives: impl Into<String>) -> Unsupported {
    Unsupported { format: ID, what: what.into(), alternatives: alternatives.into() }
}

pub(crate) fn bad(
    subject: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::bad_format(ID, subject, expected, found)
}

/// Everything a block stores, in msmodelslim's order; `shards` are the parts of the input of a linear that a pair is for.
fn slots(
    spec: &ModelSpec,
    index: usize,
    kind: impl Fn(LinearId) -> AscendType,
    shards: impl Fn(&LinearSpec) -> usize,
    kv: bool,
) -> Vec<Slot> {
    let float = float_dtype(spec.dtype);
    let mut slots = Vec::new();
    for linear in spec.block(index).linears {
        let kind = kind(linear.id);
        let parts = kind.codec().parts(&linear, spec.dtype, shards(&linear));
        slots.extend(parts.into_iter().map(|p| p.slot(&linear)));
        if linear.id == LinearId::O {
            for (norm, width) in
                spec.norms().into_iter().filter(|(n, _)| matches!(n, Norm::Query | Norm::Key))
            {
                slots.push(norm_slot(spec, index, norm, width, float));
            }
            if kv {
                slots.extend(c8::slots(spec, index));
            }
        }
    }
    for (norm, width) in
        spec.norms().into_iter().filter(|(n, _)| matches!(n, Norm::Input | Norm::PostAttention))
    {
        slots.push(norm_slot(spec, index, norm, width, float));
    }
    slots
}

/// Inputs that the loader packs into one word.
const PACKED: usize = 8;

fn check_weight(
    module: &str,
    w: WeightScheme,
    input: Option<InputScheme>,
    inputs: usize,
) -> Result<(), Unsupported> {
    const ELSE: &str = "use symmetric weights per channel of 8 bits (W8A8, W8A16), or of 4 before dynamic inputs of 4 \
                        (W4A4), or export to compressed-tensors (2 to 8 bits, groups, asymmetric) or dequantized (anything)";
    let four = input.is_some_and(|input| input.bits.get() == 4);
    if matches!(w.form, WeightForm::MixedInteger | WeightForm::BinaryResidual) {
        return Err(unsupported(format!("{} ({module})", w.form.name()), ELSE));
    }
    if w.bits.get() != if four { 4 } else { 8 } {
        let before = input.map_or_else(String::new, |i| format!(" before {}-bit activations", i.bits.get()));
        return Err(unsupported(format!("{}-bit weights{before} ({module})", w.bits.get()), ELSE));
    }
    if four && !inputs.is_multiple_of(PACKED) {
        let what = format!("4-bit weights of {inputs} inputs ({module}), which it packs {PACKED} to a word");
        return Err(unsupported(what, "give this linear W8A8 by an override, or export to dequantized"));
    }
    if let Some(group) = w.group {
        return Err(unsupported(format!("weight groups of {group} ({module})"), ELSE));
    }
    if !w.symmetric || w.form != WeightForm::Integer {
        return Err(unsupported(format!("asymmetric weights ({module})"), ELSE));
    }
    if w.act_order == quant_graph::ActOrder::Dynamic {
        return Err(unsupported(format!("dynamic act-order ({module})"), "use actorder: static or none"));
    }
    Ok(())
}

fn check_input(module: &str, weight: bool, transformed: bool, input: InputScheme) -> Result<(), Unsupported> {
    if !weight {
        return Err(unsupported(
            format!("quantised activations before a float weight ({module})"),
            "quantise the weight too (W8A8), or export to dequantized",
        ));
    }
    if !matches!(input.bits.get(), 4 | 8) || (input.bits.get() == 4 && !input.dynamic) {
        let kind = if input.dynamic { "" } else { "static " };
        let what = format!("{kind}{}-bit activations ({module})", input.bits.get());
        return Err(unsupported(what, "use A8, A16 or dynamic A4, or export to dequantized"));
    }
    if !transformed {
        super::input::refuse_shards(ID, module, input.shards)?;
    }
    if !(transformed && flatquant::takes(input.clip_ratio)) {
        super::input::refuse_clipping(ID, module, input.clip_ratio)?;
    }
    if input.dynamic && input.rule != ActRule::Symmetric {
        return Err(unsupported(
            format!("dynamic activations by the {:?} rule ({module})", input.rule),
            "use symmetric: true for dynamic activations, static ones (dynamic: false), or export to dequantized",
        ));
    }
    Ok(())
}

impl Format for VllmAscend {
    fn id(&self) -> &'static str {
        ID
    }
    fn summary(&self) -> &'static str {
        "msmodelslim's layout for vLLM on Ascend"
    }
    fn tier(&self) -> u8 {
        1
    }
    fn schemes(&self) -> &'static str {
        "W8A8 dynamic (symmetric) or static (per tensor), W8A16, W4A4 dynamic (also behind Kronecker pairs), per channel; KV8 per \
         channel (C8); float"
    }
    fn clients(&self) -> &'static [&'static str] {
        &["vLLM-Ascend (C8: 0.18 or later, W4A4: 0.14 or later, behind Kronecker pairs 0.11)"]
    }
    fn scale_type(&self, spec: &ModelSpec) -> FloatType {
        spec.dtype.served()
    }
    fn float_type(&self, spec: &ModelSpec) -> FloatType {
        spec.dtype
    }

    fn pair_kernel(&self, spec: &ModelSpec) -> Option<PairKernel> {
        Some(PairKernel::of(spec.dtype))
    }
    fn profile(&self, spec: &ModelSpec) -> Profile {
        Profile::Ascend { model: spec.dtype.served() }
    }
    fn activation_rule(&self, dynamic: bool, symmetric: Option<bool>) -> Result<ActRule, Unsupported> {
        match (dynamic, symmetric) {
            (true, Some(false)) => Err(unsupported(
                "dynamic asymmetric activations",
                "use symmetric: true, or dynamic: false, or export to dequantized",
            )),
            (true, _) | (false, Some(true)) => Ok(ActRule::Symmetric),
            (false, _) => Ok(ActRule::Asymmetric),
        }
    }
    fn kv_granularity(&self) -> KvGranularity {
        KvGranularity::ChannelStatic
    }

    fn supports(&self, spec: &ModelSpec, scheme: &ModelScheme) -> Result<(), Unsupported> {
        if let Some(kv) = scheme.kv {
            if kv.bits.get() != 8 {
                let what = format!("a KV cache of {} bits", kv.bits.get());
                return Err(unsupported(what, "use KV8, or export to dequantized"));
            }
            if kv.before_rope {
                return Err(unsupported(
                    "keys quantised before rope (the loader reads them behind it)",
                    "use kv_cache: { before_rope: false, granularity: channel_static }, or export to dequantized",
                ));
            }
            let sides =
                [(KvSide::Key, "keys", "granularity"), (KvSide::Value, "values", "value_granularity")];
            for (side, what, key) in sides {
                if kv.granularity(side) != KvGranularity::ChannelStatic {
                    return Err(unsupported(
                        format!("a KV cache with {what} quantised per token and head"),
                        format!("use kv_cache: {{ {key}: channel_static }}, or export to dequantized"),
                    ));
                }
            }
            if kv.rule == ActRule::Asymmetric {
                return Err(unsupported(
                    "an asymmetric KV cache (the loader ignores offsets)",
                    "use kv_cache: { symmetric: true }, or export to dequantized",
                ));
            }
        }
        if let Some(table) = scheme.tables.keys().next() {
            return Err(unsupported(
                format!(
                    "a quantised {} (its loader wants FLOAT entries for embedding and head)",
                    table.module()
                ),
                "drop its override, or export to dequantized",
            ));
        }
        flatquant::check(spec, scheme)?;
        if let Some(linear) = spec.block(0).linears.iter().find(|l| l.parts.len() > 1) {
            let what = format!("a fused linear ({})", linear.module);
            return Err(unsupported(
                what,
                "its loader reads q, k, v, gate and up apart; export to compressed-tensors or dequantized",
            ));
        }
        for (index, id, linear) in scheme.linears() {
            let module = spec.module(index, id);
            // The input first: where it is in shards, so are the weights, as groups.
            if let Some(input) = linear.input {
                let transformed = AscendType::at(scheme, index, id) == AscendType::W4A4FlatQuant;
                check_input(&module, linear.weight.is_some(), transformed, input)?;
            }
            if let Some(weight) = linear.weight {
                check_weight(&module, weight, linear.input, spec.site_width(id.site()))?;
            }
        }
        // Rounding order is no property of the file, so it may differ inside a fused layer.
        for (index, linears) in scheme.blocks.iter().enumerate() {
            let block = spec.block(index);
            for (id, linear) in linears {
                let stored = |id: LinearId, linear: &LinearScheme| {
                    (AscendType::at(scheme, index, id), linear.input.map(|i| (i.rule, i.clip_ratio)))
                };
                let differs = |other: &&LinearId| {
                    linears.get(*other).is_none_or(|o| stored(**other, o) != stored(*id, linear))
                };
                if let Some(other) = block.loaded_with(*id).iter().find(differs) {
                    return Err(unsupported(
                        format!(
                            "different types in the fused layer of {} and {}",
                            spec.module(index, *id),
                            spec.module(index, *other)
                        ),
                        "give q, k and v one scheme, and gate and up one scheme",
                    ));
                }
            }
        }
        Ok(())
    }
    fn naming(&self) -> ShardNaming {
        ShardNaming::msmodelslim()
    }

    fn declare(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        source_dtype: &dyn Fn(&str) -> Option<Dtype>,
    ) -> Vec<TensorDecl> {
        let block = |index| encode::slots_of(spec, scheme, index).into_iter().map(|s| s.decl);
        (0..spec.layers).flat_map(block).chain(outer_decls(spec, source_dtype)).collect()
    }
    fn encode_block(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        index: usize,
        block: BlockParams,
    ) -> Result<Vec<Encoded>> {
        encode::block(spec, scheme, index, block)
    }
    fn config(&self, spec: &ModelSpec, scheme: &ModelScheme, config: &Value, _: &ConfigNotes) -> Value {
        let mut config = config.clone();
        if let Some(object) = config.as_object_mut() {
            // `shift_remove` keeps the order of the other keys.
            object.shift_remove("quantization_config");
            declare_dtype(object, spec.dtype, false);
            declare_tie(object, spec, scheme);
        }
        config
    }
    fn side_files(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        declared: &[TensorDecl],
        _: &[BlockSideData],
    ) -> Vec<(String, Vec<u8>)> {
        vec![(description::FILE.to_owned(), description::write(spec, scheme, declared))]
    }

    fn detect(&self, checkpoint: &Checkpoint) -> bool {
        Description::exists(checkpoint)
    }
    fn scheme(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme> {
        decode::scheme(checkpoint, spec)
    }
    fn expected(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Vec<ExpectedTensor>> {
        let description = Description::read(checkpoint)?;
        let kinds = description.kinds(spec)?;
        let mut expected = Vec::new();
        for index in 0..spec.layers {
            let kind = |id| kinds.get(&spec.module(index, id)).copied().unwrap_or(AscendType::Float);
            let shards = |linear: &LinearSpec| types::w4a4_flatquant::read_shards(checkpoint, linear);
            let slots = slots(spec, index, kind, shards, description.has_kv(spec, index));
            for slot in &slots {
                let optional = match slot.item {
                    Item::Linear(id, "weight_scale") => kind(id) == AscendType::W8A8,
                    // Dense paths of the dynamic type do not use them.
                    Item::Linear(id, "weight_offset") => {
                        matches!(kind(id), AscendType::W8A8 | AscendType::W8A8Dynamic)
                    }
                    _ => false,
                };
                let mut tensor = ExpectedTensor { optional, ..ExpectedTensor::of(&slot.decl) };
                match slot.item {
                    // The loader converts what it is given.
                    Item::Linear(id, "weight") if kind(id) != AscendType::Float => {
                        tensor.dtypes = INT8_OR_FLOAT;
                    }
                    Item::KvScale(_) | Item::KvOffset(_) => {
                        tensor.other_shape = Some(vec![spec.kv_width(), 1]);
                    }
                    _ => {}
                }
                expected.push(tensor);
            }
            // Either of the two in a static linear, in every type of model.
            let linears = spec.block(index).linears.into_iter();
            for linear in linears.filter(|l| kind(l.id) == AscendType::W8A8 && spec.dtype != FloatType::F32) {
                for suffix in ["weight_scale", "weight_offset"] {
                    let name = format!("{}.{suffix}", linear.module);
                    expected.push(ExpectedTensor::optional(name, super::FLOATS, &[linear.outputs, 1]));
                }
            }
        }
        expected.extend(outer_expected(spec));
        Ok(expected)
    }
    fn decoder(&self, checkpoint: &Checkpoint, _: &ModelSpec) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(Description::read(checkpoint)?))
    }
}
