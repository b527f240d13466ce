//! FlatQuant (arXiv 2410.09426): learned transforms that make weights and activations flat before they are quantised.
//!
//! An input `x` of q, k, v, of gate and up, or of down becomes `(x diag(c)) (P_L kron P_R)` and is quantised; the weight that reads
//! it becomes `(W diag(1/c)) (P_L^-T kron P_R^-T)`, is clipped and quantised. Values are multiplied by `P_v` in the rows of v, the
//! attention output across heads by `P_o`, and o by both inverses; keys behind rope by `P_k`, queries by its inverse transpose.
//!
//! | what | where |
//! |---|---|
//! | what is quantised, and which transforms that asks for | [`FlatScheme`], [`FlatShape`] |
//! | the parameters of a block, or their gradients | [`FlatParameters`] |
//! | one step: effective weights, what stands in the block, gradients | [`FlatStep`], [`FlatInsert`], [`FlatSums`] |
//! | the loss | [`mean_squared_error`] |
//!
//! A block is run by a [`BlockTraining`](quant_graph::BlockTraining); a step is
//! [`FlatStep::new`], [`FlatStep::weights`], a recorded forward with [`FlatStep::insert`], [`mean_squared_error`], the tape's backward,
//! and [`FlatStep::backward`], whose result an optimiser meets tensor by tensor.

mod insert;
mod loss;
mod parameters;
mod scheme;
mod step;
mod weights;

pub use insert::FlatInsert;
pub use loss::{Loss, mean_squared_error};
pub use parameters::{FlatParameters, Group, Start};
pub use scheme::{FlatScheme, FlatShape, Matrix};
pub use step::{FlatStep, FlatSums};
pub use weights::MergedWeight;
