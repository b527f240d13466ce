//! Tasks on models, grids of models, recipes and tasks, and reports of what quantisation cost.
//!
//! [`run_task`] asks one model one task: the items come from a [`Task`](quant_data::Task), the figures are those of
//! [`quant_eval`], the model is any folder that [`quant_pipeline`] opens. What an item becomes depends neither on what else is asked nor
//! on threads or batch, so a run that was stopped goes on to the same bytes. With the feature `server` the model may stand behind an
//! OpenAI-compatible server (`run_task_on_server`); with `hub`, `fetch_study_data` brings the data of a study from the Hugging Face hub. Answers that are programs run in the sandbox of `quant-sandbox`, and only where
//! [`TaskJob::allow_code_execution`] says so.
//!
//! [`run_study`] carries a [`Grid`] out: every recipe on every model, every task on each, and a report that says what was lost, how sure
//! that is, and which blocks it comes from. An [`StudyJob::output`] folder holds finished cells from the start; a report can be made of it
//! at any time ([`report_study`]).
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod blame;
mod error;
mod files;
mod grid;
mod passes;
mod programs;
mod ranges;
mod record;
mod report;
mod results;
mod run;
mod study;
mod verdict;

pub use blame::{Blame, BlameCost, Regained};
pub use error::StudyError;
pub use grid::{
    Grid, GridModel, GridRecipe, GridServer, Published, RecipeText, STUDIES, StudyPreset, study_preset,
};
/// Which server is asked, and how.
#[cfg(feature = "server")]
pub use quant_client;
pub use ranges::{Extent, Ranges};
pub use record::{Done, Record, Signs};
pub use results::{
    Column, ColumnResult, FailedPart, LayerError, Loss, ModelResults, Status, StudyResults, TextFigures,
    VariantFacts, VariantResults,
};
#[cfg(feature = "server")]
pub use run::run_task_on_server;
pub use run::{
    AnswerSummary, ChoiceSummary, Figure, Reference, SignCounts, TaskJob, TaskOutcome, TaskResult, TaskRun,
    TextSummary, run_task, summarise_answers,
};
#[cfg(feature = "hub")]
pub use study::fetch_study_data;
pub use study::{
    PartTime, PlannedVariant, ScoringCost, StudyJob, StudyOutcome, StudyPlan, plan_study, report_study,
    run_study,
};
pub use verdict::Verdict;
