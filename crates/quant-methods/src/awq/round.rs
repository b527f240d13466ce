//! Rounding to a grid and back, into buffers, for weights that exist only to be measured.

use ndarray::{ArrayView2, ArrayViewMut2};
use quant_core::{Grid, QParams};

/// `Q(w)` of a group under given parameters, where `w` already stands in `group`.
#[inline(always)]
pub(super) fn round_group(grid: &Grid, params: QParams, group: &mut [f32]) {
    if grid.is_binary() {
        for v in group {
            *v = params.value(grid.level(*v, params));
        }
    } else {
        let top = grid.bits.max_level();
        for v in group {
            *v = params.fake(*v, top);
        }
    }
}

/// `out = Q(w ∘ c) / c` of one row, groups of `size` columns; multiplied and divided as the published code does it.
#[inline(always)]
pub(super) fn scaled_row(grid: &Grid, size: usize, weight: &[f32], scales: &[f32], out: &mut [f32]) {
    for ((out, &w), &c) in out.iter_mut().zip(weight).zip(scales) {
        *out = w * c;
    }
    for group in out.chunks_mut(size) {
        let params = grid.params(group, None);
        round_group(grid, params, group);
    }
    for (out, &c) in out.iter_mut().zip(scales) {
        *out /= c;
    }
}

/// [`scaled_row`] of every row, less the row itself where `difference` is asked for. Both arrays are `[rows, in]` in standard
/// layout.
#[inline(always)]
pub(super) fn scaled_rows(
    grid: &Grid,
    size: usize,
    weight: ArrayView2<'_, f32>,
    scales: &[f32],
    mut out: ArrayViewMut2<'_, f32>,
    difference: bool,
) {
    for i in 0..weight.nrows() {
        if let (Some(row), Some(out)) = (weight.row(i).to_slice(), out.row_mut(i).into_slice()) {
            scaled_row(grid, size, row, scales, out);
            if difference {
                for (out, &w) in out.iter_mut().zip(row) {
                    *out -= w;
                }
            }
        }
    }
}
