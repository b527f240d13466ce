//! Blocks of tiny models.

use crate::{Numbers, Tensors};
use quant_graph::{BlockParams, LinearParams, LinearWeight, ModelSpec, Online};

/// A float block with random numbers of sensible size.
#[must_use]
pub fn random_block(spec: &ModelSpec, numbers: &mut Numbers) -> BlockParams {
    let linears = spec.block(0).linears.into_iter().map(|linear| {
        let scale = 1.5 / (linear.inputs as f32).sqrt();
        let weight = LinearWeight::Float(numbers.matrix(linear.outputs, linear.inputs, scale));
        let bias = linear.bias.then(|| numbers.vector(linear.outputs, 0.0, 0.2));
        (linear.id, LinearParams { weight, bias, input: None })
    });
    let linears = linears.collect();
    let norms =
        spec.norms().into_iter().map(|(norm, width)| (norm, numbers.vector(width, 1.0, 0.3))).collect();
    BlockParams { linears, norms, online: Online::default(), kv: None }
}

/// A float block out of the tensors of a checkpoint.
///
/// # Panics
/// If one is missing.
#[must_use]
pub fn block_from_tensors(spec: &ModelSpec, index: usize, tensors: &Tensors) -> BlockParams {
    let get = |name: &str| tensors.get(name).unwrap_or_else(|| panic!("{name} is missing"));
    let linears = spec.block(index).linears.into_iter().map(|linear| {
        let module = &linear.module;
        let weight = LinearWeight::Float(get(&format!("{module}.weight")).matrix());
        let bias = linear.bias.then(|| get(&format!("{module}.bias")).vector());
        (linear.id, LinearParams { weight, bias, input: None })
    });
    let linears = linears.collect();
    let norms =
        spec.norms().into_iter().map(|(norm, _)| (norm, get(&spec.norm(index, norm)).vector())).collect();
    BlockParams { linears, norms, online: Online::default(), kv: None }
}
