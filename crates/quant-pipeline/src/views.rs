//! Row ranges of matrices. (`ndarray::s!` expands to a lint attribute that `forbid(unsafe_code)` refuses.)

use ndarray::{ArrayBase, ArrayViewMut2, Axis, DataMut, Ix2, Slice};
use std::ops::Range;

/// Rows `range` of a matrix, to be written.
pub(crate) fn rows_mut<S: DataMut<Elem = f32>>(
    x: &mut ArrayBase<S, Ix2>,
    range: Range<usize>,
) -> ArrayViewMut2<'_, f32> {
    x.slice_axis_mut(Axis(0), Slice::from(range))
}

/// A matrix in memory that is used again; it holds old numbers.
#[expect(clippy::expect_used, reason = "the memory was just made that long")]
pub(crate) fn scratch(memory: &mut Vec<f32>, (rows, columns): (usize, usize)) -> ArrayViewMut2<'_, f32> {
    memory.resize(rows * columns, 0.0);
    ArrayViewMut2::from_shape((rows, columns), memory.as_mut_slice()).expect("rows times columns numbers")
}
