//! Products of bytes, and what stands around them: quantisation of activations, and what becomes of sums.

mod grouped;
mod matmul;
mod quantize;
mod weight;

pub use matmul::Cpu;
pub use quantize::{quantize_static, quantize_tokens, rms_norm_quantize, silu_mul_quantize};
pub use weight::IntegerWeight;
