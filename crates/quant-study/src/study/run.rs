//! Carrying a study out.

use super::cells::{Status, VariantFacts};
use super::grid::{Grid, GridModel, GridRecipe};
use super::plan::{PlannedVariant, StudyPlan, model_folder, quantize_job, recipe, slug, tasks, word};
use super::results::{StudyResults, variant_folder};
use crate::StudyError;
use crate::blame::blame;
use crate::files::{Lock, read_json, write_whole};
use crate::programs::check_programs;
use crate::record::Record;
use crate::report;
use crate::run::home::{differing, finished_in, pretty, short};
use crate::run::{Reference, TaskJob, run_task, version};
use crate::verdict::{FloatAnswer, predict};
use quant_checkpoint::TensorHash;
use quant_data::{ChatTemplate, Task, TaskKind, Tokenizer, end_tokens};
use quant_kernels::Par;
use quant_model::Execution;
use quant_pipeline::{
    Event, Events, PipelineError, Registry, Scored, folder_arithmetic, open_folder_with, quantize,
    with_threads,
};
use std::path::{Path, PathBuf};

const GRID: &str = "grid.yaml";
const PLAN: &str = "plan.json";

/// Windows of the sample on which blocks are put back.
const BLAMED: usize = 8;

/// A study to be carried out.
#[derive(Clone, Debug)]
pub struct StudyJob {
    /// What it is made of.
    pub grid: Grid,
    /// Folder for everything it makes.
    pub output: PathBuf,
    /// Folders with data, before those of the grid and of the models.
    pub data: Vec<PathBuf>,
    /// Threads, at least 1.
    pub threads: usize,
    /// Memory budget in bytes.
    pub memory: Option<u64>,
    /// Texts that are worked on at a time.
    pub batch: usize,
    /// Go on with what is in the output.
    pub resume: bool,
    /// Run cells again whose job has changed.
    pub restart_changed: bool,
    /// Keep the folders of quantised models.
    pub keep_folders: bool,
    /// Keep the texts of answers.
    pub with_texts: bool,
    /// Run programs that a model wrote, in a sandbox, for tasks that grade them so.
    pub allow_code_execution: bool,
    /// The interpreter of these programs; by default the system's `python3`.
    pub python: Option<PathBuf>,
}

