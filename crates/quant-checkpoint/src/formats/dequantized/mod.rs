//! The values of the quantised weights in f32, and the quantisers of activations and cache beside them.
//!
//! For research: any scheme at all can be stored, and any program that reads Hugging Face folders can load the weights
//! (the activation and cache quantisers are then left out; this crate's readers apply them). What the weights were
//! quantised with, and the quantisers themselves, stand in `ptq_scheme.json`; its numbers read back bit by bit. The embedding
//! and the head can be quantised too; they keep their values in f32 like the rest.

mod cache;
mod numbers;
mod scheme_file;

use quant_core::{ActRule, FloatType, KvGranularity};
use quant_graph::{BlockParams, LinearWeight, ModelScheme, ModelSpec};
use safetensors::Dtype;
use serde_json::Value;

use self::numbers::FILE;
use self::scheme_file::SchemeFile;
use super::block::check;
use super::bytes::{Loss, dequantized_bytes, float_bytes};
use super::layout::{ExpectedTensor, Item, Part, Slot, norm_slot, outer_decls, plain_expected};
use super::slots::encode_slots;
use super::{
    BlockSideData, ConfigNotes, Decoder, Encoded, Format, TensorDecl, Unsupported, declare_dtype, declare_tie,
};
use crate::error::Result;
use crate::source::Checkpoint;
use crate::writer::ShardNaming;

const ID: &str = "dequantized";

/// f32 values of quantised weights.
#[derive(Clone, Copy, Debug)]
pub struct Dequantized;

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
    fn stores_codes(&self) -> bool {
        false
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
        scheme: &ModelScheme,
        source_dtype: &dyn Fn(&str) -> Option<Dtype>,
    ) -> Vec<TensorDecl> {
        let block = |index| {
            let online = super::online::decls(spec, &super::online::of_block(scheme, index), index);
            slots(spec, index).into_iter().map(|s| s.decl).chain(online)
        };
        // Rounded values are no numbers of the input's type.
        let rounded = |name: &str| scheme.fused || scheme.tables.keys().any(|table| table.tensor() == name);
        let dtype = |name: &str| if rounded(name) { Some(Dtype::F32) } else { source_dtype(name) };
        (0..spec.layers).flat_map(block).chain(outer_decls(spec, &dtype)).collect()
    }
    fn encode_block(
        &self,
        spec: &ModelSpec,
        scheme: &ModelScheme,
        index: usize,
        mut block: BlockParams,
    ) -> Result<Vec<Encoded>> {
        check(ID, spec, scheme, index, &block, FloatType::F32)?;
        let multiplied = std::mem::take(&mut block.online);
        let mut encoded = encode_slots(slots(spec, index), block, |slot, block| {
            let floats = |values: &mut dyn Iterator<Item = f32>| {
                float_bytes(ID, &slot.decl.name, values, FloatType::F32, Loss::None)
            };
            match slot.item {
                Item::Linear(id, "bias") => floats(&mut block.linears[&id].bias.iter().flatten().copied()),
                Item::Linear(id, _) => match &block.linears[&id].weight {
                    LinearWeight::Float(values) => floats(&mut values.iter().copied()),
                    rounded => Ok(dequantized_bytes(rounded)),
                },
                Item::Norm(norm) => floats(&mut block.norms[&norm].iter().copied()),
                Item::KvScale(_) | Item::KvOffset(_) => Ok(Vec::new()),
            }
        })?;
        let online = super::online::of_block(scheme, index);
        encoded.extend(super::online::encode(ID, spec, &online, index, &multiplied)?);
        Ok(encoded)
    }
    fn config(&self, spec: &ModelSpec, scheme: &ModelScheme, config: &Value, _: &ConfigNotes) -> Value {
        let mut config = config.clone();
        if let Some(object) = config.as_object_mut() {
            object.shift_remove("quantization_config");
            declare_dtype(object, FloatType::F32, true);
            declare_tie(object, spec, scheme);
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
        vec![(FILE.to_owned(), scheme_file::write(spec, scheme, blocks))]
    }

    fn detect(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.path().join(FILE).symlink_metadata().is_ok()
    }
    fn scheme(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme> {
        SchemeFile::read(checkpoint, spec)?.model(spec)
    }
    fn expected(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Vec<ExpectedTensor>> {
        let scheme = SchemeFile::read(checkpoint, spec)?.model(spec)?;
        let online = scheme.online.iter().enumerate();
        let online = online.flat_map(|(index, online)| super::online::decls(spec, online, index));
        Ok(plain_expected(spec).into_iter().chain(online.map(|decl| ExpectedTensor::of(&decl))).collect())
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
        block.online = super::online::read(ID, checkpoint, spec, &self.online(index), index)?;
        block.kv = self.kv(spec, index)?;
        Ok(block)
    }
}
