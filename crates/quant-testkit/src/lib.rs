//! Test support: golden files, tiny models. Unpublished; everything here may panic with a message, as tests do.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, reason = "a test helper fails by panicking")]

mod golden;
mod models;

pub use golden::{Tensor, TensorData, Tensors, load_safetensors, parse_safetensors, shared_dir, skipped};
pub use models::{Numbers, block_from_tensors, random_block};
