//! Model families as data, and the one decoder block they share.
//!
//! ```text
//! config.json ──► model_spec ──► ModelSpec
//!                                    │
//! BlockSource ──► BlockParams ──► Block (four stages) ──► StreamedModel: hidden states, logits
//! ```
//!
//! A family ([`Family`]) is a row of a table: defaults, bias rules, what is refused. Nothing after [`model_spec`] asks
//! which family a model belongs to. [`Block`] runs in stages because calibration looks, and quantises, between them.
//! Every computation is generic over `f32` and `f64`, takes its degree of parallelism as an argument, and gives the same
//! bits for every number of threads.
//!
//! ```
//! let config = serde_json::json!({
//!     "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
//!     "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6,
//!     "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 1024,
//! });
//! let spec = quant_model::model_spec(&config)?;
//! assert_eq!((spec.head_dim, spec.qkv_bias, spec.o_bias), (32, true, false));
//! # Ok::<(), quant_model::ModelError>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod block;
mod config;
mod error;
mod fake_quant;
pub mod families;
mod fields;
mod flips;
mod generate;
mod in_memory;
mod kv;
mod linear;
mod model;
mod ops;
mod paged_cache;
mod rope;
mod rope_config;
mod row_store;

/// The arrays of the functions here.
pub use ndarray;
pub use quant_graph::{BlockParams, BlockSource, ModelSpec};
pub use quant_kernels::{Compute, Par};

pub use block::{
    Block, BlockRunner, BlockTrainer, BlockWindow, ForwardMemory, MLP_ROWS, Output, See, Span, StageScratch,
    TrainingMemory, Walk, forward_memory, training_memory,
};
pub use config::{
    Reading, declared_dtype, model_spec, model_spec_with, read_model_config, read_model_config_with,
};
pub use error::ModelError;
pub use families::{FAMILIES, Families, Family};
pub use flips::{Flips, count_flips};
pub use generate::{
    Completion, Finish, GenerateOptions, Generated, Generator, LoadProgress, Request, ResidentModel,
    Sampling, head_rows,
};
pub use in_memory::InMemoryModel;
pub use kv::{KvCache, KvStore};
pub use linear::{
    Activations, Arithmetic, Backend, Execution, FakeQuantLinear, FloatLinear, IntegerOp, LinearOp, PackedOp,
    WeightOnlyOp, linear_op,
};

pub use fake_quant::fake_quantized;
pub use model::{EncodeProgress, NonFinite, StreamedModel, spilled_rows_at_once};
pub use ops::attention::attention_workspace_bytes;
pub use ops::norm::normed;
pub use ops::precision::Precision;
pub use paged_cache::{CacheForm, PagedCache};
pub use rope::{RopeTable, RopeTables, inverse_frequencies};
pub use row_store::{RowStore, StoreError, StoredRows};
