//! The evaluation loop.

use std::ops::ControlFlow;

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::rows::{RowScore, score_row};
use crate::{Comparison, EvalError, EvalReport, LanguageModel, ModelError, Outcome, Protocol, Role};

/// Receives logits as they are computed: sequence, first position, `[positions, vocabulary]`. Calls come in
/// reading order and cover every position of every sequence, the last one (which predicts nothing) included.
pub type LogitsSink<'a> = dyn FnMut(usize, usize, ArrayView2<'_, f32>) -> Result<(), ModelError> + 'a;

/// Called with phase, steps done and steps in all. `Break` ends the evaluation with [`EvalError::Interrupted`]: at once while scoring, and as soon as
/// [`LanguageModel::encode`] returns while a model runs its blocks.
pub type Progress<'a> = dyn FnMut(Phase, usize, usize) -> ControlFlow<()> + 'a;

/// What is being done, for progress displays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Blocks of one of the models.
    Encode(Role),
    /// Logits and scores, counted in positions.
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
    /// Positions whose logits exist at a time (per model); does not change results. Default 256.
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
            chunk: 256,
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
        encode(&mut **reference, Role::Reference, sequences, report)?;
    }
    encode(model, Role::Model, sequences, report)?;

    // Without a receiver the last position of a sequence needs no logits: it predicts nothing.
    let skipped = usize::from(logits_sink.is_none());
    let all = sequences.iter().map(|ids| ids.len() - skipped).sum();
    let mut done = 0;
    go_on(report(Phase::Score, done, all))?;
    let mut totals = Totals::new(reference.is_some());
    for (sequence, ids) in sequences.iter().enumerate() {
        let mut sum = SequenceSum::default();
        let positions = ids.len() - skipped;
        for start in (0..positions).step_by(chunk) {
            let range = start..positions.min(start + chunk);
            let scored = start..range.end.min(ids.len() - 1);
            let logits = logits(model, Role::Model, sequence, range.clone())?;
            if let Some(sink) = logits_sink.as_mut() {
                sink(sequence, start, logits.view()).map_err(|source| EvalError::Sink {
                    sequence,
                    position: start,
                    source,
                })?;
            }
            let other = match reference.as_mut() {
                Some(model) if !scored.is_empty() => {
                    Some(self::logits(&mut **model, Role::Reference, sequence, scored.clone())?)
                }
                _ => None,
            };
            let own = logits.as_slice().unwrap_or_default();
            let other = other.as_ref().map(|o| o.as_slice().unwrap_or_default());
            let row_of = |flat, row| <[f32]>::get(flat, row * vocab_size..(row + 1) * vocab_size);
            let rows: Vec<RowScore> = scored
                .clone()
                .into_par_iter()
                .map(|position| {
                    let row = position - start;
                    let own = row_of(own, row).unwrap_or_default();
                    let other = other.map(|flat| row_of(flat, row).unwrap_or_default());
                    score_row(own, other, ids[position + 1] as usize)
                })
                .collect();
            for (position, row) in scored.zip(rows) {
                sum.add(row);
                totals.note(row, sequence, position);
            }
            done += range.len();
            go_on(report(Phase::Score, done, all))?;
        }
        totals.close(sum, ids.len() - 1);
    }
    Ok(totals.report(Protocol::new(description, sequences)))
}

fn check(
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

fn encode(
    model: &mut dyn LanguageModel,
    role: Role,
    sequences: &[Vec<u32>],
    report: &mut Progress<'_>,
) -> Result<(), EvalError> {
    let mut flow = ControlFlow::Continue(());
    let result = model.encode(sequences, &mut |done, all| {
        if flow.is_continue() {
            flow = report(Phase::Encode(role), done, all);
        }
    });
    // First: a model that was told to stop by other means says so by an error.
    go_on(flow)?;
    result.map_err(|source| EvalError::Model { role, stage: "running the blocks", source })
}

fn go_on(flow: ControlFlow<()>) -> Result<(), EvalError> {
    if flow.is_break() { Err(EvalError::Interrupted) } else { Ok(()) }
}

/// Logits of the asked shape in row-major order.
fn logits(
    model: &mut dyn LanguageModel,
    role: Role,
    sequence: usize,
    range: std::ops::Range<usize>,
) -> Result<ndarray::Array2<f32>, EvalError> {
    let expected = [range.len(), model.vocab_size()];
    let logits = model.logits(sequence, range).map_err(|source| EvalError::Model {
        role,
        stage: "computing logits",
        source,
    })?;
    let found: [usize; 2] = logits.dim().into();
    if found != expected {
        return Err(EvalError::LogitsShape { role, sequence, expected, found });
    }
    Ok(if logits.is_standard_layout() { logits } else { logits.as_standard_layout().into_owned() })
}

/// Sums of one sequence, in the order of its positions.
#[derive(Default)]
struct SequenceSum {
    nll: f64,
    reference_nll: f64,
    kl: f64,
    agree: usize,
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
    }
}

/// Sums over sequences, in their order: equal for every chunk size and thread count.
struct Totals {
    compared: bool,
    tokens: usize,
    nll_per_sequence: Vec<Option<f64>>,
    reference_nll: f64,
    kl: f64,
    agree: usize,
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
            first_bad: None,
            reference_bad: false,
        }
    }

    fn note(&mut self, row: RowScore, sequence: usize, position: usize) {
        let reference_bad = self.compared && row.reference_nll.is_none();
        self.reference_bad |= reference_bad;
        if self.first_bad.is_none() && (row.nll.is_none() || reference_bad) {
            let model = if row.nll.is_none() { Role::Model } else { Role::Reference };
            self.first_bad = Some(Outcome::NonFiniteLogits { sequence, position, model });
        }
    }

    fn close(&mut self, sum: SequenceSum, tokens: usize) {
        self.tokens += tokens;
        self.nll_per_sequence.push((!sum.broken).then_some(sum.nll));
        self.reference_nll += sum.reference_nll;
        self.kl += sum.kl;
        self.agree += sum.agree;
    }

    fn report(self, protocol: Protocol) -> EvalReport {
        let tokens = self.tokens as f64;
        let finite = |value: f64| Some(value).filter(|v| v.is_finite());
        let mean_nll = self.nll_per_sequence.iter().copied().sum::<Option<f64>>().map(|sum| sum / tokens);
        let perplexity = mean_nll.map(f64::exp).and_then(finite);
        let both = self.first_bad.is_none();
        let comparison = self.compared.then(|| Comparison {
            kl: both.then_some(self.kl / tokens),
            top1_agreement: both.then_some(self.agree as f64 / tokens),
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
