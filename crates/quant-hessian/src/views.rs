//! Slices seen as matrices.

use ndarray::{ArrayView2, ArrayViewMut2};

/// A contiguous slice as a row-major matrix.
#[expect(clippy::expect_used, reason = "every caller slices exactly rows * columns elements")]
pub(crate) fn matrix<T>(values: &[T], rows: usize, columns: usize) -> ArrayView2<'_, T> {
    ArrayView2::from_shape((rows, columns), values).expect("rows * columns elements")
}

/// A contiguous slice as a mutable row-major matrix.
#[expect(clippy::expect_used, reason = "every caller slices exactly rows * columns elements")]
pub(crate) fn matrix_mut<T>(values: &mut [T], rows: usize, columns: usize) -> ArrayViewMut2<'_, T> {
    ArrayViewMut2::from_shape((rows, columns), values).expect("rows * columns elements")
}
