//! Carrying a grid out, row by row, and reading what came of it.

mod clock;
mod collect;
mod compare;
mod depends;
#[cfg(feature = "hub")]
mod fetch;
mod job;
mod place;
mod plan;
mod rows;
mod run;
mod scoring;

pub use clock::PartTime;
#[cfg(feature = "hub")]
pub use fetch::fetch_study_data;
pub use job::StudyJob;
pub use plan::{PlannedVariant, StudyPlan};
pub use run::{StudyOutcome, plan_study, report_study, run_study};
pub use scoring::ScoringCost;
