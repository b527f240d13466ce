//! The one error type of this crate.

use crate::{BoxError, Side};

/// Why an evaluation could not be carried out. Bad numbers are not errors: see [`crate::Outcome`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// There is no sequence.
    #[error("no sequence to evaluate; give at least one sequence of two tokens")]
    NoSequences,
    /// A sequence has nothing to predict.
    #[error(
        "sequence {sequence} has {length} token(s), expected at least 2: every token but the first is predicted"
    )]
    TooShort {
        /// Index of the sequence.
        sequence: usize,
        /// Its length in tokens.
        length: usize,
    },
    /// A token is not in the vocabulary.
    #[error(
        "token id {id} at sequence {sequence}, position {position} is outside the model's vocabulary of {vocab_size}; \
         the data belongs to another tokenizer"
    )]
    OutOfVocabulary {
        /// Index of the sequence.
        sequence: usize,
        /// Position of the token.
        position: usize,
        /// The id.
        id: u32,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// A token that is to be scored is not predicted by anything.
    #[error("sequence {sequence}: the tokens {start}..{end} are wanted of {length}; every one but the first can be scored")]
    Wanted {
        /// Index of the sequence.
        sequence: usize,
        /// First token that is wanted.
        start: usize,
        /// Behind the last one.
        end: usize,
        /// Tokens of the sequence.
        length: usize,
    },
    /// The two models cannot be compared.
    #[error(
        "the reference model has {reference} logits per position, the model has {model}; they must be equal"
    )]
    VocabularyMismatch {
        /// Vocabulary of the reference.
        reference: usize,
        /// Vocabulary of the model.
        model: usize,
    },
    /// The chunk size selects nothing.
    #[error("chunk is 0, expected at least one position per chunk")]
    ZeroChunk,
    /// A model failed.
    #[error("the {side} failed while {stage}: {source}")]
    Model {
        /// Which model.
        side: Side,
        /// What it was doing.
        stage: &'static str,
        /// Its own error.
        source: BoxError,
    },
    /// The receiver of logits failed.
    #[error("logits of sequence {sequence}, position {position} could not be stored: {source}")]
    Sink {
        /// Index of the sequence.
        sequence: usize,
        /// Position within it.
        position: usize,
        /// The receiver's own error.
        source: BoxError,
    },
    /// The receiver of progress asked to stop.
    #[error("interrupted")]
    Interrupted,
}
