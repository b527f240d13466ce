//! Measuring a folder: perplexity, and divergence from a reference folder.

use crate::device_memory::expect_evaluation;
use crate::eval_memory::EvalMemory;
use crate::events::{Event, Events};
use crate::execution::{self, Executable};
use crate::logits_file::LogitsFile;
use crate::open::{OpenFolder, Scored, open_folder_with, with_threads};
use crate::report::peak_memory;
use crate::{PipelineError, Registry};
use ndarray::ArrayView2;
use quant_core::operators::Processor;
use quant_data::{CalibrationSpec, EvalLoadOptions, TokenSet, load_eval_text, load_eval_tokens};
use quant_eval::{EvalError, EvalOptions, EvalReport, LogitsSink, Phase};
use quant_graph::ModelSpec;
use quant_kernels::Compute;
use quant_model::{Execution, ModelError, count_flips};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to score.
#[derive(Clone, Debug)]
pub enum EvalData {
    /// A tensor `[sequences, length]` of token ids; each row is scored alone.
    Tokens(CalibrationSpec),
    /// A text file, or JSON records whose `text` is joined, by the WikiText-2 protocol.
    Text(PathBuf),
}

impl EvalData {
    /// The file it names.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Tokens(tokens) => tokens.path(),
            Self::Text(path) => path,
        }
    }
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct EvalJob {
    /// Float model or quantised folder.
    pub model: PathBuf,
    /// Model to compare with.
    pub reference: Option<PathBuf>,
    /// What to score.
    pub data: EvalData,
    /// Tokens per sequence.
    pub seq_len: Option<usize>,
    /// Tokens to score at most, the first ones in reading order; at least 2.
    pub limit_tokens: Option<usize>,
    /// Report the sum of every sequence as well.
    pub per_sequence: bool,
    /// Where to write the logits.
    pub save_logits: Option<PathBuf>,
    /// Threads, at least 1.
    pub threads: usize,
    /// Memory budget in bytes: hidden states go to disk to keep it.
    pub memory: Option<u64>,
    /// Folder for hidden states on disk; that of the system for temporary files unless set.
    pub spill: Option<PathBuf>,
    /// Arithmetic of the float products.
    pub compute: Compute,
    /// Whether the codes of the model are executed; the reference is always simulated.
    pub execution: Execution,
    /// What executes the codes, in the arithmetic of an NPU; none executes them here, on numbers that stay f32. It must have been opened for the
    /// type in which the model is served ([`FloatType::served`](quant_core::FloatType::served)).
    pub processor: Option<Arc<dyn Processor>>,
    /// Whether to count, in an execution, the codes of inputs that differ from those of the simulation, which then runs beside it.
    pub flips: bool,
}

/// A measurement and what was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EvalOutcome {
    /// The metrics and their protocol.
    #[serde(flatten)]
    pub report: EvalReport,
    /// The folder that was measured.
    #[serde(serialize_with = "crate::shown::path")]
    pub model: PathBuf,
    /// The folder it was compared with.
    #[serde(serialize_with = "crate::shown::maybe")]
    pub reference: Option<PathBuf>,
    /// Arithmetic of the float products.
    pub compute: &'static str,
    /// Whether codes were executed (`int8`) or simulated (`sim`).
    pub execution: &'static str,
    /// What executed them, if not this program itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
    /// Whose arithmetic quantised the inputs of the model's linears.
    pub profile: &'static str,
    /// Codes of inputs of an execution, and how many of them differ from those of the simulation, by block; where they were counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flips: Vec<CodeFlips>,
    /// The program and its version.
    pub version: String,
    /// Registry id of the folder's format, or `float`.
    pub format: &'static str,
    /// Predicted peak memory in bytes.
    pub predicted_memory: u64,
    /// Measured peak memory in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// Models whose hidden states were on disk, to stay within the memory budget.
    pub spilled: usize,
    /// The first block after which the model's hidden states were not finite.
    pub first_overflow: Option<String>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// Codes of the inputs of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CodeFlips {
    /// Codes that products took.
    pub codes: u64,
    /// How many differ from those of the simulation.
    pub flipped: u64,
}

