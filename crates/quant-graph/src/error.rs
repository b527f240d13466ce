//! The errors of the vocabulary: of whatever hands out a model, and of whatever cannot hold one.

use std::error::Error;
use std::fmt;

/// The cause of a [`SourceError`], and what a [`RowVisitor`](crate::RowVisitor) may fail with: an error of a crate this one
/// does not know.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A part of a model that a [`BlockSource`](crate::BlockSource) could not give: what was asked for, where it was to come
/// from, and why it did not. The cause keeps its type: `error.into_cause().downcast::<std::io::Error>()`.
///
/// ```
/// use quant_graph::SourceError;
/// use std::error::Error;
///
/// let error = SourceError::new("model.layers.3", "/models/tiny", "the disk is on fire");
/// assert_eq!(error.to_string(), "model.layers.3 could not be read from /models/tiny");
/// assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("the disk is on fire"));
/// ```
#[derive(Debug)]
pub struct SourceError {
    what: String,
    place: String,
    cause: BoxError,
}

impl SourceError {
    /// `what` is the tensor, block or table that was asked for, `place` the folder or memory it should have come from.
    #[must_use]
    pub fn new(what: impl Into<String>, place: impl fmt::Display, cause: impl Into<BoxError>) -> Self {
        Self { what: what.into(), place: place.to_string(), cause: cause.into() }
    }
    /// What was asked for: the name of a tensor, or the prefix of a block's tensors.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }
    /// Where it should have come from.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }
    /// Why it could not be read, for a caller that knows the types behind its source.
    #[must_use]
    pub fn into_cause(self) -> BoxError {
        self.cause
    }
    /// The cause, if it is of type `E`.
    ///
    /// # Errors
    /// The error unchanged, if it is of another.
    pub fn downcast<E: Error + 'static>(self) -> Result<E, Self> {
        match self.cause.downcast::<E>() {
            Ok(cause) => Ok(*cause),
            Err(cause) => Err(Self { cause, ..self }),
        }
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} could not be read from {}", self.what, self.place)
    }
}

impl Error for SourceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}

/// What a format, or a program that loads it, cannot hold: found from a scheme or a description, before any weight is read.
///
/// ```
/// let error = quant_graph::Unsupported {
///     format: "vllm-ascend",
///     what: "4-bit weights".to_owned(),
///     alternatives: "use 8 bits".to_owned(),
/// };
/// assert_eq!(error.to_string(), "vllm-ascend cannot hold 4-bit weights; use 8 bits");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Id of the format.
    pub format: &'static str,
    /// What was asked for, with the module if one is to blame.
    pub what: String,
    /// What to ask for instead.
    pub alternatives: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot hold {}; {}", self.format, self.what, self.alternatives)
    }
}

impl Error for Unsupported {}
