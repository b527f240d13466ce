//! An analysis that has been checked, and its work from beginning to end.

use super::cost::{AnalysisCost, Shape};
use super::finished::Finished;
use super::job::AnalyzeJob;
use super::observe::Observed;
use super::pass::{Pass, Quantised};
use super::report::{Analysis, BlocksFrom, ranking};
use crate::PipelineError;
use crate::events::{Event, Events};
use crate::layout::Layout;
use crate::open::{OpenFolder, open_folder_with, with_threads};
use crate::plan::Plan;
use crate::report::peak_memory;
use crate::run::RunOptions;
use crate::streams::{Heads, score};
use crate::version::tool;
use quant_checkpoint::{CheckpointError, Disk, Storage};
use quant_core::Bytes;
use quant_data::{LoadOptions, TokenSet};
use quant_eval::EvalError;
use quant_graph::BlockSource;
use quant_kernels::{Par, return_freed_memory};
use std::path::PathBuf;
use std::time::Instant;

/// An analysis that has been checked: no weight has been read but those by which a finished output is recognised.
#[derive(Debug)]
pub struct PreparedAnalysis {
    job: AnalyzeJob,
    folder: OpenFolder,
    finished: Option<Finished>,
    plan: Plan,
    sample: TokenSet,
    layout: Layout,
    spill: Option<PathBuf>,
    /// What it is expected to take.
    pub cost: AnalysisCost,
    /// What the numbers will not be.
    pub notes: Vec<String>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// Checks an analysis: reads configs, recipe and sample, and says what it will take.
///
/// # Errors
/// All of [`PipelineError`] but those of running: what the recipe cannot do to the model, a sample that cannot be read or has nothing
/// to predict, a finished output that is another's, a memory budget that cannot be kept.
pub fn prepare_analysis(job: &AnalyzeJob) -> Result<PreparedAnalysis, PipelineError> {
    let folder = open_folder_with(&job.model, job.recipe.registry())?;
    if let Some(format) = folder.format {
        return Err(PipelineError::QuantisedAlready { path: job.model.clone(), format: format.id() });
    }
    let finished = job.report.as_deref();
    let finished =
        finished.map(|dir| Finished::open(dir, job, &folder.spec, &folder.checkpoint)).transpose()?;
    let recipe = if finished.is_some() { job.recipe.clone() } else { job.recipe.untrained() };
    let mut plan = Plan::new(&recipe, &folder.spec)?;
    // Errors of outputs are measured on it, whatever the recipe asks for.
    plan.streams.deployed = true;
    let options = LoadOptions {
        num_samples: Some(job.sample.sequences),
        max_seq_len: Some(job.sample.tokens),
        seed: 0,
        vocab_size: plan.spec.vocab,
        max_position_embeddings: plan.spec.max_position_embeddings,
    };
    let sample = quant_data::load(&job.calibration, &options, &job.model)?;
    return_freed_memory();
    if let Some((sequence, ids)) = sample.sequences.iter().enumerate().find(|(_, ids)| ids.len() < 2) {
        return Err(EvalError::TooShort { sequence, length: ids.len() }.into());
    }
    let layout = Layout::new(sample.sequences.iter().map(Vec::len));
    let shape = Shape {
        plan: &plan,
        layout: &layout,
        text: sample.longest_text,
        threads: job.threads,
        finished: finished.is_some(),
        bytes: [
            folder.checkpoint.total_bytes(),
            finished.as_ref().map_or(0, |finished| finished.folder.checkpoint.total_bytes()),
        ],
    };
    let spilled = match job.memory {
        Some(allowed) if shape.bound(false) > allowed => {
            if shape.bound(true) > allowed {
                let advice = "use a smaller --sample, or fewer threads; one block must fit in memory".into();
                let (needed, allowed) = (Bytes(shape.bound(true)), Bytes(allowed));
                return Err(PipelineError::Memory { needed, allowed, advice });
            }
            true
        }
        _ => false,
    };
    let cost = shape.cost(spilled);
    let spill = spilled.then(|| job.spill.clone().unwrap_or_else(std::env::temp_dir));
    if let Some(folder) = &spill
        && let Some(free) = Disk.free_bytes(folder).filter(|&free| free < cost.disk)
    {
        return Err(CheckpointError::NoSpace { path: folder.clone(), needed: cost.disk, free }.into());
    }
    let mut warnings = folder.warnings.clone();
    warnings.extend(plan.warnings.iter().chain(&sample.warnings).cloned());
    let notes = notes(&plan, finished.as_ref());
    Ok(PreparedAnalysis {
        job: job.clone(),
        folder,
        finished,
        plan,
        sample,
        layout,
        spill,
        cost,
        notes,
        warnings,
    })
}

/// What the numbers are not.
fn notes(plan: &Plan, finished: Option<&Finished>) -> Vec<String> {
    let mut notes = vec![
        "each block is quantised alone, the others stay float: effects of errors that add up over blocks are not in these numbers"
            .to_owned(),
    ];
    match (finished, plan.recipe.learner()) {
        (Some(_), _) => notes.push("quantised blocks are those of the finished output".into()),
        (None, Some(learner)) => notes.push(format!(
            "nothing is trained here: what {} would learn is as its training begins; --report takes a finished output instead",
            learner.method().id
        )),
        (None, None) => {}
    }
    if !plan.tables.is_empty() {
        notes.push("embedding and head stay float here, which the recipe quantises".into());
    }
    notes
}

/// Work on the model that blocks are analysed in: behind the transform of the whole of it, where the recipe has one.
fn with_rewritten<R>(
    plan: &Plan,
    source: &mut dyn BlockSource,
    par: Par,
    work: impl FnOnce(&mut dyn BlockSource) -> Result<R, PipelineError>,
) -> Result<R, PipelineError> {
    match plan.recipe.model_transform() {
        Some(model) => work(&mut *model.fuse(source, par)?),
        None => work(source),
    }
}

impl PreparedAnalysis {
    /// Sequences and tokens of the sample, and where it is from.
    #[must_use]
    pub fn sample(&self) -> String {
        self.sample.describe()
    }