/// Loads the sequences of a job for a model.
///
/// # Errors
/// Data that cannot be read or does not fit the vocabulary.
pub fn eval_sequences(
    data: &EvalData,
    seq_len: Option<usize>,
    spec: &ModelSpec,
    model_dir: &Path,
) -> Result<TokenSet, PipelineError> {
    let options = EvalLoadOptions {
        seq_len,
        vocab_size: spec.vocab,
        max_position_embeddings: spec.max_position_embeddings,
    };
    Ok(match data {
        EvalData::Tokens(tokens) => load_eval_tokens(tokens, &options)?,
        EvalData::Text(path) => load_eval_text(path, &options, model_dir)?,
    })
}

/// Keeps the first `limit` tokens in reading order: whole sequences, and the beginning of the next one where it predicts
/// anything. Returns the description of what is left.
fn limited(tokens: &mut TokenSet, limit: usize) -> Result<String, PipelineError> {
    if limit < 2 {
        return Err(PipelineError::Usage(format!(
            "--limit-tokens {limit} leaves nothing to predict; give at least 2"
        )));
    }
    let (whole, all) = (tokens.describe(), tokens.tokens());
    if limit >= all {
        return Ok(whole);
    }
    let mut left = limit;
    for ids in &mut tokens.sequences {
        ids.truncate(left);
        left -= ids.len();
    }
    tokens.sequences.retain(|ids| ids.len() >= 2);
    Ok(format!("the first {} tokens of {all}: {whole}", tokens.tokens()))
}

/// Measures a folder.
///
/// # Errors
/// Folders or data that cannot be read, vocabularies that differ, logits that cannot be written (whatever can be known of
/// this beforehand is refused before anything is computed), [`PipelineError::Interrupted`].
pub fn evaluate(job: &EvalJob, events: &mut dyn Events) -> Result<EvalOutcome, PipelineError> {
    evaluate_with(job, events, &Registry::default())
}

