//! The factorisation of each element type.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor;
use faer::{Auto, MatMut, Spec};
use ndarray::ArrayViewMut2;

use crate::scalar::Scalar;
use crate::{Par, PivotError};

/// Element types with a factorisation.
pub trait Factorise: Sized {
    /// Factorises the lower triangle of a square matrix in place.
    fn cholesky(h: ArrayViewMut2<'_, Self>, par: Par) -> Result<(), PivotError>;
}

impl Factorise for f32 {
    fn cholesky(h: ArrayViewMut2<'_, Self>, par: Par) -> Result<(), PivotError> {
        faer_llt(h, par)
    }
}

impl Factorise for f64 {
    fn cholesky(h: ArrayViewMut2<'_, Self>, par: Par) -> Result<(), PivotError> {
        faer_llt(h, par)
    }
}

/// The blocked left-looking factorisation of faer, after moving unusual layouts into a row-major scratch.
fn faer_llt<T: Scalar + faer::traits::RealField>(
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

fn factor_slice<T: Scalar + faer::traits::RealField>(
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
