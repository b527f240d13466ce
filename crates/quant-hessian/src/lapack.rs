//! LAPACK's Cholesky factorisation through ndarray-linalg.

use ndarray_linalg::{CholeskyInplace, Lapack, UPLO};

use crate::views;

/// Replaces the lower triangle of a row-major `[n, n]` matrix by its Cholesky factor (`potrf`).
///
/// The threads are those of the LAPACK library. ndarray-linalg clears the strict upper triangle, which the native
/// factorisation leaves alone; nobody reads it.
///
/// # Errors
/// The row of the first pivot that is not positive.
pub(crate) fn factorise<T: Lapack>(lower: &mut [T], n: usize) -> Result<(), usize> {
    use ndarray_linalg::error::LinalgError;
    use ndarray_linalg::lax::error::Error;
    let mut matrix = views::matrix_mut(lower, n, n);
    match matrix.cholesky_inplace(UPLO::Lower) {
        Ok(_) => {}
        // potrf numbers the failing leading minor from 1.
        Err(LinalgError::Lapack(Error::LapackComputationalFailure { return_code })) => {
            return Err(usize::try_from(return_code).unwrap_or(1).saturating_sub(1));
        }
        Err(_) => return Err(0),
    }
    Ok(())
}
