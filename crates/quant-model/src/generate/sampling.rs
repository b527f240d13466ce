//! From logits to a token.

use quant_core::elementary::exp;
use std::cmp::Ordering;

/// How a token is drawn from logits.
///
/// ```
/// use quant_model::Sampling;
///
/// let logits = [0.0, 3.0, 2.9];
/// assert_eq!(Sampling::GREEDY.draw(&logits, 0, 7), Some(1));
/// let warm = Sampling { temperature: 1.0, seed: 1, ..Sampling::GREEDY };
/// // One draw of one request at one position, whoever else is there.
/// assert_eq!(warm.draw(&logits, 5, 7), warm.draw(&logits, 5, 7));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 takes the largest.
    pub temperature: f64,
    /// The likeliest tokens that together have this much of the probability are kept (Holtzman et al. 2020); 1 keeps all.
    pub top_p: f64,
    /// So many of the likeliest tokens are kept; 0 keeps all.
    pub top_k: usize,
    /// Together with request and position the key of a draw.
    pub seed: u64,
}

impl Sampling {
    /// The largest logit, the first of equal ones.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };

    /// The token that follows `position` of a request. None where a logit is not finite: such a model says nothing.
    ///
    /// Temperature first, then `top_k`, then `top_p`, as transformers orders them; sums are in f64, likeliest token first, equal ones in
    /// the order of the vocabulary.
    #[must_use]
    pub fn draw(&self, logits: &[f32], request: u64, position: u64) -> Option<u32> {
        if logits.is_empty() || logits.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let token = |index: usize| u32::try_from(index).ok();
        if self.temperature <= 0.0 {
            let best = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
            return token(best);
        }
        let mut kept: Vec<usize> = (0..logits.len()).collect();
        let order =
            |a: &usize, b: &usize| -> Ordering { logits[*b].total_cmp(&logits[*a]).then_with(|| a.cmp(b)) };
        if self.top_k > 0 && self.top_k < kept.len() {
            kept.select_nth_unstable_by(self.top_k, order);
            kept.truncate(self.top_k);
        }
        kept.sort_unstable_by(order);
        let largest = f64::from(logits[*kept.first()?]);
        let weight = |&i: &usize| exp((f64::from(logits[i]) - largest) / self.temperature);
        let weights: Vec<f64> = kept.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut mass = 0.0;
        let mut count = 0;
        while count < weights.len() && (count == 0 || mass < self.top_p * total) {
            mass += weights[count];
            count += 1;
        }
        let mut left = uniform(self.seed, request, position) * mass;
        for (&i, weight) in kept[..count].iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return token(i);
            }
        }
        token(kept[count - 1])
    }
}

/// A number in [0, 1) that its three keys fix (the finaliser of SplitMix64, Steele et al. 2014, over each key in turn).
fn uniform(seed: u64, request: u64, position: u64) -> f64 {
    let mixed = [seed, request, position].into_iter().fold(0x9E37_79B9_7F4A_7C15_u64, |state, key| {
        let mut z = (state ^ key).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    });
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(sampling: Sampling, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for position in 0..draws {
            counts[sampling.draw(logits, 3, position).unwrap() as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [1.0_f32, 2.0, 0.0, 2.0];
        let weights = logits.map(|x| f64::from(x / 0.8).exp());
        let total: f64 = weights.iter().sum();
        let sampling = Sampling { temperature: 0.8, seed: 11, ..Sampling::GREEDY };
        for (got, want) in drawn(sampling, &logits, 40_000).iter().zip(weights) {
            assert!((got - want / total).abs() < 0.01, "{got} {}", want / total);
        }
    }

    #[test]
    fn tails_are_cut() {
        let logits = [1.0_f32, 2.0, 0.0, 3.0];
        let warm = Sampling { temperature: 2.0, seed: 1, ..Sampling::GREEDY };
        let two = drawn(Sampling { top_k: 2, ..warm }, &logits, 2000);
        assert!(two[0] == 0.0 && two[2] == 0.0 && two[1] > 0.2 && two[3] > 0.2, "{two:?}");
        // exp(0), exp(-1/2), exp(-1): 0.455, 0.276, 0.167 of all.
        let most = drawn(Sampling { top_p: 0.7, ..warm }, &logits, 2000);
        assert!(most[2] == 0.0 && most[0] == 0.0 && most[1] > 0.2, "{most:?}");
        let more = drawn(Sampling { top_p: 0.74, ..warm }, &logits, 2000);
        assert!(more[0] > 0.1 && more[2] == 0.0, "{more:?}");
        // However small, one token is left.
        for one in [Sampling { top_p: 0.0, ..warm }, Sampling { top_k: 1, ..warm }] {
            assert_eq!(drawn(one, &logits, 64), [0.0, 0.0, 0.0, 1.0]);
        }
    }

    #[test]
    fn keys_of_a_draw_are_seed_request_and_position() {
        let logits = [0.0_f32; 64];
        let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::GREEDY };
        let draw = |sampling: Sampling, request, position| sampling.draw(&logits, request, position).unwrap();
        let base: Vec<u32> = (0..50).map(|p| draw(sampling, 1, p)).collect();
        assert_eq!(base, (0..50).map(|p| draw(sampling, 1, p)).collect::<Vec<_>>());
        assert_ne!(base, (0..50).map(|p| draw(sampling, 2, p)).collect::<Vec<_>>());
        assert_ne!(base, (0..50).map(|p| draw(Sampling { seed: 6, ..sampling }, 1, p)).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_not_finite_says_nothing() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for temperature in [0.0, 1.0] {
                let sampling = Sampling { temperature, ..Sampling::GREEDY };
                assert_eq!(sampling.draw(&[0.0, bad, 1.0], 0, 0), None);
            }
        }
        assert_eq!(Sampling::GREEDY.draw(&[], 0, 0), None);
        assert_eq!(Sampling::GREEDY.draw(&[1.0, 2.0, 2.0], 0, 0), Some(1));
    }
}