    /// Blocks of the model.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.plan.spec.layers
    }

    /// The activations at every place of every block, before and behind what rewrites it, and nothing else: that costs
    /// [`AnalysisCost::of_activations`]. Its result depends neither on the threads nor on the memory budget.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn activations(self, events: &mut dyn Events) -> Result<Vec<Vec<Observed>>, PipelineError> {
        let Self { job, folder, finished, plan, sample, layout, spill, .. } = self;
        let whole = plan.recipe.model_transform().is_some();
        let mut original = whole.then(|| folder.source()).transpose()?;
        let mut source = folder.into_source()?;
        let mut by = finished.map_or(Ok(Quantised::Recipe), Quantised::folder)?;
        with_threads(job.threads, |par| {
            let options = RunOptions { spill, ..RunOptions::new(par) };
            let original = original.as_mut().map(|source| source as &mut dyn BlockSource);
            let pass = Pass::new(&plan, &layout, &options, events);
            with_rewritten(&plan, &mut source, par, |source| {
                pass.activations(source, original, &mut by, &sample.sequences)
            })
        })?
    }

    /// Does the work. Its result depends neither on the threads nor on the memory budget.
    ///
    /// # Errors
    /// Unreadable weights, activations that overflow where the recipe is carried out, a disk that is full,
    /// [`PipelineError::Interrupted`].
    pub fn run(self, events: &mut dyn Events) -> Result<Analysis, PipelineError> {
        let started = Instant::now();
        let Self { job, folder, finished, plan, sample, layout, spill, cost, notes, warnings } = self;
        for warning in &warnings {
            events.event(Event::Warning(warning.clone()));
        }
        if cost.spilled {
            events.event(Event::Note("activations are kept on disk, to stay within the memory budget"));
        }
        let quantised = match (&finished, plan.recipe.learner()) {
            (Some(_), _) => BlocksFrom::Folder,
            (None, Some(_)) => BlocksFrom::RecipeUntrained,
            (None, None) => BlocksFrom::Recipe,
        };
        let whole = plan.recipe.model_transform().is_some();
        let mut original = whole.then(|| folder.source()).transpose()?;
        let mut source = folder.into_source()?;
        let mut lessons = Vec::new();
        let mut by = match finished {
            None => Quantised::Recipe,
            Some(mut finished) => {
                lessons = std::mem::take(&mut finished.lessons);
                Quantised::folder(finished)?
            }
        };
        let (mut blocks, scores) = with_threads(job.threads, |par| {
            let options = RunOptions { spill, ..RunOptions::new(par) };
            let original = original.as_mut().map(|source| source as &mut dyn BlockSource);
            with_rewritten(&plan, &mut source, par, |source| {
                let pass = Pass::new(&plan, &layout, &options, events);
                let (blocks, mut hidden) = pass.run(source, original, &mut by, &sample.sequences)?;
                let (text, compute) = (sample.describe(), (plan.recipe.compute(), par));
                let heads = Heads { reference: source, others: None };
                let sample = (&*sample.sequences, &layout);
                let scores = score(heads, (&mut hidden, 0), sample, &text, compute, events)?;
                Ok((blocks, scores))
            })
        })??;
        for (block, report) in blocks.iter_mut().zip(&scores) {
            let comparison = report.comparison;
            block.kl = comparison.and_then(|c| c.kl);
            block.top1_agreement = comparison.and_then(|c| c.top1_agreement);
        }
        let first = scores.first();
        let recipe = &job.recipe;
        let rounding = format!("{} {}", recipe.rounding().method().id, recipe.rounding().weights().scheme);
        Ok(Analysis {
            model: job.model.clone(),
            recipe: recipe.before_rounding().chain([rounding]).collect(),
            sample: sample.describe(),
            tokens: first.map_or(0, |report| report.tokens),
            float_perplexity: first.and_then(|report| report.comparison?.reference_perplexity),
            quantised,
            ranking: ranking(&blocks),
            blocks,
            max_position_embeddings: plan.spec.max_position_embeddings,
            lessons,
            cost,
            seconds: started.elapsed().as_secs_f64(),
            peak_memory: peak_memory(),
            version: tool(),
            notes,
            warnings,
        })
    }
}
