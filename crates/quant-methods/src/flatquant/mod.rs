//! FlatQuant (arXiv 2410.09426): learned transforms that make weights and activations flat before they are quantised.
//!
//! An input `x` of q, k, v, of gate and up, or of down becomes `(x diag(c)) (P_L kron P_R)` and is quantised; the weight that reads
//! it becomes `(W diag(1/c)) (P_L^-T kron P_R^-T)`, is clipped and quantised. Values are multiplied by `P_v` in the rows of v, the
//! attention output across heads by `P_o`, and o by both inverses; keys behind rope by `P_k`, queries by its inverse transpose.
//! For a deployment whose kernel knows Kronecker pairs alone, such a pair stands in place of `P_o`.
//!
//! | what | where |
//! |---|---|
//! | what is quantised, and which transforms that asks for | [`FlatScheme`], [`PlainSite`], [`FlatShape`] |
//! | the parameters of a block, or their gradients | [`FlatParameters`] |
//! | one step: effective weights, what stands in the block, gradients | [`FlatStep`], [`FlatInsert`], [`FlatSums`] |
//! | the loss | [`mean_squared_error`] |
//! | the training of a block, its settings, and how it went | [`FlatBlock::train`], [`FlatSettings`], [`FlatReport`], [`Alarm`] |
//! | what a deployment runs: transforms merged into a block | [`FlatParameters::merge`] |
//!
//! A block is run by a [`BlockTraining`](quant_graph::BlockTraining). One step of training:
//!
//! ```
//! use quant_graph::{BlockTraining, EffectiveWeights, LinearId};
//! use quant_methods::flatquant::{
//!     FlatParameters, FlatScheme, FlatShape, FlatStep, Start, mean_squared_error,
//! };
//! use quant_methods::{Bits, MethodError, Par};
//! use quant_methods::ndarray::Array2;
//! use quant_rotate::{AdamW, Parametrisation};
//! # use quant_kernels::Compute;
//! # use std::collections::BTreeMap;
//!
//! /// One step on sequences that begin at rows `starts` of `x`; gives the loss before it.
//! fn step(
//!     block: &dyn BlockTraining<f32>,
//!     (shape, scheme): (&FlatShape, &FlatScheme),
//!     float: &EffectiveWeights<'_, f32>,
//!     (x, starts, target): (&Array2<f32>, &[usize], &Array2<f32>),
//!     (parameters, optimiser): (&mut FlatParameters<f32>, &mut AdamW<f32>),
//! ) -> Result<f64, MethodError> {
//!     let par = Par::Seq;
//!     let step = FlatStep::new(shape, scheme, parameters)?;
//!     let merged = step.weights(float, par)?;
//!     let with = merged.iter().map(|(id, weight)| (*id, weight.view())).collect();
//!     let mut insert = step.insert();
//!     let (y, tape) = block.record(x.view(), starts, &with, &mut insert, par)?;
//!     let loss = mean_squared_error(y.view(), target.view()).logarithmic();
//!     let back = tape.backward(loss.gradient, &mut insert, par)?;
//!     let gradients = step.backward(float, &back.weights, insert.into_sums(), par)?;
//!     parameters.descend(&gradients, optimiser, [5e-3, 5e-3, 5e-2, 5e-2])?;
//!     Ok(loss.value)
//! }
//! # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
//! #     "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10 });
//! # let spec = quant_model::model_spec(&config)?;
//! # let mut params = quant_testkit::random_block(&spec, &mut quant_testkit::Numbers::new(1));
//! # let linears = std::mem::take(&mut params.linears);
//! # let weights: BTreeMap<LinearId, Array2<f32>> = linears.into_iter().map(|(id, l)| match l.weight {
//! #     quant_graph::LinearWeight::Float(w) => (id, w),
//! #     _ => unreachable!(),
//! # }).collect();
//! # let block = quant_model::Block::<f32>::new(&spec, 0, params, Compute::F32, Par::Seq)?;
//! # let table = quant_model::RopeTable::new(&spec.rope, spec.head_dim, 64, 3);
//! # let rope = |_| &table;
//! # let view = |id| quant_graph::EffectiveWeight { weight: weights[&id].view(), bias: None };
//! # let float: EffectiveWeights<'_, f32> = weights.keys().map(|id| (*id, view(*id))).collect();
//! # let trainer = quant_model::BlockTrainer::new(&block, &rope, EffectiveWeights::new())?;
//! # let x = quant_testkit::Numbers::new(2).matrix(6, 8, 1.0);
//! # let target = trainer.forward(x.view(), &[0, 3, 6], &float, &mut quant_graph::NoInsert, Par::Seq)?;
//!
//! let four = Bits::new(4)?;
//! let scheme = FlatScheme::new(Some(four), Some((four, true)), Some((four, false)))?;
//! let shape = FlatShape::new(&spec, 0);
//! let start = Start {
//!     parametrisation: Parametrisation::Inverse,
//!     scales: &BTreeMap::new(),
//!     weight_clips: true,
//!     input_clips: true,
//!     seed: 0,
//!     name: "model.layers.0",
//! };
//! let mut parameters = FlatParameters::initial(&shape, &scheme, start)?;
//! let mut optimiser = AdamW::new(Default::default())?;
//! let state = (&mut parameters, &mut optimiser);
//! let loss = step(&trainer, (&shape, &scheme), &float, (&x, &[0, 3, 6], &target), state)?;
//! assert!(loss > 0.0 && loss.is_finite());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod balance;
mod block;
mod epochs;
mod fallback;
mod form;
mod guard;
mod insert;
mod lesson;
mod loss;
mod merge;
mod method;
mod parameters;
mod parts;
mod record;
mod scheme;
mod settings;
mod step;
mod train;
mod weights;

