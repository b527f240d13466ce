//! Test support: golden files, random numbers, tiny models, timing. Unpublished; everything here may panic with a message, as tests do.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test helper fails by panicking"
)]

mod conformance;
mod device_conformance;
mod golden;
mod models;
mod numbers;
mod storage;
mod timing;

pub use conformance::{Conformance, profiles};
pub use device_conformance::{WeightOnlyProduct, weight_only_reference};
pub use golden::{
    Golden, Tensor, TensorData, Tensors, load_safetensors, parse_safetensors, shared_dir, skipped,
};
pub use models::{add_outliers, block_from_tensors, random_block};
pub use numbers::Numbers;
pub use storage::CutDisk;
pub use timing::timed;
