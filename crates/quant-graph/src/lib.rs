//! The vocabulary the other crates meet through: what a decoder model consists of, as data.
//!
//! [`ModelSpec`] says which tensors a checkpoint has, which linears share an input ([`Stage`]), and where a scale can move
//! from one operator into another ([`ScaleEdge`]). Methods read it and never ask which family they are in; `quant-model`
//! builds it from a `config.json`, `quant-checkpoint` checks folders against it.
//! [`BlockParams`] carries the numbers of one block between reader, model, methods and writer.
//!
//! ```
//! use quant_graph::{Norm, Role, SCALE_EDGES, Site};
//!
//! // q, k and v share an input: one Hessian, one set of activation parameters.
//! let stage = Role::K.site().stage();
//! assert_eq!(stage.linears, [Role::Q, Role::K, Role::V]);
//! // A scale may move from the norm before them into all three.
//! let edge = SCALE_EDGES.iter().find(|edge| edge.site == stage.site);
//! assert_eq!(edge.map(|edge| edge.norm), Some(Norm::Input));
//! assert_eq!(Role::Down.site(), Site::MlpActivation);
//! ```
//!
//! A reader or a model in memory implements [`BlockSource`]; whoever takes one works on both.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod error;
mod params;
mod scheme;
mod spec;

pub use error::{BoxError, SourceError};
/// The arrays of the types here.
pub use ndarray;
pub use params::{
    BlockFrame, BlockParams, BlockSource, LinearParams, LinearWeight, RowVisitor, Rows, visit_whole_weights,
};
pub use quant_core::{ActOrder, ActQuant, Bits, FloatType, KvQuant, QuantizedMatrix, Real};
pub use scheme::{InputScheme, KvScheme, LinearScheme, ModelScheme, WeightScheme};
pub use spec::{
    LinearSpec, ModelSpec, Norm, Role, RopeScaling, RopeSpec, SCALE_EDGES, STAGES, ScaleEdge, Site, Stage,
    TensorSpec,
};
