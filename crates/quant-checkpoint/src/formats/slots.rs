//! The tensors of a block, all at once.

use quant_core::QuantizedMatrix;
use quant_graph::{BlockParams, LinearWeight};
use rayon::prelude::*;
use safetensors::Dtype;

use super::Encoded;
use super::bytes::levels_into_int8;
use super::layout::{Item, Slot};
use crate::error::Result;

/// Every tensor of a block, made on its own by `bytes`, but for levels that are stored as int8: they become their bytes where they lie,
/// which neither copies them nor has them twice.
pub(super) fn encode_slots(
    slots: Vec<Slot>,
    mut block: BlockParams,
    bytes: impl Fn(&Slot, &BlockParams) -> Result<Vec<u8>> + Sync,
) -> Result<Vec<Encoded>> {
    let make = |slot: &Slot| if holds_levels(slot, &block) { Ok(Vec::new()) } else { bytes(slot, &block) };
    let made = slots.par_iter().map(make).collect::<Result<Vec<_>>>()?;
    let with_levels = slots.into_iter().zip(made).map(|(slot, made)| {
        let matrix = holds_levels(&slot, &block).then(|| take_levels(&slot, &mut block)).flatten();
        (slot, made, matrix)
    });
    let finish = |(Slot { decl, .. }, made, matrix): (Slot, Vec<u8>, Option<QuantizedMatrix>)| {
        let bytes = matrix.map_or(made, |matrix| {
            let bits = matrix.bits();
            levels_into_int8(matrix.into_parts().1, bits)
        });
        Encoded { name: decl.name, dtype: decl.dtype, shape: decl.shape, bytes }
    };
    Ok(with_levels.collect::<Vec<_>>().into_par_iter().map(finish).collect())
}

/// Whether a tensor is the levels of a weight, one int8 each.
fn holds_levels(slot: &Slot, block: &BlockParams) -> bool {
    let Item::Linear(id, "weight") = slot.item else { return false };
    let weight = block.linears.get(&id).map(|linear| &linear.weight);
    slot.decl.dtype == Dtype::I8 && matches!(weight, Some(LinearWeight::Quantized(_)))
}

/// Takes the weight that a tensor holds out of the block.
fn take_levels(slot: &Slot, block: &mut BlockParams) -> Option<QuantizedMatrix> {
    let Item::Linear(id, _) = slot.item else { return None };
    match block.linears.remove(&id)?.weight {
        LinearWeight::Quantized(matrix) => Some(matrix),
        LinearWeight::Float(_) | LinearWeight::Binary(_) => None,
    }
}
