//! Row and column ranges of matrices (the slicing macro of ndarray does not go with `forbid(unsafe_code)`).

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use std::ops::Range;

/// Rows `range` of `x`.
pub(crate) fn rows<T>(x: ArrayView2<'_, T>, range: Range<usize>) -> ArrayView2<'_, T> {
    x.slice_axis_move(Axis(0), Slice::from(range))
}

/// Columns `range` of `x`.
pub(crate) fn columns<T>(x: ArrayView2<'_, T>, range: Range<usize>) -> ArrayView2<'_, T> {
    x.slice_axis_move(Axis(1), Slice::from(range))
}

/// Columns `range` of `x`, to write to.
pub(crate) fn columns_mut<T>(x: &mut ndarray::Array2<T>, range: Range<usize>) -> ArrayViewMut2<'_, T> {
    x.slice_axis_mut(Axis(1), Slice::from(range))
}

/// Rows `range` of `x`, to write to.
pub(crate) fn rows_mut<'a, T>(x: &'a mut ArrayViewMut2<'_, T>, range: Range<usize>) -> ArrayViewMut2<'a, T> {
    x.slice_axis_mut(Axis(0), Slice::from(range))
}
