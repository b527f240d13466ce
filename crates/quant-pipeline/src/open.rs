//! Opening a folder as a model: config, shapes, format.

use crate::PipelineError;
use quant_checkpoint::formats::{self, Format};
use quant_checkpoint::{Checkpoint, FolderSource};
use quant_graph::ModelSpec;
use quant_kernels::{Compute, Par};
use quant_model::{StreamedModel, cross_check, model_spec};
use std::ops::Range;
use std::path::Path;

/// A folder whose config has been understood; no weight has been read.
#[derive(Debug)]
pub struct OpenFolder {
    /// The files.
    pub checkpoint: Checkpoint,
    /// The shape of the model.
    pub spec: ModelSpec,
    /// The quantised format it is in; none is a float checkpoint.
    pub format: Option<&'static dyn Format>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// Opens a float checkpoint or a quantised folder.
///
/// # Errors
/// Unreadable or lying files, an unknown architecture, tensors that do not fit the config.
pub fn open_folder(dir: &Path) -> Result<OpenFolder, PipelineError> {
    let checkpoint = Checkpoint::open(dir)?;
    let spec = model_spec(checkpoint.config())?;
    let format = formats::detect(&checkpoint);
    let mut warnings = Vec::new();
    if format.is_none() {
        let tensors = checkpoint.tensors().map(|t| (t.name.as_str(), t.shape.as_slice()));
        let check = cross_check(&spec, tensors)?;
        if check.redundant_head {
            warnings.push(
                "the config ties the head to the embedding; the stored lm_head.weight is not used".into(),
            );
        }
    }
    Ok(OpenFolder { checkpoint, spec, format, warnings })
}

impl OpenFolder {
    /// As a stream of blocks.
    ///
    /// # Errors
    /// Tensors of a quantised folder that are missing or of the wrong kind.
    pub fn into_source(self) -> Result<FolderSource, PipelineError> {
        // Hashes are for manifests; whoever only runs the model need not wait for them.
        Ok(FolderSource::open(self.checkpoint, self.spec)?.without_hashes())
    }
}

/// A model that streams its blocks, in the form the metrics want.
#[derive(Debug)]
pub struct Scored<S>(StreamedModel<S>);

impl<S: quant_graph::BlockSource> Scored<S> {
    /// Wraps a source of blocks.
    #[must_use]
    pub fn new(source: S, compute: Compute, par: Par) -> Self {
        Self(StreamedModel::new(source, compute, par))
    }
    /// The first block after which a hidden state was not finite, in words.
    #[must_use]
    pub fn first_overflow(&self) -> Option<String> {
        self.0.first_non_finite().map(|at| format!("after block {}, sequence {}", at.block, at.sequence))
    }
}

impl<S: quant_graph::BlockSource> quant_eval::LanguageModel for Scored<S> {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
    fn encode(
        &mut self,
        sequences: &[Vec<u32>],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), quant_eval::ModelError> {
        Ok(self.0.encode(sequences, progress)?)
    }
    fn logits(
        &mut self,
        sequence: usize,
        range: Range<usize>,
    ) -> Result<ndarray::Array2<f32>, quant_eval::ModelError> {
        Ok(self.0.logits(sequence, range)?)
    }
}

/// Runs `f` in a thread pool of exactly `threads` threads.
///
/// # Errors
/// If the threads cannot be started.
pub fn with_threads<R: Send>(threads: usize, f: impl FnOnce(Par) -> R + Send) -> Result<R, PipelineError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|source| PipelineError::Threads { threads, source })?;
    Ok(pool.install(|| f(Par::new(threads))))
}