pub use block::{FlatBlock, FlatReport, Sequences};
pub use guard::Alarm;
pub use insert::FlatInsert;
pub use loss::{Loss, mean_squared_error};
pub use parameters::{FlatParameters, Group, Start};
pub use scheme::{FlatScheme, FlatShape, Matrix, PlainSite};
pub use settings::{FlatSettings, FlatVariant};
pub use step::{FlatStep, FlatSums};
pub use train::Trained;
pub use weights::MergedWeight;

use crate::rounding::SCHEME;
use crate::settings::FieldKind;
use crate::{Field, Method, MethodKind};

/// A key that concerns whole blocks.
const fn key(name: &'static str, kind: FieldKind, default: &'static str, help: &'static str) -> Field {
    Field { name, kind, default, help, run_wide: true }
}

/// Registry line.
pub static METHOD: Method = Method {
    id: "flatquant",
    summary: "learns in every block the transforms behind which weights, activations and cache need few bits",
    source: "arXiv 2410.09426",
    kind: MethodKind::Both,
    build: method::build,
    fields: &[
        Field {
            default: "null",
            help: "bits of weights, activations and cache, W4A4KV4; left out, FlatQuant only learns, for the rounding after it",
            ..SCHEME
        },
        key(
            "variant",
            FieldKind::Choice(&["stable", "exact", "official"]),
            "\"stable\"",
            "stable keeps the best parameters, repairs trainings that go wrong and says so; exact keeps the last, as published; official also \
             casts matrices, weights and gains to the type of the model, each by itself, as the authors' program",
        ),
        key(
            "parametrisation",
            FieldKind::Choice(&["inverse", "svd"]),
            "\"inverse\"",
            "matrices free and inverted in f64, or as rotation, diagonal and rotation",
        ),
        key("epochs", FieldKind::Integer(0, 1000), "15", "passes over the calibration sequences"),
        key(
            "learning_rate",
            FieldKind::Number(1e-7, 1.0),
            "0.005",
            "of matrices and factors of channels; clip ratios have ten times as much",
        ),
        key("batch_size", FieldKind::Integer(1, 1024), "4", "sequences of a step"),
        key(
            "seed",
            FieldKind::Integer(0, u32::MAX as u64),
            "0",
            "of the random matrices that training begins with",
        ),
        key(
            "inputs",
            FieldKind::Choice(&["float", "quantised"]),
            "\"float\"",
            "what blocks are trained on: what the float model feeds them, or the quantised blocks before; what they aim at is the float \
             model's output either way",
        ),
        key(
            "window",
            FieldKind::Integer(1, 8),
            "1",
            "blocks behind which the loss is taken: the one that is trained and, float, those that follow",
        ),
        key(
            "weights",
            FieldKind::Choice(&["rtn", "gptq"]),
            "\"rtn\"",
            "what rounds the weights behind the transforms",
        ),
        key(
            "share_inputs",
            FieldKind::Bool,
            "true",
            "one quantiser of the input of q, k and v, and of gate and up; loaders that multiply them as one matrix need it",
        ),
        key(
            "transforms",
            FieldKind::Choice(&["auto", "free", "pairs"]),
            "\"auto\"",
            "pairs: every input has a Kronecker pair in the type of the model, that of o too, and one clip ratio, which is what the kernel \
             of vLLM-Ascend takes; free: as published; auto: what the export format holds",
        ),
        key(
            "unpaired",
            FieldKind::Choice(&["refuse", "w4a4", "w8a8"]),
            "\"refuse\"",
            "what becomes of linears whose input has no pair that the kernel takes: w4a4 leaves out the transform, w8a8 also quantises \
             them to 8 bits",
        ),
        key(
            "tp",
            FieldKind::Integer(1, 64),
            "1",
            "devices of the deployment, with pairs: each has a part of what enters o and down, with one pair for all; it loads on so many alone",
        ),
        key("lwc", FieldKind::Bool, "true", "learn how the rows of weights are clipped"),
        key("lac", FieldKind::Bool, "true", "learn how activations and cache are clipped"),
        key("diag", FieldKind::Bool, "true", "learn factors of channels"),
        key(
            "diag_alpha",
            FieldKind::Number(0.0, 1.0),
            "0.3",
            "exponent of activations in the factors that training begins with",
        ),
        key(
            "fallback",
            FieldKind::Words(&["none", "rotation", "bits8"]),
            "[\"rotation\", \"bits8\"]",
            "what a block gets, in this order, whose training stable cannot repair: rotation, Hadamard matrices in place of learned ones; \
             bits8, 8-bit weights and activations where the scheme has fewer; none, the best of its attempts",
        ),
        key("warmup", FieldKind::Bool, "false", "let the learning rate rise over the first 16 steps"),
    ],
    tier: 1,
};
