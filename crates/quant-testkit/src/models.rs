//! Numbers of tiny models.

use crate::Tensors;
use ndarray::{Array1, Array2};
use quant_graph::{BlockParams, LinearParams, LinearWeight, ModelSpec, Role};

/// A small deterministic source of numbers for tests (xorshift64*); not for anything that reaches a file.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    /// Uniform in `-1..1`.
    pub fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        bits as f32 / (1_u64 << 23) as f32 - 1.0
    }
    /// Uniform in `-scale..scale`, `[rows, columns]`.
    pub fn matrix(&mut self, rows: usize, columns: usize, scale: f32) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || scale * self.uniform())
    }
    /// Uniform in `centre - scale..centre + scale`, `[length]`.
    pub fn vector(&mut self, length: usize, centre: f32, scale: f32) -> Array1<f32> {
        Array1::from_shape_simple_fn(length, || centre + scale * self.uniform())
    }
}

/// A float block with random numbers of sensible size.
#[must_use]
pub fn random_block(spec: &ModelSpec, numbers: &mut Numbers) -> BlockParams {
    let linears = Role::ALL.map(|role| {
        let linear = spec.linear(role);
        let scale = 1.5 / (linear.inputs as f32).sqrt();
        let weight = LinearWeight::Float(numbers.matrix(linear.outputs, linear.inputs, scale));
        let bias = linear.bias.then(|| numbers.vector(linear.outputs, 0.0, 0.2));
        (role, LinearParams { weight, bias, input: None })
    });
    let norms =
        spec.norms().into_iter().map(|(norm, width)| (norm, numbers.vector(width, 1.0, 0.3))).collect();
    BlockParams { linears: linears.into(), norms, kv: None }
}

/// A float block out of the tensors of a checkpoint.
///
/// # Panics
/// If one is missing.
#[must_use]
pub fn block_from_tensors(spec: &ModelSpec, index: usize, tensors: &Tensors) -> BlockParams {
    let get = |name: &str| tensors.get(name).unwrap_or_else(|| panic!("{name} is missing"));
    let linears = Role::ALL.map(|role| {
        let module = spec.module(index, role);
        let weight = LinearWeight::Float(get(&format!("{module}.weight")).matrix());
        let bias = spec.linear(role).bias.then(|| get(&format!("{module}.bias")).vector());
        (role, LinearParams { weight, bias, input: None })
    });
    let norms =
        spec.norms().into_iter().map(|(norm, _)| (norm, get(&spec.norm(index, norm)).vector())).collect();
    BlockParams { linears: linears.into(), norms, kv: None }
}
