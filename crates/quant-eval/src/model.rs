//! What evaluation needs to know of a model.

use std::error::Error;
use std::ops::{ControlFlow, Range};

use ndarray::ArrayViewMut2;
use quant_kernels::views::rows_mut;

/// Whatever went wrong inside a model; the message says what and where. The same type as `quant_graph::BoxError`.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Told (steps done, steps in all) while a model encodes, and asked in between whether to go on; from any thread, but never
/// from two at once.
pub type EncodeProgress<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + Send + 'a;

/// A causal language model that can score token sequences. Object safe.
///
/// Scoring is in two steps because a large model streams its blocks: [`encode`](Self::encode) takes all
/// sequences through one block after the other and keeps the hidden states, [`logits`](Self::logits) then
/// multiplies thousands of them with one panel of the head at a time, so that neither the `[tokens, vocabulary]`
/// matrix nor the whole head ever exists. Whoever evaluates walks the panels, so two models can be walked side
/// by side.
pub trait LanguageModel {
    /// Number of logits per position.
    fn vocab_size(&self) -> usize;

    /// Runs all blocks over the sequences, each alone from position 0, and keeps the final normed hidden
    /// states, replacing those of an earlier call. After a `Break` of `progress` it returns as soon as it can, with
    /// an error.
    ///
    /// # Errors
    /// Unreadable weights and the like.
    fn encode(&mut self, sequences: &[Vec<u32>], progress: &mut EncodeProgress<'_>) -> Result<(), BoxError>;

    /// Writes the logits of the tokens `tokens` of the vocabulary at `positions` into `out`
    /// `[positions.len(), tokens.len()]`, whose old content is not read. Positions are counted through all
    /// encoded sequences in reading order; the logits at one predict the token after it. Values must not depend
    /// on how positions and tokens are grouped into calls.
    ///
    /// # Errors
    /// Unreadable weights and the like.
    fn logits(
        &mut self,
        positions: Range<usize>,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), BoxError>;

    /// The same at positions one by one. Values are those of [`logits`](Self::logits).
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    fn logits_at(
        &mut self,
        positions: &[usize],
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), BoxError> {
        let mut first = 0;
        for run in positions.chunk_by(|a, b| a + 1 == *b) {
            let rows = rows_mut(&mut out, first..first + run.len());
            self.logits(run[0]..run[0] + run.len(), tokens.clone(), rows)?;
            first += run.len();
        }
        Ok(())
    }
}
