//! The evaluation loop.

use std::ops::{ControlFlow, Range};

use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use crate::rows::{RowScore, Scoring};
use crate::{BoxError, Comparison, EvalError, EvalReport, LanguageModel, Outcome, Protocol, Side};

/// Tokens of the vocabulary whose logits exist at a time. Sums are cut here, so it is part of the protocol and no setting.
pub(crate) const PANEL: usize = 2048;
/// Positions scored at a time unless set: enough that reading and preparing a panel of the head costs little beside its
/// product.
pub const CHUNK: usize = 8192;

/// Receives logits as they are computed: positions, counted through all sequences in reading order, tokens of the
/// vocabulary, and the logits `[positions, tokens]`. Calls cover every position, those that predict nothing included.
pub type LogitsSink<'a> =
    dyn FnMut(Range<usize>, Range<usize>, ArrayView2<'_, f32>) -> Result<(), BoxError> + 'a;

/// Bytes of the logits of one model that exist at a time, for `positions` in all scored in chunks of `chunk`.
#[must_use]
pub fn panel_bytes(positions: usize, chunk: usize, vocab_size: usize) -> usize {
    size_of::<f32>() * positions.min(chunk) * vocab_size.min(PANEL)
}

/// Called with phase, steps done and steps in all, from any thread but never from two at once. `Break` ends the evaluation with
/// [`EvalError::Interrupted`]: after the panel that is being scored, or as soon as [`LanguageModel::encode`] returns.
pub type Progress<'a> = dyn FnMut(Phase, usize, usize) -> ControlFlow<()> + Send + 'a;

/// What is being done, for progress displays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Blocks of one of the models.
    Encode(Side),
    /// Logits and scores, counted in positions; counts move after every panel of the head.
    Score,
}

/// Settings of [`evaluate`].
pub struct EvalOptions<'a> {
    /// Model to compare with (usually the float model).
    pub reference: Option<&'a mut dyn LanguageModel>,
    /// Receiver of the model's logits.
    pub logits_sink: Option<&'a mut LogitsSink<'a>>,
    /// Told how far the work is; may stop it.
    pub progress: Option<&'a mut Progress<'a>>,
    /// Positions scored in one pass over the head, [`CHUNK`] unless set; does not change results.
    pub chunk: usize,
    /// Where the sequences come from, for the report.
    pub description: String,
}

impl Default for EvalOptions<'_> {
    fn default() -> Self {
        Self {
            reference: None,
            logits_sink: None,
            progress: None,
            chunk: CHUNK,
            description: "token sequences given by the caller".to_owned(),
        }
    }
}

impl std::fmt::Debug for EvalOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EvalOptions")
            .field("reference", &self.reference.is_some())
            .field("logits_sink", &self.logits_sink.is_some())
            .field("progress", &self.progress.is_some())
            .field("chunk", &self.chunk)
            .field("description", &self.description)
            .finish()
    }
}

