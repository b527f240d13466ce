//! Perplexity, KL divergence and top-1 agreement of language models.
//!
//! The model is behind the trait [`LanguageModel`], so that a large checkpoint can be streamed block by block
//! and a test can be a table. [`evaluate`] scores token sequences, each alone from position 0:
//!
//! * **perplexity** `exp(sum NLL / predicted tokens)`, sequences pooled, every token but the first of its
//!   sequence predicted;
//! * against a reference model, the mean per predicted token of **KL(reference || model)** in nats, and
//!   **top-1 agreement**: the fraction of predicted positions at which both models rank the same token first; top-5: at which the first of
//!   the reference is among the first five.
//!
//! The panels of the head are the outer loop: for a chunk of thousands of positions, across sequences, the logits of
//! one panel of the vocabulary exist at a time, and log-sum-exp, arg-max, target logit and divergence are carried from
//! panel to panel ([`quant_kernels::OnlineDivergence`]), with f32 exponentials and f64 sums. Rows are scored in
//! parallel on the caller's rayon pool and summed in the order of the text, so results depend neither on the number
//! of threads nor on the chunk size.
//! [`score_positions`] tells of single predictions: continuations that are compared, texts that were answered.
//! [`evaluate_many`] compares many models that share a head with one reference; [`Distribution`] says how hard activations are to
//! quantise.
//!
//! Of a model that reasons, [`answers`] extracts and grades what it wrote, [`collapse`] has the signs by which an answer is seen to be
//! broken, and [`statistics`] says what graded answers tell about a quantised model beside the float one.
//!
//! A logit that is not finite is a stated outcome of the report ([`Outcome::NonFiniteLogits`]), never a NaN
//! that looks like a number.
#![forbid(unsafe_code)]

pub mod answers;
pub mod collapse;
mod distribution;
mod error;
mod evaluate;
mod many;
mod model;
mod positions;
mod report;
mod rows;
mod scorer;
pub mod statistics;

/// The arrays of the functions here.
pub use ndarray;

pub use distribution::{Distribution, Spread};
pub use error::EvalError;
pub use evaluate::{CHUNK, EvalOptions, LogitsSink, Phase, Progress, evaluate, panel_bytes};
pub use many::{ManyModels, evaluate_many};
pub use model::{BoxError, EncodeProgress, LanguageModel};
pub use positions::{Compared, PositionOptions, PositionScore, score_positions};
pub use report::{Comparison, EvalReport, Outcome, Protocol, SequenceLength, Side};
pub use scorer::{Answer, ProgramGrader, SCORERS, Scorer, Scorers, scorer, scorer_of};
