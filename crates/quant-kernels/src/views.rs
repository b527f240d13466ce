//! Parts of matrices, and memory seen as matrices. (`ndarray::s!` expands to a lint attribute that `forbid(unsafe_code)`
//! refuses.)
//!
//! ```
//! use quant_kernels::ndarray::array;
//! use quant_kernels::views;
//!
//! let mut x = array![[1, 2, 3], [4, 5, 6]];
//! views::columns_mut(&mut x, 0..1).fill(0);
//! assert_eq!(views::columns(views::rows(x.view(), 1..2), 0..2), array![[0, 5]]);
//! assert_eq!(views::matrix(&[1, 2, 3, 4], 2, 2), array![[1, 2], [3, 4]]);
//! // Memory that is used again, whatever it held.
//! let mut memory = Vec::new();
//! views::scratch(&mut memory, (2, 3)).assign(&x);
//! assert_eq!(views::scratch(&mut memory, (1, 4)), array![[0, 2, 3, 0]]);
//! ```

use std::ops::Range;

use ndarray::{ArrayBase, ArrayView2, ArrayViewMut2, Axis, DataMut, Ix2, Slice};
use num_traits::Zero;

/// Rows `range` of `x`.
///
/// # Panics
/// If `x` has not these rows.
#[must_use]
pub fn rows<T>(x: ArrayView2<'_, T>, range: Range<usize>) -> ArrayView2<'_, T> {
    x.slice_axis_move(Axis(0), Slice::from(range))
}

/// Rows `range` of `x`, to write to.
///
/// # Panics
/// If `x` has not these rows.
pub fn rows_mut<S: DataMut>(x: &mut ArrayBase<S, Ix2>, range: Range<usize>) -> ArrayViewMut2<'_, S::Elem> {
    x.slice_axis_mut(Axis(0), Slice::from(range))
}

/// Columns `range` of `x`.
///
/// # Panics
/// If `x` has not these columns.
#[must_use]
pub fn columns<T>(x: ArrayView2<'_, T>, range: Range<usize>) -> ArrayView2<'_, T> {
    x.slice_axis_move(Axis(1), Slice::from(range))
}

/// Columns `range` of `x`, to write to.
///
/// # Panics
/// If `x` has not these columns.
pub fn columns_mut<S: DataMut>(x: &mut ArrayBase<S, Ix2>, range: Range<usize>) -> ArrayViewMut2<'_, S::Elem> {
    x.slice_axis_mut(Axis(1), Slice::from(range))
}

/// A slice as a row-major matrix.
///
/// # Panics
/// If the slice has not `rows * columns` elements.
#[must_use]
#[expect(clippy::expect_used, reason = "every caller slices exactly rows * columns elements")]
pub fn matrix<T>(values: &[T], rows: usize, columns: usize) -> ArrayView2<'_, T> {
    ArrayView2::from_shape((rows, columns), values).expect("rows * columns elements")
}

/// A slice as a row-major matrix, to write to.
///
/// # Panics
/// If the slice has not `rows * columns` elements.
#[expect(clippy::expect_used, reason = "every caller slices exactly rows * columns elements")]
pub fn matrix_mut<T>(values: &mut [T], rows: usize, columns: usize) -> ArrayViewMut2<'_, T> {
    ArrayViewMut2::from_shape((rows, columns), values).expect("rows * columns elements")
}

/// A matrix `[rows, columns]` in memory that is used again and made as long as that takes; it holds old numbers.
pub fn scratch<T: Clone + Zero>(
    memory: &mut Vec<T>,
    (rows, columns): (usize, usize),
) -> ArrayViewMut2<'_, T> {
    memory.resize(rows * columns, T::zero());
    matrix_mut(memory, rows, columns)
}
