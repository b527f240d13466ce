//! Which answers were right.

use crate::EvalError;

/// Right or wrong, `[items, seeds]`: every item was answered once for every seed.
///
/// ```
/// use quant_eval::statistics::Outcomes;
///
/// // Two items, three seeds.
/// let outcomes = Outcomes::new(3, vec![true, true, false, false, false, false])?;
/// assert_eq!((outcomes.items(), outcomes.seeds()), (2, 3));
/// assert_eq!(outcomes.accuracy(), 2.0 / 6.0);
/// assert_eq!(outcomes.accuracy_of_seed(0), Some(0.5));
/// # Ok::<(), quant_eval::EvalError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcomes {
    seeds: usize,
    right: Vec<bool>,
}

impl Outcomes {
    /// Of `right` `[items, seeds]`, all seeds of an item together.
    ///
    /// # Errors
    /// Without an item or a seed, or if the last item has fewer seeds than the others.
    pub fn new(seeds: usize, right: Vec<bool>) -> Result<Self, EvalError> {
        if seeds == 0 || right.is_empty() || !right.len().is_multiple_of(seeds) {
            return Err(EvalError::Outcomes { answers: right.len(), seeds });
        }
        Ok(Self { seeds, right })
    }

    /// Number of items.
    #[must_use]
    pub fn items(&self) -> usize {
        self.right.len() / self.seeds
    }

    /// Number of seeds.
    #[must_use]
    pub fn seeds(&self) -> usize {
        self.seeds
    }

    /// The fraction of right answers of all items and seeds.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        let right = self.right.iter().filter(|right| **right).count();
        right as f64 / self.right.len() as f64
    }

    /// The fraction of right answers under one seed; none where there is no such seed.
    #[must_use]
    pub fn accuracy_of_seed(&self, seed: usize) -> Option<f64> {
        let own = || self.right.iter().skip(seed).step_by(self.seeds);
        (seed < self.seeds).then(|| own().filter(|right| **right).count() as f64 / self.items() as f64)
    }

    /// Right answers of every item.
    pub(super) fn counts(&self) -> impl Iterator<Item = usize> {
        self.right.chunks(self.seeds).map(|item| item.iter().filter(|right| **right).count())
    }

    /// Whether `other` has the same items and seeds.
    pub(super) fn check_paired(&self, other: &Self) -> Result<(), EvalError> {
        if (self.items(), self.seeds) == (other.items(), other.seeds) {
            return Ok(());
        }
        Err(EvalError::Unpaired {
            float: (self.items(), self.seeds),
            quantised: (other.items(), other.seeds),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_table_is_refused() {
        for (seeds, answers) in [(0, 3), (2, 0), (2, 3)] {
            let error = Outcomes::new(seeds, vec![true; answers]).unwrap_err().to_string();
            assert!(error.contains(&format!("{answers} answers of {seeds} seeds")), "{error}");
        }
        let (two, three) =
            (Outcomes::new(1, vec![true; 2]).unwrap(), Outcomes::new(1, vec![true; 3]).unwrap());
        let error = two.check_paired(&three).unwrap_err().to_string();
        assert!(error.contains("2 items of 1 seeds") && error.contains("3 items of 1 seeds"), "{error}");
    }

    #[test]
    fn seeds_are_columns() {
        let outcomes = Outcomes::new(2, vec![true, false, true, true, false, false]).unwrap();
        assert_eq!(outcomes.counts().collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!([0, 1, 2].map(|s| outcomes.accuracy_of_seed(s)), [Some(2.0 / 3.0), Some(1.0 / 3.0), None]);
    }
}
