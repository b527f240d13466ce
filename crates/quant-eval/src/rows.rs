//! Scores of one position: one row of logits, and one of the reference model.

use quant_kernels::{OnlineDivergence, OnlineSoftmax};

/// Scores of one predicted token. `None` where logits were not finite, and for all but the first without a reference.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RowScore {
    /// Negative log-likelihood of the target, `-ln softmax(logits)[target]`, in nats.
    pub(crate) nll: Option<f64>,
    /// The same of the reference.
    pub(crate) reference_nll: Option<f64>,
    /// KL(reference || model) in nats; needs both rows finite, as do the next two.
    pub(crate) kl: Option<f64>,
    /// Both rank the same token first.
    pub(crate) top1_agrees: Option<bool>,
    /// The token that the reference ranks first is among the first [`FEW`] of the model.
    pub(crate) top_few_agree: Option<bool>,
}

/// How many first tokens of the model are looked at for the one that the reference ranks first.
pub(crate) const FEW: usize = 5;

/// The first tokens of a row that arrives panel by panel, the largest logit first; of equal ones the first.
#[derive(Debug, Clone, Copy)]
struct First {
    tokens: [(f32, usize); FEW],
}

impl First {
    const NONE: Self = Self { tokens: [(f32::NEG_INFINITY, usize::MAX); FEW] };

    fn extend(&mut self, logits: &[f32], seen: usize) {
        for (at, &logit) in logits.iter().enumerate() {
            if logit > self.tokens[FEW - 1].0 {
                let place = self.tokens.iter().position(|(other, _)| logit > *other).unwrap_or(FEW - 1);
                self.tokens[place..].rotate_right(1);
                self.tokens[place] = (logit, seen + at);
            }
        }
    }

    fn has(&self, token: usize) -> bool {
        self.tokens.iter().any(|(_, other)| *other == token)
    }
}

/// A position whose logits arrive panel by panel, from the first token of the vocabulary to the last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scoring {
    target: usize,
    /// Tokens of the vocabulary so far.
    seen: usize,
    logit: f32,
    reference_logit: f32,
    first: First,
    sums: Sums,
}

#[derive(Debug, Clone, Copy)]
enum Sums {
    Alone(OnlineSoftmax),
    Compared(OnlineDivergence),
}

impl Scoring {
    /// A position that predicts the token `target`.
    pub(crate) fn new(target: u32, compared: bool) -> Self {
        let sums = if compared {
            Sums::Compared(OnlineDivergence::default())
        } else {
            Sums::Alone(OnlineSoftmax::default())
        };
        let (logit, reference_logit) = (f32::NAN, f32::NAN);
        Self { target: target as usize, seen: 0, logit, reference_logit, first: First::NONE, sums }
    }

    /// Takes in the next panel of the row, of the model and of the reference where there is one.
    pub(crate) fn extend(&mut self, logits: &[f32], reference: Option<&[f32]>) {
        if let Some(at) = self.target.checked_sub(self.seen)
            && let Some(&logit) = logits.get(at)
        {
            self.logit = logit;
            self.reference_logit = reference.and_then(|r| r.get(at)).copied().unwrap_or(f32::NAN);
        }
        if reference.is_some() {
            self.first.extend(logits, self.seen);
        }
        self.seen += logits.len();
        match (&mut self.sums, reference) {
            (Sums::Compared(sums), Some(reference)) => sums.extend(reference, logits),
            (Sums::Compared(OnlineDivergence { model: sums, .. }) | Sums::Alone(sums), _) => {
                sums.extend(logits);
            }
        }
    }

