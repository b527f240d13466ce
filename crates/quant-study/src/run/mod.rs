//! One task on one model.

mod answer;
mod choice;
pub(crate) mod home;
mod judge;
mod kept;
mod material;
#[cfg(feature = "server")]
mod server;
mod size;
mod summary;
pub(crate) mod tokens;
mod work;

#[cfg(feature = "server")]
pub use server::run_task_on_server;
pub(crate) use size::{TaskTokens, task_tokens};
pub use summary::{
    AnswerSummary, ChoiceSummary, Figure, SignCounts, TaskResult, TextSummary, summarise_answers,
};
pub(crate) use summary::{form_of, right_by_item};

use crate::StudyError;
use crate::record::Record;
use home::{Home, Identity, in_process};
use material::Material;
use quant_core::ndarray::ArrayViewMut2;
use quant_core::operators::Processor;
use quant_data::{Generation, Task, TaskKind};
use quant_eval::{EncodeProgress, EvalOptions, EvalReport, LanguageModel, Phase};
use quant_graph::ModelSpec;
use quant_kernels::Compute;
use quant_model::Execution;
use quant_pipeline::{
    EvalMemory, Event, Events, OpenFolder, PipelineError, Registry, Scored, Shared, expect_evaluation,
    folder_arithmetic, open_folder_with, with_threads,
};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use work::Work;

/// One task on one model.
#[derive(Clone, Debug)]
pub struct TaskJob {
    /// Float model or quantised folder; of a model behind a server, the folder with its tokenizer and chat template.
    pub model: PathBuf,
    /// What it is asked.
    pub task: Task,
    /// Folders in which the task's files are looked for, in order.
    pub data: Vec<PathBuf>,
    /// The first so many items only.
    pub limit: Option<usize>,
    /// Seeds instead of the task's own.
    pub seeds: Option<Vec<u64>>,
    /// Most tokens that a draw chooses from, where something is drawn, instead of the task's own.
    pub top_k: Option<usize>,
    /// New tokens of an answer at most, instead of the task's own.
    pub max_new_tokens: Option<usize>,
    /// Whether the codes of the model are executed.
    pub execution: Execution,
    /// What executes the codes, in the arithmetic of an NPU; none executes them here, on numbers that stay f32.
    pub processor: Option<Arc<dyn Processor>>,
    /// Arithmetic of the float products.
    pub compute: Compute,
    /// Threads, at least 1.
    pub threads: usize,
    /// Memory budget in bytes.
    pub memory: Option<u64>,
    /// Texts that are worked on at a time.
    pub batch: usize,
    /// Keep the texts of answers.
    pub with_texts: bool,
    /// Run programs that the model wrote, in a sandbox, for tasks that grade them so.
    pub allow_code_execution: bool,
    /// The interpreter of these programs; by default the system's `python3`.
    pub python: Option<PathBuf>,
    /// What tells the model apart for a resumed run; by default the sizes, headers and times of its files.
    pub identity: Option<Vec<(String, String)>>,
    /// Folder for items and result; without it nothing is kept.
    pub output: Option<PathBuf>,
    /// Go on with what is in the output.
    pub resume: bool,
    /// Throw away what is in the output.
    pub restart: bool,
    /// Throw it away if it belongs to another job, and go on with it otherwise.
    pub restart_changed: bool,
    /// Where tokens are kept that other jobs have a use for.
    pub shared: Shared,
}

impl TaskJob {
    /// A job with everything else as `ptq eval --task` has it: simulated, f32, all threads, no memory budget, 16 texts at a time; the
    /// task's files are looked for in the working folder and in that of the model.
    #[must_use]
    pub fn new(model: impl Into<PathBuf>, task: Task) -> Self {
        let model = model.into();
        Self {
            data: vec![PathBuf::from("."), model.clone()],
            model,
            task,
            limit: None,
            seeds: None,
            max_new_tokens: None,
            top_k: None,
            execution: Execution::Simulated,
            processor: None,
            compute: Compute::F32,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: None,
            batch: 16,
            with_texts: false,
            allow_code_execution: false,
            python: None,
            identity: None,
            output: None,
            resume: false,
            restart: false,
            restart_changed: false,
            shared: Shared::default(),
        }
    }
}

impl TaskJob {
    /// Seeds under which the task is asked; none for a task that draws nothing.
    pub(crate) fn used_seeds(&self) -> Vec<u64> {
        match self.task.kind() {
            TaskKind::Generate(ask) => self.seeds.clone().unwrap_or_else(|| ask.seeds.clone()),
            _ => Vec::new(),
        }
    }

