//! How far a transform is from one that cannot be undone.

use ndarray::{ArrayView1, ArrayView2};

use crate::RotateError;
use crate::dense::{inverse, singular_values, square};

/// Figures of a matrix that rounding of its inverse depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditioning {
    /// Largest singular value over the smallest, infinite for a singular matrix. That of a Kronecker product is the product of
    /// those of its factors.
    pub condition: f64,
    /// The sign of the determinant: 1, -1, or 0 where elimination finds no pivot.
    pub determinant_sign: i8,
    /// The smallest magnitude on the diagonal of a transform in [`Parametrisation::Svd`](crate::Parametrisation::Svd).
    pub smallest_diagonal: Option<f64>,
}

impl Conditioning {
    /// The figures of a square matrix. Singular values take some tens of `n^3` operations: ask after an epoch rather than a step.
    ///
    /// ```
    /// use quant_rotate::Conditioning;
    /// use quant_rotate::ndarray::array;
    ///
    /// let figures = Conditioning::of(array![[0.0, 2.0], [1.0, 0.0]].view())?;
    /// assert_eq!((figures.condition, figures.determinant_sign), (2.0, -1));
    /// # Ok::<(), quant_rotate::RotateError>(())
    /// ```
    ///
    /// # Errors
    /// [`RotateError::Shape`] for a matrix that is not square, [`RotateError::NotFinite`] for one with a NaN or an infinity.
    pub fn of(matrix: ArrayView2<'_, f64>) -> Result<Self, RotateError> {
        square("matrix of a transform", matrix)?;
        crate::dense::finite("matrix of a transform", matrix)?;
        let values = singular_values(matrix);
        let condition = match (values.first(), values.last()) {
            (Some(&largest), Some(&smallest)) if smallest > 0.0 => largest / smallest,
            (Some(_), _) => f64::INFINITY,
            _ => 1.0,
        };
        let determinant_sign = inverse("matrix of a transform", matrix).map_or(0, |i| i.determinant_sign);
        Ok(Self { condition, determinant_sign, smallest_diagonal: None })
    }
    /// The figures of `U diag(t) V^T` with `U` and `V` of determinant 1.
    pub(super) fn of_diagonal(t: ArrayView1<'_, f64>) -> Result<Self, RotateError> {
        crate::dense::finite("diagonal t", t)?;
        let (smallest, largest) =
            t.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), t| (low.min(t.abs()), high.max(t.abs())));
        let condition = if t.is_empty() {
            1.0
        } else if smallest > 0.0 {
            largest / smallest
        } else {
            f64::INFINITY
        };
        let determinant_sign = t.iter().fold(1, |sign, &t| {
            if t < 0.0 {
                -sign
            } else if t == 0.0 {
                0
            } else {
                sign
            }
        });
        Ok(Self { condition, determinant_sign, smallest_diagonal: (!t.is_empty()).then_some(smallest) })
    }
}
