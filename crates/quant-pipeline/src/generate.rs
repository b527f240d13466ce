//! Text from a folder.

use crate::events::{Event, Events};
use crate::execution::{self, Executable};
use crate::memory::{BASE, F32, STREAMS, THREAD, bound};
use crate::open::{open_folder_with, with_threads};
use crate::report::peak_memory;
use crate::{PipelineError, Registry};
use quant_core::{Bytes, KvGranularity};
use quant_data::{Prompt, PromptSource, TextStream, Tokenizer, end_tokens, load_prompts};
use quant_graph::ModelSpec;
use quant_kernels::{Compute, PreparedWeight};
use quant_model::{
    Arithmetic, CacheForm, Execution, GenerateOptions, Generated, Generator, MLP_ROWS, ModelError, Request,
    ResidentModel, RopeTables, Sampling,
};
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

/// Resident bytes of a tokenizer for each byte of its file.
const TOKENIZER: u64 = 12;
/// What a run of passes has beside a stream of sequences: heaps of threads that small arrays come from and go to.
const TABLES: u64 = 2 << 20;

/// Tokens of a pass through the model at most.
const CHUNK: usize = 512;

/// Texts to be made.
#[derive(Clone, Debug)]
pub struct GenerateJob {
    /// Float model or quantised folder.
    pub model: PathBuf,
    /// What is continued.
    pub prompts: PromptSource,
    /// Whether a prompt is a turn of a user, to which the model answers.
    pub chat: bool,
    /// New tokens of a text at most.
    pub max_new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Texts that are worked on at a time; no text depends on it.
    pub batch: usize,
    /// Simulated or executed; executed where the folder has codes to execute, unless set.
    pub execution: Option<Execution>,
    /// Threads, at least 1; no text depends on them.
    pub threads: usize,
    /// Memory budget in bytes.
    pub memory: Option<u64>,
    /// Arithmetic of float products.
    pub compute: Compute,
}

/// A text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GeneratedText {
    /// The number of the prompt in its source.
    pub index: usize,
    /// The new text, special tokens left out.
    pub text: String,
    /// The new tokens, a last one that ended the text included.
    pub tokens: Vec<u32>,
    /// `stop`, `length`, or `non_finite` where the model's numbers broke down.
    pub finish_reason: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// What was made, and how.
#[derive(Clone, Debug)]
pub struct GenerateOutcome {
    /// In the order of the prompts.
    pub texts: Vec<GeneratedText>,
    /// `sim` or `int8`.
    pub execution: &'static str,
    /// Linears that were executed as codes, and all quantised ones.
    pub executed: (usize, usize),
    /// Seconds from the first token in to the last token out.
    pub seconds: f64,
    /// Predicted peak memory in bytes.
    pub predicted_memory: u64,
    /// Measured peak memory in bytes, where the system tells.
    pub peak_memory: Option<u64>,
}

impl GenerateOutcome {
    /// New tokens of all texts.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(|text| text.tokens.len()).sum()
    }
}

