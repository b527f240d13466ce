//! The rows of a model: making each, asking it everything, reading, putting back.

mod reading;

use super::depends::{of_answers, of_blame, stands};
use super::job::StudyJob;
use super::place::{BLAME, FAILURES, PREDICTION, RANGES, SERVER, discard, remove_file, variant_folder, word};
use super::plan::{PlannedVariant, calibration, quantize_job, recipe};
use crate::StudyError;
use crate::files::{read_json, slug, write_whole};
use crate::grid::{Grid, GridModel, GridRecipe, GridServer};
use crate::programs::runs_programs;
use crate::results::{FailedPart, Status, VariantFacts};
use crate::run::home::{Identity, changed, differing, hash_of, is_finished, pretty};
use crate::run::{Reference, TaskJob, run_task, version};
use crate::verdict::FloatAnswer;
use quant_checkpoint::TensorHash;
use quant_data::{Task, TaskKind};
use quant_model::Execution;
use quant_pipeline::{Event, Events, PipelineError, Registry, Shared, open_folder_with, quantize};
use std::path::{Path, PathBuf};

/// All ways to run a model, in the order in which they are.
pub(super) const EXECUTIONS: [Execution; 2] = [Execution::Simulated, Execution::Integer];

/// What a row is made from.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    Float,
    Recipe(&'a GridRecipe),
    Server(&'a GridServer),
}

impl<'a> Origin<'a> {
    /// Of a planned row of a model.
    pub(super) fn of(grid: &'a Grid, model: &'a GridModel, planned: &PlannedVariant) -> Self {
        let Some(name) = &planned.recipe else {
            return model.float_server().map_or(Self::Float, Self::Server);
        };
        let server = model.servers.iter().find(|s| s.name == *name).map(Self::Server);
        let recipe = grid.recipes.iter().find(|r| r.name == *name).map(Self::Recipe);
        recipe.or(server).unwrap_or(Self::Float)
    }
}

/// What of a row failed for another reason than its setting, while the rest of it was run.
struct Parts {
    title: String,
    failed: Vec<FailedPart>,
}

impl Parts {
    /// Notes a failure, unless it ends the study.
    fn keep(
        &mut self,
        execution: &str,
        part: &str,
        done: Result<(), StudyError>,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let Err(error) = done else { return Ok(()) };
        if error.ends_a_study() {
            return Err(error);
        }
        events.event(Event::Warning(format!("{}, {execution}, {part}: {error}", self.title)));
        let (execution, part) = (execution.to_owned(), part.to_owned());
        self.failed.push(FailedPart { execution, part, reason: error.to_string() });
        Ok(())
    }
}

/// The rows of a model.
pub(super) struct Rows<'a> {
    job: &'a StudyJob,
    model: &'a GridModel,
    folder: &'a Path,
    tasks: &'a [Task],
    registry: &'a Registry,
    /// What every row depends on, and what those of a recipe depend on beside it.
    identity: [Identity; 2],
    reference: Option<Reference>,
    /// Greedy answers of the float model, once they have been read.
    answers: Option<Vec<FloatAnswer>>,
    /// What is the same for several rows: tokens, statistics of the float stream.
    shared: Shared,
}

impl<'a> Rows<'a> {
    pub(super) fn new(
        job: &'a StudyJob,
        model: &'a GridModel,
        folder: &'a Path,
        tasks: &'a [Task],
        registry: &'a Registry,
        shared: &Shared,
    ) -> Result<Self, StudyError> {
        let mut common = vec![("the program".to_owned(), version())];
        if !job.grid.is_served(model) {
            let float = open_folder_with(folder, registry)?;
            common.extend(float.checkpoint.fingerprint().map_err(PipelineError::from)?);
        }
        let mut data = format!("{:?} x {:?}, seed {}", model.num_samples, model.max_seq_len, model.seed);
        if let (Some(spec), Some(written)) = (calibration(model, folder)?, &model.calibration) {
            // Where it lies is no part of what it is.
            let name = Path::new(written).file_name().map(|name| name.to_string_lossy());
            data = format!("{}, {}, {data}", name.unwrap_or_default(), hash_of(spec.path())?);
        }
        let identity = [common, vec![("the calibration".to_owned(), data)]];
        let shared = shared.clone();
        Ok(Self { job, model, folder, tasks, registry, identity, reference: None, answers: None, shared })
    }

    pub(super) fn title(&self, planned: &PlannedVariant) -> String {
        format!("{}, {}", planned.model, planned.recipe.as_deref().unwrap_or("float"))
    }

