//! Post-training quantisation methods.
//!
//! Two kinds compose: a *transform* rewrites a float block without changing its function ([`smoothquant`]), a *rounding*
//! turns one weight into levels ([`rtn`], [`gptq`]). Each works on bare matrices, owns no loop over a model, opens no file and
//! starts no thread of its own; the statistics it [`Needs`] are gathered by the caller.
//!
//! [`METHODS`] is the registry: recipes, help and documentation tables are made from it.
#![forbid(unsafe_code)]

mod error;
pub mod gptq;
mod registry;
pub mod rounding;
pub mod rtn;
pub mod smoothquant;

pub use error::MethodError;
pub use registry::{Kind, METHODS, Method, Needs, method};
pub use rounding::{Rounded, Rounding, RowRounding, WeightQuantizer};
