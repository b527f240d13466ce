//! Evaluation of a whole model with one block in memory at a time.

use crate::block::normed;
use crate::parallel::for_each;
use crate::{Block, ModelError, RopeTables, views};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_graph::{BlockSource, ModelSpec};
use quant_kernels::{Compute, Par, PreparedWeight};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Rows of the head that are multiplied at a time where the caller does not say.
const HEAD_PANEL: usize = 2048;

/// Told (steps done, steps in all) while a model runs, a step being one sequence through one block, and asked in between
/// whether to go on; from any thread, but never from two at once. After `Break` the model stops as soon as it can.
pub type EncodeProgress<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + Send + 'a;

/// Where a hidden state first stopped being finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NonFinite {
    /// The block whose output holds a NaN or an infinity.
    pub block: usize,
    /// The first such sequence after that block.
    pub sequence: usize,
}

/// Runs sequences through a model layer by layer: every block is read once per [`Self::encode`], used on all sequences,
/// and dropped. Hidden states of all tokens are kept, `4 · hidden` bytes per token.
#[derive(Debug)]
pub struct StreamedModel<S> {
    source: S,
    spec: ModelSpec,
    compute: Compute,
    par: Par,
    /// After the final norm, `[tokens, hidden]`, all sequences one after the other.
    hidden: Array2<f32>,
    /// First row of every sequence, and the number of rows at the end.
    starts: Vec<usize>,
    first_non_finite: Option<NonFinite>,
}

