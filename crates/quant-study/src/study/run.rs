//! Carrying a study out.

use super::clock::{Clock, PartTime};
use super::collect::collect;
use super::job::StudyJob;
use super::place::{discard, model_folder, remove_folder, variant_folder};
use super::plan::{PlannedVariant, StudyPlan, tasks};
use super::rows::{Origin, Rows};
use super::scoring::ScoringCost;
use crate::StudyError;
use crate::files::{Lock, check_own, read_json, slug, write_beside_others, write_whole};
use crate::grid::{Grid, GridModel};
use crate::programs::check_programs;
use crate::report;
use crate::results::{Status, StudyResults, VariantFacts};
use crate::run::home::{clear, differing, pretty};
use quant_data::Task;
use quant_pipeline::{Event, Events, Registry, Shared};
use std::path::{Path, PathBuf};

const GRID: &str = "grid.yaml";
const PLAN: &str = "plan.json";

/// A study that was carried out.
#[derive(Clone, Debug)]
pub struct StudyOutcome {
    /// What it found.
    pub results: StudyResults,
    /// Cells, and rows that could not be made, that failed for other reasons than their setting.
    pub failed: usize,
    /// How long this run was at what, the longest first; what an earlier run had finished is not in it.
    pub times: Vec<PartTime>,
}

/// What a study will do, and what that costs; nothing is run.
///
/// # Errors
/// [`StudyError`] for a grid whose models, tasks or data cannot be read.
pub fn plan_study(job: &StudyJob, registry: &Registry) -> Result<StudyPlan, StudyError> {
    check_place(&job.output)?;
    let shared = Shared::new(job.shared_bytes());
    let plan = StudyPlan::new(job, registry, true, &shared)?;
    let ways = |model: &GridModel| plan.ways(model);
    let scoring = Some(ScoringCost::new(job, &tasks(&job.grid)?, ways, registry, &shared)?);
    Ok(StudyPlan { scoring, ..plan })
}

/// Carries a study out, or goes on with it. The report is written again after every row.
///
/// # Errors
/// [`StudyError::Changed`] for an output that belongs to another grid, or has finished cells whose job has changed since;
/// [`StudyError::Locked`]; [`StudyError::NothingLegal`]; interruption; files that cannot be written. What a setting does to a model is a
/// result, and a row that fails otherwise is one too: the others are run.
pub fn run_study(
    job: &StudyJob,
    events: &mut dyn Events,
    registry: &Registry,
) -> Result<StudyOutcome, StudyError> {
    let mut clock = Clock::new(events);
    let events = &mut clock;
    check_place(&job.output)?;
    let _lock = Lock::take(&job.output)?;
    let begun = job.output.join(PLAN).exists();
    if begun && !job.resume && !job.restart_changed {
        return Err(StudyError::Changed {
            path: job.output.clone(),
            differences: "a study that was begun".to_owned(),
            advice: "give --resume to go on with it, or another --output",
        });
    }
    events.event(Event::Phase("planning the study"));
    let shared = Shared::new(job.shared_bytes());
    let plan = StudyPlan::new(job, registry, false, &shared)?;
    let tasks = tasks(&job.grid)?;
    check_programs(&tasks, job.allow_code_execution, job.python.as_deref(), registry)?;
    let mut refusals = plan.variants.iter().filter(|v| v.recipe.is_some()).map(PlannedVariant::refusal);
    if let Some(Some(reason)) = refusals.clone().next()
        && refusals.all(|refusal| refusal.is_some())
    {
        return Err(StudyError::NothingLegal(reason.to_owned()));
    }
    settle_changed(job, &plan, &tasks, registry)?;
    remove_folder(&job.output.join("removed"))?;
    write_whole(&job.output.join(GRID), job.grid.text().as_bytes())?;
    keep_tasks(&job.output, &tasks)?;
    write_whole(&job.output.join(PLAN), &pretty(&plan))?;
    let mut failed = 0;
    for model in &job.grid.models {
        let folder = model_folder(model, &job.output)?;
        let mut rows = Rows::new(job, model, &folder, &tasks, registry, &shared)?;
        for planned in plan.variants.iter().filter(|v| v.model == model.name && v.illegal.is_none()) {
            let origin = Origin::of(&job.grid, model, planned);
            match rows.run(planned, origin, events) {
                Ok(parts) => failed += parts,
                Err(error) if error.ends_a_study() => return Err(error),
                Err(error) => {
                    failed += 1;
                    events.event(Event::Warning(format!("{}: {error}", rows.title(planned))));
                    let facts =
                        VariantFacts::failed(rows.identity(origin)?, Status::Failed(error.to_string()));
                    let home = variant_folder(&job.output, &planned.model, planned.recipe.as_deref());
                    write_whole(&home.join("variant.json"), &pretty(&facts))?;
                }
            }
            events.rest();
            report_on(&job.output, &plan, &tasks, &job.grid)?;
        }
    }
    let results = report_on(&job.output, &plan, &tasks, &job.grid)?;
    if !job.keep_folders {
        remove_folder(&job.output.join("work"))?;
    }
    Ok(StudyOutcome { results, failed, times: clock.parts() })
}

