//! Many models that share a head, each compared with the first.

use std::ops::Range;

use ndarray::ArrayViewMut2;
use rayon::prelude::*;

use crate::evaluate::{PANEL, Progress, check, go_on, targets, totals};
use crate::rows::Scoring;
use crate::{BoxError, CHUNK, EvalError, EvalReport, Phase, Protocol, Side};

/// Models that are alike but for their final hidden states, which have been computed: number 0 is the reference.
pub trait ManyModels {
    /// Number of logits per position.
    fn vocab_size(&self) -> usize;
    /// How many models there are beside the reference.
    fn count(&self) -> usize;
    /// Makes the rows `tokens` of the common head ready.
    ///
    /// # Errors
    /// Unreadable weights and the like.
    fn panel(&mut self, tokens: Range<usize>) -> Result<(), BoxError>;
    /// Writes the logits of model `which`, of the tokens that were made ready last, at `positions` into `out`
    /// `[positions.len(), tokens.len()]`; positions are counted as in [`LanguageModel::logits`](crate::LanguageModel::logits).
    ///
    /// # Errors
    /// Unreadable hidden states and the like.
    fn logits(
        &mut self,
        which: usize,
        positions: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), BoxError>;
}

/// What [`evaluate`](crate::evaluate) says of each of many models beside the same reference, to the last bit, with the logits of the
/// reference computed and the head read once for all of them. Progress is reported as [`Phase::Score`].
///
/// Holds 160 bytes for each position of a chunk and each model.
///
/// # Errors
/// As [`evaluate`](crate::evaluate).
pub fn evaluate_many(
    models: &mut dyn ManyModels,
    sequences: &[Vec<u32>],
    description: &str,
    progress: &mut Progress<'_>,
) -> Result<Vec<EvalReport>, EvalError> {
    let (vocab_size, count) = (models.vocab_size(), models.count());
    check(sequences, vocab_size, None, CHUNK)?;
    let targets = targets(sequences);
    let all = targets.len();
    go_on(progress(Phase::Score, 0, all))?;
    let buffer = || vec![0.0_f32; all.min(CHUNK) * vocab_size.min(PANEL)];
    let (mut reference, mut own) = (buffer(), buffer());
    let mut scores = vec![Vec::with_capacity(all); count];
    for start in (0..all).step_by(CHUNK) {
        let positions = start..all.min(start + CHUNK);
        let fresh: Vec<Option<Scoring>> =
            targets[positions.clone()].iter().map(|t| t.map(|id| Scoring::new(id, true))).collect();
        let mut rows = vec![fresh; count];
        for first in (0..vocab_size).step_by(PANEL) {
            let tokens = first..vocab_size.min(first + PANEL);
            let width = tokens.len();
            let head = |source| EvalError::Model { side: Side::Reference, stage: "reading the head", source };
            models.panel(tokens.clone()).map_err(head)?;
            logits(models, 0, &positions, width, &mut reference)?;
            for (model, rows) in rows.iter_mut().enumerate() {
                logits(models, model + 1, &positions, width, &mut own)?;
                let (own, reference) = (&own, &reference);
                rows.par_iter_mut().enumerate().for_each(|(row, scoring)| {
                    let range = row * width..(row + 1) * width;
                    if let (Some(scoring), Some(own)) = (scoring, own.get(range.clone())) {
                        scoring.extend(own, reference.get(range));
                    }
                });
            }
            let done = positions.len() * tokens.end / vocab_size;
            go_on(progress(Phase::Score, start + done, all))?;
        }
        for (scores, rows) in scores.iter_mut().zip(&rows) {
            scores.extend(rows.iter().map(|row| row.as_ref().map(Scoring::score)));
        }
    }
    let report = |scores: &Vec<_>| {
        totals(sequences, scores, true).report(Protocol::new(description.to_owned(), sequences))
    };
    Ok(scores.iter().map(report).collect())
}

/// Logits of one panel, in the front of `buffer`.
fn logits(
    models: &mut dyn ManyModels,
    which: usize,
    positions: &Range<usize>,
    width: usize,
    buffer: &mut [f32],
) -> Result<(), EvalError> {
    let side = if which == 0 { Side::Reference } else { Side::Model };
    let failed = |source| EvalError::Model { side, stage: "computing logits", source };
    let shape = (positions.len(), width);
    let out = ArrayViewMut2::from_shape(shape, &mut buffer[..shape.0 * shape.1])
        .map_err(|error| failed(error.into()))?;
    models.logits(which, positions.clone(), out).map_err(failed)
}
