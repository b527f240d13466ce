//! LAPACK's Cholesky factorisation through ndarray-linalg.

use ndarray_linalg::{CholeskyInplace, Lapack, UPLO};
use quant_kernels::{Element, views};

/// Replaces the lower triangle of a row-major `[n, n]` matrix by its Cholesky factor (`potrf`).
///
/// The threads are those of the LAPACK library. ndarray-linalg clears the strict upper triangle, which the native
/// factorisation leaves alone; nobody reads it.
///
/// # Errors
/// The row of the first pivot that is not positive.
pub(crate) fn factorise<T: Element + Lapack>(lower: &mut [T], n: usize) -> Result<(), usize> {
    let factorised = views::matrix_mut(lower, n, n).cholesky_inplace(UPLO::Lower).is_ok();
    // `potrf` stops at the failed pivot and leaves it on the diagonal; a NaN may pass its sign test.
    let bad = (0..n).find(|&i| {
        let pivot = lower[i * (n + 1)];
        pivot.is_nan() || pivot <= T::zero()
    });
    match (factorised, bad) {
        (true, None) => Ok(()),
        (_, bad) => Err(bad.unwrap_or(0)),
    }
}
