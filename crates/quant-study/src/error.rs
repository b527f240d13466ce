//! The one error type of this crate.

use quant_data::DataError;
use quant_eval::EvalError;
use quant_pipeline::{PipelineError, RecipeError};
use std::path::PathBuf;

/// Why a task or a study could not be carried out. Models that break down are results, not errors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyError {
    /// Models, recipes, folders; [`PipelineError::Interrupted`].
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A grid is not understood.
    #[error("{place}: {reason}")]
    Grid {
        /// File and key.
        place: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A name of a preset that there is none of.
    #[error("there is no study {name:?}{}; there are {known}", .nearest.as_ref().map_or_else(String::new, |n| format!(" (did you mean {n:?}?)")))]
    NoPreset {
        /// The name.
        name: String,
        /// What may have been meant.
        nearest: Option<String>,
        /// Those there are.
        known: String,
    },
    /// What is wrong with the way a program was called.
    #[error("{0}")]
    Usage(String),
    /// A file of finished items cannot be gone on with.
    #[error(
        "{path}, line {line}: {reason}; it was not written by this program: move it away, or begin again with --restart"
    )]
    Journal {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// What stands in an output folder belongs to another job.
    #[error("{path} holds another job: {differences}; {advice}")]
    Changed {
        /// The folder.
        path: PathBuf,
        /// What differs.
        differences: String,
        /// What to do.
        advice: &'static str,
    },
    /// Another process works in an output folder.
    #[error("{path} is being worked on by another process; wait for it, or give another --output")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is asked cannot be had: of this machine, in this way, or without being allowed.
    #[error("{0}")]
    Refused(String),
    /// A server did not answer what it was asked.
    #[cfg(feature = "server")]
    #[error(transparent)]
    Server(#[from] quant_client::ClientError),
    /// No cell of a study can be run.
    #[error("nothing to run: every cell is refused; the first: {0}")]
    NothingLegal(String),
}

impl StudyError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn grid(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Grid { place: place.into(), reason: reason.into() }
    }

    /// Whether nothing more of a study can be done: it was stopped, or what it writes is not its own or cannot be written.
    pub(crate) fn ends_a_study(&self) -> bool {
        self.is_interrupted() || matches!(self, Self::Changed { .. } | Self::Locked { .. } | Self::Io { .. })
    }

    /// Whether the work was stopped by the person.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Pipeline(PipelineError::Interrupted | PipelineError::Kept { .. }))
    }
}

impl From<DataError> for StudyError {
    fn from(error: DataError) -> Self {
        Self::Pipeline(error.into())
    }
}

impl From<EvalError> for StudyError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Interrupted => PipelineError::Interrupted.into(),
            other => Self::Pipeline(other.into()),
        }
    }
}

impl From<RecipeError> for StudyError {
    fn from(error: RecipeError) -> Self {
        Self::Pipeline(error.into())
    }
}