impl StudyJob {
    /// A study with everything else as `ptq study` has it.
    #[must_use]
    pub fn new(grid: Grid, output: impl Into<PathBuf>) -> Self {
        Self {
            grid,
            output: output.into(),
            data: Vec::new(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: None,
            batch: 16,
            resume: false,
            restart_changed: false,
            keep_folders: false,
            with_texts: false,
            allow_code_execution: false,
            python: None,
        }
    }

    /// Where the files of tasks are looked for.
    pub(super) fn data_folders(&self, model: &Path) -> Vec<PathBuf> {
        let mut folders = self.data.clone();
        folders.extend(self.grid.data.iter().cloned());
        folders.push(PathBuf::from("."));
        folders.push(model.to_owned());
        folders
    }
}

/// A study that was carried out.
#[derive(Clone, Debug)]
pub struct StudyOutcome {
    /// What it found.
    pub results: StudyResults,
    /// Rows that failed for other reasons than their setting.
    pub failed: usize,
}

/// What a study will do, and what that costs; nothing is run.
///
/// # Errors
/// [`StudyError`] for a grid whose models, tasks or data cannot be read.
pub fn plan_study(job: &StudyJob, registry: &Registry) -> Result<StudyPlan, StudyError> {
    StudyPlan::new(job, registry)
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
    std::fs::create_dir_all(&job.output).map_err(StudyError::io(&job.output))?;
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
    let plan = StudyPlan::new(job, registry)?;
    let tasks = tasks(&job.grid)?;
    check_programs(&tasks, job.allow_code_execution, job.python.as_deref(), registry)?;
    if let Some(reason) =
        plan.variants.iter().filter(|v| v.recipe.is_some()).map(|v| v.illegal.as_ref()).reduce(Option::and)
        && let Some(reason) = reason
    {
        return Err(StudyError::NothingLegal(reason.clone()));
    }
    write_whole(&job.output.join(GRID), job.grid.text().as_bytes())?;
    write_whole(&job.output.join(PLAN), &pretty(&plan))?;
    let mut failed = 0;
    for model in &job.grid.models {
        let folder = model_folder(model, &job.output)?;
        let mut rows = Rows { job, model, folder: &folder, tasks: &tasks, registry, reference: None };
        for planned in plan.variants.iter().filter(|v| v.model == model.name && v.illegal.is_none()) {
            let given = job.grid.recipes.iter().find(|r| Some(&r.name) == planned.recipe.as_ref());
            match rows.run(planned, given, events) {
                Ok(()) => {}
                Err(
                    error @ StudyError::Pipeline(PipelineError::Interrupted | PipelineError::Kept { .. }),
                ) => {
                    return Err(error);
                }
                Err(
                    error @ (StudyError::Changed { .. } | StudyError::Locked { .. } | StudyError::Io { .. }),
                ) => {
                    return Err(error);
                }
                Err(error) => {
                    failed += 1;
                    events.event(Event::Warning(format!("{}: {error}", rows.title(planned))));
                    let facts =
                        VariantFacts::failed(rows.identity(given)?, Status::Failed(error.to_string()));
                    let home = variant_folder(&job.output, &planned.model, planned.recipe.as_deref());
                    write_whole(&home.join("variant.json"), &pretty(&facts))?;
                }
            }
            report_on(&job.output, &plan, &tasks, &job.grid)?;
        }
    }
    let results = report_on(&job.output, &plan, &tasks, &job.grid)?;
    remove_folder(&job.output.join("work"))?;
    Ok(StudyOutcome { results, failed })
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
    report_on(output, &plan, &tasks(&grid)?, &grid)
}

fn report_on(
    output: &Path,
    plan: &StudyPlan,
    tasks: &[Task],
    grid: &Grid,
) -> Result<StudyResults, StudyError> {
    let results = StudyResults::read(output, plan, tasks)?;
    write_whole(&output.join("results.json"), &pretty(&results))?;
    write_whole(&output.join("results.csv"), report::csv(&results).as_bytes())?;
    write_whole(&output.join("report.md"), report::markdown(&results, grid).as_bytes())?;
    write_whole(&output.join("report.html"), report::html(&results, grid)?.as_bytes())?;
    Ok(results)
}

fn remove_folder(path: &Path) -> Result<(), StudyError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StudyError::io(path)(error)),
        _ => Ok(()),
    }
}

/// The rows of a model.
struct Rows<'a> {
    job: &'a StudyJob,
    model: &'a GridModel,
    folder: &'a Path,
    tasks: &'a [Task],
    registry: &'a Registry,
    reference: Option<Reference>,
}

