//! Opening a folder as a model: config, shapes, format.

use crate::{PipelineError, Registry};
use quant_checkpoint::formats::{Format, Formats, detect_with};
use quant_checkpoint::{
    Checkpoint, FolderSource, check_tensors_with, open_as_loaded, read_config, redundant_head_equals,
    stored_float_type,
};
use quant_graph::ModelSpec;
use quant_kernels::Par;
use quant_model::{Arithmetic, Families, StreamedModel, declared_dtype, read_model_config_with};
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};

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
    /// Those it was opened with.
    formats: Formats,
}

/// Opens a float checkpoint or a quantised folder.
///
/// # Errors
/// Unreadable or lying files, an unknown architecture, a quantisation that is not read here, tensors that do not fit the
/// config.
pub fn open_folder(dir: &Path) -> Result<OpenFolder, PipelineError> {
    open_folder_with(dir, &Registry::default())
}

/// Opens a folder whose model and format are in `registry`.
///
/// # Errors
/// As [`open_folder`].
pub fn open_folder_with(dir: &Path, registry: &Registry) -> Result<OpenFolder, PipelineError> {
    open(dir, registry).map_err(|error| in_folder(dir, error))
}

/// The error with the folder it speaks of, where it does not name it: two folders may be in play.
fn in_folder(dir: &Path, error: PipelineError) -> PipelineError {
    if error.to_string().contains(&*dir.to_string_lossy()) {
        return error;
    }
    PipelineError::In { folder: dir.to_owned(), source: Box::new(error) }
}

fn open(dir: &Path, registry: &Registry) -> Result<OpenFolder, PipelineError> {
    let formats = registry.formats();
    let mut checkpoint = Checkpoint::open(dir)?;
    let (mut warnings, mut renamed) = (Vec::new(), Vec::new());
    let config = checkpoint.config().clone();
    let stored = |spec: &ModelSpec| {
        renamed = take_names(&mut checkpoint, spec, formats);
        stored_float_type(&checkpoint, spec)
    };
    let spec = spec_of(&config, registry.families(), stored, &mut warnings)?;
    warnings.extend(renamed);
    let format = check_tensors_with(&checkpoint, &spec, formats)?;
    match redundant_head_equals(&checkpoint, &spec)? {
        None => {}
        Some(true) => warnings.push(
            "the config ties the head to the embedding; lm_head.weight, stored as well, equals it".into(),
        ),
        Some(false) => warnings.push(
            "the config ties the head to the embedding, and the stored lm_head.weight is another table; the \
             embedding is used, as transformers does"
                .into(),
        ),
    }
    Ok(OpenFolder { checkpoint, spec, format, warnings, formats: formats.clone() })
}

/// Gives the tensors of a float checkpoint the model's names. Those of a quantised folder are named by its description.
fn take_names(checkpoint: &mut Checkpoint, spec: &ModelSpec, formats: &Formats) -> Vec<String> {
    if detect_with(checkpoint, formats).is_some() { Vec::new() } else { checkpoint.take_names_of(spec) }
}

/// The shape of the model in a folder whose tensors may not fit it: what a verifier needs to say how they do not.
///
/// # Errors
/// An unreadable `config.json`, an unknown architecture.
pub fn folder_spec(dir: &Path) -> Result<ModelSpec, PipelineError> {
    folder_spec_with(dir, &Registry::default())
}

/// The same for a model of a family in `registry`.
///
/// # Errors
/// As [`folder_spec`].
pub fn folder_spec_with(dir: &Path, registry: &Registry) -> Result<ModelSpec, PipelineError> {
    // Weights that cannot be opened say nothing of their type; the verifier names what is wrong with them.
    let stored = |spec: &ModelSpec| open_as_loaded(dir).ok().and_then(|c| stored_float_type(&c, spec));
    let read = || spec_of(&read_config(dir)?, registry.families(), stored, &mut Vec::new());
    read().map_err(|error| in_folder(dir, error))
}

/// The shape of a model. Where the config does not declare a type, the tensors decide; where they contradict it, the
/// person hears of it.
fn spec_of(
    config: &Value,
    families: &Families,
    stored: impl FnOnce(&ModelSpec) -> Option<quant_core::FloatType>,
    warnings: &mut Vec<String>,
) -> Result<ModelSpec, PipelineError> {
    let quant_model::Reading { mut spec, warnings: read } = read_model_config_with(config, families)?;
    warnings.extend(read);
    match (declared_dtype(config)?, stored(&spec)) {
        (None, Some(stored)) => spec.dtype = stored,
        (Some(declared), Some(stored)) if declared != stored => warnings.push(format!(
            "config.json declares {declared:?}, the blocks are stored as {stored:?}; outputs are written for a loader that \
             goes by the declaration"
        )),
        _ => {}
    }
    Ok(spec)
}

impl OpenFolder {
    /// Opens the same checkpoint a second time, with the names it has here.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(crate) fn reopen(&self) -> Result<Checkpoint, PipelineError> {
        let mut checkpoint = Checkpoint::open(self.checkpoint.path())?;
        take_names(&mut checkpoint, &self.spec, &self.formats);
        Ok(checkpoint)
    }

    /// As a stream of blocks, from the files opened a second time.
    ///
    /// # Errors
    /// As [`Self::into_source`] and [`Checkpoint::open`].
    pub(crate) fn source(&self) -> Result<FolderSource, PipelineError> {
        let source = FolderSource::open_with(self.reopen()?, self.spec.clone(), &self.formats)?;
        Ok(source.without_hashes())
    }

    /// As a stream of blocks.
    ///
    /// # Errors
    /// Tensors of a quantised folder that are missing or of the wrong kind.
    pub fn into_source(self) -> Result<FolderSource, PipelineError> {
        // Hashes are for manifests; whoever only runs the model need not wait for them.
        Ok(FolderSource::open_with(self.checkpoint, self.spec, &self.formats)?.without_hashes())
    }
}

/// A model that streams its blocks, in the form the metrics want.
#[derive(Debug)]
pub struct Scored<S>(StreamedModel<S>);

impl<S: quant_graph::BlockSource> Scored<S> {
    /// Wraps a source of blocks.
    #[must_use]
    pub fn new(source: S, arithmetic: impl Into<Arithmetic>, par: Par) -> Self {
        Self(StreamedModel::new(source, arithmetic, par))
    }
    /// Keeps hidden states in this folder instead of memory.
    #[must_use]
    pub fn spilled_to(self, folder: Option<PathBuf>) -> Self {
        Self(self.0.spilled_to(folder))
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
        progress: &mut quant_eval::EncodeProgress<'_>,
    ) -> Result<(), quant_eval::BoxError> {
        let encoded = self.0.encode(sequences, progress);
        // Of the last block and its temporaries, before logits take their place.
        quant_kernels::return_freed_memory();
        Ok(encoded?)
    }
    fn logits(
        &mut self,
        positions: Range<usize>,
        tokens: Range<usize>,
        out: ndarray::ArrayViewMut2<'_, f32>,
    ) -> Result<(), quant_eval::BoxError> {
        Ok(self.0.logits_into(positions, tokens, out)?)
    }
    fn logits_at(
        &mut self,
        positions: &[usize],
        tokens: Range<usize>,
        out: ndarray::ArrayViewMut2<'_, f32>,
    ) -> Result<(), quant_eval::BoxError> {
        Ok(self.0.logits_at(positions, tokens, out)?)
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
