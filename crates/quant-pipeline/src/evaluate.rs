//! Measuring a folder: perplexity, and divergence from a reference folder.

use crate::PipelineError;
use crate::open::{Scored, open_folder, with_threads};
use quant_data::{CalibrationSpec, EvalLoadOptions, TokenSet, load_eval_text, load_eval_tokens};
use quant_eval::{EvalOptions, EvalReport, LogitsSink, Phase};
use quant_kernels::Compute;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What to score.
#[derive(Clone, Debug)]
pub enum EvalData {
    /// A tensor `[sequences, length]` of token ids; each row is scored alone.
    Tokens(CalibrationSpec),
    /// A text file, by the WikiText-2 protocol.
    Text(PathBuf),
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
    /// Where to write the logits.
    pub save_logits: Option<PathBuf>,
    /// Threads, at least 1.
    pub threads: usize,
    /// Arithmetic of the products.
    pub compute: Compute,
}

/// A measurement and what was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EvalOutcome {
    /// The metrics and their protocol.
    #[serde(flatten)]
    pub report: EvalReport,
    /// Registry id of the folder's format, or `float`.
    pub format: &'static str,
    /// The first block after which the model's hidden states were not finite.
    pub first_overflow: Option<String>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// Loads the sequences of a job for a model.
///
/// # Errors
/// Data that cannot be read or does not fit the vocabulary.
pub fn eval_sequences(
    data: &EvalData,
    seq_len: Option<usize>,
    spec: &quant_graph::ModelSpec,
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

/// Measures a folder.
///
/// # Errors
/// Folders or data that cannot be read, vocabularies that differ, logits that cannot be written.
pub fn evaluate(
    job: &EvalJob,
    progress: &mut (dyn FnMut(Phase, usize, usize) + Send),
) -> Result<EvalOutcome, PipelineError> {
    let folder = open_folder(&job.model)?;
    let format = folder.format.map_or("float", |f| f.id());
    let tokens = eval_sequences(&job.data, job.seq_len, &folder.spec, &job.model)?;
    let mut warnings = folder.warnings.clone();
    warnings.extend(tokens.warnings.iter().cloned());
    let vocabulary = folder.spec.vocab;
    let source = folder.into_source()?;
    let reference = job.reference.as_deref().map(|dir| open_folder(dir)?.into_source()).transpose()?;
    let mut logits = match &job.save_logits {
        Some(path) => Some(LogitsFile::create(path, &tokens.sequences, vocabulary)?),
        None => None,
    };
    let (report, first_overflow) = with_threads(job.threads, |par| {
        let mut model = Scored::new(source, job.compute, par);
        let mut reference = reference.map(|source| Scored::new(source, job.compute, par));
        let mut sink = |sequence: usize, start: usize, rows: ndarray::ArrayView2<'_, f32>| match &mut logits {
            Some(file) => file.write(sequence, start, rows),
            None => Ok(()),
        };
        let report = quant_eval::evaluate(
            &mut model,
            &tokens.sequences,
            EvalOptions {
                reference: reference.as_mut().map(|r| r as &mut dyn quant_eval::LanguageModel),
                logits_sink: job.save_logits.is_some().then_some(&mut sink as &mut LogitsSink<'_>),
                progress: Some(progress),
                description: tokens.describe(),
                ..EvalOptions::default()
            },
        );
        report.map(|r| (r, model.first_overflow()))
    })??;
    if let Some(file) = logits {
        file.finish()?;
    }
    Ok(EvalOutcome { report, format, first_overflow, warnings })
}

/// One tensor `logits`, f32 `[sequences, length, vocabulary]`, written as it is computed and renamed when complete.
struct LogitsFile {
    file: File,
    partial: PathBuf,
    target: PathBuf,
    data_start: u64,
    length: usize,
    vocabulary: usize,
    complete: bool,
}

impl LogitsFile {
    fn create(path: &Path, sequences: &[Vec<u32>], vocabulary: usize) -> Result<Self, PipelineError> {
        let length = sequences.first().map_or(0, Vec::len);
        if sequences.iter().any(|s| s.len() != length) {
            return Err(PipelineError::Usage(
                "--save-logits writes one rectangular tensor, and these sequences have different lengths"
                    .into(),
            ));
        }
        let bytes = 4 * sequences.len() as u64 * length as u64 * vocabulary as u64;
        let header = serde_json::json!({"logits": {
            "dtype": "F32", "shape": [sequences.len(), length, vocabulary], "data_offsets": [0, bytes]}});
        let mut header = header.to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let io = |source| PipelineError::Io { path: partial.clone(), source };
        let file = File::create(&partial).map_err(io)?;
        let mut start = (header.len() as u64).to_le_bytes().to_vec();
        start.extend(header);
        file.write_all_at(&start, 0).map_err(io)?;
        Ok(Self {
            file,
            target: path.to_owned(),
            data_start: start.len() as u64,
            length,
            vocabulary,
            complete: false,
            partial,
        })
    }

    fn write(
        &self,
        sequence: usize,
        start: usize,
        rows: ndarray::ArrayView2<'_, f32>,
    ) -> Result<(), quant_graph::BoxError> {
        let rows = rows.as_standard_layout();
        let position = (sequence * self.length + start) as u64;
        let offset = self.data_start + 4 * position * self.vocabulary as u64;
        self.file.write_all_at(bytemuck::cast_slice(rows.as_slice().unwrap_or_default()), offset)?;
        Ok(())
    }

    fn finish(mut self) -> Result<(), PipelineError> {
        let io = |source| PipelineError::Io { path: self.target.clone(), source };
        self.file.sync_all().map_err(io)?;
        std::fs::rename(&self.partial, &self.target).map_err(io)?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for LogitsFile {
    fn drop(&mut self) {
        if !self.complete {
            // Best effort: what is left has a name that says it is not whole.
            drop(std::fs::remove_file(&self.partial));
        }
    }
}
