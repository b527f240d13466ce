//! Correlation of ranks.

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs. None for lists of different
/// lengths, of fewer than two values, of equal values only, or with a NaN.
///
/// ```
/// use quant_eval::statistics::spearman;
///
/// assert_eq!(spearman(&[0.1, 0.2, 0.9], &[3.0, 5.0, 80.0]), Some(1.0));
/// assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
/// ```
#[must_use]
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() || x.iter().chain(y).any(|v| v.is_nan()) {
        return None;
    }
    let (x, y) = (doubled_ranks(x), doubled_ranks(y));
    // The mean of all ranks, doubled as they are.
    let mean = x.len() as f64 + 1.0;
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let (xx, yy) = (product(&x, &x), product(&y, &y));
    (xx > 0.0 && yy > 0.0).then(|| product(&x, &y) / (xx * yy).sqrt()).map(|r| r.clamp(-1.0, 1.0))
}

/// Twice the ranks from 1, which are whole numbers also where ranks are shared.
fn doubled_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    // `==`, so that both zeros are equal.
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        equal.iter().for_each(|&i| ranks[i] = (2 * first + 1 + equal.len()) as f64);
        first += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values of `scipy.stats.spearmanr`, 1.17.1.
    #[test]
    fn ties_are_those_of_scipy() {
        let x = [1.0, 2.0, 2.0, 3.0, 5.0, 5.0, 5.0, 0.0];
        let y = [2.0, 1.0, 4.0, 4.0, 3.0, 9.0, 9.0, 1.5];
        assert!((spearman(&x, &y).unwrap() - SCIPY[0]).abs() < 1e-14);
        let z = [-1.0, 7.0, 7.0, 7.0, 0.0, -3.0, 2.0, 2.0];
        assert!((spearman(&x, &z).unwrap() - SCIPY[1]).abs() < 1e-14);
    }
    const SCIPY: [f64; 2] = [0.726_834_267_125_498_5, -0.253_164_556_962_025_4];

    #[test]
    fn what_has_no_ranks_has_none() {
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(spearman(&[], &[]), None);
        assert_eq!(spearman(&[1.0, 2.0], &[1.0]), None);
        assert_eq!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[0.0, -0.0], &[1.0, 2.0]), None);
    }

    proptest! {
        #[test]
        fn only_the_order_counts(x in prop::collection::vec(-4_i32..4, 2..20), seed: u64) {
            let y: Vec<f64> = (0..x.len()).map(|i| ((seed >> (i % 60)) & 7) as f64).collect();
            let x: Vec<f64> = x.into_iter().map(f64::from).collect();
            let other: Vec<f64> = x.iter().map(|x| x.exp() * 3.0 - 1.0).collect();
            prop_assert_eq!(spearman(&x, &y), spearman(&other, &y));
            let back: Vec<f64> = x.iter().map(|x| -x).collect();
            match (spearman(&x, &y), spearman(&back, &y)) {
                (Some(a), Some(b)) => prop_assert!((a + b).abs() < 1e-14),
                (a, b) => prop_assert_eq!(a, b),
            }
        }
    }
}
