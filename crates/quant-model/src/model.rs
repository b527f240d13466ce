//! Evaluation of a whole model with one block in memory at a time.

use crate::error::expect_shape;
use crate::ops::norm::normed;
use crate::{Arithmetic, Block, ModelError, RopeTables, RowStore, StoredRows};
use ndarray::{Array2, ArrayViewMut2, Axis};
use quant_graph::{BlockSource, ModelSpec};
use quant_kernels::{Par, PreparedWeight, tasks, views};
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
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
/// and dropped. Hidden states of all tokens are kept, `4 · hidden` bytes per token, in memory or on disk
/// ([`Self::spilled_to`]).
#[derive(Debug)]
pub struct StreamedModel<S> {
    source: S,
    run: Run,
}

/// Everything about a [`StreamedModel`] but where it is read from: of no type of its users', so that it is compiled once.
#[derive(Debug)]
struct Run {
    spec: ModelSpec,
    arithmetic: Arithmetic,
    par: Par,
    /// Folder for hidden states that should not stay in memory.
    spill: Option<PathBuf>,
    /// After the final norm, `[tokens, hidden]`, all sequences one after the other.
    hidden: Option<RowStore>,
    /// Of hidden states on disk, the rows that met the head last.
    held: Option<(Range<usize>, Array2<f32>)>,
    /// First row of every sequence, and the number of rows at the end.
    starts: Vec<usize>,
    first_non_finite: Option<NonFinite>,
}

impl<S: BlockSource> StreamedModel<S> {
    /// A model that reads from `source`, with this arithmetic in its linears and head.
    #[must_use]
    pub fn new(source: S, arithmetic: impl Into<Arithmetic>, par: Par) -> Self {
        let run = Run {
            spec: source.spec().clone(),
            arithmetic: arithmetic.into(),
            par,
            spill: None,
            hidden: None,
            held: None,
            starts: vec![0],
            first_non_finite: None,
        };
        Self { source, run }
    }
    /// Keeps hidden states in an unnamed file of this folder instead of memory. Results are the same.
    #[must_use]
    pub fn spilled_to(mut self, folder: Option<PathBuf>) -> Self {
        self.run.spill = folder;
        self
    }
    /// The shape of the model.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.run.spec
    }
    /// Width of the logits.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.run.spec.vocab
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
        self.run.first_non_finite
    }
    /// Hidden states of a sequence after the final norm, `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`ModelError::Range`] for a sequence that was not encoded; [`ModelError::Store`] for a file that cannot be read.
    pub fn hidden(&self, sequence: usize) -> Result<StoredRows<'_>, ModelError> {
        match (&self.run.hidden, self.run.rows_of(sequence)) {
            (Some(hidden), Some(rows)) => Ok(hidden.read(rows)?),
            _ => Err(self.run.out_of_range(sequence, 0..0)),
        }
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
        self.run.encode(&mut self.source, sequences, progress)
    }

    /// Logits `[positions, vocab]` of positions `range` of a sequence given to the last [`Self::encode`]. Reads the whole
    /// head: for many sequences, walk its panels with [`Self::logits_into`].
    ///
    /// # Errors
    /// As of [`Self::logits_into`].
    pub fn logits(&mut self, sequence: usize, range: Range<usize>) -> Result<Array2<f32>, ModelError> {
        self.run.logits(&mut self.source, sequence, range)
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
        self.run.logits_into(&mut self.source, positions, tokens, out)
    }

    /// The same at positions in any order, as many as it takes: those whose predictions matter.
    ///
    /// # Errors
    /// As [`Self::logits_into`].
    pub fn logits_at(
        &mut self,
        positions: &[usize],
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), ModelError> {
        self.run.logits_at(&mut self.source, positions, tokens, out)
    }
}

