//! Rotary position embedding.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::element::Element;
use crate::rows::{with_row, with_row_mut};
use crate::vectorized;

/// Rotates queries or keys `[tokens, heads * head_dim]` in place, in the rotate-half convention of the Llama family
/// (Su et al. 2021): with `x1`, `x2` the first and second half of a head,
/// `x1 <- x1 cos - x2 sin` and `x2 <- x2 cos + x1 sin`.
///
/// `cos` and `sin` are `[tokens, rotary / 2]`, already at the position of each token. `rotary` is the width of a head, or
/// less where only its first channels are rotated; the halves are those of the rotated part, and the rest passes. The
/// inverse rotation, which a backward pass needs, is the same call with `sin` negated.
///
/// # Panics
/// If the columns of `x` are not `heads` heads of at least twice the columns of `cos` and `sin`, or the token counts differ.
pub fn rope_in_place<T: Element>(
    mut x: ArrayViewMut2<'_, T>,
    heads: usize,
    cos: ArrayView2<'_, T>,
    sin: ArrayView2<'_, T>,
) {
    let half = cos.ncols();
    assert_eq!(cos.dim(), sin.dim(), "cos and sin must have one shape");
    assert_eq!(cos.nrows(), x.nrows(), "cos and sin must have one row per token");
    let head_dim = x.ncols() / heads.max(1);
    assert!(
        x.ncols() == heads * head_dim && (heads == 0 || 2 * half <= head_dim),
        "columns must be heads * head_dim, head_dim at least twice the columns of cos"
    );
    if x.is_empty() {
        return;
    }
    let (mut x_scratch, mut cos_scratch, mut sin_scratch) = (Vec::new(), Vec::new(), Vec::new());
    vectorized(
        #[inline(always)]
        || {
            for ((x, cos), sin) in x.rows_mut().into_iter().zip(cos.rows()).zip(sin.rows()) {
                with_row_mut(x, &mut x_scratch, |x| {
                    with_row(cos, &mut cos_scratch, |cos| {
                        with_row(sin, &mut sin_scratch, |sin| {
                            for head in x.chunks_exact_mut(head_dim) {
                                rotate(&mut head[..2 * half], cos, sin);
                            }
                        });
                    });
                });
            }
        },
    );
}

#[inline(always)]
fn rotate<T: Element>(head: &mut [T], cos: &[T], sin: &[T]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for (((x1, x2), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*x1, *x2) = (*x1 * c - *x2 * s, *x2 * c + *x1 * s);
    }
}
