//! What a model says of single tokens.

use std::ops::Range;

use ndarray::ArrayViewMut2;
use quant_kernels::{OnlineDivergence, OnlineSoftmax};
use rayon::prelude::*;

use crate::evaluate::{PANEL, Progress, check, encode, go_on};
use crate::{CHUNK, EvalError, LanguageModel, Phase, Side};

/// What a model says of one token.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct PositionScore {
    /// `-ln softmax(logits)[token]` in nats; none where a logit is not finite.
    pub nll: Option<f64>,
    /// Whether the token is the most likely one, of equal ones the first; never where a logit is not finite.
    pub greedy: bool,
    /// Probability of all watched tokens together; none where a logit is not finite.
    pub watched: Option<f64>,
    /// Probability of the token that was asked about here, if one was; none where a logit is not finite.
    pub asked: Option<f64>,
    /// Beside the reference, where there is one.
    pub compared: Option<Compared>,
}

/// What the reference says of the same token, and how far the model is from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Compared {
    /// `-ln softmax(logits)[token]` of the reference in nats.
    pub nll: Option<f64>,
    /// `KL(reference || model)` in nats; none where a logit of either is not finite.
    pub kl: Option<f64>,
    /// Entropy of the reference in nats.
    pub entropy: Option<f64>,
    /// Whether both rank the same token first.
    pub top1_agrees: bool,
    /// Probability of all watched tokens together, for the reference.
    pub watched: Option<f64>,
    /// Probability of the token that was asked about here, for the reference.
    pub asked: Option<f64>,
}

/// Settings of [`score_positions`].
#[derive(Default)]
pub struct PositionOptions<'a> {
    /// Model to compare with.
    pub reference: Option<&'a mut dyn LanguageModel>,
    /// Tokens whose probability is wanted too: those that end a text.
    pub watched: &'a [u32],
    /// By sequence and wanted token, another one whose probability at its place is wanted too; empty where none is.
    pub asked: &'a [Vec<Option<u32>>],
    /// Told how far the work is; may stop it.
    pub progress: Option<&'a mut Progress<'a>>,
}

impl std::fmt::Debug for PositionOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PositionOptions")
            .field("reference", &self.reference.is_some())
            .field("watched", &self.watched)
            .finish_non_exhaustive()
    }
}

