//! Causal softmax over attention scores.

use ndarray::{ArrayViewMut1, ArrayViewMut2};
use std::ops::Range;

use crate::element::Element;
use crate::rows::{lane_max, lane_sum, with_row_mut};
use crate::vectorized;

/// Causal softmax of attention scores `[queries, keys]` in place, row by row.
///
/// Query `i` stands at position `p = first_query_position + i` and attends keys `j <= p`, with a sliding window only
/// `p - window < j <= p`. Masked entries become exactly 0, and a row that may attend nothing becomes all zero.
/// The row maximum is subtracted before `exp`, whose results below `e^-80` count as 0; a row that contains NaN becomes NaN where it is not masked.
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
                let Range { start, end } = seen(first_query_position.saturating_add(i), window, 0, keys);
                with_row_mut(row, &mut scratch, |row| {
                    row[..start].fill(T::zero());
                    row[end..].fill(T::zero());
                    softmax(&mut row[start..end]);
                });
            }
        },
    );
}

/// Causal softmax over keys that arrive tile by tile, and the sum of values it weighs: the maximum and the sum of each row
/// are carried along, and what was summed before a larger maximum came is scaled down to it (Milakov and Gimelshein 2018;
/// Dao et al. 2022).
///
/// A tile without a key that a row may attend leaves that row as it is, so a row's result depends on where its own tiles
/// are cut and on nothing else. One value serves any number of score matrices, one after the other.
#[derive(Clone, Debug, Default)]
pub struct CausalSoftmax<T> {
    largest: Vec<T>,
    total: Vec<T>,
    scratch: Vec<T>,
}

impl<T: Element> CausalSoftmax<T> {
    /// Begins `queries` new rows.
    pub fn start(&mut self, queries: usize) {
        for (rows, value) in [(&mut self.largest, T::neg_infinity()), (&mut self.total, T::zero())] {
            rows.clear();
            rows.resize(queries, value);
        }
    }

    /// Takes in the scores `[queries, keys]` of one tile, whose keys stand at `first_key..`; queries and window are those
    /// of [`softmax_rows_causal`]. Scores become the weights of the tile's values, 0 where masked, and `sums`
    /// `[queries, features]`, the weighted values so far, is scaled to fit them: add their product to it.
    ///
    /// # Panics
    /// If scores and sums have not the rows that were begun.
    pub fn tile(
        &mut self,
        mut scores: ArrayViewMut2<'_, T>,
        first_key: usize,
        first_query_position: usize,
        window: Option<usize>,
        mut sums: ArrayViewMut2<'_, T>,
    ) {
        let Self { largest, total, scratch } = self;
        assert!(
            scores.nrows() == total.len() && sums.nrows() == total.len(),
            "{} rows of scores and {} of sums for {} queries",
            scores.nrows(),
            sums.nrows(),
            total.len()
        );
        let keys = scores.ncols();
        vectorized(
            #[inline(always)]
            || {
                for (i, row) in scores.rows_mut().into_iter().enumerate() {
                    let seen = seen(first_query_position.saturating_add(i), window, first_key, keys);
                    let before = largest[i];
                    let sum = with_row_mut(row, scratch, |row| {
                        row[..seen.start].fill(T::zero());
                        row[seen.end..].fill(T::zero());
                        let row = &mut row[seen.clone()];
                        if row.is_empty() {
                            return T::zero();
                        }
                        let found = lane_max(row);
                        largest[i] = if found > before { found } else { before };
                        exponentiate(row, largest[i]);
                        lane_sum(row, |x| x)
                    });
                    // Not before there is anything to scale: `sums` may hold numbers of another time.
                    if before == T::neg_infinity() {
                        sums.row_mut(i).fill(T::zero());
                        total[i] += sum;
                    } else if seen.is_empty() || largest[i] == before {
                        total[i] += sum;
                    } else {
                        let factor = weight(before - largest[i]);
                        scale(sums.row_mut(i), scratch, factor);
                        total[i] = total[i] * factor + sum;
                    }
                }
            },
        );
    }

    /// The largest score and the sum of weights of every row so far: what [`softmax_tile_backward`] forms the weights
    /// from again. Negative infinity and 0 of a row that attended nothing.
    ///
    /// [`softmax_tile_backward`]: crate::softmax_tile_backward
    #[must_use]
    pub fn rows(&self) -> (&[T], &[T]) {
        (&self.largest, &self.total)
    }

    /// Divides the weighted values `[queries, features]` by the sums of their weights; a row that attended nothing, or no
    /// tile, becomes zero.
    pub fn finish(&mut self, mut sums: ArrayViewMut2<'_, T>) {
        let Self { total, scratch, .. } = self;
        vectorized(
            #[inline(always)]
            || {
                for (mut row, &total) in sums.rows_mut().into_iter().zip(total.iter()) {
                    if total == T::zero() {
                        row.fill(T::zero());
                    } else {
                        scale(row, scratch, total.recip());
                    }
                }
            },
        );
    }
}

/// The columns that a query at `position` attends of `keys` keys that stand at `first_key..`.
#[inline(always)]
pub(crate) fn seen(position: usize, window: Option<usize>, first_key: usize, keys: usize) -> Range<usize> {
    let end = position.saturating_add(1);
    let start = window.map_or(0, |width| end.saturating_sub(width)).saturating_sub(first_key).min(keys);
    start..end.saturating_sub(first_key).min(keys).max(start)
}

#[inline(always)]
fn scale<T: Element>(row: ArrayViewMut1<'_, T>, scratch: &mut Vec<T>, factor: T) {
    with_row_mut(row, scratch, |row| {
        for x in row.iter_mut() {
            *x *= factor;
        }
    });
}

/// The weight of a score that lies `below` (a negative number) the largest one, whose weight is 1: `e^below`, and 0 from `e^-80` on, which
/// no sum of weights can show. Subnormal weights, and their subnormal products with values, would take tens of times as long.
#[inline(always)]
pub(crate) fn weight<T: Element>(below: T) -> T {
    let weight = below.exp_element();
    if below < T::from_f64(-80.0) { T::zero() } else { weight }
}

#[inline(always)]
fn exponentiate<T: Element>(row: &mut [T], largest: T) {
    for x in row.iter_mut() {
        *x = weight(*x - largest);
    }
}

#[inline(always)]
fn softmax<T: Element>(row: &mut [T]) {
    exponentiate(row, lane_max(row));
    let factor = lane_sum(row, |x| x).recip();
    for x in row.iter_mut() {
        *x *= factor;
    }
}
