//! Softmax statistics of rows of logits that arrive in pieces, for vocabularies too wide to be held as a matrix.

use crate::rows::{LANES, lane_max, lane_sum, tree_sum};
use crate::{exp_f32, vectorized};
use quant_core::elementary::{exp, ln};

/// Log-sum-exp and first largest of one row of logits that arrives piece by piece, from left to right: the maximum and the
/// sum of exponentials are carried along, and the sum is scaled down when a larger maximum comes (Milakov and Gimelshein
/// 2018).
///
/// Exponentials of differences are f32, sums are f64. The bits of a result depend on where the row is cut, and on nothing
/// else: neither on the instruction set nor on other rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OnlineSoftmax {
    /// The largest so far, and where it first stood.
    largest: f32,
    first: usize,
    /// `sum exp(x - largest)`.
    total: f64,
    len: usize,
    finite: bool,
}

impl Default for OnlineSoftmax {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, first: 0, total: 0.0, len: 0, finite: true }
    }
}

impl OnlineSoftmax {
    /// Takes in the next piece of the row.
    pub fn extend(&mut self, piece: &[f32]) {
        vectorized(
            #[inline(always)]
            || {
                self.raise(piece);
                let largest = self.largest;
                self.total += lane_sum(piece, |x| f64::from(exp_f32(x - largest)));
            },
        );
    }

    /// Whether the row has elements and all of them are finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.finite && self.len > 0
    }

    /// Index of the largest element, of equal ones the first; `None` for a row that is not finite.
    #[must_use]
    pub fn first_largest(&self) -> Option<usize> {
        self.is_finite().then_some(self.first)
    }

    /// `-ln softmax` of an element with this logit, in nats; `None` for a row that is not finite.
    #[must_use]
    pub fn surprisal(&self, logit: f32) -> Option<f64> {
        // The difference of two f32 first: it keeps what the logits have in common out of the sum.
        self.is_finite().then(|| ln(self.total) + (f64::from(self.largest) - f64::from(logit)))
    }

    /// Takes in the maximum of a piece whose exponentials are added next, and returns what earlier sums were scaled by.
    #[inline(always)]
    fn raise(&mut self, piece: &[f32]) -> f64 {
        // NaN unless all are finite: infinity times 0 is NaN.
        self.finite &= lane_sum(piece, |x| x * 0.0) == 0.0;
        let largest = lane_max(piece);
        let mut factor = 1.0;
        if largest > self.largest {
            let at = piece.iter().position(|&x| x == largest).unwrap_or(0);
            self.first = self.len + at;
            factor = exp(f64::from(self.largest) - f64::from(largest));
            self.largest = largest;
            self.total *= factor;
        }
        self.len += piece.len();
        factor
    }
}

/// Two rows of logits over the same vocabulary, read piece by piece: [`OnlineSoftmax`] of each, and their divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OnlineDivergence {
    /// Logits `p` of the reference.
    pub reference: OnlineSoftmax,
    /// Logits `q` of the model.
    pub model: OnlineSoftmax,
    /// `sum exp(p - largest p) (p - q)`.
    difference: f64,
}

impl OnlineDivergence {
    /// Takes in the next piece of both rows, which have one length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn extend(&mut self, reference: &[f32], model: &[f32]) {
        assert_eq!(reference.len(), model.len(), "pieces of reference and model");
        self.model.extend(model);
        vectorized(
            #[inline(always)]
            || {
                self.difference *= self.reference.raise(reference);
                let [total, difference] = weighted_sums(reference, model, self.reference.largest);
                self.reference.total += total;
                self.difference += difference;
            },
        );
    }

    /// `KL(reference || model)` in nats: with `P = softmax(p)`, `sum P (p - q)` less the log-sum-exp of `p`, plus that of
    /// `q`. It cannot be negative; a negative rounding rest is 0. `None` for a row that is not finite.
    #[must_use]
    pub fn divergence(&self) -> Option<f64> {
        let (p, q) = (&self.reference, &self.model);
        (p.is_finite() && q.is_finite()).then(|| {
            let shift = f64::from(q.largest) - f64::from(p.largest);
            (self.difference / p.total + shift + (ln(q.total) - ln(p.total))).max(0.0)
        })
    }
}