impl Rows<'_> {
    fn title(&self, planned: &PlannedVariant) -> String {
        format!("{}, {}", planned.model, planned.recipe.as_deref().unwrap_or("float"))
    }

    /// What a row depends on, whoever asks what of it.
    fn identity(&self, given: Option<&GridRecipe>) -> Result<Vec<(String, String)>, StudyError> {
        let float = open_folder_with(self.folder, self.registry)?;
        let mut fields = vec![("the program".to_owned(), version())];
        fields.extend(float.checkpoint.fingerprint().map_err(PipelineError::from)?);
        if let Some(given) = given {
            let recipe = recipe(given, self.registry)?;
            fields.push(("the recipe".to_owned(), short(&TensorHash::of(recipe.source().as_bytes()))));
            let model = self.model;
            let data = format!(
                "{:?}, {:?} x {:?}, seed {}",
                model.calibration, model.num_samples, model.max_seq_len, model.seed
            );
            fields.push(("the calibration".to_owned(), data));
        }
        Ok(fields)
    }

    fn run(
        &mut self,
        planned: &PlannedVariant,
        given: Option<&GridRecipe>,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let home = variant_folder(&self.job.output, &planned.model, planned.recipe.as_deref());
        std::fs::create_dir_all(&home).map_err(StudyError::io(&home))?;
        let identity = self.identity(given)?;
        let facts: Option<VariantFacts> = read_json(&home.join("variant.json"))?;
        let differences =
            facts.as_ref().map_or_else(String::new, |facts| differing(&facts.identity, &identity));
        let facts = match facts {
            Some(_) if !differences.is_empty() => {
                if !self.job.restart_changed {
                    let advice = "give --restart-changed to run it again, or another --output";
                    return Err(StudyError::Changed { path: home, differences, advice });
                }
                remove_folder(&home)?;
                std::fs::create_dir_all(&home).map_err(StudyError::io(&home))?;
                None
            }
            // What failed for another reason than its setting may not fail again.
            Some(VariantFacts { status: Status::Failed(_), .. }) => None,
            facts => facts,
        };
        if matches!(facts, Some(VariantFacts { status: Status::NotFinite(_), .. })) {
            return Ok(());
        }
        let executions: Vec<Execution> = [Execution::Simulated, Execution::Integer]
            .into_iter()
            .filter(|e| {
                planned.executions.iter().any(|(name, problem)| name == word(*e) && problem.is_none())
            })
            .collect();
        let unfinished = |execution: &Execution| {
            let folder = home.join(word(*execution));
            let open = |task: &Task| finished_in(&folder.join(slug(task.name()))).map(|done| done.is_none());
            self.tasks.iter().map(open).collect::<Result<Vec<_>, _>>().map(|open| open.contains(&true))
        };
        let waiting = executions.iter().map(unfinished).collect::<Result<Vec<_>, _>>()?.contains(&true);
        if facts.is_some() && !waiting && !self.job.restart_changed {
            return Ok(());
        }
        let work = self
            .job
            .output
            .join("work")
            .join(slug(&planned.model))
            .join(slug(planned.recipe.as_deref().unwrap_or("float")));
        let folder = match given {
            None => {
                let facts =
                    VariantFacts { status: Status::Ok, ..VariantFacts::failed(identity.clone(), Status::Ok) };
                write_whole(&home.join("variant.json"), &pretty(&facts))?;
                self.folder.to_owned()
            }
            Some(given) => {
                let made = self.quantised(planned, given, &identity, &work, events)?;
                write_whole(&home.join("variant.json"), &pretty(&made))?;
                if made.status != Status::Ok {
                    return Ok(());
                }
                work.clone()
            }
        };
        for execution in executions {
            let cells = home.join(word(execution));
            for task in self.tasks {
                self.cell(&folder, task, execution, &identity, &cells, planned, events)?;
            }
            if given.is_some() {
                self.predict(planned, &folder, execution, &cells, events)?;
                self.blame(planned, &folder, execution, &cells, events)?;
            }
        }
        if given.is_some() && !self.job.keep_folders {
            remove_folder(&work)?;
        }
        Ok(())
    }

    fn quantised(
        &self,
        planned: &PlannedVariant,
        given: &GridRecipe,
        identity: &[(String, String)],
        work: &Path,
        events: &mut dyn Events,
    ) -> Result<VariantFacts, StudyError> {
        events.event(Event::Part(format!("quantising: {}", self.title(planned))));
        let parent = work.parent().unwrap_or(work);
        std::fs::create_dir_all(parent).map_err(StudyError::io(parent))?;
        let job =
            quantize_job(self.job, self.model, self.folder, recipe(given, self.registry)?, work.to_owned())?;
        match quantize(&job, events) {
            Ok(outcome) => Ok(VariantFacts::of(identity.to_vec(), &outcome)),
            Err(error) => match not_finite(&error) {
                // This is what the setting does to the model.
                Some(reason) => Ok(VariantFacts::failed(identity.to_vec(), Status::NotFinite(reason))),
                None => Err(error.into()),
            },
        }
    }

    /// The float model, which remembers what it saw last.
    fn reference(&mut self) -> Result<&mut Reference, StudyError> {
        let model = match self.reference.take() {
            Some(model) => model,
            None => Reference::open(self.folder, self.job.grid.compute, self.job.threads, self.registry)?,
        };
        Ok(self.reference.insert(model))
    }

    fn cell(
        &mut self,
        folder: &Path,
        task: &Task,
        execution: Execution,
        identity: &[(String, String)],
        cells: &Path,
        planned: &PlannedVariant,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let output = cells.join(slug(task.name()));
        let job = TaskJob {
            data: self.job.data_folders(self.folder),
            limit: match task.kind() {
                // Windows are few and cheap; a text is predicted in whole.
                TaskKind::Text(_) => None,
                _ => self.job.grid.limit,
            },
            seeds: self.job.grid.seeds.clone(),
            max_new_tokens: self.job.grid.max_new_tokens,
            execution,
            compute: self.job.grid.compute,
            threads: self.job.threads,
            memory: self.job.memory,
            batch: self.job.batch,
            with_texts: self.job.with_texts,
            allow_code_execution: self.job.allow_code_execution,
            python: self.job.python.clone(),
            identity: Some(identity.to_vec()),
            output: Some(output),
            resume: true,
            restart: self.job.restart_changed,
            ..TaskJob::new(folder, task.clone())
        };
        events.event(Event::Part(format!(
            "scoring: {}, {}, {}",
            self.title(planned),
            word(execution),
            task.name()
        )));
        let registry = self.registry;
        let quantised = planned.recipe.is_some() && matches!(task.kind(), TaskKind::Text(_));
        let reference = if quantised { Some(self.reference()?) } else { None };
        run_task(&job, reference, events, registry)?;
        Ok(())
    }

    /// The greedy answers of the float model.
    fn float_answers(&self) -> Result<Vec<FloatAnswer>, StudyError> {
        let home = variant_folder(&self.job.output, &self.model.name, None).join("sim");
        let tokenizer = Tokenizer::from_dir(self.folder)?;
        let template = ChatTemplate::from_dir(self.folder, tokenizer.special_tokens())?;
        let mut answers = Vec::new();
        for task in self.tasks {
            let greedy = matches!(task.kind(), TaskKind::Generate(ask) if ask.sampling.is_none());
            let Some(outcome) = finished_in(&home.join(slug(task.name())))?.filter(|_| greedy) else {
                continue;
            };
            let files = task.source().find(task.name(), &self.job.data_folders(self.folder))?;
            let seed = outcome.result.seeds.first().copied().unwrap_or(0);
            let questions = task.questions(&files, seed, self.job.grid.limit)?;
            for record in &outcome.records {
                let Record::Answer { number, seed: own, right, tokens, .. } = record else { continue };
                let Some(question) = questions.iter().find(|q| q.number == *number && *own == seed) else {
                    continue;
                };
                if tokens.is_empty() {
                    continue;
                }
                let prompt = task.encode_question(question, &tokenizer, template.as_ref())?.tokens;
                let length = prompt.len();
                answers.push(FloatAnswer {
                    tokens: [prompt, tokens.clone()].concat(),
                    prompt: length,
                    right: *right,
                });
            }
        }
        Ok(answers)
    }

    fn predict(
        &mut self,
        planned: &PlannedVariant,
        folder: &Path,
        execution: Execution,
        cells: &Path,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let path = cells.join("prediction.json");
        let answers = self.float_answers()?;
        if answers.is_empty() || path.exists() {
            return Ok(());
        }
        events.event(Event::Part(format!("reading answers of the float model: {}", self.title(planned))));
        let ends = end_tokens(self.folder, &Tokenizer::from_dir(self.folder)?)?;
        let open = open_folder_with(folder, self.registry)?;
        let arithmetic = folder_arithmetic(&open, self.job.grid.compute, Some(execution))?;
        let (source, threads) = (open.into_source()?, self.job.threads);
        let reference = self.reference()?;
        let verdict = with_threads(threads, |par| {
            predict(&mut Scored::new(source, arithmetic, par), reference, &answers, &ends, events)
        })??;
        write_whole(&path, &pretty(&verdict))
    }

    fn blame(
        &mut self,
        planned: &PlannedVariant,
        folder: &Path,
        execution: Execution,
        cells: &Path,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let path = cells.join("blame.json");
        let Some(task) =
            self.job.grid.blame.as_ref().and_then(|name| self.tasks.iter().find(|t| t.name() == name))
        else {
            return Ok(());
        };
        if path.exists() {
            return Ok(());
        }
        events.event(Event::Part(format!("putting blocks back: {}", self.title(planned))));
        let files = task.source().find(task.name(), &self.job.data_folders(self.folder))?;
        let tokenizer = Tokenizer::from_dir(self.folder)?;
        let windows = task.windows(&files, &tokenizer, self.folder, Some(BLAMED))?;
        let open = open_folder_with(folder, self.registry)?;
        let arithmetic = folder_arithmetic(&open, self.job.grid.compute, Some(execution))?;
        let (quantised, threads) = (open.into_source()?, self.job.threads);
        let float = open_folder_with(self.folder, self.registry)?.into_source()?;
        let reference = self.reference()?;
        let found = with_threads(threads, |par: Par| {
            blame(quantised, float, arithmetic, reference, &windows, par, events)
        })??;
        write_whole(&path, &pretty(&found))
    }
}

/// Where numbers stopped being finite, if that is what went wrong.
fn not_finite(error: &PipelineError) -> Option<String> {
    match error {
        PipelineError::NotFinite { .. } => Some(error.to_string()),
        PipelineError::In { source, .. } | PipelineError::Kept { source, .. } => not_finite(source),
        _ => None,
    }
}
