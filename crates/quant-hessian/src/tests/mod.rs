//! Properties of `gptq.md`, `gptaq.md` and `qronos.md`, and the published formulation as a reference.

mod billm;
mod billm_goldens;
mod descent;
mod equivalence;
mod factor;
mod goldens;
mod gptaq;
mod gptaq_goldens;
#[cfg(feature = "lapack")]
mod lapack;
mod properties;
mod qronos;
mod qronos_goldens;
mod reference;
mod slim;
mod slim_goldens;

use ndarray::Array2;
use quant_core::{Bits, Convention, FloatType, Grid, Variant};
use quant_kernels::{Compute, Par};

use crate::{Factor, FactorSettings, Hessian, prepare};

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
