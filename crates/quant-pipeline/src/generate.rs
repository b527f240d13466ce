//! Text from a folder.

use crate::completion::{CompletionRun, CompletionSettings, complete};
use crate::events::{Event, Events};
use crate::execution::Executable;
use crate::open::open_folder_with;
use crate::report::peak_memory;
use crate::{PipelineError, Registry};
use quant_core::operators::Processor;
use quant_data::{Prompt, PromptSource, TextStream, Tokenizer, end_tokens, load_prompts};
use quant_graph::ModelSpec;
use quant_kernels::Compute;
use quant_model::{Execution, Generated, Request, Sampling};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// What executes the codes, in the arithmetic of an NPU; none executes them here, on numbers that stay f32. It must have been opened for the
    /// type in which the model is served ([`FloatType::served`](quant_core::FloatType::served)).
    pub processor: Option<Arc<dyn Processor>>,
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
    /// The folder's format, `float` for a float model.
    pub format: &'static str,
    /// Linears that were executed as codes, and all whose numbers are coded here; weights stored as the numbers their codes stand for are
    /// among neither.
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
    let format = folder.format.map_or("float", |format| format.id());
    // What cannot be executed is refused before prompts are read.
    Executable::of(&folder)?.arithmetic(job.compute, job.execution, &job.processor)?;
    let tokenizer = Tokenizer::from_dir(&job.model)?;
    let prompts = load_prompts(&job.prompts, &job.model, &tokenizer, job.chat)?;
    let requests = requests(job, &prompts, &folder.spec)?;
    let settings = CompletionSettings {
        stop: end_tokens(&job.model, &tokenizer)?,
        batch: job.batch,
        execution: job.execution,
        processor: job.processor.clone(),
        compute: job.compute,
        threads: job.threads,
        memory: job.memory,
    };
    let mut streams: Vec<Option<TextStream<'_>>> =
        requests.iter().map(|_| Some(TextStream::new(&tokenizer))).collect();
    let mut see = |_, new: Generated<'_>| {
        tell(&mut streams[new.request], &new, settings.stop.as_slice(), &mut |text| piece(new.request, text))
    };
    let run = CompletionRun { requests, sampling: job.sampling };
    let done = complete(folder, &[run], &settings, events, &mut see)?;
    let mut texts = Vec::with_capacity(prompts.len());
    for (prompt, completion) in prompts.iter().zip(done.runs.into_iter().flatten()) {
        texts.push(GeneratedText {
            index: prompt.index,
            text: tokenizer.decode(&completion.tokens, true)?,
            finish_reason: completion.finish.name(),
            prompt_tokens: prompt.tokens.len(),
            tokens: completion.tokens,
        });
    }
    Ok(GenerateOutcome {
        texts,
        execution: done.execution,
        format,
        executed: done.executed,
        seconds: done.seconds.iter().sum(),
        predicted_memory: done.predicted_memory,
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

fn requests(job: &GenerateJob, prompts: &[Prompt], spec: &ModelSpec) -> Result<Vec<Request>, PipelineError> {
    let context = spec.max_position_embeddings;
    let request = |prompt: &Prompt| {
        if prompt.tokens.len().saturating_add(job.max_new_tokens) > context {
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
