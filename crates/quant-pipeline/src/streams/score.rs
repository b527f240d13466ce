//! What the exchange of each part does to the final logits.

use crate::PipelineError;
use crate::events::{Event, Events};
use crate::layout::Layout;
use ndarray::ArrayViewMut2;
use quant_eval::{BoxError, EvalError, EvalReport, ManyModels, Phase, evaluate_many};
use quant_graph::BlockSource;
use quant_kernels::{Compute, Par, PreparedWeight, return_freed_memory};
use quant_model::{RowStore, normed};
use std::ops::Range;

/// Whose final norm and head the streams meet.
pub(crate) struct Heads<'a> {
    /// That of the reference, the first stream.
    pub(crate) reference: &'a mut dyn BlockSource,
    /// That of all others; none where it is the reference's.
    pub(crate) others: Option<&'a mut dyn BlockSource>,
}

impl Heads<'_> {
    /// The model whose norm and head stream `which` meets.
    fn of(&mut self, which: usize) -> &mut dyn BlockSource {
        match &mut self.others {
            Some(others) if which > 0 => &mut **others,
            _ => &mut *self.reference,
        }
    }
}

/// Models that share embedding, final norm and head, beside a reference.
struct Streams<'h, 's> {
    heads: Heads<'h>,
    /// Behind the final norm.
    hidden: &'s [RowStore],
    /// Of the reference, then of the others if they have one of their own.
    panels: Vec<PreparedWeight<f32>>,
    compute: Compute,
    par: Par,
}

impl ManyModels for Streams<'_, '_> {
    fn vocab_size(&self) -> usize {
        self.heads.reference.spec().vocab
    }
    fn count(&self) -> usize {
        self.hidden.len().saturating_sub(1)
    }
    fn panel(&mut self, tokens: Range<usize>) -> Result<(), BoxError> {
        // Those before go before the next are read.
        self.panels.clear();
        for which in 0..1 + usize::from(self.heads.others.is_some()) {
            let rows = self.heads.of(which).head(tokens.clone())?;
            self.panels.push(PreparedWeight::new(rows.view(), self.compute, self.par));
        }
        Ok(())
    }
    fn logits(
        &mut self,
        which: usize,
        positions: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), BoxError> {
        let panel = if which == 0 { self.panels.first() } else { self.panels.last() };
        let (Some(panel), Some(hidden)) = (panel, self.hidden.get(which)) else {
            return Err("no panel of the head was made ready".into());
        };
        panel.forward_into(hidden.read(positions)?.view(), None, out, self.par);
        Ok(())
    }
}

/// What [`evaluate_many`] says of the streams `hidden` behind the last block, the reference first. They are behind the final norm
/// afterwards; the first `normed_already` of them were before.
pub(crate) fn score(
    mut heads: Heads<'_>,
    (hidden, normed_already): (&mut [RowStore], usize),
    (sequences, layout): (&[Vec<u32>], &Layout),
    description: &str,
    (compute, par): (Compute, Par),
    events: &mut dyn Events,
) -> Result<Vec<EvalReport>, PipelineError> {
    return_freed_memory();
    for (which, store) in hidden.iter_mut().enumerate().skip(normed_already) {
        let source = heads.of(which);
        let (norm, eps) = (source.final_norm()?, source.spec().norm_eps as f32);
        for chunk in &layout.chunks {
            store.modify::<PipelineError>(layout.rows_of(chunk), |mut rows| {
                let behind = normed(rows.view(), norm.view(), eps, par);
                rows.assign(&behind);
                Ok(())
            })?;
        }
        store.rest();
    }
    let mut streams = Streams { heads, hidden, panels: Vec::new(), compute, par };
    let mut progress = |_: Phase, done: usize, of: usize| {
        events.event(Event::Evaluated { what: "scored position", done, of, inside: 0.0 });
        events.flow()
    };
    match evaluate_many(&mut streams, sequences, description, &mut progress) {
        Err(EvalError::Interrupted) => Err(PipelineError::Interrupted),
        other => Ok(other?),
    }
}
