//! The backward of causal softmax, tile by tile.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::element::Element;
use crate::rows::{lane_sum_of, with_row, with_row_mut};
use crate::softmax::{seen, weight};
use crate::vectorized;

/// One tile of the backward of attention, whose weights nobody kept (Dao et al. 2022, algorithm 4).
///
/// `scores` and `grad` are `[queries, keys]`: the scores of the forward, and the gradient of the loss with respect to the
/// weights, which is the gradient of the attended values times the values of the keys. Of every query, `rows` has the
/// largest score and the sum of weights ([`CausalSoftmax::rows`]), and `along` the product of its attended values with
/// their gradient ([`row_dots`]). Replaces scores by weights `p`, 0 where masked, and `grad` by the gradient of the
/// scores, `p (grad - along)`. Positions and window are those of [`CausalSoftmax::tile`].
///
/// [`CausalSoftmax::rows`]: crate::CausalSoftmax::rows
/// [`CausalSoftmax::tile`]: crate::CausalSoftmax::tile
///
/// # Panics
/// If the shapes do not fit each other.
pub fn softmax_tile_backward<T: Element>(
    mut scores: ArrayViewMut2<'_, T>,
    mut grad: ArrayViewMut2<'_, T>,
    first_key: usize,
    first_query_position: usize,
    window: Option<usize>,
    (largest, total): (&[T], &[T]),
    along: &[T],
) {
    let (queries, keys) = scores.dim();
    assert_eq!(grad.dim(), (queries, keys), "the gradient must have the shape of the scores");
    assert!(
        largest.len() == queries && total.len() == queries && along.len() == queries,
        "{queries} queries with {}, {} and {} numbers of rows",
        largest.len(),
        total.len(),
        along.len()
    );
    let (mut score_scratch, mut grad_scratch) = (Vec::new(), Vec::new());
    vectorized(
        #[inline(always)]
        || {
            for (i, (row, grad)) in scores.rows_mut().into_iter().zip(grad.rows_mut()).enumerate() {
                let seen = seen(first_query_position.saturating_add(i), window, first_key, keys);
                let (largest, factor, along) = (largest[i], total[i].recip(), along[i]);
                with_row_mut(row, &mut score_scratch, |row| {
                    with_row_mut(grad, &mut grad_scratch, |grad| {
                        for masked in [0..seen.start, seen.end..keys] {
                            row[masked.clone()].fill(T::zero());
                            grad[masked].fill(T::zero());
                        }
                        for (p, g) in row[seen.clone()].iter_mut().zip(&mut grad[seen.clone()]) {
                            *p = weight(*p - largest) * factor;
                            *g = *p * (*g - along);
                        }
                    });
                });
            }
        },
    );
}

/// `out[t] = sum_j a[t, j] b[t, j]` for `a` and `b` `[tokens, features]`.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn row_dots<T: Element>(a: ArrayView2<'_, T>, b: ArrayView2<'_, T>, out: &mut [T]) {
    assert_eq!(a.dim(), b.dim(), "both operands are [tokens, features]");
    assert_eq!(a.nrows(), out.len(), "one number per token");
    let (mut a_scratch, mut b_scratch) = (Vec::new(), Vec::new());
    vectorized(
        #[inline(always)]
        || {
            for ((a, b), out) in a.rows().into_iter().zip(b.rows()).zip(out) {
                *out = with_row(a, &mut a_scratch, |a| {
                    with_row(b, &mut b_scratch, |b| lane_sum_of(a, b, |a, b| a * b))
                });
            }
        },
    );
}