impl<S: BlockSource> StreamedModel<S> {
    /// A model that reads from `source`, with the arithmetic `compute` in its linears and head.
    #[must_use]
    pub fn new(source: S, compute: Compute, par: Par) -> Self {
        let spec = source.spec().clone();
        Self {
            source,
            spec,
            compute,
            par,
            hidden: Array2::zeros((0, 0)),
            starts: vec![0],
            first_non_finite: None,
        }
    }
    /// The shape of the model.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    /// Width of the logits.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.spec.vocab
    }
    /// The source it reads from.
    pub fn source_mut(&mut self) -> &mut S {
        &mut self.source
    }
    /// Gives the source back.
    #[must_use]
    pub fn into_source(self) -> S {
        self.source
    }
    /// The first block and sequence of the last [`Self::encode`] whose hidden states were not finite. Such a model has
    /// collapsed; its logits are NaN where it did, and the other sequences are unaffected.
    #[must_use]
    pub fn first_non_finite(&self) -> Option<NonFinite> {
        self.first_non_finite
    }
    /// Hidden states of a sequence after the final norm, `[tokens, hidden]`.
    #[must_use]
    pub fn hidden(&self, sequence: usize) -> Option<ArrayView2<'_, f32>> {
        let rows = self.rows_of(sequence)?;
        Some(views::rows(self.hidden.view(), rows))
    }
    /// Positions of a sequence, counted through all of them.
    fn rows_of(&self, sequence: usize) -> Option<Range<usize>> {
        Some(*self.starts.get(sequence)?..*self.starts.get(sequence + 1)?)
    }

    /// Runs all sequences through all blocks, each sequence alone from position 0. Replaces what an earlier call left.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] after `progress` has said `Break`; [`ModelError::Token`] before anything is read; [`ModelError::Source`], [`ModelError::Shape`],
    /// [`ModelError::Part`] or [`ModelError::MissingLinear`] for a source that does not hold what its spec says.
    pub fn encode(
        &mut self,
        sequences: &[Vec<u32>],
        progress: &mut EncodeProgress<'_>,
    ) -> Result<(), ModelError> {
        self.starts = vec![0];
        self.first_non_finite = None;
        self.check_tokens(sequences)?;
        let mut starts = vec![0];
        for ids in sequences {
            starts.push(starts[starts.len() - 1] + ids.len());
        }
        let mut hidden = Array2::zeros((starts[sequences.len()], self.spec.hidden));
        for (ids, rows) in sequences.iter().zip(by_sequence(hidden.view_mut(), &starts)) {
            let embedded = self.source.embed(ids)?;
            expect_shape(ModelSpec::EMBEDDING, rows.shape(), embedded.shape())?;
            { rows }.assign(&embedded);
        }
        let rope = RopeTables::new(&self.spec, sequences.iter().map(Vec::len));
        let steps = Steps::new(progress, self.spec.layers * sequences.len());
        steps.add(0)?;
        for index in 0..self.spec.layers {
            let params = self.source.block(index)?;
            let block = Block::<f32>::new(&self.spec, index, params, self.compute, self.par)?;
            let parts = by_sequence(hidden.view_mut(), &starts);
            let bad = run_block(&block, &rope, parts, &steps, self.par)?;
            let found = bad.map(|sequence| NonFinite { block: index, sequence });
            self.first_non_finite = self.first_non_finite.or(found);
        }
        let weight = self.source.final_norm()?;
        expect_shape(ModelSpec::FINAL_NORM, &[self.spec.hidden], weight.shape())?;
        let eps = self.spec.norm_eps as f32;
        for mut rows in by_sequence(hidden.view_mut(), &starts) {
            let normed = normed(rows.view(), weight.view(), eps, self.par);
            rows.assign(&normed);
        }
        (self.hidden, self.starts) = (hidden, starts);
        Ok(())
    }

    /// Logits `[positions, vocab]` of positions `range` of a sequence given to the last [`Self::encode`]. Reads the whole
    /// head: for many sequences, walk its panels with [`Self::logits_into`].
    ///
    /// # Errors
    /// As of [`Self::logits_into`].
    pub fn logits(&mut self, sequence: usize, range: Range<usize>) -> Result<Array2<f32>, ModelError> {
        let rows = self.rows_of(sequence).unwrap_or_default();
        if sequence + 1 >= self.starts.len() || range.start > range.end || range.end > rows.len() {
            return Err(ModelError::Range {
                sequence,
                start: range.start,
                end: range.end,
                available: match self.starts.len() - 1 {
                    encoded if sequence < encoded => format!("it has {} positions", rows.len()),
                    encoded => format!("{encoded} sequences were encoded"),
                },
            });
        }
        let positions = rows.start + range.start..rows.start + range.end;
        let mut logits = Array2::zeros((range.len(), self.spec.vocab));
        for start in (0..self.spec.vocab).step_by(HEAD_PANEL) {
            let tokens = start..(start + HEAD_PANEL).min(self.spec.vocab);
            let out = views::columns_mut(&mut logits, tokens.clone());
            self.logits_into(positions.clone(), tokens, out)?;
        }
        Ok(logits)
    }

    /// Writes the logits of the tokens `tokens` of the vocabulary at `positions` into `out` `[positions, tokens]`, whose old
    /// content is not read. Positions are counted through all sequences of the last [`Self::encode`], one after the other.
    /// The rows of the head are read and prepared once per call, so many positions share what that costs.
    ///
    /// # Errors
    /// [`ModelError::Shape`] for positions that were not encoded, tokens outside the vocabulary or an `out` of another shape;
    /// [`ModelError::Source`] or [`ModelError::Shape`] if the head cannot be read.
    pub fn logits_into(
        &mut self,
        positions: Range<usize>,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), ModelError> {
        let inside = [positions.end.min(self.hidden.nrows()), tokens.end.min(self.spec.vocab)];
        expect_shape("last position and token of a panel of logits", &[positions.end, tokens.end], &inside)?;
        expect_shape("panel of logits", &[positions.len(), tokens.len()], out.shape())?;
        let values = self.source.head(tokens.clone())?;
        expect_shape(ModelSpec::HEAD, &[tokens.len(), self.spec.hidden], values.shape())?;
        let panel = PreparedWeight::<f32>::new(values.view(), self.compute, self.par);
        drop(values);
        panel.forward_into(views::rows(self.hidden.view(), positions), None, out, self.par);
        Ok(())
    }

    fn check_tokens(&self, sequences: &[Vec<u32>]) -> Result<(), ModelError> {
        let vocab = self.spec.vocab;
        for (sequence, ids) in sequences.iter().enumerate() {
            if let Some((position, &token)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= vocab) {
                return Err(ModelError::Token { token, vocab, sequence, position });
            }
        }
        Ok(())
    }
}

