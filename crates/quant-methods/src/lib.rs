//! Post-training quantisation methods.
//!
//! Two kinds compose: a *transform* rewrites a float block without changing its function ([`smoothquant`]), a *rounding*
//! turns one weight into levels ([`rtn`], [`gptq`]). Each works on bare matrices, owns no loop over a model, opens no file and
//! starts no thread of its own; the statistics it asks for are gathered by the caller.
//!
//! ```
//! use quant_methods::ndarray::{Array2, array};
//! use quant_methods::{Grid, Par, Variant, rtn, smoothquant};
//!
//! let weight = Array2::from_shape_fn((4, 64), |(i, j)| ((i * 29 + j * 13) % 61) as f32 / 30.0 - 1.0);
//! let settings = rtn::Rtn { grid: Grid::int8_sym(), group: None, clip: None };
//! let rounded = rtn::round(&settings, weight.view(), Par::Seq)?;
//! assert_eq!(rounded.scales().dim(), (4, 1));
//!
//! // A channel whose activations are large hands some of its size to its weights.
//! let smooth = smoothquant::SmoothQuant { alpha: 0.5, variant: Variant::Exact };
//! let weight = array![[1.0_f32, 1.0], [0.5, -1.0]];
//! let factors = smoothquant::factors(&smooth, array![1.0, 64.0].view(), &[weight.view()])?;
//! assert_eq!(factors, array![1.0, 8.0]);
//! # Ok::<(), quant_methods::MethodError>(())
//! ```
//!
//! [`METHODS`] is the registry: a line has the method's keys and makes it from a section of a recipe, so recipes, help and
//! documentation tables know no method by name. [`Methods`] is that registry as a value, to which another crate adds its own.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod awq;
pub mod billm;
pub mod duquant;
mod error;
pub mod flatquant;
mod folding;
pub mod gptaq;
pub mod gptq;
mod method;
pub mod qronos;
pub mod quarot;
mod registry;
pub mod rtn;
pub mod settings;
pub mod slim_llm;
pub mod smoothquant;
pub mod statistics;

pub use error::MethodError;
pub use folding::HeadTie;
pub use method::{
    BlockContext, BlockPlan, Diary, Fallback, FallbackReport, Figures, Learned, LearnedScheme, Learner,
    Lesson, LessonReport, Method, MethodKind, ModelTransform, Modifier, NoDiary, Operations, PlannedRounding,
    Prepared, Rounded, Rounding, RowRounding, Scaled, Solver, Transform, WeightSettings, WholePlan,
    Workspace, float_weights, rounding, scale_weights,
};
/// The arrays of the functions here.
pub use ndarray;
pub use quant_core::{ActOrder, Bits, ClipSearch, Convention, FloatType, Grid, QuantizedMatrix, Variant};
pub use quant_kernels::{Par, Stopped, Work};
pub use registry::{METHODS, Methods, method};
pub use settings::{Field, Settings, SettingsError};
pub use statistics::{Batch, FloatStream, Gathered, Need, SiteStatistics, Spacing, Statistic, Stream};
