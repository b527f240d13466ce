//! `C8`: a cache of eight bits, one static symmetric scale per channel, keys behind rope.

use ndarray::Array1;
use quant_core::{ActRule, EntryQuant, KvGranularity, KvQuant, KvSide};
use quant_graph::{BlockParams, KvScheme, LinearId, ModelSpec};

use super::super::{ID, bad};
use super::bits;
use crate::error::Result;
use crate::formats::TensorDecl;
use crate::formats::bytes::{Loss, float_bytes, float_dtype, read_scales};
use crate::formats::layout::{Item, Slot};
use crate::source::Checkpoint;

/// The type of its tensors.
pub(crate) const C8: &str = "C8";

const BITS: u32 = 8;

/// Cache scales and offsets, in the model's type.
pub(crate) fn slots(spec: &ModelSpec, index: usize) -> Vec<Slot> {
    let dtype = float_dtype(spec.dtype);
    let mut slots = Vec::new();
    for (id, side) in [(LinearId::K, KvSide::Key), (LinearId::V, KvSide::Value)] {
        let module = spec.module(index, id);
        for (suffix, item) in
            [("kv_cache_scale", Item::KvScale(side)), ("kv_cache_offset", Item::KvOffset(side))]
        {
            let decl = TensorDecl::new(format!("{module}.{suffix}"), dtype, [spec.kv_width()]);
            slots.push(Slot { decl, item });
        }
    }
    slots
}

/// The bytes of the scales of a side.
pub(crate) fn scale_bytes(
    spec: &ModelSpec,
    name: &str,
    side: KvSide,
    block: &BlockParams,
) -> Result<Vec<u8>> {
    let scales = kv_scales(block, side).map(|s| s.to_vec()).unwrap_or_default();
    float_bytes(ID, name, scales, spec.dtype, Loss::None)
}

/// The bytes of the offsets of a side: all bits zero is 0.0 in every float type.
pub(crate) fn offset_bytes(spec: &ModelSpec) -> Vec<u8> {
    vec![0; spec.kv_width() * spec.dtype.size()]
}

fn kv_scales(block: &BlockParams, side: KvSide) -> Option<&Array1<f32>> {
    match block.kv.as_ref()?.side(side) {
        EntryQuant::Channel { scales, .. } => Some(scales),
        EntryQuant::TokenHead { .. } => None,
    }
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

/// The cache of a block.
pub(crate) fn read(checkpoint: &Checkpoint, spec: &ModelSpec, index: usize) -> Result<KvQuant> {
    let bits = bits(BITS)?;
    let side = |id| -> Result<EntryQuant> {
        let scales = kv_side(checkpoint, spec, index, id)?;
        let zeros = Array1::from_elem(scales.len(), bits.mid_level());
        Ok(EntryQuant::Channel { bits, scales, zeros })
    };
    Ok(KvQuant { values: side(LinearId::V)?, ..KvQuant::both(side(LinearId::K)?) })
}

/// What a folder with such a cache says of it.
pub(crate) fn scheme() -> Result<KvScheme> {
    Ok(KvScheme::new(bits(BITS)?, ActRule::Symmetric, KvGranularity::ChannelStatic))
}

/// A cache tensor of `[width]`, or of `[width, 1]`, which the loader views as the same.
pub(crate) fn cache_shaped(checkpoint: &Checkpoint, name: &str, width: usize) -> Result<Vec<usize>> {
    let shape = checkpoint.tensor(name)?.shape.clone();
    if shape == [width, 1] { Ok(shape) } else { checkpoint.tensor_shaped(name, &[width]).map(|_| shape) }
}