impl Run {
    fn out_of_range(&self, sequence: usize, range: Range<usize>) -> ModelError {
        ModelError::Range {
            sequence,
            start: range.start,
            end: range.end,
            available: match self.starts.len() - 1 {
                encoded if sequence < encoded => {
                    format!("it has {} positions", self.rows_of(sequence).unwrap_or_default().len())
                }
                encoded => format!("{encoded} sequences were encoded"),
            },
        }
    }
    /// Positions of a sequence, counted through all of them.
    fn rows_of(&self, sequence: usize) -> Option<Range<usize>> {
        Some(*self.starts.get(sequence)?..*self.starts.get(sequence + 1)?)
    }

    fn encode(
        &mut self,
        source: &mut dyn BlockSource,
        sequences: &[Vec<u32>],
        progress: &mut EncodeProgress<'_>,
    ) -> Result<(), ModelError> {
        (self.starts, self.hidden, self.held) = (vec![0], None, None);
        self.first_non_finite = None;
        self.check_tokens(sequences)?;
        let starts = starts_of(sequences.iter().map(Vec::len));
        let rows_of = |sequences: &Range<usize>| starts[sequences.start]..starts[sequences.end];
        let mut hidden =
            RowStore::new(starts[sequences.len()], self.spec.hidden, self.spill.as_deref(), self.par)?;
        for (sequence, ids) in sequences.iter().enumerate() {
            let embedded = source.embed(ids)?;
            expect_shape(ModelSpec::EMBEDDING, &[ids.len(), self.spec.hidden], embedded.shape())?;
            hidden.overwrite::<ModelError>(rows_of(&(sequence..sequence + 1)), |mut rows| {
                rows.assign(&embedded);
                Ok(())
            })?;
        }
        let rope = RopeTables::new(&self.spec, sequences.iter().map(Vec::len));
        let groups = groups(&starts, hidden.is_spilled(), self.par.threads());
        let steps = Steps::new(progress, self.spec.layers * sequences.len());
        steps.add(0)?;
        for index in 0..self.spec.layers {
            let params = source.block(index)?;
            let block = Block::<f32>::new(&self.spec, index, params, self.arithmetic.clone(), self.par)?;
            for group in &groups {
                hidden.modify::<ModelError>(rows_of(group), |rows| {
                    let parts = by_sequence(rows, &starts[group.start..=group.end]);
                    let bad = run_block(&block, &rope, parts, &steps, self.par)?;
                    let found = bad.map(|i| NonFinite { block: index, sequence: group.start + i });
                    self.first_non_finite = self.first_non_finite.or(found);
                    Ok(())
                })?;
            }
        }
        let weight = source.final_norm()?;
        expect_shape(ModelSpec::FINAL_NORM, &[self.spec.hidden], weight.shape())?;
        let eps = self.spec.norm_eps as f32;
        for sequence in 0..sequences.len() {
            hidden.modify::<ModelError>(rows_of(&(sequence..sequence + 1)), |mut rows| {
                let normed = normed(rows.view(), weight.view(), eps, self.par);
                rows.assign(&normed);
                Ok(())
            })?;
        }
        (self.hidden, self.starts) = (Some(hidden), starts);
        Ok(())
    }

    fn logits(
        &mut self,
        source: &mut dyn BlockSource,
        sequence: usize,
        range: Range<usize>,
    ) -> Result<Array2<f32>, ModelError> {
        let rows = self.rows_of(sequence).unwrap_or_default();
        if sequence + 1 >= self.starts.len() || range.start > range.end || range.end > rows.len() {
            return Err(self.out_of_range(sequence, range));
        }
        let positions = rows.start + range.start..rows.start + range.end;
        let mut logits = Array2::zeros((range.len(), self.spec.vocab));
        for start in (0..self.spec.vocab).step_by(HEAD_PANEL) {
            let tokens = start..(start + HEAD_PANEL).min(self.spec.vocab);
            let out = views::columns_mut(&mut logits, tokens.clone());
            self.logits_into(source, positions.clone(), tokens, out)?;
        }
        Ok(logits)
    }

