//! Tasks on models, grids of models, recipes and tasks, and reports of what quantisation cost.
//!
//! [`run_task`] asks one model one task: the items come from a [`Task`](quant_data::Task), the figures are those of
//! [`quant_eval`], the model is any folder that [`quant_pipeline`] opens. What an item becomes depends neither on what else is asked nor
//! on threads or batch, so a run that was stopped goes on to the same bytes.
#![forbid(unsafe_code)]

mod error;
mod files;
mod record;
mod run;

pub use error::StudyError;
pub use record::{Record, Signs};
pub use run::{
    AnswerSummary, ChoiceSummary, Done, Figure, Reference, SignCounts, TaskJob, TaskOutcome, TaskResult,
    TaskRun, TextSummary, run_task, summarise_answers,
};