/// Measures a folder whose model and format are in `registry`.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_with(
    job: &EvalJob,
    events: &mut dyn Events,
    registry: &Registry,
) -> Result<EvalOutcome, PipelineError> {
    events.event(Event::Phase("reading the model and the data"));
    let folder = open_folder_with(&job.model, registry)?;
    let format = folder.format.map_or("float", |f| f.id());
    let mut tokens = eval_sequences(&job.data, job.seq_len, &folder.spec, &job.model)?;
    let description = match job.limit_tokens {
        Some(limit) => limited(&mut tokens, limit)?,
        None => tokens.describe(),
    };
    let mut warnings = folder.warnings.clone();
    warnings.extend(tokens.warnings.iter().cloned());
    for warning in &warnings {
        events.event(Event::Warning(warning.clone()));
    }
    let vocabulary = folder.spec.vocab;
    let reference = job.reference.as_deref().map(|dir| open_folder_with(dir, registry)).transpose()?;
    let specs: Vec<(&ModelSpec, bool)> =
        reference.iter().chain([&folder]).map(|f| (&f.spec, f.format.is_none())).collect();
    let lengths: Vec<usize> = tokens.sequences.iter().map(Vec::len).collect();
    let memory = EvalMemory::new(&specs, &lengths, tokens.longest_text, job.compute, job.threads);
    let spill_to = job.spill.clone().unwrap_or_else(std::env::temp_dir);
    let spilled = memory.spill(job.memory, &spill_to)?;
    if spilled > 0 {
        events.event(Event::Note("hidden states are kept on disk, to stay within the memory budget"));
    }
    let arithmetic = Executable::of(&folder)?.arithmetic(job.compute, Some(job.execution), &job.processor)?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    expect_evaluation(&folder, longest, job.processor.as_deref())?;
    let flips = if job.flips && arithmetic.execution == Execution::Integer {
        events.phase("counting codes that differ from the simulation")?;
        let mut source = folder.source()?;
        let watched: &mut dyn Events = events;
        let counted = with_threads(job.threads, |par| {
            let watched = watched;
            let go_on = &mut |_| watched.flow();
            count_flips(&mut source, arithmetic.clone(), &tokens.sequences, par, go_on)
        })?;
        match counted {
            Err(ModelError::Stopped) => return Err(PipelineError::Interrupted),
            counted => counted?,
        }
    } else {
        Vec::new()
    };
    let source = folder.into_source()?;
    let simulated = |folder: OpenFolder| -> Result<_, PipelineError> {
        let arithmetic =
            Executable::of(&folder)?.arithmetic(job.compute, Some(Execution::Simulated), &None)?;
        Ok((folder.into_source()?, arithmetic))
    };
    let reference = reference.map(simulated).transpose()?;
    let logits = match &job.save_logits {
        Some(path) => {
            let folders: Vec<&Path> = [Some(&job.model), job.reference.as_ref()]
                .into_iter()
                .flatten()
                .map(PathBuf::as_path)
                .collect();
            Some(LogitsFile::create(path, &folders, job.data.path(), &tokens.sequences, vocabulary)?)
        }
        None => None,
    };
    let (mut report, first_overflow) = with_threads(job.threads, |par| {
        // The reference runs first and goes to disk first.
        let last = usize::from(reference.is_some());
        let scored = |(source, arithmetic), order: usize| {
            Scored::new(source, arithmetic, par).spilled_to((order < spilled).then(|| spill_to.clone()))
        };
        let mut model = scored((source, arithmetic.clone()), last);
        let mut reference = reference.map(|reference| scored(reference, 0));
        let mut sink =
            |positions: Range<usize>, tokens: Range<usize>, panel: ArrayView2<'_, f32>| match &logits {
                Some(file) => file.write(positions, tokens, panel),
                None => Ok(()),
            };
        let sequences = tokens.sequences.len();
        let mut progress = |phase: Phase, done: usize, of: usize| {
            events.event(Event::of_phase(phase, done, of, sequences));
            events.flow()
        };
        let report = quant_eval::evaluate(
            &mut model,
            &tokens.sequences,
            EvalOptions {
                reference: reference.as_mut().map(|r| r as &mut dyn quant_eval::LanguageModel),
                logits_sink: job.save_logits.is_some().then_some(&mut sink as &mut LogitsSink<'_>),
                progress: Some(&mut progress),
                description,
                ..EvalOptions::default()
            },
        );
        match report {
            Ok(report) => Ok((report, model.first_overflow())),
            Err(EvalError::Interrupted) => Err(PipelineError::Interrupted),
            Err(error) => Err(error.into()),
        }
    })??;
    if let Some(file) = logits {
        file.finish()?;
    }
    if !job.per_sequence {
        report.nll_per_sequence.clear();
    }
    Ok(EvalOutcome {
        report,
        model: job.model.clone(),
        reference: job.reference.clone(),
        compute: job.compute.name(),
        execution: execution::name(arithmetic.execution),
        processor: job.processor.as_ref().map(|processor| processor.name()),
        profile: arithmetic.profile.name(),
        flips: flips.iter().map(|f| CodeFlips { codes: f.codes, flipped: f.flipped }).collect(),
        version: crate::version::tool(),
        predicted_memory: memory.peak(spilled),
        peak_memory: peak_memory(),
        spilled,
        format,
        first_overflow,
        warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_keeps_the_first_tokens_that_predict_something() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let mut header = br#"{"t":{"dtype":"I64","shape":[3,5],"data_offsets":[0,120]}}"#.to_vec();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend((0..15_i64).flat_map(i64::to_le_bytes));
        std::fs::write(&path, bytes).unwrap();
        let data = CalibrationSpec::parse(&format!("{}:t", path.display())).unwrap();
        let options = EvalLoadOptions { seq_len: None, vocab_size: 20, max_position_embeddings: 20 };
        let set = load_eval_tokens(&data, &options).unwrap();
        for (limit, lengths) in
            [(2, vec![2]), (5, vec![5]), (6, vec![5]), (8, vec![5, 3]), (15, vec![5; 3]), (99, vec![5; 3])]
        {
            let mut left = set.clone();
            let words = limited(&mut left, limit).unwrap();
            assert_eq!(left.sequences.iter().map(Vec::len).collect::<Vec<_>>(), lengths, "{limit}");
            assert_eq!(words.starts_with("the first"), limit < 15, "{words}");
            assert_eq!(left.sequences[0][..2], [0, 1]);
        }
        assert!(matches!(limited(&mut set.clone(), 1), Err(PipelineError::Usage(_))));
    }
}