    fn logits_into(
        &mut self,
        source: &mut dyn BlockSource,
        positions: Range<usize>,
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), ModelError> {
        let panel = self.head_panel(source, positions.end, positions.len(), &tokens, out.shape())?;
        let Some(hidden) = &self.hidden else { return Ok(()) };
        if hidden.is_spilled() {
            // The same positions meet one panel after the other.
            let held = match self.held.take() {
                Some((rows, held)) if rows == positions => held,
                _ => hidden.read(positions.clone())?.into_owned(),
            };
            panel.forward_into(held.view(), None, out, self.par);
            self.held = Some((positions, held));
        } else {
            panel.forward_into(hidden.read(positions)?.view(), None, out, self.par);
        }
        Ok(())
    }

    fn logits_at(
        &mut self,
        source: &mut dyn BlockSource,
        positions: &[usize],
        tokens: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), ModelError> {
        let end = positions.iter().max().map_or(0, |last| last + 1);
        let panel = self.head_panel(source, end, positions.len(), &tokens, out.shape())?;
        let Some(hidden) = &self.hidden else { return Ok(()) };
        let mut rows = Array2::zeros((positions.len(), self.spec.hidden));
        let mut first = 0;
        for run in positions.chunk_by(|a, b| a + 1 == *b) {
            let from = hidden.read(run[0]..run[0] + run.len())?;
            views::rows_mut(&mut rows, first..first + run.len()).assign(&from);
            first += run.len();
        }
        panel.forward_into(rows.view(), None, out, self.par);
        Ok(())
    }

    /// The rows `tokens` of the head, ready for a product with `count` positions before `end`.
    fn head_panel(
        &self,
        source: &mut dyn BlockSource,
        end: usize,
        count: usize,
        tokens: &Range<usize>,
        out: &[usize],
    ) -> Result<PreparedWeight<f32>, ModelError> {
        let encoded = self.hidden.as_ref().map_or(0, RowStore::rows);
        let inside = [end.min(encoded), tokens.end.min(self.spec.vocab)];
        expect_shape("last position and token of a panel of logits", &[end, tokens.end], &inside)?;
        expect_shape("panel of logits", &[count, tokens.len()], out)?;
        let values = source.head(tokens.clone())?;
        expect_shape(ModelSpec::HEAD, &[tokens.len(), self.spec.hidden], values.shape())?;
        Ok(PreparedWeight::new(values.view(), self.arithmetic.compute, self.par))
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
    let non_finite: Mutex<Option<usize>> = Mutex::new(None);
    tasks::try_for_each(hidden.into_iter().enumerate(), outer, |(sequence, mut h)| {
        steps.add(0)?;
        let go_on = || steps.add(0);
        let output = block.forward_while(h.to_owned(), rope.table(h.nrows()), &go_on, inner)?;
        steps.add(1)?;
        if !all_finite(&output) {
            let mut first = non_finite.lock().unwrap_or_else(PoisonError::into_inner);
            *first = Some(first.map_or(sequence, |s| s.min(sequence)));
        }
        h.assign(&output);
        Ok::<(), ModelError>(())
    })?;
    Ok(non_finite.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The most rows of hidden states in memory at a time while sequences of these lengths run on so many threads with hidden
/// states on disk ([`StreamedModel::spilled_to`]).
#[must_use]
pub fn spilled_rows_at_once(lengths: &[usize], threads: usize) -> usize {
    let starts = starts_of(lengths.iter().copied());
    groups(&starts, true, threads).iter().map(|g| starts[g.end] - starts[g.start]).max().unwrap_or(0)
}

/// First row of every sequence, and the number of rows at the end.
fn starts_of(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let ends = lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// Sequences that go through a block together: all, or of those on disk enough to keep every thread at work.
fn groups(starts: &[usize], spilled: bool, threads: usize) -> Vec<Range<usize>> {
    const ROWS: usize = 1024;
    let all = starts.len() - 1;
    let (mut groups, mut first) = (Vec::new(), 0);
    for next in 1..=all {
        let enough = next - first >= threads && starts[next] - starts[first] >= ROWS;
        if next == all || (spilled && enough) {
            groups.push(first..next);
            first = next;
        }
    }
    groups
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
