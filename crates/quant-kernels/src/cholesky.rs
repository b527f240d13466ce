//! Cholesky factorisation.

use ndarray::ArrayViewMut2;

use crate::element::Element;
use crate::{Par, PivotError};

/// In-place Cholesky factorisation `H = L L^T`: reads the lower triangle of `h`, replaces it by `L`, and leaves the
/// strict upper triangle alone.
///
/// # Errors
/// [`PivotError`] with the row of the first pivot that is zero, negative or NaN; `h` is then partly overwritten.
///
/// # Panics
/// If `h` is not square.
pub fn cholesky_lower_in_place<T: Element>(h: ArrayViewMut2<'_, T>, par: Par) -> Result<(), PivotError> {
    assert_eq!(h.nrows(), h.ncols(), "only a square matrix has a Cholesky factorisation");
    T::cholesky(h, par)
}