    /// New tokens at most behind a prompt of so many, before a model that can have `longest` in all.
    pub(crate) fn room(&self, ask: &Generation, prompt: usize, longest: usize) -> usize {
        let most = self.max_new_tokens.or(ask.max_new_tokens).unwrap_or(usize::MAX);
        ask.max_tokens.min(longest).saturating_sub(prompt).min(most)
    }
}

/// How long a task took, and where: facts of one run, which are no part of its result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskRun {
    /// Seconds of everything.
    pub seconds: f64,
    /// New tokens.
    pub new_tokens: usize,
    /// Seconds of decoding.
    pub decode_seconds: f64,
    /// Seconds until the first new token.
    pub first_token: Option<f64>,
    /// Threads.
    pub threads: usize,
    /// The program and its version.
    pub version: String,
}

/// A task that was run: its result, the items, and what the run took.
#[derive(Clone, Debug)]
pub struct TaskOutcome {
    /// The figures.
    pub result: TaskResult,
    /// Every item, by seed and number.
    pub records: Vec<Record>,
    /// What the run took.
    pub run: TaskRun,
}

/// Runs a task with what `registry` has; a text beside the reference, where there is one.
///
/// ```
/// use quant_pipeline::{Registry, Silent};
/// use quant_study::{TaskJob, run_task};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
/// let task = quant_data::built_in_task("tiny-addition")?;
/// let job = TaskJob { limit: Some(4), threads: 1, ..TaskJob::new(model, task) };
/// let outcome = run_task(&job, None, &mut Silent, &Registry::default())?;
/// assert_eq!(outcome.result.figure.value, Some(100.0));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`StudyError`] for a model, task or data that cannot be read, an output that belongs to another job or is worked on, and
/// [`PipelineError::Interrupted`](quant_pipeline::PipelineError::Interrupted). A model whose numbers break down gives a result that says so.
pub fn run_task(
    job: &TaskJob,
    reference: Option<&mut Reference>,
    events: &mut dyn Events,
    registry: &Registry,
) -> Result<TaskOutcome, StudyError> {
    let began = Instant::now();
    events.event(Event::Phase("reading the model and the task"));
    let folder = open_folder_with(&job.model, registry)?;
    let longest = folder.spec.max_position_embeddings;
    let material = Material::read(job, longest, registry)?;
    // What cannot be executed is refused before anything is computed.
    folder_arithmetic(&folder, job.compute, Some(job.execution), job.processor.clone())?;
    let model = || -> Result<Identity, StudyError> {
        let mut fields = in_process(job);
        if job.identity.is_none() {
            fields.extend(folder.checkpoint.fingerprint().map_err(PipelineError::from)?);
        }
        Ok(fields)
    };
    let home = Home::of(job, &material, model)?;
    if let Some(outcome) = home.as_ref().and_then(Home::finished) {
        return Ok(outcome);
    }
    let mut work = Work::begin(job, &material, home, began)?;
    let result = match job.task.kind() {
        TaskKind::Choice(ask) => {
            let items = material.texts(job).choices(job.limit)?;
            let lengths = choice::largest_pass(&items);
            scored(job, folder, &lengths, None, events, |model, _, events| {
                choice::run(longest, &items, model, &mut work.kept, events)
            })?;
            TaskResult::of_choices(&job.task, ask.metric, &work.kept.done)?
        }
        TaskKind::Generate(ask) => {
            drop(folder);
            let programs = work.programs.as_ref();
            work.speed = answer::run(&material, job, ask, programs, &mut work.kept, registry, events)?;
            TaskResult::of_answers(&job.task, &material.seeds, &work.kept.done)?
        }
        TaskKind::Text(_) => {
            let windows = material.texts(job).windows()?;
            let windows = &windows[..job.limit.unwrap_or(usize::MAX).min(windows.len())];
            let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
            let (report, overflow) =
                scored(job, folder, &lengths, reference, events, |model, reference, events| {
                    let report = text(model, reference, windows, events)?;
                    Ok((report, model.first_overflow()))
                })?;
            TaskResult::of_text(&job.task, &report, overflow, job.task.unknown_words(&material.files)?)
        }
    };
    work.finish(job, result)
}

/// The program and its version.
pub(crate) fn version() -> String {
    format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}

type Streamed = Scored<quant_checkpoint::FolderSource>;

