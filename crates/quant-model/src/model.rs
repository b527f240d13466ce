//! Evaluation of a whole model with one block in memory at a time.

use crate::block::normed;
use crate::parallel::for_each;
use crate::{Block, ModelError, RopeTable, views};
use ndarray::{Array2, ArrayView2};
use quant_graph::{BlockSource, ModelSpec, RopeScaling, RopeSpec};
use quant_kernels::{Compute, Par, PreparedWeight};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Rows of the head that are multiplied at a time.
const HEAD_PANEL: usize = 8192;
/// Bytes of prepared head panels that are kept by default; the rest is read again for every call.
const HEAD_BUDGET: usize = 256 << 20;

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
    head_budget: usize,
    /// The first panels of the head, as many as fit the budget.
    panels: Vec<PreparedWeight<f32>>,
    /// After the final norm, `[tokens, hidden]` per sequence.
    hidden: Vec<Array2<f32>>,
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
            head_budget: HEAD_BUDGET,
            panels: Vec::new(),
            hidden: Vec::new(),
            first_non_finite: None,
        }
    }
    /// Keeps at most `bytes` of the head in memory, 256 MiB unless set: more saves reading it again where logits of many
    /// sequences are asked for, less suits a machine that is nearly full.
    #[must_use]
    pub fn with_head_budget(mut self, bytes: usize) -> Self {
        self.head_budget = bytes;
        self
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
        self.hidden.get(sequence).map(|h| h.view())
    }

    /// Runs all sequences through all blocks, each sequence alone from position 0. Replaces what an earlier call left.
    /// `progress` gets blocks done and blocks in total, first `(0, total)`.
    ///
    /// # Errors
    /// [`ModelError::Token`] before anything is read; [`ModelError::Source`], [`ModelError::Shape`],
    /// [`ModelError::Part`] or [`ModelError::MissingLinear`] for a source that does not hold what its spec says.
    pub fn encode(
        &mut self,
        sequences: &[Vec<u32>],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), ModelError> {
        self.hidden.clear();
        self.first_non_finite = None;
        self.check_tokens(sequences)?;
        let mut hidden = Vec::with_capacity(sequences.len());
        for ids in sequences {
            let rows = self.source.embed(ids)?;
            expect_shape(ModelSpec::EMBEDDING, &[ids.len(), self.spec.hidden], rows.shape())?;
            hidden.push(rows);
        }
        let rope = RopeTables::new(&self.spec, sequences.iter().map(Vec::len));
        progress(0, self.spec.layers);
        for index in 0..self.spec.layers {
            let params = self.source.block(index)?;
            let block = Block::<f32>::new(&self.spec, index, params, self.compute, self.par)?;
            let bad = run_block(&block, &rope, &mut hidden, self.par)?;
            let found = bad.map(|sequence| NonFinite { block: index, sequence });
            self.first_non_finite = self.first_non_finite.or(found);
            progress(index + 1, self.spec.layers);
        }
        let weight = self.source.final_norm()?;
        expect_shape(ModelSpec::FINAL_NORM, &[self.spec.hidden], weight.shape())?;
        let eps = self.spec.norm_eps as f32;
        for h in &mut hidden {
            *h = normed(h.view(), weight.view(), eps, self.par);
        }
        self.hidden = hidden;
        Ok(())
    }

    /// Logits `[positions, vocab]` of positions `range` of a sequence given to the last [`Self::encode`].
    ///
    /// # Errors
    /// [`ModelError::Range`] for a sequence or position that was not encoded; [`ModelError::Source`] or
    /// [`ModelError::Shape`] if the head cannot be read.
    pub fn logits(&mut self, sequence: usize, range: Range<usize>) -> Result<Array2<f32>, ModelError> {
        let tokens = self.hidden.get(sequence).map_or(0, Array2::nrows);
        if sequence >= self.hidden.len() || range.start > range.end || range.end > tokens {
            return Err(ModelError::Range {
                sequence,
                start: range.start,
                end: range.end,
                available: if sequence < self.hidden.len() {
                    format!("it has {tokens} positions")
                } else {
                    format!("{} sequences were encoded", self.hidden.len())
                },
            });
        }
        let mut logits = Array2::zeros((range.len(), self.spec.vocab));
        for (number, start) in (0..self.spec.vocab).step_by(HEAD_PANEL).enumerate() {
            let rows = start..(start + HEAD_PANEL).min(self.spec.vocab);
            let mut read = None;
            if number >= self.panels.len() {
                let panel = self.read_panel(rows.clone())?;
                // Panels are kept in order, so that the number of a panel is its place.
                if number == self.panels.len() && self.kept_bytes(number + 1) <= self.head_budget {
                    self.panels.push(panel);
                } else {
                    read = Some(panel);
                }
            }
            let x = views::rows(self.hidden[sequence].view(), range.clone());
            if let Some(panel) = read.as_ref().or_else(|| self.panels.get(number)) {
                panel.forward_into(x, None, views::columns_mut(&mut logits, rows), self.par);
            }
        }
        Ok(logits)
    }

    fn kept_bytes(&self, panels: usize) -> usize {
        (panels * HEAD_PANEL).min(self.spec.vocab) * self.spec.hidden * size_of::<f32>()
    }
    fn read_panel(&mut self, rows: Range<usize>) -> Result<PreparedWeight<f32>, ModelError> {
        let values = self.source.head(rows.clone())?;
        expect_shape(ModelSpec::HEAD, &[rows.len(), self.spec.hidden], values.shape())?;
        Ok(PreparedWeight::new(values.view(), self.compute, self.par))
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

/// Runs a block on every sequence; returns the first whose output is not finite.
fn run_block(
    block: &Block<f32>,
    rope: &RopeTables,
    hidden: &mut [Array2<f32>],
    par: Par,
) -> Result<Option<usize>, ModelError> {
    // With a sequence or more per thread, whole sequences in parallel beat threads inside each of them. Both compute
    // the same bits.
    let (outer, inner) = if hidden.len() >= par.threads() { (par, Par::Seq) } else { (Par::Seq, par) };
    let failed: Mutex<BTreeMap<usize, ModelError>> = Mutex::new(BTreeMap::new());
    let non_finite: Mutex<Option<usize>> = Mutex::new(None);
    let tasks = hidden.iter_mut().enumerate().collect();
    for_each(
        tasks,
        outer,
        || (),
        |(), (sequence, h): (usize, &mut Array2<f32>)| {
            let tokens = h.nrows();
            match block.forward(std::mem::take(h), rope.table(tokens), inner) {
                Ok(output) => {
                    if !all_finite(&output) {
                        let mut first = non_finite.lock().unwrap_or_else(PoisonError::into_inner);
                        *first = Some(first.map_or(sequence, |s| s.min(sequence)));
                    }
                    *h = output;
                }
                Err(error) => {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).insert(sequence, error);
                }
            }
        },
    );
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner).pop_first() {
        Some((_, error)) => Err(error),
        None => Ok(non_finite.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

fn all_finite(x: &Array2<f32>) -> bool {
    quant_core::matrix::check_finite(x.view()).is_ok()
}

/// One table for all lengths, unless the frequencies depend on the length.
struct RopeTables {
    shared: RopeTable<f32>,
    /// By length, for lengths beyond the declared context under dynamic scaling.
    own: BTreeMap<usize, RopeTable<f32>>,
}

impl RopeTables {
    fn new(spec: &ModelSpec, lengths: impl Iterator<Item = usize> + Clone) -> Self {
        let dynamic = matches!(spec.rope, RopeSpec { scaling: RopeScaling::Dynamic { .. }, .. });
        let limit = if dynamic { spec.max_position_embeddings } else { usize::MAX };
        let build = |length| RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, length);
        Self {
            shared: build(lengths.clone().filter(|&n| n <= limit).max().unwrap_or(0)),
            own: lengths.filter(|&n| n > limit).map(|n| (n, build(n))).collect(),
        }
    }
    fn table(&self, length: usize) -> &RopeTable<f32> {
        self.own.get(&length).unwrap_or(&self.shared)
    }
}

fn expect_shape(what: &str, expected: &[usize], found: &[usize]) -> Result<(), ModelError> {
    if expected == found {
        return Ok(());
    }
    Err(ModelError::Shape { what: what.into(), expected: expected.to_vec(), found: found.to_vec() })
}
