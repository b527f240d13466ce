//! CPU compute: f32, f64 and bf16 matrix products, Gram matrices, softmax, norms, rotary embedding.
//!
//! Weights are `[out, in]`, activations `[tokens, features]`, both row-major; a linear layer is `y = x W^T + b`. Any
//! strides are accepted.
//!
//! | what | functions |
//! |---|---|
//! | products | [`matmul_nt`], [`matmul_nn`], [`linear`], [`linear_into`] |
//! | a weight used for many chunks of tokens | [`PreparedWeight`], [`PackedWeight`] of 4, 8 or 16 bits, [`IntegerWeight`] for bytes |
//! | integer execution ([`quant_core::operators`]) | [`Cpu`], [`quantize_tokens`], [`quantize_static`], [`rms_norm_quantize`], [`silu_mul_quantize`] |
//! | Hessians | [`gram_lower`], [`cross_gram_lower`], [`mirror_lower`], [`cholesky_lower_in_place`] |
//! | rotations | [`walsh_hadamard_rows`], [`mix_blocks_in_place`] |
//! | row operations | [`rms_norm`], [`softmax_rows_causal`], [`CausalSoftmax`], [`silu_mul`], [`rope_in_place`] |
//! | attention over a cache in pages, of floats or codes | [`attend_paged`] |
//! | their gradients | [`rms_norm_backward`], [`softmax_tile_backward`], [`row_dots`], [`silu_mul_backward`], [`rope_in_place`] with `sin` negated |
//! | logits of a wide vocabulary, piece by piece | [`OnlineSoftmax`], [`OnlineDivergence`] |
//! | independent tasks, parts of matrices | [`tasks`], [`views`] |
//! | settings | [`Compute`] (which arithmetic), [`Par`] (how many threads) |
//! | instruction sets | [`Level`], [`IntegerLevel`], and [`vectorized`] for the loops of other crates |
//!
//! ```
//! use quant_kernels::ndarray::array;
//! use quant_kernels::{Compute, Par, PreparedWeight, gram_lower, linear};
//!
//! let x = array![[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
//! let weight = array![[1.0, -1.0]];
//! let bias = array![0.5];
//! let y = linear(x.view(), weight.view(), Some(bias.view()), Compute::F32, Par::new(2));
//! assert_eq!(y, array![[-0.5], [-0.5], [-0.5]]);
//! // The same numbers where one weight meets many chunks of tokens.
//! let prepared = PreparedWeight::new(weight.view(), Compute::F32, Par::Seq);
//! assert_eq!(prepared.forward(x.view(), Some(bias.view()), Par::Seq), y);
//! // X^T X, of which only the lower triangle is written.
//! let mut h = array![[0.0, 0.0], [0.0, 0.0]];
//! gram_lower(h.view_mut(), true, 1.0, x.view(), Compute::F32, Par::Seq);
//! assert_eq!(h, array![[35.0, 0.0], [44.0, 56.0]]);
//! ```
//!
//! # Same input, same bytes
//! A product sums in increasing order of the summed index, in blocks of fixed size, whatever the tile shape, the
//! partition or the number of threads. So a result does not depend on [`Par`], a token computed alone has the bits it
//! has in a batch, and a [`PreparedWeight`] gives the bits of [`linear`]. With [`Compute::F32`], where every step is
//! one fused multiply-add, the portable, AVX2 and AVX-512 levels agree to the bit as well; with [`Compute::Bf16`] on
//! f32 elements the AVX-512 BF16 instructions and the tiles of AMX add the products of some words in their own order (and take
//! subnormal operands and results as zero), so those levels differ from the others by rounding.
//!
//! # Choosing
//! Prepare a weight that meets fewer than a few hundred tokens at a time: packing it costs as much as multiplying it
//! with some tens of tokens. Use [`Compute::Bf16`] where operands are bf16 values anyway: it is about twice as fast
//! on a machine with the instructions, more on one with tiles, and loses only the order of summation; it gains nothing without them. [`Level::detect`] says
//! which a machine uses.

#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod activation;
#[allow(
    unsafe_code,
    reason = "the only module of the workspace with SIMD intrinsics and raw matrix pointers"
)]
mod arch;
mod bf16;
mod blocks;
mod cholesky;
mod compute;
mod element;
mod error;
mod exp;
mod f16;
mod factor;
mod gram;
mod hadamard;
mod integer;
mod logits;
mod norm;
mod packed;
mod paged;
mod panels;
mod peak;
mod prepared;
mod product;
mod rope;
mod rows;
mod scalar;
mod softmax;
mod softmax_backward;
pub mod tasks;
mod vectorize;
pub mod views;

/// The arrays of the functions here.
pub use ndarray;

pub use activation::{silu_mul, silu_mul_backward};
pub use arch::{IntegerLevel, Level, bf16_peak_operations, integer_peak_operations, return_freed_memory};
pub use blocks::mix_blocks_in_place;
pub use cholesky::cholesky_lower_in_place;
pub use compute::{Compute, UnknownCompute};
pub use element::Element;
pub use error::PivotError;
pub use exp::exp_f32;
pub use gram::{cross_gram_lower, gram_lower, mirror_lower};
pub use hadamard::walsh_hadamard_rows;
pub use integer::{
    Cpu, IntegerWeight, quantize_static, quantize_tokens, rms_norm_quantize, silu_mul_quantize,
};
pub use logits::{OnlineDivergence, OnlineSoftmax};
pub use norm::{rms_norm, rms_norm_backward};
pub use packed::PackedWeight;
pub use paged::{PAGE, PageEntries, PageLookup, PagedQueries, PagedScratch, attend_paged};
pub use peak::float_peak_operations;
pub use prepared::PreparedWeight;
pub use product::{linear, linear_into, matmul_nn, matmul_nt};
pub use quant_core::{Par, Stopped, Work};
pub use rope::rope_in_place;
pub use softmax::{CausalSoftmax, softmax_rows_causal};
pub use softmax_backward::{row_dots, softmax_tile_backward};
pub use vectorize::vectorized;
