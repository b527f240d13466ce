//! What the quantisation of each block does to the final logits.

use crate::PipelineError;
use crate::events::{Event, Events};
use crate::layout::Layout;
use ndarray::ArrayViewMut2;
use quant_eval::{BoxError, EvalError, EvalReport, ManyModels, Phase, evaluate_many};
use quant_graph::BlockSource;
use quant_kernels::{Compute, Par, PreparedWeight, return_freed_memory};
use quant_model::{RowStore, normed};
use std::ops::Range;

/// Models that share embedding, final norm and head.
struct Streams<'a> {
    source: &'a mut dyn BlockSource,
    /// Behind the final norm.
    hidden: Vec<RowStore>,
    panel: Option<PreparedWeight<f32>>,
    compute: Compute,
    par: Par,
}

impl ManyModels for Streams<'_> {
    fn vocab_size(&self) -> usize {
        self.source.spec().vocab
    }
    fn count(&self) -> usize {
        self.hidden.len().saturating_sub(1)
    }
    fn panel(&mut self, tokens: Range<usize>) -> Result<(), BoxError> {
        // The one before goes before the next is read.
        self.panel = None;
        let rows = self.source.head(tokens)?;
        self.panel = Some(PreparedWeight::new(rows.view(), self.compute, self.par));
        Ok(())
    }
    fn logits(
        &mut self,
        which: usize,
        positions: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), BoxError> {
        let (Some(panel), Some(hidden)) = (&self.panel, self.hidden.get(which)) else {
            return Err("no panel of the head was made ready".into());
        };
        panel.forward_into(hidden.read(positions)?.view(), None, out, self.par);
        Ok(())
    }
}

/// What [`evaluate_many`] says of the streams behind the last block, the float model's first.
pub(super) fn score(
    source: &mut dyn BlockSource,
    mut hidden: Vec<RowStore>,
    (sequences, layout): (&[Vec<u32>], &Layout),
    description: &str,
    (compute, par): (Compute, Par),
    events: &mut dyn Events,
) -> Result<Vec<EvalReport>, PipelineError> {
    return_freed_memory();
    let (norm, eps) = (source.final_norm()?, source.spec().norm_eps as f32);
    for store in &mut hidden {
        for chunk in &layout.chunks {
            store.modify::<PipelineError>(layout.rows_of(chunk), |mut rows| {
                let behind = normed(rows.view(), norm.view(), eps, par);
                rows.assign(&behind);
                Ok(())
            })?;
        }
        store.rest();
    }
    let mut streams = Streams { source, hidden, panel: None, compute, par };
    let mut progress = |_: Phase, done: usize, of: usize| {
        events.event(Event::Evaluated { what: "scored position", done, of, inside: 0.0 });
        events.flow()
    };
    match evaluate_many(&mut streams, sequences, description, &mut progress) {
        Err(EvalError::Interrupted) => Err(PipelineError::Interrupted),
        other => Ok(other?),
    }
}
