//! CPU compute: f32, f64 and bf16 matrix products, Gram matrices, softmax, norms, rotary embedding.
//!
//! Weights are `[out, in]`, activations `[tokens, features]`, both row-major; a linear layer is `y = x W^T + b`.

#![deny(unsafe_code)]

mod activation;
#[allow(unsafe_code, reason = "the only module of the workspace with SIMD intrinsics and raw matrix pointers")]
mod arch;
mod cholesky;
mod compute;
mod element;
mod error;
mod exp;
mod gram;
mod norm;
mod par;
mod prepared;
mod product;
mod rope;
mod rows;
mod softmax;
mod vectorize;

pub use activation::silu_mul;
pub use arch::Level;
pub use cholesky::cholesky_lower_in_place;
pub use compute::{Compute, UnknownCompute};
pub use element::Element;
pub use error::PivotError;
pub use exp::exp_f32;
pub use gram::{gram_lower, mirror_lower};
pub use norm::rms_norm;
pub use par::Par;
pub use prepared::PreparedWeight;
pub use product::{linear, linear_into, matmul_nn, matmul_nt};
pub use rope::rope_in_place;
pub use softmax::softmax_rows_causal;
pub use vectorize::vectorized;
