//! What a recipe does to each block of a model by itself: how its activations are distributed before and after each transform, how
//! far its output moves, and how far the final logits move where it alone is quantised.
//!
//! Nothing is trained and nothing is written. All streams (that of the float model, and for every block that of the float model with
//! this block quantised) are carried through the blocks together, so that each block is read once.

mod cost;
mod finished;
mod job;
mod keys;
mod observe;
mod pass;
mod prepare;
mod report;

pub use cost::AnalysisCost;
pub use job::{AnalyzeJob, Sample};
pub use keys::{KEY_POSITIONS, KeyError};
pub use observe::{Observed, Place, StepSpread};
pub use prepare::{PreparedAnalysis, prepare_analysis};
pub use report::{Analysis, BlockAnalysis, BlocksFrom, LinearAnalysis, Trace};

#[cfg(test)]
mod tests;
