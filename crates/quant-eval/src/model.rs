//! What evaluation needs to know of a model.

use std::error::Error;
use std::ops::Range;

use ndarray::Array2;

/// Whatever went wrong inside a model; the message says what and where.
pub type ModelError = Box<dyn Error + Send + Sync>;

/// A causal language model that can score token sequences. Object safe.
///
/// Scoring is in two steps because a large model streams its blocks: [`encode`](Self::encode) takes all
/// sequences through one block after the other and keeps the hidden states, [`logits`](Self::logits) then
/// multiplies a few of them with the head at a time, so that the `[tokens, vocabulary]` matrix never exists
/// as a whole.
pub trait LanguageModel {
    /// Number of logits per position.
    fn vocab_size(&self) -> usize;

    /// Runs all blocks over the sequences, each alone from position 0, and keeps the final normed hidden
    /// states, replacing those of an earlier call. `progress` receives (steps done, steps in all).
    ///
    /// # Errors
    /// Unreadable weights and the like.
    fn encode(
        &mut self,
        sequences: &[Vec<u32>],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), ModelError>;

    /// Logits `[range.len(), vocab_size]` of one encoded sequence; row `r` predicts the token after position
    /// `range.start + r`. The values must not depend on how positions are grouped into ranges.
    ///
    /// # Errors
    /// Unreadable weights and the like.
    fn logits(&mut self, sequence: usize, range: Range<usize>) -> Result<Array2<f32>, ModelError>;
}
