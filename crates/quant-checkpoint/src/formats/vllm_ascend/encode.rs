//! A block to tensors.

use quant_graph::{BlockParams, LinearId, LinearSpec, ModelScheme, ModelSpec};

use super::types::{AscendType, c8};
use super::{ID, flatquant, slots};
use crate::error::{Result, not_encodable};
use crate::formats::Encoded;
use crate::formats::block::check;
use crate::formats::bytes::{Loss, float_bytes};
use crate::formats::layout::{Item, Slot};
use crate::formats::slots::encode_slots;

/// The tensors of a block of a scheme.
pub(super) fn slots_of(spec: &ModelSpec, scheme: &ModelScheme, index: usize) -> Vec<Slot> {
    let shards = |linear: &LinearSpec| flatquant::shards_at(scheme, index, linear.id.site());
    slots(spec, index, |id| AscendType::at(scheme, index, id), shards, scheme.kv.is_some())
}

/// All tensors of a block, each made on its own.
pub(super) fn block(
    spec: &ModelSpec,
    scheme: &ModelScheme,
    index: usize,
    block: BlockParams,
) -> Result<Vec<Encoded>> {
    check(ID, spec, scheme, index, &block, spec.dtype.served())?;
    let topology = spec.block(index);
    for linear in &topology.linears {
        check_shared_input(spec, index, topology.loaded_with(linear.id), linear.id, &block)?;
    }
    encode_slots(slots_of(spec, scheme, index), block, |slot, block| {
        let name = &slot.decl.name;
        match slot.item {
            Item::Linear(id, suffix) => {
                AscendType::at(scheme, index, id).codec().bytes(spec, (name, suffix), id, block)
            }
            Item::Norm(norm) => {
                float_bytes(ID, name, block.norms[&norm].iter().copied(), spec.dtype, Loss::Rounding)
            }
            Item::KvScale(side) => c8::scale_bytes(spec, name, side, block),
            Item::KvOffset(_) => Ok(c8::offset_bytes(spec)),
        }
    })
}

/// The loader quantises the input of a fused layer once, with the parameters of its last shard.
fn check_shared_input(
    spec: &ModelSpec,
    index: usize,
    fused: &[LinearId],
    id: LinearId,
    block: &BlockParams,
) -> Result<()> {
    let input = block.linears[&id].input;
    match fused.iter().find(|other| block.linears[other].input != input) {
        Some(other) => Err(not_encodable(
            ID,
            spec.module(index, id),
            format!("the input parameters of {}", spec.module(index, *other)),
            format!("{input:?}"),
        )),
        None => Ok(()),
    }
}
