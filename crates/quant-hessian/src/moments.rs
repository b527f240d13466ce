//! What a sum of products of activations is and what it was taken over.

use ndarray::{Array2, ArrayView2};

use crate::HessianError;

/// A plain sum `[n, n]` of products of activations over sequences, and how many those were. Its factor `2/N` is applied when it
/// is read: N counts **sequences**.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    /// Row-major.
    pub(crate) sum: Array2<f32>,
    sequences: usize,
    tokens: usize,
}

impl Moments {
    /// An empty sum.
    pub(crate) fn new(n: usize) -> Self {
        Self { sum: Array2::zeros((n, n)), sequences: 0, tokens: 0 }
    }

    /// The sum of which `finished` `[n, n]` is `2/N` times, called `what` in errors.
    ///
    /// # Errors
    /// [`HessianError::Shape`] if it is not square, [`HessianError::Empty`] if `sequences` is 0.
    pub(crate) fn of_finished(
        what: &'static str,
        finished: Array2<f32>,
        sequences: usize,
    ) -> Result<Self, HessianError> {
        let n = finished.ncols();
        if finished.nrows() != n {
            return Err(HessianError::Shape {
                what,
                expected: "a square matrix".to_owned(),
                found: format!("{:?}", finished.dim()),
            });
        }
        if sequences == 0 {
            return Err(HessianError::Empty { columns: n });
        }
        // A square matrix in any other layout is copied once.
        let standard = finished.is_standard_layout();
        let mut sum = if standard { finished } else { finished.as_standard_layout().into_owned() };
        if sequences != 2 {
            let back = sequences as f32 / 2.0;
            sum.mapv_inplace(|x| x * back);
        }
        Ok(Self { sum, sequences, tokens: 0 })
    }

    /// Refuses activations `x` of another width.
    ///
    /// # Errors
    /// [`HessianError::Shape`].
    pub(crate) fn check_width(&self, x: ArrayView2<'_, f32>) -> Result<(), HessianError> {
        if x.ncols() == self.n() {
            return Ok(());
        }
        Err(HessianError::Shape {
            what: "calibration activations",
            expected: format!("[tokens, {}]", self.n()),
            found: format!("{:?}", x.dim()),
        })
    }
    /// Counts what was added.
    pub(crate) fn count(&mut self, sequences: usize, tokens: usize) {
        self.sequences += sequences;
        self.tokens += tokens;
    }

    /// Whether anything was added. The first sum is written without being read: reading zeros that nobody has written maps
    /// pages which writing then maps again, and every processor is told.
    pub(crate) fn begun(&self) -> bool {
        self.sequences > 0 || self.tokens > 0
    }

    pub(crate) fn n(&self) -> usize {
        self.sum.ncols()
    }
    pub(crate) fn sequences(&self) -> usize {
        self.sequences
    }
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }
    /// The factor `2/N`.
    ///
    /// # Errors
    /// [`HessianError::Empty`].
    pub(crate) fn scale(&self) -> Result<f64, HessianError> {
        if self.sequences == 0 {
            return Err(HessianError::Empty { columns: self.n() });
        }
        Ok(2.0 / self.sequences as f64)
    }
}
