//! What can be wrong with a config or an input.

use quant_core::CoreError;
use quant_graph::{BoxError, SourceError, Spot};
use thiserror::Error;

/// Why a model cannot be described, built or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Whoever watches the model run asked it to stop.
    #[error("stopped before it was through")]
    Stopped,
    /// Activations on disk.
    #[error(transparent)]
    Store(#[from] crate::StoreError),
    /// `architectures[0]` names no family of the registry.
    #[error(
        "architecture {found:?} is not supported; config.json `architectures[0]` must be one of: {supported}"
    )]
    UnknownArchitecture {
        /// What the config says.
        found: String,
        /// All supported names.
        supported: String,
    },
    /// A value of `config.json` that is missing, of the wrong type, or out of range.
    #[error("config.json `{key}`: expected {expected}, found {found}")]
    Config {
        /// The key, dotted inside nested objects.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A value of `config.json` that asks for something this implementation does not compute.
    #[error("config.json `{key}` = {found} is not supported: {reason}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it would need.
        reason: String,
    },
    /// Two statements of `config.json` that contradict each other, and that readers of it resolve in different ways.
    #[error("config.json has {one} and {other}: {advice}")]
    Conflict {
        /// One key with its value.
        one: String,
        /// The other key with its value.
        other: String,
        /// Why there is no common reading, and what to do.
        advice: String,
    },
    /// An array of the wrong shape handed to a block or a model.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Which array.
        what: String,
        /// The shape required.
        expected: Vec<usize>,
        /// The shape given.
        found: Vec<usize>,
    },
    /// A norm or linear that the model has and the parameters do not, or the other way round.
    #[error("block {block}: {what} {problem}")]
    Part {
        /// Index of the block.
        block: usize,
        /// Which part.
        what: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A stage was run before its linear was set.
    #[error("block {block}: {module} has no weight yet; set_linear it before running its stage")]
    MissingLinear {
        /// Index of the block.
        block: usize,
        /// Full module name of the linear.
        module: String,
    },
    /// A processor that runs the operators of a block.
    #[error("block {block}: {what} failed")]
    Operator {
        /// Index of the block.
        block: usize,
        /// Module of the linear, the first of several with a common input, or the operator.
        what: String,
        /// What the processor says.
        #[source]
        cause: CoreError,
    },
    /// A piece that a method put into a training pass.
    #[error("block {block}: what is inserted at {spot:?} failed")]
    Insert {
        /// Index of the block.
        block: usize,
        /// Where it stands.
        spot: Spot,
        /// Why, in the words of the method.
        #[source]
        cause: BoxError,
    },
    /// A rope table shorter than the sequence.
    #[error("rope table holds {available} positions, {needed} are needed")]
    Positions {
        /// Rows of the table.
        available: usize,
        /// Tokens to place.
        needed: usize,
    },
    /// A token id outside the vocabulary.
    #[error("sequence {sequence}, position {position}: token {token} is outside the vocabulary of {vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
        /// Which sequence.
        sequence: usize,
        /// Where in it.
        position: usize,
    },
    /// Logits asked for tokens that were not encoded.
    #[error("logits of sequence {sequence}, positions {start}..{end}: {available}")]
    Range {
        /// Which sequence.
        sequence: usize,
        /// First position.
        start: usize,
        /// One past the last position.
        end: usize,
        /// What there is.
        available: String,
    },
    /// A request for text that cannot be answered.
    #[error("prompt {index}: {problem}")]
    Prompt {
        /// Which of the requests.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The source of the numbers failed.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Whether an array has the shape that a model needs.
pub(crate) fn expect_shape(what: &str, expected: &[usize], found: &[usize]) -> Result<(), ModelError> {
    if expected == found {
        return Ok(());
    }
    Err(ModelError::Shape { what: what.into(), expected: expected.to_vec(), found: found.to_vec() })
}