/// Scores sequences with a model, and compares it with a reference. See the crate documentation for the
/// protocol.
///
/// Runs on the current rayon pool; the result does not depend on its size.
///
/// # Errors
/// [`EvalError`] for sequences that cannot be scored, and for failures of a model or of the receiver of
/// logits. Logits that are not finite are no error: the report says so.
pub fn evaluate(
    model: &mut dyn LanguageModel,
    sequences: &[Vec<u32>],
    options: EvalOptions<'_>,
) -> Result<EvalReport, EvalError> {
    let EvalOptions { mut reference, mut logits_sink, progress, chunk, description } = options;
    let vocab_size = model.vocab_size();
    check(sequences, vocab_size, reference.as_ref().map(|r| r.vocab_size()), chunk)?;
    let mut ignore = |_: Phase, _: usize, _: usize| ControlFlow::Continue(());
    let report: &mut Progress<'_> = progress.unwrap_or(&mut ignore);

    if let Some(reference) = reference.as_mut() {
        encode(&mut **reference, Side::Reference, sequences, report)?;
    }
    encode(model, Side::Model, sequences, report)?;

    let targets = targets(sequences);
    let all = targets.len();
    go_on(report(Phase::Score, 0, all))?;
    let compared = reference.is_some();
    let mut scores = Vec::with_capacity(all);
    let buffer = || vec![0.0_f32; panel_bytes(all, chunk, vocab_size) / size_of::<f32>()];
    let (mut own, mut other) = (buffer(), if compared { buffer() } else { Vec::new() });
    for start in (0..all).step_by(chunk) {
        let positions = start..all.min(start + chunk);
        let mut rows: Vec<Option<Scoring>> =
            targets[positions.clone()].iter().map(|t| t.map(|id| Scoring::new(id, compared))).collect();
        for first in (0..vocab_size).step_by(PANEL) {
            let tokens = first..vocab_size.min(first + PANEL);
            let logits = panel(model, Side::Model, &positions, &tokens, &mut own)?;
            if let Some(sink) = logits_sink.as_mut() {
                sink(positions.clone(), tokens.clone(), logits.view()).map_err(|source| {
                    let (sequence, position) = place(sequences, start);
                    EvalError::Sink { sequence, position, source }
                })?;
            }
            if let Some(reference) = reference.as_mut() {
                panel(&mut **reference, Side::Reference, &positions, &tokens, &mut other)?;
            }
            let width = tokens.len();
            let (own, other) = (&own, &other);
            rows.par_iter_mut().enumerate().for_each(|(row, scoring)| {
                let range = row * width..(row + 1) * width;
                if let (Some(scoring), Some(own)) = (scoring, own.get(range.clone())) {
                    scoring.extend(own, other.get(range).filter(|_| compared));
                }
            });
            let done = positions.len() * tokens.end / vocab_size;
            go_on(report(Phase::Score, start + done, all))?;
        }
        scores.extend(rows.iter().map(|row| row.as_ref().map(Scoring::score)));
    }
    Ok(totals(sequences, &scores, compared).report(Protocol::new(description, sequences)))
}

/// What every position of every sequence predicts, in reading order: nothing at the last one of a sequence.
pub(crate) fn targets(sequences: &[Vec<u32>]) -> Vec<Option<u32>> {
    let of = |ids: &Vec<u32>| {
        let following = ids.iter().skip(1).copied().map(Some);
        following.chain([None]).collect::<Vec<_>>()
    };
    sequences.iter().flat_map(of).collect()
}

/// The sequence, and the position within it, of a position counted through all of them.
fn place(sequences: &[Vec<u32>], position: usize) -> (usize, usize) {
    let mut first = 0;
    for (sequence, ids) in sequences.iter().enumerate() {
        if position < first + ids.len() {
            return (sequence, position - first);
        }
        first += ids.len();
    }
    (sequences.len(), position - first)
}

/// Logits of one panel, in the front of `buffer`.
fn panel<'b>(
    model: &mut dyn LanguageModel,
    side: Side,
    positions: &Range<usize>,
    tokens: &Range<usize>,
    buffer: &'b mut [f32],
) -> Result<ArrayViewMut2<'b, f32>, EvalError> {
    let shape = (positions.len(), tokens.len());
    let failed = |source| EvalError::Model { side, stage: "computing logits", source };
    let mut out =
        ArrayViewMut2::from_shape(shape, &mut buffer[..shape.0 * shape.1]).map_err(|e| failed(e.into()))?;
    model.logits(positions.clone(), tokens.clone(), out.view_mut()).map_err(failed)?;
    Ok(out)
}

/// Sums in reading order.
pub(crate) fn totals(sequences: &[Vec<u32>], scores: &[Option<RowScore>], compared: bool) -> Totals {
    let mut totals = Totals::new(compared);
    let mut rest = scores;
    for (sequence, ids) in sequences.iter().enumerate() {
        let (rows, following) = rest.split_at(ids.len());
        rest = following;
        let mut sum = SequenceSum::default();
        for (position, row) in rows.iter().enumerate() {
            if let Some(row) = row {
                sum.add(*row);
                totals.note(*row, sequence, position);
            }
        }
        totals.close(sum, ids.len() - 1);
    }
    totals
}

pub(crate) fn check(
    sequences: &[Vec<u32>],
    vocab_size: usize,
    reference: Option<usize>,
    chunk: usize,
) -> Result<(), EvalError> {
    if chunk == 0 {
        return Err(EvalError::ZeroChunk);
    }
    if let Some(reference) = reference.filter(|&size| size != vocab_size) {
        return Err(EvalError::VocabularyMismatch { reference, model: vocab_size });
    }
    if sequences.is_empty() {
        return Err(EvalError::NoSequences);
    }
    for (sequence, ids) in sequences.iter().enumerate() {
        if ids.len() < 2 {
            return Err(EvalError::TooShort { sequence, length: ids.len() });
        }
        if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(EvalError::OutOfVocabulary { sequence, position, id: ids[position], vocab_size });
        }
    }
    Ok(())
}

