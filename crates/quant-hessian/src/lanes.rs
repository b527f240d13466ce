//! Rows of a weight, transposed.

use ndarray::ArrayView2;
use quant_kernels::Element;

/// Some columns of the rows of `weight` from `first_row` on, one array of `L` numbers per column; dead columns and rows beyond
/// `rows` are zero.
pub(crate) fn load<T: Element, const L: usize>(
    target: &mut [[T; L]],
    weight: ArrayView2<'_, f32>,
    dead: &[bool],
    columns: impl Iterator<Item = usize> + Clone,
    first_row: usize,
    rows: usize,
) {
    if rows < L {
        target.fill([T::zero(); L]);
    }
    // 16 rows at a time: one cache line of every target column is filled before moving on.
    for r0 in (0..rows).step_by(16) {
        for (column, lanes) in columns.clone().zip(target.iter_mut()) {
            let dead = dead[column];
            for r in r0..(r0 + 16).min(rows) {
                lanes[r] = if dead { T::zero() } else { T::from_f32(weight[(first_row + r, column)]) };
            }
        }
    }
}