    /// What a row depends on, whoever asks what of it.
    pub(super) fn identity(&self, origin: Origin<'_>) -> Result<Identity, StudyError> {
        let [common, of_recipes] = &self.identity;
        let mut fields = common.clone();
        match origin {
            Origin::Float => {}
            Origin::Recipe(given) => {
                let recipe = recipe(given, self.registry)?;
                fields.push(("the recipe".to_owned(), TensorHash::of(recipe.source().as_bytes()).short()));
                fields.extend(of_recipes.iter().cloned());
            }
            Origin::Server(server) => {
                fields.push(("the server".to_owned(), server.url.clone()));
                fields.push(("its model".to_owned(), server.model.clone().unwrap_or_default()));
            }
        }
        Ok(fields)
    }

    /// Makes a row, asks it everything that is not finished, and gives the number of parts of it that failed.
    pub(super) fn run(
        &mut self,
        planned: &PlannedVariant,
        origin: Origin<'_>,
        events: &mut dyn Events,
    ) -> Result<usize, StudyError> {
        let home = variant_folder(&self.job.output, &planned.model, planned.recipe.as_deref());
        std::fs::create_dir_all(&home).map_err(StudyError::io(&home))?;
        remove_file(&home.join(FAILURES))?;
        let mut parts = Parts { title: self.title(planned), failed: Vec::new() };
        self.run_parts(planned, origin, &home, &mut parts, events)?;
        if !parts.failed.is_empty() {
            write_whole(&home.join(FAILURES), &pretty(&parts.failed))?;
        }
        Ok(parts.failed.len())
    }

