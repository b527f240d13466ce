//! Blocks of tiny models.

use crate::{Numbers, Tensors};
use ndarray::Axis;
use quant_graph::{BlockParams, LinearId, LinearParams, LinearWeight, ModelSpec, Norm, Online};

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

/// Gives a block the channels of outliers that large models have, without changing what it computes: numbers of one tensor times
/// `scale`, those of its partner divided by it; a power of two rounds nothing.
///
/// Three channels behind each norm, three of the product of gate and up, and a pair of rope in the keys of every head.
///
/// # Panics
/// For linears that hold several roles, and weights that are not float.
pub fn add_outliers(block: &mut BlockParams, spec: &ModelSpec, scale: f32) {
    fn times(block: &mut BlockParams, id: LinearId, axis: usize, channel: usize, factor: f32) {
        let linear = block.linears.get_mut(&id).unwrap_or_else(|| panic!("no {id}"));
        let LinearWeight::Float(weight) = &mut linear.weight else { panic!("{id} is quantised") };
        weight.index_axis_mut(Axis(axis), channel).mapv_inplace(|w| w * factor);
        if let Some(bias) = linear.bias.as_mut().filter(|_| axis == 0) {
            bias[channel] *= factor;
        }
    }
    for part in 1..=3 {
        let channel = part * spec.hidden / 4;
        for (norm, readers) in [
            (Norm::Input, &[LinearId::Q, LinearId::K, LinearId::V][..]),
            (Norm::PostAttention, &[LinearId::GATE, LinearId::UP]),
        ] {
            block.norms.get_mut(&norm).unwrap_or_else(|| panic!("no {norm:?}"))[channel] *= scale;
            for id in readers {
                times(block, *id, 1, channel, scale.recip());
            }
        }
        let channel = part * spec.intermediate / 4;
        times(block, LinearId::UP, 0, channel, scale);
        times(block, LinearId::DOWN, 1, channel, scale.recip());
    }
    for head in 0..spec.kv_heads {
        // Rope turns a channel together with the one half a head behind it.
        for channel in [1, 1 + spec.head_dim / 2] {
            times(block, LinearId::K, 0, head * spec.head_dim + channel, scale);
            let group = spec.heads / spec.kv_heads;
            for query in head * group..(head + 1) * group {
                times(block, LinearId::Q, 0, query * spec.head_dim + channel, scale.recip());
            }
        }
    }
}
