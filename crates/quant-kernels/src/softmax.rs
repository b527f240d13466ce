//! Causal softmax over attention scores.

use ndarray::ArrayViewMut2;

use crate::element::Element;
use crate::rows::{lane_max, lane_sum, with_row_mut};
use crate::vectorized;

/// Causal softmax of attention scores `[queries, keys]` in place, row by row.
///
/// Query `i` stands at position `p = first_query_position + i` and attends keys `j <= p`, with a sliding window only
/// `p - window < j <= p`. Masked entries become exactly 0, and a row that may attend nothing becomes all zero.
/// The row maximum is subtracted before `exp`; a row that contains NaN becomes NaN where it is not masked.
pub fn softmax_rows_causal<T: Element>(
    mut scores: ArrayViewMut2<'_, T>,
    first_query_position: usize,
    window: Option<usize>,
) {
    let keys = scores.ncols();
    let mut scratch = Vec::new();
    vectorized(
        #[inline(always)]
        || {
            for (i, row) in scores.rows_mut().into_iter().enumerate() {
                let end = first_query_position.saturating_add(i).saturating_add(1);
                let start = window.map_or(0, |width| end.saturating_sub(width)).min(keys);
                let end = end.min(keys).max(start);
                with_row_mut(row, &mut scratch, |row| {
                    row[..start].fill(T::zero());
                    row[end..].fill(T::zero());
                    softmax(&mut row[start..end]);
                });
            }
        },
    );
}

#[inline(always)]
fn softmax<T: Element>(row: &mut [T]) {
    let largest = lane_max(row);
    for x in row.iter_mut() {
        *x = (*x - largest).exp_element();
    }
    let factor = lane_sum(row, |x| x).recip();
    for x in row.iter_mut() {
        *x *= factor;
    }
}
