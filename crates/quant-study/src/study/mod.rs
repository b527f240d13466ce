//! Grids of models, recipes, executions and tasks.

mod cells;
mod compare;
mod embedded;
mod grid;
mod plan;
mod presets;
mod results;
mod run;

pub use cells::{LayerError, Status, VariantFacts};
pub use grid::{Grid, GridModel, GridRecipe, Published};
pub use plan::{PlannedVariant, StudyPlan};
pub use presets::{STUDIES, StudyPreset, study_preset};
pub use results::{Column, ColumnResult, Loss, ModelResults, StudyResults, TextFigures, VariantResults};
pub use run::{StudyJob, StudyOutcome, plan_study, report_study, run_study};
