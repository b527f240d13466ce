//! The vocabulary the other crates meet through: what a decoder model consists of, as data.
//!
//! [`ModelSpec`] says which tensors a checkpoint has, which linears share an input ([`Stage`]), and where a scale can move
//! from one operator into another ([`ScaleEdge`]). Methods read it and never ask which family they are in; `quant-model`
//! builds it from a `config.json`, `quant-checkpoint` checks folders against it.
//! [`BlockParams`] carries the numbers of one block between reader, model, methods and writer.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod error;
mod params;
mod scheme;
mod spec;

pub use error::{BoxError, SourceError};
pub use params::{
    BlockFrame, BlockParams, BlockSource, LinearParams, LinearWeight, RowVisitor, Rows, visit_whole_weights,
};
pub use quant_core::ActOrder;
pub use scheme::{InputScheme, KvScheme, LinearScheme, ModelScheme, WeightScheme};
pub use spec::{
    LinearSpec, ModelSpec, Norm, Role, RopeScaling, RopeSpec, SCALE_EDGES, STAGES, ScaleEdge, Site, Stage,
    TensorSpec,
};