/// `sum e` and `sum e (p - q)` with `e = exp(p - largest)`.
#[inline(always)]
fn weighted_sums(p: &[f32], q: &[f32], largest: f32) -> [f64; 2] {
    let mut totals = [0.0; LANES];
    let mut differences = [0.0; LANES];
    let term = |p: f32, q: f32| {
        let e = f64::from(exp_f32(p - largest));
        (e, e * (f64::from(p) - f64::from(q)))
    };
    let ((p_blocks, p_tail), (q_blocks, q_tail)) = (p.as_chunks::<LANES>(), q.as_chunks::<LANES>());
    for (p, q) in p_blocks.iter().zip(q_blocks) {
        for l in 0..LANES {
            let (total, difference) = term(p[l], q[l]);
            totals[l] += total;
            differences[l] += difference;
        }
    }
    for (l, (&p, &q)) in p_tail.iter().zip(q_tail).enumerate() {
        let (total, difference) = term(p, q);
        totals[l] += total;
        differences[l] += difference;
    }
    [tree_sum(totals), tree_sum(differences)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits as a language model has them: most far below a few.
    fn row(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        (0..n).map(|_| (14.0 * uniform().powi(6) + 4.0 * uniform() - 3.0) as f32).collect()
    }

    fn log_softmax(x: &[f32]) -> Vec<f64> {
        let m = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
        let z: f64 = x.iter().map(|&x| (f64::from(x) - m).exp()).sum();
        x.iter().map(|&x| f64::from(x) - m - z.ln()).collect()
    }

    #[test]
    fn sums_over_a_real_vocabulary_are_those_of_f64() {
        for (seed, noise) in [(1, 1.0), (2, 0.1), (3, 0.02)] {
            let p = row(151_936, seed);
            let q: Vec<f32> =
                p.iter().zip(row(p.len(), seed + 100)).map(|(&p, e)| p + noise * (e + 1.0)).collect();
            let mut both = OnlineDivergence::default();
            for (p, q) in p.chunks(2048).zip(q.chunks(2048)) {
                both.extend(p, q);
            }
            let (ln_p, ln_q) = (log_softmax(&p), log_softmax(&q));
            for (sums, row, exact) in [(both.reference, &p, &ln_p), (both.model, &q, &ln_q)] {
                let got = sums.surprisal(row[77]).unwrap();
                assert!((got + exact[77]).abs() < 2e-7, "{got} against {}", -exact[77]);
                let first = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
                assert_eq!(sums.first_largest(), first);
            }
            let kl: f64 = ln_p.iter().zip(&ln_q).map(|(p, q)| p.exp() * (p - q)).sum();
            let got = both.divergence().unwrap();
            assert!((got - kl).abs() < 1e-3 * kl, "{got} against {kl}");
        }
    }

    #[test]
    fn every_length_and_cut() {
        let p = row(70, 5);
        let q = row(70, 6);
        for n in 1..p.len() {
            for cut in [0, 1, n / 2, n] {
                let mut both = OnlineDivergence::default();
                both.extend(&p[..cut], &q[..cut]);
                both.extend(&p[cut..n], &q[cut..n]);
                let (ln_p, ln_q) = (log_softmax(&p[..n]), log_softmax(&q[..n]));
                let kl: f64 = ln_p.iter().zip(&ln_q).map(|(p, q)| p.exp() * (p - q)).sum();
                assert!((both.divergence().unwrap() - kl).abs() < 1e-6, "{n}, {cut}");
                assert!((both.model.surprisal(q[0]).unwrap() + ln_q[0]).abs() < 1e-6, "{n}, {cut}");
            }
        }
    }

    #[test]
    fn rows_that_are_not_finite_have_no_numbers() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 3, 40] {
                let mut row = vec![0.0; 41];
                row[at] = bad;
                let mut sums = OnlineSoftmax::default();
                sums.extend(&row[..20]);
                sums.extend(&row[20..]);
                sums.extend(&[1.0]);
                assert_eq!((sums.surprisal(0.0), sums.first_largest()), (None, None), "{bad} at {at}");
                let mut both = OnlineDivergence::default();
                both.extend(&row, &[0.0; 41]);
                assert!(both.divergence().is_none() && both.model.is_finite());
            }
        }
        assert_eq!(OnlineSoftmax::default().surprisal(0.0), None);
    }

    #[test]
    fn extreme_logits_stay_finite_and_the_first_of_equals_ranks_first() {
        let mut both = OnlineDivergence::default();
        both.extend(&[f32::MAX, f32::MIN], &[f32::MIN, f32::MAX]);
        both.extend(&[f32::MAX, f32::MIN], &[f32::MIN, f32::MAX]);
        assert!(both.divergence().is_some_and(f64::is_finite));
        assert!(both.model.surprisal(f32::MIN).is_some_and(f64::is_finite));
        assert_eq!((both.reference.first_largest(), both.model.first_largest()), (Some(0), Some(1)));
    }
}
