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
    #[error(
        "sequence {sequence}: the tokens {start}..{end} are wanted of {length}; every one but the first can be scored"
    )]
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
    /// There is no scorer of a name.
    #[error("there is no scorer {id:?}{}; there are {known}", .nearest.as_ref().map_or_else(String::new, |n| format!(" (did you mean {n:?}?)")))]
    NoScorer {
        /// The name.
        id: String,
        /// What may have been meant.
        nearest: Option<String>,
        /// Those there are.
        known: String,
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
    /// Graded answers are no table of items and seeds.
    #[error(
        "{answers} answers of {seeds} seeds; expected at least one item, and one answer of every item for every seed"
    )]
    Outcomes {
        /// How many answers there are.
        answers: usize,
        /// How many seeds there are said to be.
        seeds: usize,
    },
    /// Two models did not answer the same items under the same seeds.
    #[error(
        "the float model answered {} items of {} seeds, the quantised one {} items of {} seeds; pairs need the same \
         items and seeds",
        .float.0, .float.1, .quantised.0, .quantised.1
    )]
    Unpaired {
        /// Items and seeds of the float model.
        float: (usize, usize),
        /// Items and seeds of the quantised one.
        quantised: (usize, usize),
    },
    /// A bootstrap of nothing.
    #[error("{what} is {value}, expected {expected}")]
    Bootstrap {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// The right answer of an item could not be read.
    #[error("no {wanted} in the right answer {text:?}; expected {expected}")]
    Gold {
        /// What it should be.
        wanted: &'static str,
        /// Its beginning.
        text: String,
        /// What one looks like.
        expected: &'static str,
    },
    /// Programs are to be run, and nothing runs them.
    #[error("the scorer {id:?} runs programs that a model wrote; it was given nothing that runs them")]
    NoPrograms {
        /// The scorer.
        id: &'static str,
    },
    /// The tests of a program could not be read.
    #[error("the tests of a problem: {source}")]
    Tests {
        /// What is wrong with them.
        source: BoxError,
    },
    /// A program could not be run.
    #[error("a program was not run: {source}")]
    Programs {
        /// What the sandbox says.
        source: BoxError,
    },
    /// The receiver of progress asked to stop.
    #[error("interrupted")]
    Interrupted,
}
