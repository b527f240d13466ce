//! Post-training quantisation of large language models, for Huawei Ascend NPUs (vLLM-Ascend), vLLM, transformers and friends.
//!
//! This crate is the face of a set of libraries and the `ptq` command made of them:
//!
//! | module | crate | for |
//! |---|---|---|
//! | [`core`] | `quant-core` | number formats, quantiser conventions, observers, packing |
//! | [`graph`] | `quant-graph` | what a decoder model consists of, as data |
//! | [`kernels`] | `quant-kernels` | products, Gram matrices, [`kernels::Compute`], [`kernels::Par`] |
//! | [`hessian`] | `quant-hessian` | accumulation, factorisation, the GPTQ solver |
//! | [`rotate`] | `quant-rotate` | Hadamard, Kronecker and learned transforms, straight-through quantisers |
//! | [`methods`] | `quant-methods` | rtn, smoothquant, gptq on bare matrices |
//! | [`model`] | `quant-model` | families, the decoder block, streamed evaluation |
//! | [`checkpoint`] | `quant-checkpoint` | reading, writing and verifying folders |
//! | [`data`] | `quant-data` | tokenisers, templates, calibration and evaluation tokens |
//! | [`eval`] | `quant-eval` | perplexity, KL divergence, top-1 agreement |
//! | [`pipeline`] | `quant-pipeline` | recipes, plans, runs, evaluation and generation of folders |
//! | [`ascend`] | `ascend-kernels` | CANN on Ascend NPUs, opened at run time |
//!
//! One matrix to 4 bits in groups, without a model:
//!
//! ```
//! use ptq::core::{Grid, Groups, matrix::round_matrix, packing::pack_rows};
//! use ptq::ndarray::Array2;
//!
//! let weight = Array2::from_shape_fn((8, 256), |(i, j)| ((i * 37 + j * 11) % 101) as f32 / 50.0 - 1.0);
//! let quantized = round_matrix(&Grid::int4_asym(), None, Groups::Size(128), weight.view())?;
//! assert_eq!(pack_rows(quantized.levels().view(), quantized.bits()).dim(), (8, 32));
//! # Ok::<(), ptq::core::CoreError>(())
//! ```
//!
//! A folder to a folder: [`pipeline::QuantizeJob`]. `examples/quantize_checkpoint.rs` shows the whole way from a checkpoint to measured folders.
#![forbid(unsafe_code)]

/// The arrays of all crates here.
pub use quant_core::ndarray;

pub use ascend_kernels as ascend;
pub use quant_checkpoint as checkpoint;
pub use quant_core as core;
pub use quant_data as data;
pub use quant_eval as eval;
pub use quant_graph as graph;
pub use quant_hessian as hessian;
pub use quant_kernels as kernels;
pub use quant_methods as methods;
pub use quant_model as model;
pub use quant_pipeline as pipeline;
pub use quant_rotate as rotate;
pub use quant_study as study;

pub mod bench;
pub mod cli;
pub mod synth;

/// The README's snippets compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
