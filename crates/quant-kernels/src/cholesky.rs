//! Cholesky factorisation.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor;
use faer::{Auto, MatMut, Spec};
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

/// The blocked left-looking factorisation of faer, after moving unusual layouts into a row-major scratch.
pub(crate) fn faer_llt<T: Element + faer::traits::RealField>(
    mut h: ArrayViewMut2<'_, T>,
    par: Par,
) -> Result<(), PivotError> {
    let n = h.nrows();
    if let Some(slice) = h.as_slice_mut() {
        return factor_slice(slice, n, par);
    }
    let mut owned = h.as_standard_layout().into_owned();
    let result = owned.as_slice_mut().map_or(Ok(()), |slice| factor_slice(slice, n, par));
    h.assign(&owned);
    result
}

fn factor_slice<T: Element + faer::traits::RealField>(
    row_major: &mut [T],
    n: usize,
    par: Par,
) -> Result<(), PivotError> {
    let par = match par {
        Par::Seq => faer::Par::Seq,
        Par::Threads(count) => faer::Par::rayon(count.get()),
    };
    let params: Spec<factor::LltParams, T> = Spec::new(Auto::<T>::auto());
    let mut memory = MemBuffer::new(factor::cholesky_in_place_scratch::<T>(n, par, params));
    factor::cholesky_in_place(
        MatMut::from_row_major_slice_mut(row_major, n, n),
        factor::LltRegularization::default(),
        par,
        MemStack::new(&mut memory),
        params,
    )
    .map_err(|factor::LltError::NonPositivePivot { index }| PivotError { index })?;
    // A NaN compares false with everything, so it can pass the sign test of a pivot: look at the diagonal itself.
    let bad = |pivot: T| pivot.is_nan() || pivot <= T::zero();
    match (0..n).find(|&i| bad(row_major[i * n + i])) {
        Some(index) => Err(PivotError { index }),
        None => Ok(()),
    }
}
