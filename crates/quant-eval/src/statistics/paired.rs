//! Exact tests of two models on the same items.

use super::outcomes::Outcomes;
use crate::EvalError;
use serde::Serialize;

/// Whether two models differ, by which of their answers do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairedTest {
    /// Items of which the float model got more seeds right.
    pub float_better: usize,
    /// Items of which the quantised model did.
    pub quantised_better: usize,
    /// The two-sided p-value: how likely right answers are at least as far apart in number, if of every item it were chance which
    /// model gave which answers.
    pub p: f64,
    /// The mid-p value: what is exactly as far apart counts half. Closer to the nominal level, and not guaranteed to stay below it.
    pub mid_p: f64,
}

/// Tests the hypothesis that the models are interchangeable, exactly. Items are what is exchanged, all seeds of an item together: the
/// distribution of `Σ ± d_i`, where `d_i` is how many more right answers the float model has of item `i`, under all signs. With one
/// seed this is McNemar's exact test.
///
/// ```
/// use quant_eval::statistics::{Outcomes, paired_test};
///
/// // Of 20 items the quantised model lost 8 and won 1.
/// let float = Outcomes::new(1, (0..20).map(|i| i != 19).collect())?;
/// let quantised = Outcomes::new(1, (0..20).map(|i| i >= 8).collect())?;
/// let test = paired_test(&float, &quantised)?;
/// assert_eq!((test.float_better, test.quantised_better), (8, 1));
/// assert_eq!(test.p, 2.0 * (1.0 + 9.0) / 512.0);
/// assert_eq!(test.mid_p, 2.0 * (1.0 + 9.0 / 2.0) / 512.0);
/// # Ok::<(), quant_eval::EvalError>(())
/// ```
///
/// # Errors
/// If the models differ in items or seeds.
pub fn paired_test(float: &Outcomes, quantised: &Outcomes) -> Result<PairedTest, EvalError> {
    float.check_paired(quantised)?;
    let differences: Vec<i64> =
        float.counts().zip(quantised.counts()).map(|(a, b)| a as i64 - b as i64).collect();
    let observed = differences.iter().sum::<i64>().unsigned_abs() as usize;
    let sizes: Vec<usize> =
        differences.iter().map(|d| d.unsigned_abs() as usize).filter(|&d| d > 0).collect();
    let total: usize = sizes.iter().sum();
    // `chance[k]`: that the negative signs stand before `k` in all, so that the sum is `total − 2k`.
    let mut chance = vec![0.0_f64; total + 1];
    chance[0] = 1.0;
    let mut reached = 0;
    for size in sizes {
        reached += size;
        for k in (0..=reached).rev() {
            let before = if k >= size { chance[k - size] } else { 0.0 };
            chance[k] = (chance[k] + before) / 2.0;
        }
    }
    let beyond = |least: usize| -> f64 {
        (0..=total).filter(|k| total.abs_diff(2 * k) >= least).map(|k| chance[k]).sum::<f64>().min(1.0)
    };
    let (p, farther) = (beyond(observed), beyond(observed + 1));
    Ok(PairedTest {
        float_better: differences.iter().filter(|d| **d > 0).count(),
        quantised_better: differences.iter().filter(|d| **d < 0).count(),
        p,
        mid_p: (p + farther) / 2.0,
    })
}

/// p-values of several tests, corrected for their number (Holm 1979), in the same order: below `alpha` are those that can be rejected
/// with a chance of at most `alpha` that any of them should not have been. A NaN is as large as can be and stays one.
///
/// ```
/// let corrected = quant_eval::statistics::holm(&[0.01, 0.04, 0.03]);
/// assert_eq!(corrected, [0.03, 0.06, 0.06]);
/// ```
#[must_use]
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut corrected = vec![f64::NAN; p.len()];
    let mut largest = 0.0_f64;
    for (smaller, index) in order.into_iter().enumerate() {
        if !p[index].is_nan() {
            largest = largest.max(((p.len() - smaller) as f64 * p[index]).min(1.0));
            corrected[index] = largest;
        }
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn test(seeds: usize, float: &[bool], quantised: &[bool]) -> PairedTest {
        let outcomes = |right: &[bool]| Outcomes::new(seeds, right.to_vec()).unwrap();
        paired_test(&outcomes(float), &outcomes(quantised)).unwrap()
    }

    /// Of `lost` and `won` items beside ten on which the models agree.
    fn counts(lost: usize, won: usize) -> PairedTest {
        let all = lost + won + 10;
        let float: Vec<bool> = (0..all).map(|i| i < lost || i >= lost + won).collect();
        let quantised: Vec<bool> = (0..all).map(|i| i >= lost).collect();
        test(1, &float, &quantised)
    }

    /// `scipy.stats.binomtest(k, n, 0.5).pvalue`, 1.17.1.
    #[test]
    fn one_seed_is_mcnemars_exact_test() {
        for (lost, won, p) in SCIPY {
            let found = counts(lost, won);
            assert!((found.p - p).abs() < 1e-12, "{lost} {won} {} {p}", found.p);
            assert_eq!(found.p, counts(won, lost).p);
            assert!(found.mid_p < found.p);
        }
        assert_eq!((counts(0, 0).p, counts(5, 5).p), (1.0, 1.0));
    }
    const SCIPY: [(usize, usize, f64); 6] = [
        (8, 1, 0.039_062_5),
        (3, 9, 0.145_996_093_75),
        (1, 0, 1.0),
        (12, 12, 1.0),
        (20, 41, 0.009_853_448_195_259_268),
        (0, 7, 0.015_625),
    ];

    #[test]
    fn many_items_keep_their_chances() {
        let found = counts(400, 300).p;
        assert!((found / 1.784_763_144_856_244e-4 - 1.0).abs() < 1e-10, "{found}");
        assert!((counts(1319, 0).p - 2.0_f64.powi(-1318)).abs() < 1e-300);
    }

    #[test]
    fn an_error_says_what_differs() {
        let [a, b] = [2, 3].map(|items| Outcomes::new(1, vec![true; items]).unwrap());
        assert!(paired_test(&a, &b).unwrap_err().to_string().contains("same items"));
    }

    #[test]
    fn holm_is_ordered_and_bounded() {
        assert!(holm(&[]).is_empty());
        assert_eq!(holm(&[0.5, 0.5, 0.9]), [1.0, 1.0, 1.0]);
        let corrected = holm(&[f64::NAN, 0.01]);
        assert!(corrected[0].is_nan() && corrected[1] == 0.02);
    }

    proptest! {
        /// All signs, one by one.
        #[test]
        fn the_distribution_is_that_of_all_signs(
            float in prop::collection::vec(any::<bool>(), 30),
            quantised in prop::collection::vec(any::<bool>(), 30),
        ) {
            let differences: Vec<i64> = float.chunks(3).zip(quantised.chunks(3))
                .map(|(a, b)| a.iter().map(|x| i64::from(*x)).sum::<i64>() - b.iter().map(|x| i64::from(*x)).sum::<i64>())
                .collect();
            let observed = differences.iter().sum::<i64>().abs();
            let signed = |signs: u32| -> i64 {
                (0..10).map(|i| if signs >> i & 1 == 1 { -differences[i] } else { differences[i] }).sum::<i64>().abs()
            };
            let share = |least: i64| (0..1024).filter(|s| signed(*s) >= least).count() as f64 / 1024.0;
            let found = test(3, &float, &quantised);
            prop_assert!((found.p - share(observed)).abs() < 1e-12);
            prop_assert!((found.mid_p - (share(observed) + share(observed + 1)) / 2.0).abs() < 1e-12);
        }
    }
}
