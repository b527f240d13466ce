//! What one of several devices gets of a linear.

use quant_graph::{LinearId, ModelSpec, Role};

/// Whether the linear is cut along its inputs.
pub(super) fn row_parallel(id: LinearId) -> bool {
    matches!(id.role, Role::O | Role::Down)
}

/// Inputs of a linear and outputs of its fused layer, on one of `n` devices.
pub(super) fn partition(spec: &ModelSpec, id: LinearId, n: usize) -> (usize, usize) {
    // Blocks are alike in shape.
    let block = spec.block(0);
    let inputs = spec.site_width(id.site());
    if row_parallel(id) {
        return (inputs / n, block.linear(id).map_or(0, |l| l.outputs));
    }
    let outputs = |(role, rows): &(Role, std::ops::Range<usize>)| match role {
        // Heads of keys are repeated where there are fewer than devices.
        Role::K | Role::V => (spec.kv_heads / n).max(1) * spec.head_dim,
        _ => rows.len() / n,
    };
    let fused = block.loaded_with(id).iter().filter_map(|other| block.linear(*other));
    (inputs, fused.flat_map(|l| &l.parts).map(outputs).sum())
}
