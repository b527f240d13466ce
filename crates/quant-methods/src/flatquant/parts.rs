//! Rows in equal parts, each a row of its own: what several devices have of one input.

use super::step::channels;
use crate::MethodError;
use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use quant_kernels::Element;

/// Rows `[n, parts · width]` as `[n · parts, width]`.
pub(super) fn cut<'x, T: Element>(
    x: ArrayView2<'x, T>,
    parts: usize,
) -> Result<CowArray<'x, T, Ix2>, MethodError> {
    let (rows, columns) = x.dim();
    if parts == 1 {
        return Ok(x.into());
    }
    let width = columns.checked_div(parts).unwrap_or(0);
    let shape = (rows.saturating_mul(parts), width);
    let cut = x.to_shape(shape).map(|cut| cut.into_owned().into());
    cut.map_err(|_| {
        channels(format!("rows of {columns} in {parts} parts"), columns, width.saturating_mul(parts))
    })
}

/// The way back, to so many columns.
pub(super) fn joined<T: Element>(x: Array2<T>, columns: usize) -> Result<Array2<T>, MethodError> {
    if x.ncols() == columns {
        return Ok(x);
    }
    let (entries, found) = (x.len(), x.ncols());
    let shape = (entries.checked_div(columns).unwrap_or(0), columns);
    x.into_shape_with_order(shape)
        .map_err(|_| channels(format!("{entries} entries in rows of {columns}"), columns, found))
}