    /// The scores of the whole row.
    pub(crate) fn score(&self) -> RowScore {
        match &self.sums {
            Sums::Alone(sums) => RowScore { nll: sums.surprisal(self.logit), ..RowScore::default() },
            Sums::Compared(both) => {
                let first = both.model.first_largest().zip(both.reference.first_largest());
                RowScore {
                    nll: both.model.surprisal(self.logit),
                    reference_nll: both.reference.surprisal(self.reference_logit),
                    kl: both.divergence(),
                    top1_agrees: first.map(|(a, b)| a == b),
                    top_few_agree: first.map(|(_, reference)| self.first.has(reference)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    fn score_row(logits: &[f32], reference: Option<&[f32]>, target: u32) -> RowScore {
        let mut scoring = Scoring::new(target, reference.is_some());
        let cut = logits.len() / 2;
        for range in [0..cut, cut..logits.len()] {
            scoring.extend(&logits[range.clone()], reference.map(|r| &r[range]));
        }
        scoring.score()
    }

    #[test]
    fn a_row_by_hand() {
        // softmax([ln 1, ln 2, ln 5]) = [1, 2, 5] / 8; reference [3, 3, 2] / 8.
        let logits = [1.0_f32, 2.0, 5.0].map(f32::ln);
        let reference = [3.0_f32, 3.0, 2.0].map(f32::ln);
        let score = score_row(&logits, Some(&reference), 1);
        assert_relative_eq!(score.nll.unwrap(), 4.0_f64.ln(), epsilon = 1e-7);
        assert_relative_eq!(score.reference_nll.unwrap(), (8.0_f64 / 3.0).ln(), epsilon = 1e-7);
        let kl = 3.0 / 8.0 * 3.0_f64.ln() + 3.0 / 8.0 * 1.5_f64.ln() + 2.0 / 8.0 * 0.4_f64.ln();
        assert_relative_eq!(score.kl.unwrap(), kl, epsilon = 1e-7);
        assert_eq!(score.top1_agrees, Some(false), "2 against the first of two equal logits, 0");
        let alone = score_row(&logits, None, 1);
        assert_eq!(alone, RowScore { nll: score.nll, ..RowScore::default() });
    }

    #[test]
    fn the_first_of_the_reference_is_looked_for_among_five() {
        let logits = [0.5_f32, 9.0, 3.0, 3.0, 7.0, 1.0, 3.0, 2.0];
        // In order: 1, 4, 2, 3, 6; then 7, 5, 0.
        for (token, among) in
            [(1, true), (4, true), (2, true), (3, true), (6, true), (7, false), (5, false), (0, false)]
        {
            let mut reference = [0.0_f32; 8];
            reference[token] = 1.0;
            let score = score_row(&logits, Some(&reference), 0);
            assert_eq!((score.top_few_agree, score.top1_agrees), (Some(among), Some(token == 1)), "{token}");
        }
        // A vocabulary of fewer.
        assert_eq!(score_row(&[1.0, 2.0], Some(&[2.0, 1.0]), 0).top_few_agree, Some(true));
    }

    #[test]
    fn ties_take_the_first_index() {
        assert_eq!(score_row(&[1.0, 1.0], Some(&[1.0, 0.0]), 0).top1_agrees, Some(true));
        assert_eq!(score_row(&[1.0, 1.0], Some(&[0.0, 1.0]), 0).top1_agrees, Some(false));
    }

    #[test]
    fn values_that_are_not_finite_are_no_score() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for position in 0..3 {
                let mut row = [0.0; 3];
                row[position] = bad;
                let own = score_row(&row, Some(&[0.0; 3]), 0);
                assert!(own.nll.is_none() && own.reference_nll.is_some() && own.kl.is_none());
                let other = score_row(&[0.0; 3], Some(&row), 0);
                assert!(other.nll.is_some() && other.reference_nll.is_none() && other.top1_agrees.is_none());
            }
        }
        assert_eq!(score_row(&[], None, 0), RowScore::default());
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let score = score_row(&[f32::MAX, f32::MIN], Some(&[f32::MIN, f32::MAX]), 1);
        assert!(score.nll.unwrap().is_finite() && score.kl.unwrap().is_finite());
    }

    fn row() -> impl Strategy<Value = (Vec<f32>, Vec<f32>, u32)> {
        (1_usize..40).prop_flat_map(|n| {
            let values = || prop::collection::vec(-30.0_f32..30.0, n);
            (values(), values(), 0..n as u32)
        })
    }

    proptest! {
        #[test]
        fn divergence_is_not_negative_and_zero_for_equal_rows((a, b, target) in row()) {
            prop_assert!(score_row(&a, Some(&b), target).kl.unwrap() >= 0.0);
            let same = score_row(&a, Some(&a), target);
            prop_assert_eq!((same.kl, same.top1_agrees), (Some(0.0), Some(true)));
            prop_assert_eq!(same.nll, same.reference_nll);
        }

        #[test]
        fn probabilities_sum_to_one((a, _, _) in row()) {
            let sum: f64 = (0..a.len() as u32).map(|t| (-score_row(&a, None, t).nll.unwrap()).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-6);
        }

        #[test]
        fn a_constant_added_to_all_logits_changes_nothing((a, b, target) in row(), shift in -8_i8..8) {
            // Multiples of 1/4 stay exact in f32 for these magnitudes, so only the softmax is under test.
            let coarse = |row: &[f32]| row.iter().map(|v| (v * 4.0).round_ties_even() / 4.0).collect::<Vec<f32>>();
            let moved = |row: &[f32]| coarse(row).iter().map(|v| v + f32::from(shift)).collect::<Vec<f32>>();
            let here = score_row(&coarse(&a), Some(&coarse(&b)), target);
            let there = score_row(&moved(&a), Some(&moved(&b)), target);
            prop_assert_eq!(here, there);
        }
    }
}
