//! Tokens that a folder's model continues prompts with: the model is loaded once for many runs.

use crate::PipelineError;
use crate::device_memory::pages_on;
use crate::events::{Event, Events};
use crate::execution::{self, Executable};
use crate::memory::{BASE, F32, STREAMS, THREAD, bound};
use crate::open::{OpenFolder, with_threads};
use quant_core::operators::Processor;
use quant_core::{Bytes, KvGranularity};
use quant_graph::ModelSpec;
use quant_kernels::{Compute, PreparedWeight};
use quant_model::{
    Arithmetic, CacheForm, Completion, Execution, GenerateOptions, Generated, Generator, MLP_ROWS,
    ModelError, Request, ResidentModel, RopeTables, Sampling, head_rows,
};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// Resident bytes of a tokenizer for each byte of its file.
const TOKENIZER: u64 = 12;
/// What a run of passes has beside a stream of sequences: heaps of threads that small arrays come from and go to.
const TABLES: u64 = 2 << 20;
/// Tokens of a pass through the model at most.
const CHUNK: usize = 512;

/// Requests whose tokens are drawn in one way.
#[derive(Clone, Debug)]
pub struct CompletionRun {
    /// Prompts to be continued.
    pub requests: Vec<Request>,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// How requests are worked on; no token depends on batch, threads or memory.
#[derive(Clone, Debug)]
pub struct CompletionSettings {
    /// Tokens that end a text.
    pub stop: Vec<u32>,
    /// Texts that are worked on at a time.
    pub batch: usize,
    /// Whether codes are executed; none executes them where there are any.
    pub execution: Option<Execution>,
    /// What executes the codes, in the arithmetic of an NPU; none executes them here, on numbers that stay f32. It must have been opened for the
    /// type in which the model is served ([`FloatType::served`](quant_core::FloatType::served)).
    pub processor: Option<Arc<dyn Processor>>,
    /// Arithmetic of the float products.
    pub compute: Compute,
    /// Threads, at least 1.
    pub threads: usize,
    /// Memory budget in bytes: fewer texts are worked on at a time to keep it.
    pub memory: Option<u64>,
}

/// What was made, and how.
#[derive(Clone, Debug)]
pub struct Completions {
    /// Of every run, in the order of its requests.
    pub runs: Vec<Vec<Completion>>,
    /// `sim` or `int8`.
    pub execution: &'static str,
    /// Linears that were executed as codes, and all quantised ones.
    pub executed: (usize, usize),
    /// Of every run, seconds from the first token in to the last token out.
    pub seconds: Vec<f64>,
    /// Of every run, seconds until the first new token of any text.
    pub first_token: Vec<Option<f64>>,
    /// Predicted peak memory in bytes.
    pub predicted_memory: u64,
}

/// Continues the requests of every run. `see` is told every token as it comes, with the number of its run, and may stop the work.
///
/// # Errors
/// Folders that cannot be read; [`PipelineError::Unsupported`] for an execution that the folder has no codes for;
/// [`PipelineError::Memory`] before anything is run; [`PipelineError::Interrupted`]; those of `see`.
pub fn complete(
    folder: OpenFolder,
    runs: &[CompletionRun],
    settings: &CompletionSettings,
    events: &mut dyn Events,
    see: &mut (dyn FnMut(usize, Generated<'_>) -> Result<(), PipelineError> + Send),
) -> Result<Completions, PipelineError> {
    let executable = Executable::of(&folder)?;
    let arithmetic = executable.arithmetic(settings.compute, settings.execution, &settings.processor)?;
    let text =
        std::fs::metadata(folder.checkpoint.path().join("tokenizer.json")).map_or(0, |file| file.len());
    let (mut pages, mut predicted_memory) = (Vec::with_capacity(runs.len()), 0);
    let (mut most_pages, mut most_rows) = (0, 0);
    for run in runs {
        let memory =
            CompletionMemory::new(&folder.spec, &executable, &arithmetic, &run.requests, settings, text);
        let mut allowed = memory.pages(settings.memory)?;
        if let Some(processor) = &settings.processor {
            let [least, most] = memory.pages;
            let (range, rows) = ([least, most.min(allowed)], memory.rows);
            allowed = pages_on(&**processor, &executable, &folder.spec, rows, range)?;
            (most_pages, most_rows) = (most_pages.max(allowed), most_rows.max(rows));
        }
        predicted_memory = predicted_memory.max(memory.peak(allowed));
        pages.push(allowed);
    }
    if let Some(processor) = settings.processor.as_ref().filter(|_| runs.len() > 1) {
        // Of the run that asks for most: weights are prepared once for all.
        pages_on(&**processor, &executable, &folder.spec, most_rows, [most_pages; 2])?;
    }
    let layers = folder.spec.layers;
    let source = folder.into_source()?;
    let done = with_threads(settings.threads, |par| -> Result<_, PipelineError> {
        let load = &mut |done, of| {
            events.event(Event::Evaluated { what: "reading block", done, of, inside: 0.0 });
            events.flow()
        };
        let mut model = ResidentModel::load(source, arithmetic.clone(), par, load).map_err(stopped)?;
        events.event(Event::Evaluated { what: "reading block", done: layers, of: layers, inside: 0.0 });
        quant_kernels::return_freed_memory();
        let mut done = Vec::with_capacity(runs.len());
        for (index, (run, &pages)) in runs.iter().zip(&pages).enumerate() {
            let options = GenerateOptions {
                sampling: run.sampling,
                stop: settings.stop.clone(),
                batch: settings.batch,
                chunk: CHUNK,
                pages,
            };
            let (mut failed, mut first, mut finished) = (None, None, 0);
            let of = run.requests.len();
            let began = Instant::now();
            let mut watch = |new: Generated<'_>| {
                first.get_or_insert_with(|| began.elapsed().as_secs_f64());
                if new.finish.is_some() {
                    finished += 1;
                    events.event(Event::Evaluated { what: "finished text", done: finished, of, inside: 0.0 });
                }
                if let Err(error) = see(index, new) {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
                events.flow()
            };
            let completions = Generator::new(&mut model, options).run(&run.requests, &mut watch);
            match (failed, completions) {
                (Some(error), _) => return Err(error),
                (None, completions) => {
                    done.push((completions.map_err(stopped)?, began.elapsed().as_secs_f64(), first));
                }
            }
        }
        Ok(done)
    })??;
    let executed = match arithmetic.execution {
        Execution::Integer => executable.counts(),
        Execution::Simulated => (0, executable.counts().1),
    };
    let seconds = done.iter().map(|(_, seconds, _)| *seconds).collect();
    let first_token = done.iter().map(|(_, _, first)| *first).collect();
    Ok(Completions {
        runs: done.into_iter().map(|(completions, ..)| completions).collect(),
        execution: execution::name(arithmetic.execution),
        executed,
        seconds,
        first_token,
        predicted_memory,
    })
}

fn stopped(error: ModelError) -> PipelineError {
    match error {
        ModelError::Stopped => PipelineError::Interrupted,
        other => other.into(),
    }
}

/// Predicted memory of a generation, in bytes.
#[derive(Clone, Debug)]
struct CompletionMemory {
    /// Program, tables, prompts.
    base: u64,
    /// Prepared weights of all blocks and the head.
    weights: u64,
    /// What reading a part of the model takes beside what is prepared.
    reading: u64,
    /// Activations and logits of one pass.
    pass: u64,
    /// A page of the cache in all blocks.
    page: u64,
    /// Pages of the largest request, and of as many as are worked on at a time.
    pages: [usize; 2],
    /// Tokens of a pass at most.
    rows: usize,
}

impl CompletionMemory {
    fn new(
        spec: &ModelSpec,
        executable: &Executable,
        arithmetic: &Arithmetic,
        requests: &[Request],
        settings: &CompletionSettings,
        tokenizer: u64,
    ) -> Self {
        let float = PreparedWeight::<f32>::element_bytes(arithmetic.compute) as u64;
        let blocks: Vec<u64> =
            (0..spec.layers).map(|index| executable.block_bytes(spec, index, arithmetic, float)).collect();
        let table = (spec.vocab * spec.hidden) as u64;
        // A block as it is read: floats, or levels.
        let stored = if executable.stores_codes() { 1 } else { F32 };
        let block = spec.block_parameters() as u64;
        let tokens =
            CHUNK.min(requests.iter().map(|r| r.prompt.len()).sum::<usize>().max(settings.batch)) as u64;
        let widths = (4 * spec.hidden + 3 * spec.query_width() + 2 * spec.kv_width()) as u64;
        let mlp = (tokens as usize).min(MLP_ROWS) as u64 * 3 * spec.intermediate as u64;
        let kv = executable.kv();
        let form = |granularity, before_rope: bool| match (before_rope, granularity) {
            (true, _) => CacheForm::Float,
            (false, KvGranularity::TokenHead) => CacheForm::TokenHead,
            (false, KvGranularity::ChannelStatic) => CacheForm::Channel,
        };
        let forms =
            kv.map_or([CacheForm::Float; 2], |kv| [form(kv.keys, kv.before_rope), form(kv.values, false)]);
        let head: usize = forms.iter().map(|form| form.page_bytes(spec.head_dim)).sum();
        let mut pages: Vec<usize> = requests.iter().map(Request::pages).collect();
        pages.sort_unstable_by(|a, b| b.cmp(a));
        let lengths = requests.iter().map(Request::positions);
        Self {
            base: BASE
                + STREAMS
                + TABLES
                + TOKENIZER * tokenizer
                + THREAD * settings.threads as u64
                + RopeTables::bytes(spec, lengths) as u64,
            weights: blocks.iter().sum::<u64>() + executable.head_bytes(arithmetic.compute, float) * table,
            reading: (stored * block).max(F32 * table.min((head_rows(spec.hidden) * spec.hidden) as u64)),
            pass: F32
                * (tokens * widths + mlp + 2 * (settings.batch.min(requests.len()) * spec.vocab) as u64),
            page: (spec.layers * spec.kv_heads * head) as u64,
            pages: [pages.first().copied().unwrap_or(0), pages.iter().take(settings.batch.max(1)).sum()],
            rows: tokens as usize,
        }
    }

    /// The predicted peak with so many pages.
    fn peak(&self, pages: usize) -> u64 {
        let cache = self.page * pages.min(self.pages[1]) as u64;
        self.base + self.weights + self.reading.max(self.pass + cache)
    }

    /// The pages that may exist at a time.
    fn pages(&self, allowed: Option<u64>) -> Result<usize, PipelineError> {
        let Some(allowed) = allowed else { return Ok(usize::MAX) };
        let [least, most] = self.pages;
        if bound(self.peak(least)) > allowed {
            return Err(PipelineError::Memory {
                needed: Bytes(bound(self.peak(least))),
                allowed: Bytes(allowed),
                advice: format!(
                    "weights take {}, the cache of the longest text {}: ask for fewer tokens, or for a model of fewer bits",
                    Bytes(self.weights),
                    Bytes(self.page * least as u64)
                ),
            });
        }
        // Where there is room for some texts of the batch alone, the others wait.
        Ok((least..=most).rev().find(|&pages| bound(self.peak(pages)) <= allowed).unwrap_or(least))
    }
}