/// Continues every prompt of a job. `piece` is told the index of a prompt and some more of its text, as it comes, and then
/// nothing more of it after an empty piece.
///
/// # Errors
/// Folders or prompts that cannot be read; [`PipelineError::Unsupported`] for an execution that the folder has no codes for;
/// [`PipelineError::Context`] and [`PipelineError::Memory`] before anything is run; [`PipelineError::Interrupted`].
pub fn generate_with(
    job: &GenerateJob,
    events: &mut dyn Events,
    piece: &mut (dyn FnMut(usize, &str) + Send),
    registry: &Registry,
) -> Result<GenerateOutcome, PipelineError> {
    events.event(Event::Phase("reading the model and the prompts"));
    let folder = open_folder_with(&job.model, registry)?;
    for warning in &folder.warnings {
        events.event(Event::Warning(warning.clone()));
    }
    let executable = Executable::of(&folder)?;
    let arithmetic = executable.arithmetic(job.compute, job.execution)?;
    let tokenizer = Tokenizer::from_dir(&job.model)?;
    let prompts = load_prompts(&job.prompts, &job.model, &tokenizer, job.chat)?;
    let requests = requests(job, &prompts, &folder.spec)?;
    let memory = GenerateMemory::new(&folder.spec, &executable, arithmetic, &requests, job);
    let pages = memory.pages(job)?;
    let options = GenerateOptions {
        sampling: job.sampling,
        stop: end_tokens(&job.model, &tokenizer)?,
        batch: job.batch,
        chunk: CHUNK,
        pages,
    };
    let layers = folder.spec.layers;
    let source = folder.into_source()?;
    let (completions, seconds) = with_threads(job.threads, |par| -> Result<_, PipelineError> {
        let load = &mut |done, of| {
            events.event(Event::Evaluated { what: "reading block", done, of, inside: 0.0 });
            if events.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut model = ResidentModel::load(source, arithmetic, par, load).map_err(stopped)?;
        events.event(Event::Evaluated { what: "reading block", done: layers, of: layers, inside: 0.0 });
        quant_kernels::return_freed_memory();
        let mut streams: Vec<Option<TextStream<'_>>> =
            requests.iter().map(|_| Some(TextStream::new(&tokenizer))).collect();
        let mut failed = None;
        let began = Instant::now();
        let mut see = |new: Generated<'_>| {
            let told = tell(&mut streams[new.request], &new, options.stop.as_slice(), &mut |text| {
                piece(new.request, text);
            });
            if let Err(error) = told {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            if events.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let done = Generator::new(&mut model, options.clone()).run(&requests, &mut see);
        match (failed, done) {
            (Some(error), _) => Err(error),
            (None, done) => Ok((done.map_err(stopped)?, began.elapsed().as_secs_f64())),
        }
    })??;
    let mut texts = Vec::with_capacity(prompts.len());
    for (prompt, completion) in prompts.iter().zip(completions) {
        texts.push(GeneratedText {
            index: prompt.index,
            text: tokenizer.decode(&completion.tokens, true)?,
            finish_reason: completion.finish.name(),
            prompt_tokens: prompt.tokens.len(),
            tokens: completion.tokens,
        });
    }
    let executed = match arithmetic.execution {
        Execution::Integer => executable.counts(),
        Execution::Simulated => (0, executable.counts().1),
    };
    Ok(GenerateOutcome {
        texts,
        execution: execution::name(arithmetic.execution),
        executed,
        seconds,
        predicted_memory: memory.peak(pages),
        peak_memory: peak_memory(),
    })
}

/// Tells what has become certain of a text.
fn tell(
    stream: &mut Option<TextStream<'_>>,
    new: &Generated<'_>,
    stop: &[u32],
    piece: &mut dyn FnMut(&str),
) -> Result<(), PipelineError> {
    let Some(open) = stream else { return Ok(()) };
    if let Some(token) = new.token.filter(|token| !stop.contains(token)) {
        let text = open.push(token)?;
        if !text.is_empty() {
            piece(&text);
        }
    }
    if new.finish.is_some()
        && let Some(open) = stream.take()
    {
        let rest = open.finish()?;
        if !rest.is_empty() {
            piece(&rest);
        }
        piece("");
    }
    Ok(())
}

fn stopped(error: ModelError) -> PipelineError {
    match error {
        ModelError::Stopped => PipelineError::Interrupted,
        other => other.into(),
    }
}

fn requests(job: &GenerateJob, prompts: &[Prompt], spec: &ModelSpec) -> Result<Vec<Request>, PipelineError> {
    let context = spec.max_position_embeddings;
    let request = |prompt: &Prompt| {
        if prompt.tokens.len() + job.max_new_tokens > context {
            return Err(PipelineError::Context {
                prompt: prompt.line.map_or_else(|| "the prompt".to_owned(), |l| format!("line {l}")),
                tokens: prompt.tokens.len(),
                new: job.max_new_tokens,
                context,
            });
        }
        Ok(Request {
            index: prompt.index as u64,
            prompt: prompt.tokens.clone(),
            max_new_tokens: job.max_new_tokens,
        })
    };
    prompts.iter().map(request).collect()
}

/// Predicted memory of a generation, in bytes.
#[derive(Clone, Debug)]
struct GenerateMemory {
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
}

impl GenerateMemory {
    fn new(
        spec: &ModelSpec,
        executable: &Executable,
        arithmetic: Arithmetic,
        requests: &[Request],
        job: &GenerateJob,
    ) -> Self {
        let float = PreparedWeight::<f32>::element_bytes(arithmetic.compute) as u64;
        let blocks: Vec<u64> = (0..spec.layers)
            .map(|index| executable.block_bytes(spec, index, arithmetic.execution, float))
            .collect();
        let table = (spec.vocab * spec.hidden) as u64;
        // A block as it is read: floats, or levels.
        let stored = if executable.stores_codes() { 1 } else { F32 };
        let block = spec.block_parameters() as u64;
        let tokens = CHUNK.min(requests.iter().map(|r| r.prompt.len()).sum::<usize>().max(job.batch)) as u64;
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
                + TOKENIZER
                    * std::fs::metadata(job.model.join("tokenizer.json")).map_or(0, |file| file.len())
                + THREAD * job.threads as u64
                + RopeTables::bytes(spec, lengths) as u64,
            weights: blocks.iter().sum::<u64>() + float * table,
            reading: (stored * block).max(F32 * table),
            pass: F32 * (tokens * widths + mlp + 2 * (job.batch.min(requests.len()) * spec.vocab) as u64),
            page: (spec.layers * spec.kv_heads * head) as u64,
            pages: [pages.first().copied().unwrap_or(0), pages.iter().take(job.batch.max(1)).sum()],
        }
    }

    /// The predicted peak with so many pages.
    fn peak(&self, pages: usize) -> u64 {
        let cache = self.page * pages.min(self.pages[1]) as u64;
        self.base + self.weights + self.reading.max(self.pass + cache)
    }

    /// The pages that may exist at a time.
    fn pages(&self, job: &GenerateJob) -> Result<usize, PipelineError> {
        let Some(allowed) = job.memory else { return Ok(usize::MAX) };
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