/// Runs `f` with a folder's model that streams its blocks, within the budget of memory.
fn scored<'r, R: Send>(
    job: &TaskJob,
    folder: OpenFolder,
    lengths: &[usize],
    reference: Option<&'r mut Reference>,
    events: &mut dyn Events,
    f: impl FnOnce(&mut Streamed, Option<&'r mut Reference>, &mut dyn Events) -> Result<R, StudyError> + Send,
) -> Result<R, StudyError> {
    let beside = reference.as_ref().map(|reference| (&reference.spec, true));
    let specs: Vec<(&ModelSpec, bool)> =
        beside.into_iter().chain([(&folder.spec, folder.format.is_none())]).collect();
    let memory = EvalMemory::new(&specs, lengths, 0, job.compute, job.threads);
    let spill = std::env::temp_dir();
    let spilled = memory.spill(job.memory, &spill)?;
    let arithmetic = folder_arithmetic(&folder, job.compute, Some(job.execution), job.processor.clone())?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    expect_evaluation(&folder, longest, job.processor.as_deref())?;
    let source = folder.into_source()?;
    with_threads(job.threads, |par| {
        let mut model = Scored::new(source, arithmetic, par).spilled_to((spilled > 0).then_some(spill));
        f(&mut model, reference, events)
    })?
}

/// Predicts windows, beside the reference where there is one.
fn text(
    model: &mut Streamed,
    reference: Option<&mut Reference>,
    windows: &[Vec<u32>],
    events: &mut dyn Events,
) -> Result<EvalReport, StudyError> {
    let sequences = windows.len();
    let mut progress = |phase: Phase, done: usize, of: usize| {
        events.event(Event::of_phase(phase, done, of, sequences));
        events.flow()
    };
    let options = EvalOptions {
        reference: reference.map(|reference| reference as &mut dyn LanguageModel),
        progress: Some(&mut progress),
        ..EvalOptions::default()
    };
    Ok(quant_eval::evaluate(model, windows, options)?)
}

/// Sets of sequences that a reference remembers.
const REMEMBERED: usize = 3;

/// The float model that others are compared with. What it made of the last sets of sequences it saw is kept, on disk.
#[derive(Debug)]
pub struct Reference {
    folder: PathBuf,
    compute: Compute,
    threads: usize,
    registry: Registry,
    spec: ModelSpec,
    /// What it saw, the last one first, and the model that holds it.
    seen: Vec<(Vec<Vec<u32>>, Streamed)>,
}

impl Reference {
    /// The model of a folder; its hidden states are kept in the system's folder for temporary files.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn open(
        model: &Path,
        compute: Compute,
        threads: usize,
        registry: &Registry,
    ) -> Result<Self, StudyError> {
        let spec = open_folder_with(model, registry)?.spec;
        let (folder, registry) = (model.to_owned(), registry.clone());
        Ok(Self { folder, compute, threads, registry, spec, seen: Vec::new() })
    }

    fn fresh(&self) -> Result<Streamed, StudyError> {
        let folder = open_folder_with(&self.folder, &self.registry)?;
        let arithmetic = folder_arithmetic(&folder, self.compute, Some(Execution::Simulated), None)?;
        let model = Scored::new(folder.into_source()?, arithmetic, quant_core::Par::new(self.threads));
        Ok(model.spilled_to(Some(std::env::temp_dir())))
    }

    fn current(&mut self) -> Result<&mut Streamed, quant_eval::BoxError> {
        self.seen
            .first_mut()
            .map(|(_, model)| model)
            .ok_or_else(|| "the reference has seen nothing yet".into())
    }
}

impl LanguageModel for Reference {
    fn vocab_size(&self) -> usize {
        self.spec.vocab
    }
    fn encode(
        &mut self,
        sequences: &[Vec<u32>],
        progress: &mut EncodeProgress<'_>,
    ) -> Result<(), quant_eval::BoxError> {
        if let Some(at) = self.seen.iter().position(|(seen, _)| seen == sequences) {
            self.seen[..=at].rotate_right(1);
            return Ok(());
        }
        let mut model = if self.seen.len() < REMEMBERED { None } else { self.seen.pop() }
            .map_or_else(|| self.fresh(), |(_, model)| Ok(model))?;
        model.encode(sequences, progress)?;
        self.seen.insert(0, (sequences.to_vec(), model));
        Ok(())
    }
    fn logits(
        &mut self,
        positions: Range<usize>,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), quant_eval::BoxError> {
        self.current()?.logits(positions, tokens, out)
    }
    fn logits_at(
        &mut self,
        positions: &[usize],
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), quant_eval::BoxError> {
        self.current()?.logits_at(positions, tokens, out)
    }
}
