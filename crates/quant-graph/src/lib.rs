//! The vocabulary the other crates meet through: what a decoder model consists of, as data.
//!
//! [`ModelSpec`] says which tensors a checkpoint has; its [`BlockSpec`]s say which linears share an input ([`StageSpec`]) and
//! where a scale can move from one operator into another ([`ScaleEdge`]). Methods read it and never ask which family they are in; `quant-model`
//! builds it from a `config.json`, `quant-checkpoint` checks folders against it.
//! [`BlockParams`] carries the numbers of one block between reader, model, methods and writer.
//!
//! ```
//! use quant_graph::{BlockLayout, LinearId, Role, Site};
//!
//! // A family is told from another by which matrices its checkpoints hold and what they are called.
//! let phi3 = BlockLayout::FUSED;
//! assert_eq!(phi3.module(LinearId::QKV), "self_attn.qkv_proj");
//! assert_eq!(LinearId::QKV.role.parts(), [Role::Q, Role::K, Role::V]);
//! // What shares an input shares a Hessian and the parameters of its activations.
//! assert_eq!(LinearId::K.site(), Site::AttentionInput);
//! assert_eq!(LinearId::DOWN.site(), Site::MlpActivation);
//! ```
//!
//! A reader or a model in memory implements [`BlockSource`]; whoever takes one works on both.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod catalogue;
mod codec;
mod error;
mod forward;
mod layout;
mod online;
mod params;
mod scheme;
mod spec;
mod tensors;
mod topology;
mod training;

pub use catalogue::{Catalogue, Entry, Taken};
pub use error::{BoxError, SourceError, Unsupported};
pub use forward::{BlockForward, ForwardError, Part};
pub use layout::{BlockLayout, LinearId, Norm, Role, Site};
/// The arrays of the types here.
pub use ndarray;
pub use online::{Online, OnlineScheme, PairKernel};
pub use params::{
    BlockFrame, BlockParams, BlockSource, LinearParams, LinearWeight, RowVisitor, Rows, TableVisitor,
    visit_whole_weights,
};
pub use quant_core::{
    ActOrder, ActQuant, BinaryMatrix, Bits, EntryQuant, FloatType, KvQuant, QuantizedMatrix, Real,
};
pub use scheme::{Clipping, InputScheme, KvScheme, LinearScheme, ModelScheme, WeightForm, WeightScheme};
pub use spec::{ModelSpec, Outer, RopeScaling, RopeSpec};
pub use tensors::TensorSpec;
pub use topology::{BlockSpec, EdgeSource, LinearSpec, ScaleEdge, StageSpec, WeightSpec};
pub use training::{
    BlockGradients, BlockTape, BlockTraining, EffectiveWeight, EffectiveWeights, Insert, NoInsert, Recorded,
    Spot, WeightGradient,
};
