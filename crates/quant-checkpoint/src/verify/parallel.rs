//! Whether a folder loads on several devices by tensor parallelism.

use std::collections::BTreeMap;

use quant_graph::{LinearId, ModelSpec};

use super::cut::{partition, row_parallel};
use super::flatquant;
use super::stored::{Stored, takes};
use super::targets::{Packed, RuleSet};
use crate::formats::compressed_tensors_config::Layout;

/// Numbers of devices that are tried.
pub const TENSOR_PARALLEL: [usize; 4] = [1, 2, 4, 8];

impl Stored {
    /// Of [`TENSOR_PARALLEL`], the numbers of devices it loads on.
    pub(super) fn tensor_parallel(&self, set: &RuleSet, spec: &ModelSpec) -> Vec<usize> {
        let mut tried = TENSOR_PARALLEL.to_vec();
        // What it was made for may be none of them.
        tried.extend(self.devices().filter(|n| !TENSOR_PARALLEL.contains(n)));
        tried.retain(|n| self.parallel(set, spec, *n).is_ok());
        tried
    }

    /// The number of devices that it was made for.
    fn devices(&self) -> Option<usize> {
        match self {
            Self::Types(_, _, devices) => *devices,
            Self::Float | Self::Layouts(_) => None,
        }
    }

    /// Why it does not load on `n` devices.
    pub(super) fn parallel(&self, set: &RuleSet, spec: &ModelSpec, n: usize) -> Result<(), String> {
        if n == 1 && self.devices().is_none_or(|devices| devices == 1) {
            return Ok(());
        }
        if !set.parallel {
            return Err(format!("{} is not run by tensor parallelism", set.target));
        }
        if n == 0 || !spec.heads.is_multiple_of(n) {
            return Err(format!("{} heads cannot be cut into {n}", spec.heads));
        }
        if !spec.kv_heads.is_multiple_of(n) && !n.is_multiple_of(spec.kv_heads) {
            return Err(format!("{} heads of keys can be neither cut into {n} nor repeated", spec.kv_heads));
        }
        if !spec.intermediate.is_multiple_of(n) {
            return Err(format!("an MLP of {} cannot be cut into {n}", spec.intermediate));
        }
        let layouts = match self {
            Self::Float => return Ok(()),
            Self::Types(types, _, devices) => return pairs(spec, types, devices.unwrap_or(1), n),
            Self::Layouts(layouts) => layouts,
        };
        // Blocks are alike in shape, so every kind of linear is looked at once.
        let mut kinds: Vec<(LinearId, &Layout)> = Vec::new();
        for (&(index, id), layout) in layouts {
            if kinds.contains(&(id, layout)) {
                continue;
            }
            kinds.push((id, layout));
            cut(set, spec, id, layout, n).map_err(|why| format!("{}: {why}", spec.module(index, id)))?;
        }
        Ok(())
    }
}

/// Devices that each have a part of an input all load the same pair, which must be that of a part.
fn pairs(
    spec: &ModelSpec,
    types: &BTreeMap<(usize, LinearId), String>,
    devices: usize,
    n: usize,
) -> Result<(), String> {
    let cut = types.iter().find(|((_, id), kind)| row_parallel(*id) && *kind == flatquant::TYPE);
    let Some((&(index, id), _)) = cut.filter(|_| devices != n) else { return Ok(()) };
    let module = spec.module(index, id);
    Err(match devices {
        1 => format!("{module}: its transform is of all of its inputs, not of a part in {n}"),
        _ => format!(
            "{module}: its transform is of a part of its inputs in {devices}, so it loads on {devices} devices alone"
        ),
    })
}

/// Why a packed linear cannot be cut for `n` devices.
fn cut(set: &RuleSet, spec: &ModelSpec, id: LinearId, layout: &Layout, n: usize) -> Result<(), String> {
    let Some(linear) = spec.linear(0, id) else { return Ok(()) };
    let bits = layout.weight.bits.get() as usize;
    if layout.scheme.input.is_some() {
        return Ok(());
    }
    let (inputs, _) = partition(spec, id, n);
    if let Some(group) = layout.weight.group.filter(|g| !inputs.is_multiple_of(*g)) {
        return Err(format!("groups of {group} do not divide {} / {n} inputs", linear.inputs));
    }
    if row_parallel(id) && !(inputs * bits).is_multiple_of(32) {
        return Err(format!("{} / {n} inputs of {bits} bits are not whole words", linear.inputs));
    }
    // Zero points are packed along the outputs.
    let rows = linear.outputs / n;
    if !row_parallel(id) && !layout.weight.symmetric && !(rows * bits).is_multiple_of(32) {
        return Err(format!("zero points of {} / {n} outputs are not whole words", linear.outputs));
    }
    match set.packed {
        Packed::Kernels(kernels) if !kernels.iter().any(|k| takes(k, spec, id, layout, n)) => {
            Err(format!("no kernel for its shape on {n} devices"))
        }
        _ => Ok(()),
    }
}
