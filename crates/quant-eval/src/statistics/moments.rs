//! Means and deviations.

use serde::Serialize;

/// Mean and standard deviation of a few runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeanDeviation {
    /// The mean.
    pub mean: f64,
    /// `sqrt(Σ (x − mean)² / (n − 1))`; none of a single value.
    pub deviation: Option<f64>,
    /// How many values there were.
    pub count: usize,
}

/// Mean and standard deviation with `n − 1`; none of no values.
///
/// ```
/// let seeds = quant_eval::statistics::mean_deviation(&[46.0, 47.0, 48.0]).unwrap();
/// assert_eq!((seeds.mean, seeds.deviation, seeds.count), (47.0, Some(1.0), 3));
/// ```
#[must_use]
pub fn mean_deviation(values: &[f64]) -> Option<MeanDeviation> {
    let count = values.len();
    let mean = values.iter().sum::<f64>() / count as f64;
    let squares = || values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
    let deviation = (count > 1).then(|| (squares() / (count - 1) as f64).sqrt());
    (count > 0).then_some(MeanDeviation { mean, deviation, count })
}

/// Accuracy on AIME-120 from that on AIME-90 (2022 to 2024) and on the 30 items of AIME-2025: a weight for each item.
///
/// ```
/// assert_eq!(quant_eval::statistics::aime_120(40.0, 20.0), 35.0);
/// ```
#[must_use]
pub fn aime_120(aime_90: f64, aime_2025: f64) -> f64 {
    0.75 * aime_90 + 0.25 * aime_2025
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_divide_by_one_less() {
        let found = mean_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!(found.mean, 5.0);
        assert!((found.deviation.unwrap() - (32.0_f64 / 7.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean_deviation(&[3.0]).unwrap().deviation, None);
        assert_eq!(mean_deviation(&[]), None);
    }

    #[test]
    fn every_item_of_aime_counts_alike() {
        let (first, second) = (41, 7);
        let all = f64::from(first + second) / 120.0;
        assert!((aime_120(f64::from(first) / 90.0, f64::from(second) / 30.0) - all).abs() < 1e-15);
    }
}
