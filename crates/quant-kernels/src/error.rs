//! What a factorisation can refuse.

/// Cholesky met a pivot that is not a positive finite number, so the matrix is not positive definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Cholesky expected a positive finite pivot, got a non-positive or NaN one in row {index}: the matrix is not \
     positive definite; add more damping to its diagonal, or check the calibration data for NaN"
)]
#[non_exhaustive]
pub struct PivotError {
    /// Row (and column) of the first pivot that failed.
    pub index: usize,
}