    fn run_parts(
        &mut self,
        planned: &PlannedVariant,
        origin: Origin<'_>,
        home: &Path,
        parts: &mut Parts,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let identity = self.identity(origin)?;
        // What failed for another reason than its setting may not fail again.
        let facts = read_json(&home.join("variant.json"))?;
        let facts = facts.filter(|facts: &VariantFacts| !matches!(facts.status, Status::Failed(_)));
        let differences =
            facts.as_ref().map_or_else(String::new, |facts| differing(&facts.identity, &identity));
        let facts = match facts {
            Some(_) if !differences.is_empty() => {
                if !self.job.restart_changed {
                    let advice = "give --restart-changed to run it again, or another --output";
                    return Err(StudyError::Changed { path: home.to_owned(), differences, advice });
                }
                discard(home, &self.job.output)?;
                std::fs::create_dir_all(home).map_err(StudyError::io(home))?;
                None
            }
            facts => facts,
        };
        if matches!(facts, Some(VariantFacts { status: Status::NotFinite(_), .. })) {
            return Ok(());
        }
        let given = match origin {
            Origin::Server(server) => {
                let facts = VariantFacts::failed(identity.clone(), Status::Ok);
                write_whole(&home.join("variant.json"), &pretty(&facts))?;
                return self.serve(planned, server, &identity, &home.join(SERVER), parts, events);
            }
            Origin::Recipe(given) => Some(given),
            Origin::Float => None,
        };
        let executions: Vec<Execution> =
            EXECUTIONS.into_iter().filter(|e| planned.runs().any(|name| name == word(*e))).collect();
        let looked_at = given.is_some() && planned.ranges.is_some();
        let waiting =
            self.is_waiting(planned, home, &executions)? || (looked_at && !home.join(RANGES).exists());
        // A row that cannot be run in any of the ways asked for is not made either.
        if executions.is_empty() || (facts.is_some() && !waiting) {
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
                let facts = VariantFacts::failed(identity.clone(), Status::Ok);
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
        if let Some(given) = given.filter(|_| looked_at) {
            let seen = self.ranges(planned, given, &folder, &home.join(RANGES), events);
            let first = executions.first().map_or("", |execution| word(*execution));
            parts.keep(first, "activations", seen, events)?;
        }
        for execution in executions {
            let (cells, name) = (home.join(word(execution)), word(execution));
            for task in self.tasks {
                let asked = self.cell(&folder, task, execution, &identity, &cells, planned, events);
                parts.keep(name, task.name(), asked, events)?;
            }
            if given.is_some() {
                let read = self.predict(planned, &folder, execution, &cells, events);
                parts.keep(name, "reading answers", read, events)?;
                let put_back = self.blame(planned, &folder, execution, &cells, events);
                parts.keep(name, "putting blocks back", put_back, events)?;
            }
        }
        if given.is_some() && !self.job.keep_folders {
            discard(&work, &self.job.output)?;
        }
        Ok(())
    }

    /// Whether anything of a row is still to be asked or read.
    fn is_waiting(
        &self,
        planned: &PlannedVariant,
        home: &Path,
        executions: &[Execution],
    ) -> Result<bool, StudyError> {
        let quantised = planned.recipe.is_some();
        let answers = of_answers(&self.job.output, &planned.model, self.tasks)?.filter(|_| quantised);
        for execution in executions {
            let cells = home.join(word(*execution));
            let blame = of_blame(&cells, self.tasks, self.job.grid.blame.as_deref())?.filter(|_| quantised);
            if self.tasks.iter().any(|task| !is_finished(&cells.join(slug(task.name()))))
                || (answers.is_some() && !stands(&cells.join(PREDICTION), answers.as_deref())?)
                || (blame.is_some() && !stands(&cells.join(BLAME), blame.as_deref())?)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Finished cells of a row whose job has changed since: their folders, and what did.
    pub(super) fn cells_changed(
        &self,
        planned: &PlannedVariant,
        identity: &Identity,
    ) -> Result<Vec<(PathBuf, String)>, StudyError> {
        let home = variant_folder(&self.job.output, &planned.model, planned.recipe.as_deref());
        let mut named = Vec::new();
        let ways = EXECUTIONS.map(|execution| (execution, word(execution)));
        for (execution, name) in ways.into_iter().chain([(Execution::Simulated, SERVER)]) {
            for task in self.tasks {
                let cells = home.join(name);
                let cell = self.task_job(self.folder, task, execution, identity, &cells);
                let files = task.source().find(task.name(), &cell.data)?;
                let programs = runs_programs(task, self.registry)?;
                let differences = changed(&cell, &cell.used_seeds(), &files, programs, name != SERVER)?;
                if !differences.is_empty() {
                    let words = format!("{}, {} ({differences})", self.title(planned), task.name());
                    named.push((cells.join(slug(task.name())), words));
                }
            }
        }
        Ok(named)
    }

    /// Asks a server what servers are asked.
    #[cfg(feature = "server")]
    fn serve(
        &self,
        planned: &PlannedVariant,
        server: &GridServer,
        identity: &[(String, String)],
        cells: &Path,
        parts: &mut Parts,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        use quant_client::{ApiKey, ServerOptions};
        let key = server.key_file.as_deref().map(ApiKey::from_file).transpose()?;
        for task in self.tasks {
            events.event(Event::Part(format!("asking: {}, {}", self.title(planned), task.name())));
            let mut job = self.task_job(self.folder, task, Execution::Simulated, identity, cells);
            if self.job.grid.is_served(self.model) {
                // The tokenizer is then what the row depends on.
                job.identity = None;
            }
            let mut options = ServerOptions::new(&server.url);
            options.model.clone_from(&server.model);
            options.key.clone_from(&key);
            let asked = crate::run::run_task_on_server(&job, options, events, self.registry).map(|_| ());
            parts.keep(SERVER, task.name(), asked, events)?;
        }
        Ok(())
    }

    /// A plan has no such row.
    #[cfg(not(feature = "server"))]
    fn serve(
        &self,
        planned: &PlannedVariant,
        _: &GridServer,
        _: &[(String, String)],
        _: &Path,
        _: &mut Parts,
        _: &mut dyn Events,
    ) -> Result<(), StudyError> {
        Err(StudyError::Refused(format!("{} is behind a server", self.title(planned))))
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
        let (recipe, work) = (recipe(given, self.registry)?, work.to_owned());
        let job = quantize_job(self.job, self.model, self.folder, recipe, work, &self.shared)?;
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

    /// The job of a cell.
    pub(super) fn task_job(
        &self,
        folder: &Path,
        task: &Task,
        execution: Execution,
        identity: &[(String, String)],
        cells: &Path,
    ) -> TaskJob {
        TaskJob {
            execution,
            identity: Some(identity.to_vec()),
            output: Some(cells.join(slug(task.name()))),
            resume: true,
            restart_changed: self.job.restart_changed,
            ..self.job.task_job(self.model, self.folder, folder, task, &self.shared)
        }
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
        let job = self.task_job(folder, task, execution, identity, cells);
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
}

/// Where numbers stopped being finite, if that is what went wrong.
fn not_finite(error: &PipelineError) -> Option<String> {
    match error {
        PipelineError::NotFinite { .. } => Some(error.to_string()),
        PipelineError::In { source, .. } | PipelineError::Kept { source, .. } => not_finite(source),
        _ => None,
    }
}
