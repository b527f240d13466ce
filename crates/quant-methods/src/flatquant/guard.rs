//! What can go wrong with a training, found in its numbers.

use super::parameters::FlatParameters;
use super::scheme::Matrix;
use crate::MethodError;
use quant_graph::Site;
use std::fmt;

/// Condition numbers above this make rounding of a matrix or of its inverse visible at 4 bits.
const LARGEST_CONDITION: f64 = 1e4;
/// Entries of `t` below this are about to pass zero.
const SMALLEST_T: f64 = 1e-3;
/// So are factors of channels below this.
const SMALLEST_SCALE: f32 = 1e-4;
/// How many times the error before training is no training any more.
const DIVERGED: f64 = 2.0;
/// Standard deviation over mean of the errors of the last third of the epochs.
const OSCILLATING: f64 = 0.2;

/// A sign that a training went wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Alarm {
    /// The error of an epoch (from 1) is above twice that before training; NaN or infinite where numbers were lost.
    Diverged {
        /// The epoch.
        epoch: usize,
        /// Its relative error.
        error: f64,
    },
    /// The errors of the last third of the epochs are far apart.
    Oscillating {
        /// Their standard deviation over their mean.
        spread: f64,
    },
    /// A matrix, or a Kronecker pair together, whose inverse has lost its last bits.
    Condition {
        /// The matrix, or the left one of the pair.
        matrix: Matrix,
        /// Largest over smallest singular value.
        condition: f64,
    },
    /// A matrix of the SVD form with a nearly vanishing entry of `t`.
    Diagonal {
        /// The matrix.
        matrix: Matrix,
        /// The smallest magnitude.
        smallest: f64,
    },
    /// A nearly vanishing factor of a channel.
    Scale {
        /// Where.
        site: Site,
        /// The smallest magnitude.
        smallest: f32,
    },
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diverged { epoch, error } => {
                write!(f, "diverged: the relative error is {error:.3e} after epoch {epoch}")
            }
            Self::Oscillating { spread } => {
                write!(
                    f,
                    "oscillating: errors of the last third of the epochs spread by {spread:.2} of their mean"
                )
            }
            Self::Condition { matrix, condition } => {
                write!(f, "ill-conditioned: {} has the condition number {condition:.3e}", matrix.name())
            }
            Self::Diagonal { matrix, smallest } => {
                write!(f, "ill-conditioned: {} has a diagonal entry of {smallest:.3e}", matrix.name())
            }
            Self::Scale { site, smallest } => {
                write!(f, "ill-conditioned: a channel at {site:?} has the factor {smallest:.3e}")
            }
        }
    }
}

/// What the errors of the epochs say: diverged, the first time, and oscillating.
pub(super) fn of_errors(before: f64, epochs: &[f64]) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    let bound = DIVERGED * before;
    if let Some(at) = epochs.iter().position(|error| !error.is_finite() || *error > bound) {
        alarms.push(Alarm::Diverged { epoch: at + 1, error: epochs[at] });
    }
    let last = &epochs[epochs.len() - epochs.len().div_ceil(3)..];
    let count = last.len() as f64;
    let mean = last.iter().sum::<f64>() / count;
    let variance = last.iter().map(|error| (error - mean) * (error - mean)).sum::<f64>() / count;
    let spread = variance.sqrt() / mean;
    if spread > OSCILLATING {
        alarms.push(Alarm::Oscillating { spread });
    }
    alarms
}

impl FlatParameters<f32> {
    /// Matrices and factors of channels whose inverses lose bits. Some tens of `n^3` operations for a matrix that is free.
    ///
    /// ```
    /// use quant_methods::flatquant::{Alarm, FlatParameters, Matrix};
    /// use quant_methods::ndarray::array;
    /// use quant_rotate::Learned;
    /// use std::collections::BTreeMap;
    ///
    /// let key = Learned::free(array![[1.0, 1.0], [1.0, 1.00001]].view())?;
    /// let parameters = FlatParameters {
    ///     matrices: [(Matrix::Key, key)].into(),
    ///     scales: BTreeMap::new(),
    ///     weight_clips: BTreeMap::new(),
    ///     input_clips: BTreeMap::new(),
    /// };
    /// let alarms = parameters.ill_conditioned()?;
    /// assert!(matches!(alarms[..], [Alarm::Condition { matrix: Matrix::Key, .. }]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MethodError::Rotate`] for parameters that are not finite.
    pub fn ill_conditioned(&self) -> Result<Vec<Alarm>, MethodError> {
        let mut alarms = Vec::new();
        let mut conditions = std::collections::BTreeMap::new();
        for (matrix, learned) in &self.matrices {
            let figures = learned.conditioning()?;
            conditions.insert(*matrix, figures.condition);
            if let Some(smallest) = figures.smallest_diagonal.filter(|t| *t < SMALLEST_T) {
                alarms.push(Alarm::Diagonal { matrix: *matrix, smallest });
            }
        }
        for site in Site::ALL {
            // Of a pair, the product.
            let (left, right) = Matrix::pair(site);
            if let Some(right) = conditions.remove(&right)
                && let Some(left) = conditions.get_mut(&left)
            {
                *left *= right;
            }
        }
        let bad = conditions.into_iter().filter(|(_, condition)| *condition > LARGEST_CONDITION);
        alarms.extend(bad.map(|(matrix, condition)| Alarm::Condition { matrix, condition }));
        for (site, scales) in &self.scales {
            let smallest = scales.iter().fold(f32::INFINITY, |least, c| least.min(c.abs()));
            if smallest < SMALLEST_SCALE {
                alarms.push(Alarm::Scale { site: *site, smallest });
            }
        }
        Ok(alarms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_epochs() {
        let falling: Vec<f64> = (0..15).map(|epoch| 1.0 / f64::from(epoch + 2)).collect();
        assert_eq!(of_errors(0.6, &falling), []);
        assert_eq!(of_errors(0.6, &[]), []);
        // Twice is not more than twice.
        assert_eq!(of_errors(0.5, &[1.0, 0.4, 0.4]), []);
        let found = of_errors(0.5, &[0.4, 1.01, 0.3]);
        assert_eq!(found, [Alarm::Diverged { epoch: 2, error: 1.01 }]);
        assert!(matches!(of_errors(0.5, &[0.4, f64::NAN])[..], [Alarm::Diverged { epoch: 2, .. }]));

        // Only the last third counts: 0.3, 0.5 have a mean of 0.4 and are 0.1 from it.
        let calm = [0.1, 0.9, 0.1, 0.9, 0.4, 0.5];
        assert_eq!(of_errors(0.6, &calm), []);
        let found = of_errors(0.6, &[0.1, 0.9, 0.1, 0.9, 0.3, 0.5]);
        let [Alarm::Oscillating { spread }] = found[..] else { panic!("{found:?}") };
        assert!((spread - 0.25).abs() < 1e-12);
    }
}
