//! Where a run's work goes: finished blocks, and what it takes to go on after a break.

use crate::PipelineError;
use ndarray::ArrayView2;
use quant_graph::{BlockParams, Outer};

/// Where finished blocks go: a folder writer, a model in memory.
pub trait BlockSink: Send {
    /// Takes block `index`; blocks arrive in order.
    ///
    /// # Errors
    /// If it cannot be kept; [`PipelineError::Sink`] holds any error that is none of ours.
    fn block(&mut self, index: usize, block: BlockParams) -> Result<(), PipelineError>;
    /// Hears of a block that is still to come, or came before a break, that it is stored as the plan's
    /// [fallback](crate::Plan::fallbacks) says.
    fn fell_back(&mut self, index: usize) {
        let _ = index;
    }
    /// Copies a part outside the blocks that the source has stored as it is, or says that it wants its numbers. All parts
    /// come after the blocks: embedding, final norm, and the head unless the output is tied; of a tied source that is the
    /// embedding once more.
    ///
    /// # Errors
    /// If it cannot be kept.
    fn copy_stored(&mut self, what: Outer) -> Result<bool, PipelineError> {
        let _ = what;
        Ok(false)
    }
    /// Takes rows `[rows, hidden]` of a part outside the blocks, the first of which is row `first` of it; they come in order,
    /// all of them, and the final norm is one row. Of a table that is quantised they are the rounded values.
    ///
    /// # Errors
    /// If they cannot be kept.
    fn outer_rows(
        &mut self,
        what: Outer,
        first: usize,
        rows: ArrayView2<'_, f32>,
    ) -> Result<(), PipelineError>;
    /// Whether it has a part outside the blocks from before, so that it need not come again.
    fn has(&self, what: Outer) -> bool {
        let _ = what;
        false
    }
    /// Where the run keeps what it takes to go on after a break; none where there is no going on.
    fn keeper(&mut self) -> Option<&mut dyn Keeper> {
        None
    }
}

/// Keeps the frames of a run's journal: each a piece of its state in bytes, believed only together with the others of its
/// record, and only once that is durable.
pub trait Keeper: Send {
    /// Begins anew: the frames of the next record, and those of later ones, are all there is to know.
    ///
    /// # Errors
    /// If it cannot be written, as for the following.
    fn begin(&mut self) -> Result<(), PipelineError>;
    /// Adds a frame to the record.
    ///
    /// # Errors
    /// See [`Keeper::begin`].
    fn add(&mut self, frame: Vec<u8>) -> Result<(), PipelineError>;
    /// Closes the record, which is to become durable together with every block taken so far.
    ///
    /// # Errors
    /// See [`Keeper::begin`].
    fn commit(&mut self) -> Result<(), PipelineError>;
    /// Waits until every record is durable.
    ///
    /// # Errors
    /// See [`Keeper::begin`].
    fn settle(&mut self) -> Result<(), PipelineError>;
    /// How many frames an earlier run left.
    fn frames(&self) -> usize;
    /// At most `bytes` from the beginning of one of them.
    ///
    /// # Errors
    /// If it cannot be read.
    fn beginning(&self, frame: usize, bytes: u64) -> Result<Vec<u8>, PipelineError>;
    /// The error of a frame that makes no sense.
    fn senseless(&self, detail: String) -> PipelineError;
}