/// Refuses a folder that holds something else than a study, or what planning one has left there.
fn check_place(output: &Path) -> Result<(), StudyError> {
    if output.join(PLAN).exists() {
        return Ok(());
    }
    // Of folders to work in, planning makes one alone.
    let planned = |work: &Path| {
        let mut entries = std::fs::read_dir(work).into_iter().flatten().flatten();
        entries.all(|entry| entry.file_name() == "plan")
    };
    let own = |name: &str| match name {
        GRID | "embedded" | "tasks" => true,
        "work" => planned(&output.join(name)),
        _ => false,
    };
    check_own(output, own, "study")
}

/// Makes the report of a study from what is finished of it.
///
/// # Errors
/// [`StudyError`] for a folder that holds none.
pub fn report_study(output: &Path) -> Result<StudyResults, StudyError> {
    let none = || {
        StudyError::Usage(format!("{} holds no study; make one with `ptq study --output`", output.display()))
    };
    let plan: StudyPlan = read_json(&output.join(PLAN))?.ok_or_else(none)?;
    let grid = Grid::from_file(&output.join(GRID))?;
    let kept = |name: &String| Ok(Task::from_file(&task_file(output, name))?);
    let tasks = plan.tasks.iter().map(kept).collect::<Result<Vec<Task>, StudyError>>()?;
    report_on(output, &plan, &tasks, &grid)
}

/// Where the text of a task is kept: the grid names files that may be gone, or lie elsewhere.
fn task_file(output: &Path, name: &str) -> PathBuf {
    output.join("tasks").join(format!("{}.yaml", slug(name)))
}

fn keep_tasks(output: &Path, tasks: &[Task]) -> Result<(), StudyError> {
    let folder = output.join("tasks");
    std::fs::create_dir_all(&folder).map_err(StudyError::io(&folder))?;
    tasks.iter().try_for_each(|task| write_whole(&task_file(output, task.name()), task.written().as_bytes()))
}

fn report_on(
    output: &Path,
    plan: &StudyPlan,
    tasks: &[Task],
    grid: &Grid,
) -> Result<StudyResults, StudyError> {
    let results = collect(output, plan, tasks, grid.blame.as_deref())?;
    // A report can be asked for while the study is run by another process.
    let write = |name: &str, bytes: &[u8]| write_beside_others(&output.join(name), bytes);
    write("results.json", &pretty(&results))?;
    write("results.csv", report::csv(&results).as_bytes())?;
    write("report.md", report::markdown(&results, grid).as_bytes())?;
    write("map.svg", report::picture(&results).as_bytes())?;
    write("report.html", report::html(&results, grid)?.as_bytes())?;
    Ok(results)
}

/// Deals with finished cells whose job has changed: names them all and refuses, or throws them away before anything is run, so that no
/// report has figures of both jobs.
fn settle_changed(
    job: &StudyJob,
    plan: &StudyPlan,
    tasks: &[Task],
    registry: &Registry,
) -> Result<(), StudyError> {
    let mut named = Vec::new();
    for model in &job.grid.models {
        let folder = model_folder(model, &job.output)?;
        let rows = Rows::new(job, model, &folder, tasks, registry, &Shared::default())?;
        for planned in plan.variants.iter().filter(|v| v.model == model.name && v.illegal.is_none()) {
            let origin = Origin::of(&job.grid, model, planned);
            let home = variant_folder(&job.output, &planned.model, planned.recipe.as_deref());
            let facts: Option<VariantFacts> = read_json(&home.join("variant.json"))?;
            let Some(facts) = facts else { continue };
            let identity = rows.identity(origin)?;
            let differences = differing(&facts.identity, &identity);
            // Nothing of a row that failed is finished but its cells, which depend on what it depends on.
            if !differences.is_empty() && !matches!(facts.status, Status::Failed(_)) {
                named.push(format!("{} ({differences})", rows.title(planned)));
                if job.restart_changed {
                    discard(&home, &job.output)?;
                }
                continue;
            }
            for (folder, words) in rows.cells_changed(planned, &identity)? {
                named.push(words);
                if job.restart_changed {
                    clear(&folder)?;
                }
            }
        }
    }
    if named.is_empty() || job.restart_changed {
        return Ok(());
    }
    Err(StudyError::Changed {
        path: job.output.clone(),
        differences: format!("{} finished cells were made otherwise: {}", named.len(), named.join("; ")),
        advice: "give --restart-changed to run them again, or another --output",
    })
}
