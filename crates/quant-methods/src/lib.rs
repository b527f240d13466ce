//! Post-training quantisation methods.
//!
//! Two kinds compose: a *transform* rewrites a float block without changing its function ([`smoothquant`]), a *rounding*
//! turns one weight into levels ([`rtn`], [`gptq`]). Each works on bare matrices, owns no loop over a model, opens no file and
//! starts no thread of its own; the statistics it asks for are gathered by the caller.
//!
//! [`METHODS`] is the registry: a line has the method's keys and makes it from a section of a recipe, so recipes, help and
//! documentation tables know no method by name.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod error;
pub mod gptq;
mod registry;
pub mod rounding;
pub mod rtn;
pub mod settings;
pub mod smoothquant;
mod transform;

pub use error::MethodError;
pub use registry::{Kind, METHODS, Method, method};
pub use rounding::{PlannedRounding, Rounded, Rounding, RowRounding, WeightQuantizer, WeightSettings};
pub use settings::{Field, Settings, SettingsError};
pub use transform::{BlockContext, Needs, Statistics, Transform};