pub(crate) fn encode(
    model: &mut dyn LanguageModel,
    side: Side,
    sequences: &[Vec<u32>],
    report: &mut Progress<'_>,
) -> Result<(), EvalError> {
    let mut flow = ControlFlow::Continue(());
    let result = model.encode(sequences, &mut |done, all| {
        if flow.is_continue() {
            flow = report(Phase::Encode(side), done, all);
        }
        flow
    });
    // First: a model that was told to stop says so by an error.
    go_on(flow)?;
    result.map_err(|source| EvalError::Model { side, stage: "running the blocks", source })
}

pub(crate) fn go_on(flow: ControlFlow<()>) -> Result<(), EvalError> {
    if flow.is_break() { Err(EvalError::Interrupted) } else { Ok(()) }
}

/// Sums of one sequence, in the order of its positions.
#[derive(Default)]
struct SequenceSum {
    nll: f64,
    reference_nll: f64,
    kl: f64,
    agree: usize,
    agree_few: usize,
    broken: bool,
}

impl SequenceSum {
    fn add(&mut self, row: RowScore) {
        match row.nll {
            Some(nll) => self.nll += nll,
            None => self.broken = true,
        }
        self.reference_nll += row.reference_nll.unwrap_or(0.0);
        self.kl += row.kl.unwrap_or(0.0);
        self.agree += usize::from(row.top1_agrees == Some(true));
        self.agree_few += usize::from(row.top_few_agree == Some(true));
    }
}

/// Sums over sequences, in their order: equal for every chunk size and thread count.
pub(crate) struct Totals {
    compared: bool,
    tokens: usize,
    nll_per_sequence: Vec<Option<f64>>,
    reference_nll: f64,
    kl: f64,
    agree: usize,
    agree_few: usize,
    first_bad: Option<Outcome>,
    reference_bad: bool,
}

impl Totals {
    fn new(compared: bool) -> Self {
        Self {
            compared,
            tokens: 0,
            nll_per_sequence: Vec::new(),
            reference_nll: 0.0,
            kl: 0.0,
            agree: 0,
            agree_few: 0,
            first_bad: None,
            reference_bad: false,
        }
    }

    fn note(&mut self, row: RowScore, sequence: usize, position: usize) {
        let reference_bad = self.compared && row.reference_nll.is_none();
        self.reference_bad |= reference_bad;
        if self.first_bad.is_none() && (row.nll.is_none() || reference_bad) {
            let model = if row.nll.is_none() { Side::Model } else { Side::Reference };
            self.first_bad = Some(Outcome::NonFiniteLogits { sequence, position, model });
        }
    }

    fn close(&mut self, sum: SequenceSum, tokens: usize) {
        self.tokens += tokens;
        self.nll_per_sequence.push((!sum.broken).then_some(sum.nll));
        self.reference_nll += sum.reference_nll;
        self.kl += sum.kl;
        self.agree += sum.agree;
        self.agree_few += sum.agree_few;
    }

    pub(crate) fn report(self, protocol: Protocol) -> EvalReport {
        let tokens = self.tokens as f64;
        let finite = |value: f64| Some(value).filter(|v| v.is_finite());
        let mean_nll = self.nll_per_sequence.iter().copied().sum::<Option<f64>>().map(|sum| sum / tokens);
        let perplexity = mean_nll.map(f64::exp).and_then(finite);
        let both = self.first_bad.is_none();
        let comparison = self.compared.then(|| Comparison {
            kl: both.then_some(self.kl / tokens),
            top1_agreement: both.then_some(self.agree as f64 / tokens),
            top5_agreement: both.then_some(self.agree_few as f64 / tokens),
            reference_perplexity: (!self.reference_bad)
                .then(|| (self.reference_nll / tokens).exp())
                .and_then(finite),
        });
        let outcome = match self.first_bad {
            Some(bad) => bad,
            None if perplexity.is_none() => Outcome::PerplexityOverflow,
            None => Outcome::Ok,
        };
        EvalReport {
            perplexity,
            tokens: self.tokens,
            sequences: self.nll_per_sequence.len(),
            mean_nll,
            comparison,
            outcome,
            nll_per_sequence: self.nll_per_sequence,
            protocol,
        }
    }
}