/// Counts steps for whoever watches, and hears when they want no more.
struct Steps<'a, 'b> {
    watcher: Mutex<(usize, &'a mut EncodeProgress<'b>)>,
    total: usize,
    stopped: AtomicBool,
}

impl<'a, 'b> Steps<'a, 'b> {
    fn new(progress: &'a mut EncodeProgress<'b>, total: usize) -> Self {
        Self { watcher: Mutex::new((0, progress)), total, stopped: AtomicBool::new(false) }
    }
    /// Reports `count` more steps, or with 0 only asks whether to go on.
    fn add(&self, count: usize) -> Result<(), ModelError> {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, progress) = &mut *watcher;
        *done += count;
        // Asked no more once it was answered.
        if self.stopped.load(Ordering::Relaxed) || progress(*done, self.total).is_break() {
            self.stopped.store(true, Ordering::Relaxed);
            return Err(ModelError::Stopped);
        }
        Ok(())
    }
}

/// Runs a block on every sequence; returns the first whose output is not finite.
fn run_block(
    block: &Block<f32>,
    rope: &RopeTables,
    hidden: Vec<ArrayViewMut2<'_, f32>>,
    steps: &Steps<'_, '_>,
    par: Par,
) -> Result<Option<usize>, ModelError> {
    // With a sequence or more per thread, whole sequences in parallel beat threads inside each of them. Both compute
    // the same bits.
    let (outer, inner) = if hidden.len() >= par.threads() { (par, Par::Seq) } else { (Par::Seq, par) };
    let failed: Mutex<BTreeMap<usize, ModelError>> = Mutex::new(BTreeMap::new());
    let non_finite: Mutex<Option<usize>> = Mutex::new(None);
    let tasks = hidden.into_iter().enumerate().collect();
    for_each(
        tasks,
        outer,
        || (),
        |(), (sequence, mut h): (usize, ArrayViewMut2<'_, f32>)| match steps
            .add(0)
            .and_then(|()| block.forward_while(h.to_owned(), rope.table(h.nrows()), &|| steps.add(0), inner))
            .and_then(|output| steps.add(1).map(|()| output))
        {
            Ok(output) => {
                if !all_finite(&output) {
                    let mut first = non_finite.lock().unwrap_or_else(PoisonError::into_inner);
                    *first = Some(first.map_or(sequence, |s| s.min(sequence)));
                }
                h.assign(&output);
            }
            Err(error) => {
                failed.lock().unwrap_or_else(PoisonError::into_inner).insert(sequence, error);
            }
        },
    );
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner).pop_first() {
        Some((_, error)) => Err(error),
        None => Ok(non_finite.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// Rows of a matrix, sequence by sequence.
fn by_sequence<'a>(hidden: ArrayViewMut2<'a, f32>, starts: &[usize]) -> Vec<ArrayViewMut2<'a, f32>> {
    let mut rest = hidden;
    let mut parts = Vec::with_capacity(starts.len());
    for pair in starts.windows(2) {
        let (rows, below) = rest.split_at(Axis(0), pair[1] - pair[0]);
        parts.push(rows);
        rest = below;
    }
    parts
}

fn all_finite(x: &Array2<f32>) -> bool {
    quant_core::matrix::check_finite(x.view()).is_ok()
}

fn expect_shape(what: &str, expected: &[usize], found: &[usize]) -> Result<(), ModelError> {
    if expected == found {
        return Ok(());
    }
    Err(ModelError::Shape { what: what.into(), expected: expected.to_vec(), found: found.to_vec() })
}
