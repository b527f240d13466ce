use quant_checkpoint::CheckpointError;
use quant_core::{Bytes, CoreError};
use quant_data::DataError;
use quant_eval::EvalError;
use quant_graph::{SourceError, Unsupported};
use quant_hessian::HessianError;
use quant_methods::{MethodError, SettingsError, Stopped};
use quant_model::{ModelError, StoreError};
use serde_json::Value;
use std::path::PathBuf;
use thiserror::Error;

/// What is wrong with a recipe; exit code 2, or 3 for what the format or the model cannot have.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum RecipeError {
    /// Not YAML.
    #[error("the recipe is not valid YAML: {0}")]
    Yaml(String),
    /// A key or value that cannot stand where it stands.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// An error with the line of the text on which it stands, from 1.
    #[error("line {line}: {problem}")]
    At {
        /// The line.
        line: usize,
        /// What is wrong there.
        problem: Box<Self>,
    },
    /// An error in a file.
    #[error("{}: {problem}", .file.display())]
    In {
        /// The file.
        file: PathBuf,
        /// What is wrong in it, usually [`RecipeError::At`] a line.
        problem: Box<Self>,
    },
    /// A name that is neither a file nor a preset.
    #[error("{name:?} is neither a recipe file nor a preset{}; presets: {known}",
        .nearest.as_ref().map_or_else(String::new, |n| format!(" (did you mean {n:?}?)")))]
    NoSuchPreset {
        /// The name as given.
        name: String,
        /// The closest preset.
        nearest: Option<String>,
        /// All presets.
        known: String,
    },
}

impl RecipeError {
    /// Whether the recipe asks for what the export format or the model cannot have, and is otherwise sound.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Settings(error) => matches!(error, SettingsError::Unsupported { .. }),
            Self::At { problem, .. } | Self::In { problem, .. } => problem.is_unsupported(),
            Self::Yaml(_) | Self::NoSuchPreset { .. } => false,
        }
    }
    /// Two parts of a recipe that contradict each other.
    pub(crate) fn conflict(path: impl Into<String>, problem: impl Into<String>) -> Self {
        SettingsError::Conflict { path: path.into(), problem: problem.into() }.into()
    }
    /// A value that is not what its key takes.
    pub(crate) fn value(path: impl Into<String>, expected: impl Into<String>, found: &Value) -> Self {
        SettingsError::Value { path: path.into(), expected: expected.into(), found: found.to_string() }.into()
    }
}

/// What can stop a plan, a run or an evaluation.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The recipe asks this model or format for something it cannot do.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A folder that the processor it is to run on cannot execute.
    #[error(
        "this folder does not run on {processor}: {problem}; without --backend it runs here, and vllm-ascend folders of W8A8 and W8A16 run on both"
    )]
    NotOnProcessor {
        /// Its name.
        processor: String,
        /// What it does not do.
        problem: String,
    },
    /// The input is an output of a quantisation.
    #[error("{path} is quantised already ({format}); start from the float checkpoint it was made from")]
    QuantisedAlready {
        /// The input.
        path: PathBuf,
        /// Registry id of its format.
        format: &'static str,
    },
    /// Any of these errors where it does not name the model's folder itself.
    #[error("{folder}: {source}")]
    In {
        /// The folder.
        folder: PathBuf,
        /// What is wrong there.
        source: Box<Self>,
    },
    /// The config or the shape of the model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The files of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Calibration or evaluation data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Metrics.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A number format.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// A method, with the linears or block it was working on.
    #[error("{at}: {source}")]
    Method {
        /// Module or block.
        at: String,
        /// What went wrong.
        source: MethodError,
    },
    /// Something the recipe needs was not given on the command line.
    #[error("{0}")]
    Usage(String),
    /// The activations of calibration left the finite numbers.
    #[error(
        "the activations of calibration sequence {sequence} are not finite at {at}; the float model overflows on this \
         data or an earlier block was quantised too coarsely: use more bits or `ignore` that block"
    )]
    NotFinite {
        /// Site and block.
        at: String,
        /// Sequence number.
        sequence: usize,
    },
    /// The budget of `--memory` cannot be kept.
    #[error("this job needs up to {needed} and --memory allows {allowed}; {advice}")]
    Memory {
        /// The least budget that this job keeps for certain.
        needed: Bytes,
        /// The budget.
        allowed: Bytes,
        /// What would help.
        advice: String,
    },
    /// The system has not the memory for the activations of all tokens.
    #[error(
        "the activations of all tokens take {needed}, which this machine does not give; set --memory, so that they are kept on disk, or \
         use fewer or shorter sequences"
    )]
    Exhausted {
        /// Bytes of one tensor of them.
        needed: Bytes,
    },
    /// A text that would be longer than the model's context.
    #[error(
        "{prompt} has {tokens} tokens, and {new} new ones would make {} of a context of {context}; {}", tokens.saturating_add(*new),
        match context.saturating_sub(*tokens) {
            0 => format!("shorten it to fewer than {context}"),
            left => format!("ask for at most {left} new tokens (--max-new-tokens), or shorten it"),
        }
    )]
    Context {
        /// Which prompt.
        prompt: String,
        /// Its tokens.
        tokens: usize,
        /// Tokens to be added.
        new: usize,
        /// The model's context.
        context: usize,
    },
    /// A file that is not part of a checkpoint.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file of logits cannot be written.
    #[error("cannot write the logits to {path}: {source}")]
    Logits {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread pool that cannot be started.
    #[error("cannot start {threads} threads: {source}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        source: rayon::ThreadPoolBuildError,
    },
    /// The person asked to stop ([`Events::cancelled`](crate::Events::cancelled)).
    #[error("interrupted")]
    Interrupted,
    /// Any of these errors where the work so far is kept.
    #[error(
        "{source}\nthe work so far is kept in {}: {}the same command with --resume goes on with it, with --restart it \
         begins again; to throw it away, delete that folder",
        folder.display(), if matches!(**source, Self::Interrupted) { "" } else { "once that is mended, " }
    )]
    Kept {
        /// The unfinished output.
        folder: PathBuf,
        /// What ended the run.
        source: Box<Self>,
    },
    /// A source of blocks other than a folder.
    #[error(transparent)]
    Source(SourceError),
    /// A [`BlockSink`](crate::run::BlockSink) of the caller's.
    #[error("{0}")]
    Sink(Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for PipelineError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::File { folder, source } => Self::Io { path: folder, source },
            StoreError::Memory { bytes } => Self::Exhausted { needed: Bytes(bytes) },
        }
    }
}

impl PipelineError {
    pub(crate) fn method(at: impl Into<String>) -> impl FnOnce(MethodError) -> Self {
        let at = at.into();
        move |source| if stopped(&source) { Self::Interrupted } else { Self::Method { at, source } }
    }
    pub(crate) fn hessian(at: impl Into<String>) -> impl FnOnce(HessianError) -> Self {
        let at = at.into();
        move |source| Self::Method { at, source: source.into() }
    }
}

/// Whether an error of a method says that the person asked to stop.
fn stopped(error: &MethodError) -> bool {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source()).any(|error| error.is::<Stopped>())
}

impl From<SourceError> for PipelineError {
    /// The cause itself where it is one of ours, so that it keeps its class.
    fn from(error: SourceError) -> Self {
        let error = match error.downcast::<CheckpointError>() {
            Ok(e) => return Self::Checkpoint(e),
            Err(error) => error,
        };
        let error = match error.downcast::<ModelError>() {
            Ok(e) => return Self::Model(e),
            Err(error) => error,
        };
        error.downcast::<Self>().unwrap_or_else(Self::Source)
    }
}
