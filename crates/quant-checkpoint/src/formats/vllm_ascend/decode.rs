//! Tensors to a block.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2};
use quant_core::{
    ActQuant, ActRule, Bits, ClipRatio, EntryQuant, Groups, KvGranularity, KvQuant, QuantizedMatrix,
};
use quant_graph::{
    BlockParams, Clipping, InputScheme, KvScheme, LinearId, LinearParams, LinearScheme, LinearSpec,
    LinearWeight, ModelScheme, ModelSpec, OnlineScheme, WeightScheme,
};

use super::description::{AscendType, Description, bad, bits_of};
use super::tensors::{cache_shaped, static_input, weight_scales};
use super::{ID, flatquant};
use crate::error::Result;
use crate::formats::Decoder;
use crate::formats::bytes::{read_levels, read_scales};
use crate::formats::plain::{read_bias, read_linear, read_norms};
use crate::source::Checkpoint;

/// Of a C8 cache.
fn eight() -> Result<Bits> {
    bits_of(AscendType::W8A8)
}

fn linear(checkpoint: &Checkpoint, linear: &LinearSpec, description: &Description) -> Result<LinearParams> {
    let module = &linear.module;
    let kind = description.kind(module)?;
    if kind == AscendType::Float {
        return read_linear(checkpoint, linear);
    }
    let shape = linear.shape();
    let bits = bits_of(kind)?;
    let levels = read_levels(ID, checkpoint, &format!("{module}.weight"), shape, bits)?;
    let scales = weight_scales(checkpoint, module, kind, shape.0)?;
    let offsets = format!("{module}.weight_offset");
    if checkpoint.get(&offsets).is_some() && checkpoint.read_f32(&offsets)?.iter().any(|&o| o != 0.0) {
        return Err(bad(offsets, "zeros (symmetric weights)", "another offset"));
    }
    let scales = Array2::from_shape_fn((shape.0, 1), |(row, _)| scales[row]);
    let zeros = Array2::from_elem((shape.0, 1), bits.mid_level());
    let matrix = QuantizedMatrix::new(bits, levels, scales, zeros, Groups::Channel)
        .map_err(|e| bad(module, "a quantised matrix", e.to_string()))?;
    let input = match kind {
        AscendType::W8A8 => Some(ActQuant::Static { bits, params: static_input(checkpoint, module)? }),
        AscendType::W8A8Dynamic | AscendType::W8A8Mix | AscendType::W4A4Dynamic => {
            Some(ActQuant::Dynamic { bits, rule: ActRule::Symmetric, clip_ratio: ClipRatio::NONE, shards: 1 })
        }
        AscendType::W4A4FlatQuant => Some(flatquant::read_input(checkpoint, linear)?),
        AscendType::Float | AscendType::W8A16 => None,
    };
    let bias = read_bias(checkpoint, linear)?;
    Ok(LinearParams { weight: LinearWeight::Quantized(matrix), bias, input })
}

/// One side of a C8 cache.
fn kv_side(checkpoint: &Checkpoint, spec: &ModelSpec, index: usize, id: LinearId) -> Result<Array1<f32>> {
    let module = spec.module(index, id);
    let offset = format!("{module}.kv_cache_offset");
    cache_shaped(checkpoint, &offset, spec.kv_width())?;
    if let Some(bad_offset) = checkpoint.read_f32(&offset)?.iter().find(|o| **o != 0.0) {
        return Err(bad(
            offset,
            "zeros (the loader dequantises with the scale only)",
            bad_offset.to_string(),
        ));
    }
    let scale = format!("{module}.kv_cache_scale");
    let shape = cache_shaped(checkpoint, &scale, spec.kv_width())?;
    Ok(Array1::from(read_scales(ID, checkpoint, &scale, &shape)?))
}

impl Decoder for Description {
    fn block(&self, checkpoint: &Checkpoint, spec: &ModelSpec, index: usize) -> Result<BlockParams> {
        let linears = spec.block(index).linears;
        let linears = linears.iter().map(|l| Ok((l.id, linear(checkpoint, l, self)?)));
        let linears = linears.collect::<Result<BTreeMap<_, _>>>()?;
        let kv = if self.has_kv(spec, index) {
            let bits = eight()?;
            let side = |id| -> Result<EntryQuant> {
                let scales = kv_side(checkpoint, spec, index, id)?;
                let zeros = Array1::from_elem(scales.len(), bits.mid_level());
                Ok(EntryQuant::Channel { bits, scales, zeros })
            };
            Some(KvQuant { values: side(LinearId::V)?, ..KvQuant::both(side(LinearId::K)?) })
        } else {
            None
        };
        Ok(BlockParams {
            linears,
            norms: read_norms(checkpoint, spec, index)?,
            online: flatquant::read(self, checkpoint, spec, index)?,
            kv,
        })
    }
}

pub(super) fn scheme(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme> {
    let description = Description::read(checkpoint)?;
    let (mut blocks, mut online) = (Vec::with_capacity(spec.layers), Vec::with_capacity(spec.layers));
    for index in 0..spec.layers {
        let mut block = BTreeMap::new();
        for linear in spec.block(index).linears {
            let shards = flatquant::read_shards(checkpoint, &linear);
            let LinearSpec { id, module, .. } = linear;
            let kind = description.kind(&module)?;
            let bits = bits_of(kind)?;
            let weight = WeightScheme::integer(bits, true, None);
            let mut clip_ratio = Clipping::NONE;
            let input = match kind {
                AscendType::Float | AscendType::W8A16 => None,
                AscendType::W8A8Dynamic | AscendType::W8A8Mix | AscendType::W4A4Dynamic => {
                    Some((true, ActRule::Symmetric))
                }
                AscendType::W4A4FlatQuant => {
                    if flatquant::read_clip(checkpoint, &module)? != 1.0 {
                        clip_ratio = Clipping::Tied;
                    }
                    Some((true, ActRule::Symmetric))
                }
                // The file has parameters, not the rule that found them: an offset of zero is what symmetric means.
                AscendType::W8A8 if static_input(checkpoint, &module)?.zero == bits.mid_level() => {
                    Some((false, ActRule::Symmetric))
                }
                AscendType::W8A8 => Some((false, ActRule::Asymmetric)),
            };
            let shards = if kind == AscendType::W4A4FlatQuant { shards } else { 1 };
            let input = input.map(|(dynamic, rule)| InputScheme { bits, rule, dynamic, clip_ratio, shards });
            block.insert(id, LinearScheme { weight: (kind != AscendType::Float).then_some(weight), input });
        }
        blocks.push(block);
        online.push(flatquant::scheme(&description, checkpoint, spec, index)?);
    }
    if online.iter().all(OnlineScheme::is_empty) {
        online.clear();
    }
    let cached = (0..spec.layers).filter(|i| description.has_kv(spec, *i)).count();
    if cached != 0 && cached != spec.layers {
        return Err(bad(
            super::description::FILE,
            "C8 entries in every block or in none",
            format!("{cached} blocks"),
        ));
    }
    let kv = KvScheme::new(eight()?, ActRule::Symmetric, KvGranularity::ChannelStatic);
    let kv = (cached != 0).then_some(kv);
    Ok(ModelScheme { blocks, online, kv, ..ModelScheme::default() })
}
