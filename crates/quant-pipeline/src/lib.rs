//! From a recipe to a plan, a run over the blocks and a manifest.
//!
//! 1. [`Recipe::parse`] reads what a person wrote; unknown keys are errors with the nearest name.
//! 2. [`Plan::new`] resolves it against a model and refuses what cannot work before a weight is read.
//! 3. [`run`](run::run) carries calibration activations through the blocks, calls the methods, and hands finished blocks to
//!    a [`BlockSink`](run::BlockSink).
//! 4. [`quantize`] does all of it from folder to folder; [`evaluate`] measures any folder, [`generate_with`] has it write; [`prepare_analysis`] leads to what a
//!    recipe does to each block of a model by itself.
//!
//! ```
//! use quant_pipeline::{Plan, Recipe, folder_spec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
//! let recipe = Recipe::from_preset("w8a8-ascend")?;
//! let plan = Plan::new(&recipe, &folder_spec(model.as_ref())?)?;
//! assert!(!plan.streams.calibration());
//! assert_eq!(plan.blocks.len(), plan.spec.layers);
//! # Ok(())
//! # }
//! ```
//!
//! [`QuantizeJob::new`] has the example that writes a folder. A [`Registry`] is what recipes and folders may name: ours by default,
//! and what a program adds; the functions that end in `_with` take one.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod analyze;
mod cache_plan;
mod completion;
mod device_memory;
mod disk;
mod error;
mod eval_memory;
mod evaluate;
mod events;
mod execution;
mod folder_sink;
mod forecast;
mod generate;
mod identity;
mod job;
mod keeping;
mod layout;
mod logits_file;
mod manifest;
pub mod memory;
mod open;
mod plan;
mod prepare;
mod presets;
mod quantize;
mod recipe;
mod registry;
mod report;
pub mod run;
mod serving;
mod shared;
mod shown;
mod stood;
mod streams;
mod version;

pub use analyze::{
    Analysis, AnalysisCost, AnalyzeJob, BlockAnalysis, BlocksFrom, KEY_POSITIONS, KeyError, LinearAnalysis,
    Observed, Place, PreparedAnalysis, Sample, StepSpread, Trace, prepare_analysis,
};
pub use completion::{CompletionRun, CompletionSettings, Completions, complete};
pub use device_memory::{expect_evaluation, expect_generation};
pub use disk::DiskPlan;
pub use error::{PipelineError, RecipeError};
pub use eval_memory::{EvalMemory, ModelMemory};
pub use evaluate::{CodeFlips, EvalData, EvalJob, EvalOutcome, eval_sequences, evaluate, evaluate_with};
pub use events::{Event, Events, Silent};
pub use execution::folder_arithmetic;
pub use forecast::{Forecast, StoredSize};
pub use generate::{GenerateJob, GenerateOutcome, GeneratedText, generate_with};
pub use job::{QuantizeJob, QuantizeOutcome, ReadSeconds, WriteSeconds};
pub use keeping::Keeping;
pub use manifest::Card;
pub use open::{
    OpenFolder, Scored, folder_spec, folder_spec_with, open_folder, open_folder_with, with_threads,
};
pub use plan::{FallbackPlan, LinearPlan, Plan, StageNeeds, Streams};
pub use prepare::{PreparedJob, prepare};
pub use presets::{PRESETS, Preset, preset};
pub use quant_eval::Spread;
pub use quantize::{quantize, quantize_on, read_recipe, read_recipe_with};
pub use recipe::{ActivationSpec, Glob, KvSpec, Recipe, schema, schema_with};
pub use registry::{Presets, Registry};
pub use report::{LinearReport, Named, RunReport, Seconds, StageFactor, peak_memory, reset_peak_memory};
pub use serving::ServeCommand;
pub use shared::{Shared, text_identity};
pub use streams::PutBack;
