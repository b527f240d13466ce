//! Properties of `gptq.md` section 7, and the published formulation as a reference.

mod equivalence;
mod factor;
mod properties;
mod reference;

use ndarray::Array2;
use quant_core::{Bits, Convention, FloatType, Grid, Variant};
use quant_kernels::{Compute, Par};

use crate::{Factor, FactorSettings, Hessian, prepare};

/// A deterministic stream of roughly normal numbers.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || self.normal() as f32)
    }
    /// Activations whose channels are correlated and differ in size, as those of a language model are.
    pub(crate) fn activations(&mut self, tokens: usize, channels: usize) -> Array2<f32> {
        let rank = channels.div_ceil(4).max(1);
        let mix = self.matrix(rank, channels);
        let mut x = self.matrix(tokens, rank).dot(&mix) + 0.3 * &self.matrix(tokens, channels);
        for mut column in x.columns_mut() {
            let size = (0.7 * self.normal()).exp() as f32;
            column.mapv_inplace(|v| v * size);
        }
        x
    }
}

pub(super) fn hessian(x: &Array2<f32>) -> Hessian {
    let mut h = Hessian::new(x.ncols());
    h.add(x.view(), 1, Compute::F32, Par::Seq).unwrap();
    h
}

pub(super) fn factor(x: &Array2<f32>, act_order: bool) -> Factor {
    prepare(hessian(x), &FactorSettings { act_order, ..FactorSettings::default() }, Par::Seq).unwrap()
}

pub(super) fn grid(convention: Convention, bits: u32) -> Grid {
    Grid::new(convention, Bits::new(bits).unwrap(), Variant::Exact, FloatType::F32).unwrap()
}