/// Scores the tokens `wanted[i]` of every sequence `i`, each given those before it; each sequence alone from position 0. The head meets
/// only what predicts them. Scores of a sequence do not depend on the others.
///
/// Holds 200 bytes for each position of a chunk, and one panel of logits for each model.
///
/// # Errors
/// As [`evaluate`](crate::evaluate); [`EvalError::Wanted`] for a token that nothing predicts (the first of a sequence), or that is not there.
pub fn score_positions(
    model: &mut dyn LanguageModel,
    sequences: &[Vec<u32>],
    wanted: &[Range<usize>],
    options: PositionOptions<'_>,
) -> Result<Vec<Vec<PositionScore>>, EvalError> {
    let PositionOptions { mut reference, watched, asked, progress } = options;
    let vocab = model.vocab_size();
    check(sequences, vocab, reference.as_ref().map(|r| r.vocab_size()), CHUNK)?;
    let mut ignore = |_: Phase, _: usize, _: usize| std::ops::ControlFlow::Continue(());
    let report: &mut Progress<'_> = progress.unwrap_or(&mut ignore);
    let (mut positions, mut targets, mut others, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (sequence, ids) in sequences.iter().enumerate() {
        let range = wanted.get(sequence).cloned().unwrap_or_default();
        if range.start == 0 || range.end > ids.len() || range.is_empty() {
            return Err(EvalError::Wanted {
                sequence,
                start: range.start,
                end: range.end,
                length: ids.len(),
            });
        }
        // What predicts a token stands one place before it.
        positions.extend(range.clone().map(|token| first + token - 1));
        let asked = asked.get(sequence).map_or(&[][..], Vec::as_slice);
        others.extend((0..range.len()).map(|at| asked.get(at).copied().flatten()));
        targets.extend_from_slice(&ids[range]);
        first += ids.len();
    }
    if let Some(reference) = reference.as_mut() {
        encode(&mut **reference, Side::Reference, sequences, report)?;
    }
    encode(model, Side::Model, sequences, report)?;
    let compared = reference.is_some();
    let buffer = || vec![0.0_f32; positions.len().min(CHUNK) * vocab.min(PANEL)];
    let (mut own, mut other) = (buffer(), if compared { buffer() } else { Vec::new() });
    let zeros = vec![0.0_f32; if compared { vocab.min(PANEL) } else { 0 }];
    let mut scores = Vec::with_capacity(positions.len());
    for start in (0..positions.len()).step_by(CHUNK) {
        let chunk = start..positions.len().min(start + CHUNK);
        let targets = targets[chunk.clone()].iter().zip(&others[chunk.clone()]);
        let mut rows: Vec<Row> = targets.map(|(&target, &asked)| Row::new(target, asked, compared)).collect();
        for panel in (0..vocab).step_by(PANEL) {
            let tokens = panel..vocab.min(panel + PANEL);
            let width = tokens.len();
            logits(model, Side::Model, &positions[chunk.clone()], &tokens, &mut own)?;
            if let Some(reference) = reference.as_mut() {
                logits(&mut **reference, Side::Reference, &positions[chunk.clone()], &tokens, &mut other)?;
            }
            let (own, other, zeros) = (&own, &other, &zeros);
            rows.par_iter_mut().enumerate().for_each(|(at, row)| {
                let range = at * width..(at + 1) * width;
                if let Some(own) = own.get(range.clone()) {
                    let reference = other.get(range).filter(|_| compared);
                    row.extend(tokens.start, own, reference, zeros.get(..width).unwrap_or_default(), watched);
                }
            });
            go_on(report(Phase::Score, start + chunk.len() * tokens.end / vocab, positions.len()))?;
        }
        scores.extend(rows.iter().map(|row| row.score(vocab)));
    }
    let mut rest = scores.into_iter();
    Ok(wanted.iter().map(|range| rest.by_ref().take(range.len()).collect()).collect())
}

fn logits(
    model: &mut dyn LanguageModel,
    side: Side,
    positions: &[usize],
    tokens: &Range<usize>,
    buffer: &mut [f32],
) -> Result<(), EvalError> {
    let shape = (positions.len(), tokens.len());
    let failed = |source| EvalError::Model { side, stage: "computing logits", source };
    let out =
        ArrayViewMut2::from_shape(shape, &mut buffer[..shape.0 * shape.1]).map_err(|e| failed(e.into()))?;
    model.logits_at(positions, tokens.clone(), out).map_err(failed)
}

/// A position whose logits arrive panel by panel.
struct Row {
    target: usize,
    logit: f32,
    asked: Option<usize>,
    asked_logit: Option<f32>,
    sums: OnlineSoftmax,
    watched: Vec<f32>,
    compared: Option<Box<Beside>>,
}

#[derive(Default)]
struct Beside {
    logit: f32,
    asked_logit: Option<f32>,
    both: OnlineDivergence,
    /// The reference beside logits that are all 0: its entropy is `ln V` less this divergence.
    uniform: OnlineDivergence,
    watched: Vec<f32>,
}

impl Row {
    fn new(target: u32, asked: Option<u32>, compared: bool) -> Self {
        let compared = compared.then(Box::default);
        Self {
            target: target as usize,
            logit: f32::NAN,
            asked: asked.map(|token| token as usize),
            asked_logit: None,
            sums: OnlineSoftmax::default(),
            watched: Vec::new(),
            compared,
        }
    }

    fn extend(
        &mut self,
        first: usize,
        own: &[f32],
        reference: Option<&[f32]>,
        zeros: &[f32],
        watched: &[u32],
    ) {
        let at = |row: &[f32], token: usize| token.checked_sub(first).and_then(|at| row.get(at)).copied();
        if let Some(logit) = at(own, self.target) {
            self.logit = logit;
        }
        self.watched.extend(watched.iter().filter_map(|&token| at(own, token as usize)));
        let asked = |row: &[f32]| self.asked.and_then(|token| at(row, token));
        if let Some(logit) = asked(own) {
            self.asked_logit = Some(logit);
        }
        match (&mut self.compared, reference) {
            (Some(beside), Some(reference)) => {
                beside.both.extend(reference, own);
                beside.uniform.extend(reference, zeros);
                if let Some(logit) = at(reference, self.target) {
                    beside.logit = logit;
                }
                if let Some(logit) = asked(reference) {
                    beside.asked_logit = Some(logit);
                }
                beside.watched.extend(watched.iter().filter_map(|&token| at(reference, token as usize)));
            }
            _ => self.sums.extend(own),
        }
    }

    fn score(&self, vocab: usize) -> PositionScore {
        let sums = self.compared.as_ref().map_or(&self.sums, |beside| &beside.both.model);
        let probability = |sums: &OnlineSoftmax, logits: &[f32]| {
            let of = |&logit: &f32| sums.surprisal(logit).map(|nll| quant_core::elementary::exp(-nll));
            logits.iter().map(of).sum::<Option<f64>>()
        };
        PositionScore {
            nll: sums.surprisal(self.logit),
            greedy: sums.first_largest() == Some(self.target),
            watched: probability(sums, &self.watched),
            asked: self.asked_logit.and_then(|logit| probability(sums, &[logit])),
            compared: self.compared.as_ref().map(|beside| Compared {
                nll: beside.both.reference.surprisal(beside.logit),
                kl: beside.both.divergence(),
                entropy: beside
                    .uniform
                    .divergence()
                    .map(|far| (quant_core::elementary::ln(vocab as f64) - far).max(0.0)),
                top1_agrees: sums
                    .first_largest()
                    .zip(beside.both.reference.first_largest())
                    .is_some_and(|(a, b)| a == b),
                watched: probability(&beside.both.reference, &beside.watched),
                asked: beside.asked_logit.and_then(|logit| probability(&beside.both.reference, &[logit])),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BoxError, EncodeProgress};
    use approx::assert_relative_eq;

    /// The logits behind a token are the row of a table.
    struct Table(Vec<Vec<f32>>, Vec<u32>);

    impl LanguageModel for Table {
        fn vocab_size(&self) -> usize {
            self.0[0].len()
        }
        fn encode(&mut self, sequences: &[Vec<u32>], _: &mut EncodeProgress<'_>) -> Result<(), BoxError> {
            self.1 = sequences.concat();
            Ok(())
        }
        fn logits(
            &mut self,
            positions: Range<usize>,
            tokens: Range<usize>,
            mut out: ArrayViewMut2<'_, f32>,
        ) -> Result<(), BoxError> {
            for (row, position) in positions.enumerate() {
                for (column, token) in tokens.clone().enumerate() {
                    out[(row, column)] = self.0[self.1[position] as usize][token];
                }
            }
            Ok(())
        }
    }

    /// Logits over more than one panel.
    fn table(seed: u64) -> Table {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 8.0
        };
        Table((0..6).map(|_| (0..PANEL + 5).map(|_| next()).collect()).collect(), Vec::new())
    }

    fn log_softmax(row: &[f32]) -> Vec<f64> {
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x) - total.ln()).collect()
    }

    #[test]
    fn scores_are_those_of_the_rows() {
        let (mut model, mut reference) = (table(1), table(2));
        let sequences = [vec![3, 1, 2], vec![5, 4, 2, 0]];
        let wanted = [2..3, 1..4];
        let last = PANEL as u32 + 2;
        let asked = [vec![], vec![None, Some(last), Some(3)]];
        let options = PositionOptions {
            reference: Some(&mut reference),
            watched: &[1, last],
            asked: &asked,
            progress: None,
        };
        let scores = score_positions(&mut model, &sequences, &wanted, options).unwrap();
        let (own, other) = (table(1), table(2));
        assert_eq!(scores.iter().map(Vec::len).collect::<Vec<_>>(), [1, 3]);
        let places = [(1, 2, None), (5, 4, None), (4, 2, Some(last as usize)), (2, 0, Some(3))];
        for (score, (from, target, asked)) in scores.concat().iter().zip(places) {
            let (q, p) = (log_softmax(&own.0[from]), log_softmax(&other.0[from]));
            let compared = score.compared.unwrap();
            assert_relative_eq!(score.nll.unwrap(), -q[target], max_relative = 1e-6);
            assert_relative_eq!(compared.nll.unwrap(), -p[target], max_relative = 1e-6);
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            let entropy: f64 = p.iter().map(|p| -p.exp() * p).sum();
            assert_relative_eq!(compared.kl.unwrap(), kl, max_relative = 1e-5);
            assert_relative_eq!(compared.entropy.unwrap(), entropy, max_relative = 1e-5);
            let watched = |x: &[f64]| x[1].exp() + x[last as usize].exp();
            assert_relative_eq!(score.watched.unwrap(), watched(&q), max_relative = 1e-5);
            assert_relative_eq!(compared.watched.unwrap(), watched(&p), max_relative = 1e-5);
            for (got, row) in [(score.asked, &q), (compared.asked, &p)] {
                assert_eq!(got.is_some(), asked.is_some());
                if let (Some(got), Some(token)) = (got, asked) {
                    assert_relative_eq!(got, row[token].exp(), max_relative = 1e-5);
                }
            }
            assert!(!score.greedy && !compared.top1_agrees);
        }
        // Without a reference, and one sequence by itself: the same scores.
        let alone =
            score_positions(&mut model, &sequences[1..], &wanted[1..], PositionOptions::default()).unwrap();
        for (alone, beside) in alone[0].iter().zip(&scores[1]) {
            assert_eq!((alone.nll, alone.greedy), (beside.nll, beside.greedy));
        }
        let mut same = table(1);
        let options = PositionOptions { reference: Some(&mut same), ..PositionOptions::default() };
        let equal = score_positions(&mut model, &sequences, &wanted, options).unwrap();
        assert!(
            equal.concat().iter().all(|s| s.compared.is_some_and(|c| c.kl == Some(0.0) && c.top1_agrees))
        );
    }

    #[test]
    fn the_most_likely_token_is_greedy() {
        let mut model = table(1);
        model.0[3][7] = 100.0;
        model.0.resize(8, vec![0.0; PANEL + 5]);
        let of = |model: &mut Table| {
            score_positions(
                model,
                &[vec![3, 7_u32, 0]],
                std::slice::from_ref(&(1..3)),
                PositionOptions::default(),
            )
        };
        let scores = of(&mut model).unwrap();
        assert!(scores[0][0].greedy, "{:?}", scores[0][0]);
        assert!(scores[0][1].greedy, "of equal logits the first");
        model.0[7][3] = f32::NAN;
        let broken = of(&mut model).unwrap()[0][1];
        assert_eq!((broken.nll, broken.greedy, broken.watched), (None, false, Some(0.0)));
    }

    #[test]
    fn tokens_that_nothing_predicts_are_refused() {
        let sequences = [vec![0, 1]];
        for range in [0..1, 1..3, 1..1] {
            let refused = score_positions(&mut table(1), &sequences, &[range], PositionOptions::default());
            assert!(matches!(refused, Err(EvalError::Wanted { sequence: 0, length: 2, .. })));
        }
    }
}
