//! Hessian accumulation, damping, factorisation and the GPTQ, GPTAQ, Qronos, BiLLM and SliM-LLM solvers.
//!
//! Three steps, each usable alone on bare matrices:
//!
//! 1. [`Hessian`] accumulates `H = (2/N) Σ XᵀX` of a linear's inputs, sequence by sequence.
//! 2. [`prepare`] turns it into a [`Factor`]: dead columns, act-order, damping with documented escalation, one Cholesky
//!    factorisation, a residual check. Linears that share an input share the factor.
//! 3. [`gptq`] quantises a weight `[out, in]` against the factor.
//!
//! [`slim`] gives groups of columns bit widths of their own and [`billm`] makes binary codes, against the same factor.
//!
//! [`gptaq`] and [`qronos`] quantise towards the outputs of the float model instead, with a [`CrossGram`] of both models' inputs
//! summed beside the Hessian and a [`Correction`] or a [`Retarget`] prepared beside the factor.
//!
//! ```
//! use quant_hessian::ndarray::Array2;
//! use quant_hessian::{Compute, FactorSettings, GptqConfig, Grid, Hessian, Par, gptq, prepare};
//!
//! let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0;
//! let activations = Array2::from_shape_fn((64, 16), |(t, j)| noise(t, j));
//! let weight = Array2::from_shape_fn((8, 16), |(i, j)| noise(i + 64, j));
//!
//! let mut hessian = Hessian::new(16);
//! hessian.add(activations.view(), 1, Compute::F32, Par::Seq)?;
//! let factor = prepare(hessian, &FactorSettings::default(), Par::Seq)?;
//! let config = GptqConfig { group: Some(8), ..GptqConfig::new(Grid::int4_asym()) };
//! let result = gptq(weight.view(), &factor, &config, Par::Seq)?;
//! assert_eq!(result.matrix.dim(), (8, 16));
//! # Ok::<(), quant_hessian::HessianError>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod accumulate;
mod attempt;
mod billm;
mod blockwise;
mod cholesky;
mod coupling;
mod cross;
mod descent;
mod error;
mod factor;
mod feedback;
mod gptaq;
mod gptq;
mod lanes;
#[cfg(feature = "lapack")]
mod lapack;
mod moments;
mod panels;
mod qronos;
mod residual;
mod result;
mod retarget;
mod slim;
mod solve;
mod sweeps;
#[cfg(test)]
mod tests;
mod triangle;

pub use accumulate::Hessian;
pub use attempt::{Attempt, Outcome, Precision};
pub use billm::{
    BillmBlock, BillmConfig, BillmResult, SalientMetric, billm, billm_operations, billm_workspace_bytes,
};
pub use cross::CrossGram;
pub use descent::descent_bytes;
pub use error::HessianError;
pub use factor::{DampingUnit, Factor, FactorBackend, FactorReport, FactorSettings, prepare};
pub use gptaq::{Correction, GptaqConfig, gptaq, gptaq_workspace_bytes};
pub use gptq::{GptqConfig, gptq, workspace_bytes};
/// The arrays of the functions here.
pub use ndarray;
pub use qronos::{QronosConfig, QronosResult, qronos, qronos_workspace_bytes};
pub use quant_core::{
    ActOrder, BinaryMatrix, Bits, ClipSearch, Convention, FloatType, Grid, QuantizedMatrix, Variant, Widths,
};
pub use quant_kernels::{Compute, Par, Work};
pub use result::GptqResult;
pub use retarget::Retarget;
pub use slim::{SlimConfig, SlimFactor, SlimResult, slim, slim_most, slim_operations, slim_workspace_bytes};
