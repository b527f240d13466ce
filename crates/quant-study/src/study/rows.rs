//! The rows of a model: making each, asking it everything, reading, putting back.

use super::compare::is_greedy;
use super::job::StudyJob;
use super::place::{RANGES, SERVER, discard, slug, variant_folder, word};
#[cfg(feature = "server")]
use super::plan::is_asked_of_servers;
use super::plan::{PlannedVariant, calibration, quantize_job, recipe};
use crate::StudyError;
use crate::blame::blame;
use crate::files::{read_json, write_whole};
use crate::grid::{Grid, GridModel, GridRecipe, GridServer};
use crate::ranges::ranges;
use crate::record::Record;
use crate::results::{Status, VariantFacts};
use crate::run::home::{Identity, differing, finished_in, hash_of, is_finished, pretty};
use crate::run::tokens::Texts;
use crate::run::{Reference, TaskJob, run_task, version};
use crate::verdict::{FloatAnswer, predict};
use quant_checkpoint::{BlockSource, FolderSource, TensorHash};
use quant_data::{ChatTemplate, Question, Task, TaskKind, Tokenizer, end_tokens};
use quant_kernels::Par;
use quant_model::{Arithmetic, Execution};
use quant_pipeline::{
    AnalyzeJob, Event, Events, PipelineError, Registry, Scored, Shared, folder_arithmetic, open_folder_with,
    quantize, with_threads,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Windows of the sample on which blocks are put back.
const BLAMED: usize = 8;

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
            data = format!("{written}, {}, {data}", hash_of(spec.path())?);
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

    pub(super) fn run(
        &mut self,
        planned: &PlannedVariant,
        origin: Origin<'_>,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let home = variant_folder(&self.job.output, &planned.model, planned.recipe.as_deref());
        std::fs::create_dir_all(&home).map_err(StudyError::io(&home))?;
        let identity = self.identity(origin)?;
        let facts: Option<VariantFacts> = read_json(&home.join("variant.json"))?;
        let differences =
            facts.as_ref().map_or_else(String::new, |facts| differing(&facts.identity, &identity));
        let facts = match facts {
            Some(_) if !differences.is_empty() => {
                if !self.job.restart_changed {
                    let advice = "give --restart-changed to run it again, or another --output";
                    return Err(StudyError::Changed { path: home, differences, advice });
                }
                discard(&home, &self.job.output)?;
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
        let given = match origin {
            Origin::Server(server) => {
                let facts = VariantFacts::failed(identity.clone(), Status::Ok);
                write_whole(&home.join("variant.json"), &pretty(&facts))?;
                return self.serve(planned, server, &identity, &home.join(SERVER), events);
            }
            Origin::Recipe(given) => Some(given),
            Origin::Float => None,
        };
        let executions: Vec<Execution> = EXECUTIONS
            .into_iter()
            .filter(|e| {
                planned.executions.iter().any(|(name, problem)| name == word(*e) && problem.is_none())
            })
            .collect();
        let predicted = given.is_some() && self.tasks.iter().any(is_greedy);
        let blamed = given.is_some() && self.blamed().is_some();
        let unfinished = |execution: &Execution| {
            let folder = home.join(word(*execution));
            let missing = |wanted: bool, name: &str| wanted && !folder.join(name).exists();
            self.tasks.iter().any(|task| !is_finished(&folder.join(slug(task.name()))))
                || missing(predicted, "prediction.json")
                || missing(blamed, "blame.json")
        };
        let looked_at = given.is_some() && planned.ranges.is_some();
        let waiting = executions.iter().any(unfinished) || (looked_at && !home.join(RANGES).exists());
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
            self.ranges(planned, given, &folder, &home.join(RANGES), events)?;
        }
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
            discard(&work, &self.job.output)?;
        }
        Ok(())
    }

    /// Asks a server what servers are asked.
    #[cfg(feature = "server")]
    fn serve(
        &self,
        planned: &PlannedVariant,
        server: &GridServer,
        identity: &[(String, String)],
        cells: &Path,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        use quant_client::{ApiKey, ServerOptions};
        let key = server.key_file.as_deref().map(ApiKey::from_file).transpose()?;
        for task in self.tasks.iter().filter(|task| is_asked_of_servers(task)) {
            events.event(Event::Part(format!("asking: {}, {}", self.title(planned), task.name())));
            let mut job = self.task_job(self.folder, task, Execution::Simulated, identity, cells);
            if self.job.grid.is_served(self.model) {
                // The tokenizer is then what the row depends on.
                job.identity = None;
            }
            let mut options = ServerOptions::new(&server.url);
            options.model.clone_from(&server.model);
            options.key.clone_from(&key);
            crate::run::run_task_on_server(&job, options, events, self.registry)?;
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
            data: self.job.data_folders(self.folder),
            limit: match task.kind() {
                // Windows are few and cheap; a text is predicted in whole.
                TaskKind::Text(_) => None,
                _ => self.job.grid.limit,
            },
            seeds: self.job.grid.seeds.clone(),
            top_k: self.model.top_k,
            max_new_tokens: self.job.grid.max_new_tokens,
            execution,
            compute: self.job.grid.compute,
            threads: self.job.threads,
            memory: self.job.memory_of_work(),
            batch: self.job.batch,
            with_texts: self.job.with_texts,
            allow_code_execution: self.job.allow_code_execution,
            python: self.job.python.clone(),
            identity: Some(identity.to_vec()),
            output: Some(cells.join(slug(task.name()))),
            resume: true,
            restart_changed: self.job.restart_changed,
            shared: self.shared.clone(),
            ..TaskJob::new(folder, task.clone())
        }
    }

    /// The task on whose text blocks are put back.
    fn blamed(&self) -> Option<&Task> {
        self.job.grid.blame.as_ref().and_then(|name| self.tasks.iter().find(|task| task.name() == name))
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

    /// A folder's model as a stream of blocks, and the arithmetic it runs in.
    fn opened(&self, folder: &Path, execution: Execution) -> Result<(FolderSource, Arithmetic), StudyError> {
        let open = open_folder_with(folder, self.registry)?;
        let arithmetic = folder_arithmetic(&open, self.job.grid.compute, Some(execution), None)?;
        Ok((open.into_source()?, arithmetic))
    }

    /// The greedy answers of the float model.
    fn float_answers(&self) -> Result<Vec<FloatAnswer>, StudyError> {
        let home = variant_folder(&self.job.output, &self.model.name, None).join("sim");
        let tokenizer = Tokenizer::from_dir(self.folder)?;
        let template = ChatTemplate::from_dir(self.folder, tokenizer.special_tokens())?;
        let mut answers = Vec::new();
        for task in self.tasks {
            let Some(outcome) = finished_in(&home.join(slug(task.name())))?.filter(|_| is_greedy(task))
            else {
                continue;
            };
            let files = task.source().find(task.name(), &self.job.data_folders(self.folder))?;
            let seed = outcome.result.seeds.first().copied().unwrap_or(0);
            let questions = task.questions(&files, seed, self.job.grid.limit)?;
            let questions: BTreeMap<u64, &Question> = questions.iter().map(|q| (q.number, q)).collect();
            for record in &outcome.records {
                let Record::Answer { number, seed: own, right, tokens, .. } = record else { continue };
                let asked = questions.get(number).filter(|_| *own == seed && !tokens.is_empty());
                let Some(question) = asked else { continue };
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
        if path.exists() {
            return Ok(());
        }
        if self.answers.is_none() {
            self.answers = Some(self.float_answers()?);
        }
        if self.answers.as_ref().is_none_or(Vec::is_empty) {
            return Ok(());
        }
        events.event(Event::Part(format!("reading answers of the float model: {}", self.title(planned))));
        let ends = end_tokens(self.folder, &Tokenizer::from_dir(self.folder)?)?;
        let (source, arithmetic) = self.opened(folder, execution)?;
        self.reference()?;
        let (Some(reference), Some(answers)) = (&mut self.reference, &self.answers) else { return Ok(()) };
        let (threads, hidden) = (self.job.threads, source.spec().hidden);
        let began = Instant::now();
        let verdict = with_threads(threads, |par| {
            predict(&mut Scored::new(source, arithmetic, par), reference, answers, &ends, hidden, events)
        })??;
        let took = serde_json::json!({ "seconds": began.elapsed().as_secs_f64() });
        write_whole(&cells.join("prediction_run.json"), &pretty(&took))?;
        write_whole(&path, &pretty(&verdict))
    }

    /// Looks at the activations before and behind the transforms of a row.
    fn ranges(
        &self,
        planned: &PlannedVariant,
        given: &GridRecipe,
        folder: &Path,
        path: &Path,
        events: &mut dyn Events,
    ) -> Result<(), StudyError> {
        let Some(spec) = calibration(self.model, self.folder)?.filter(|_| !path.exists()) else {
            return Ok(());
        };
        events.event(Event::Part(format!("looking at activations: {}", self.title(planned))));
        let job = AnalyzeJob {
            report: Some(folder.to_owned()),
            threads: self.job.threads,
            ..AnalyzeJob::new(self.folder, recipe(given, self.registry)?, spec)
        };
        write_whole(path, &pretty(&ranges(&job, events)?))
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
        let Some(task) = self.blamed().cloned().filter(|_| !path.exists()) else { return Ok(()) };
        events.event(Event::Part(format!("putting blocks back: {}", self.title(planned))));
        let files = task.source().find(task.name(), &self.job.data_folders(self.folder))?;
        let tokenizer = Tokenizer::from_dir(self.folder)?;
        let (shared, model) = (&self.shared.clone(), self.folder);
        let texts = Texts { shared, task: &task, files: &files, tokenizer: &tokenizer, model };
        let windows = texts.windows()?;
        let windows = &windows[..BLAMED.min(windows.len())];
        let (quantised, arithmetic) = self.opened(folder, execution)?;
        let threads = self.job.threads;
        let float = open_folder_with(self.folder, self.registry)?.into_source()?;
        let reference = self.reference()?;
        let found = with_threads(threads, |par: Par| {
            blame(quantised, float, arithmetic, reference, windows, par, events)
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
