//! Root-mean-square normalisation.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2};

use crate::element::Element;
use crate::rows::{lane_sum, lane_sum_of, with_row, with_row_mut};
use crate::vectorized;

/// `y[t, j] = x[t, j] / sqrt(mean_j(x[t, j]^2) + eps) * weight[j]` for `x` `[tokens, features]` and `weight`
/// `[features]` (Zhang and Sennrich 2019), in a new row-major array.
///
/// The mean is accumulated in the element type in 16 fixed lanes. The factor `1 / sqrt(..)` is formed once per row,
/// as the reference implementations do with `rsqrt`.
///
/// # Panics
/// If `weight` does not have one element per feature.
#[must_use]
pub fn rms_norm<T: Element>(x: ArrayView2<'_, T>, weight: ArrayView1<'_, T>, eps: T) -> Array2<T> {
    assert_eq!(weight.len(), x.ncols(), "the norm weight must have one element per feature of x");
    let mut y = Array2::zeros(x.dim());
    if y.is_empty() {
        return y;
    }
    let weight: Vec<T> = weight.iter().copied().collect();
    let mut scratch = Vec::new();
    vectorized(
        #[inline(always)]
        || {
            for (row, mut out) in x.rows().into_iter().zip(y.rows_mut()) {
                let Some(out) = out.as_slice_mut() else { continue };
                with_row(row, &mut scratch, |row| norm_row(row, &weight, eps, out));
            }
        },
    );
    y
}

/// One row of [`rms_norm`].
#[inline(always)]
pub(crate) fn norm_row<T: Element>(row: &[T], weight: &[T], eps: T, out: &mut [T]) {
    let factor = norm_factor(row, eps);
    for ((out, &v), &w) in out.iter_mut().zip(row).zip(weight) {
        *out = v * factor * w;
    }
}

/// What [`norm_row`] multiplies a row by, before the weight.
#[inline(always)]
pub(crate) fn norm_factor<T: Element>(row: &[T], eps: T) -> T {
    factor_of_squares(lane_sum(row, |v| v * v), row.len(), eps)
}

/// The same from the sum of the squares of a row.
#[inline(always)]
pub(crate) fn factor_of_squares<T: Element>(squares: T, features: usize, eps: T) -> T {
    (squares / T::from_f64(features as f64) + eps).sqrt().recip()
}

/// The backward of [`rms_norm`] with respect to `x` `[tokens, features]`: replaces `grad`, the gradient of the loss with
/// respect to the normed rows, by the one with respect to `x`. With `r = 1 / sqrt(mean_j(x_j^2) + eps)` and
/// `g_j = grad_j weight_j`, `dx_j = r g_j - x_j r^3 mean_k(g_k x_k)`.
///
/// # Panics
/// If `weight` does not have one element per feature, or `grad` is not of the shape of `x`.
pub fn rms_norm_backward<T: Element>(
    x: ArrayView2<'_, T>,
    weight: ArrayView1<'_, T>,
    eps: T,
    mut grad: ArrayViewMut2<'_, T>,
) {
    assert_eq!(weight.len(), x.ncols(), "the norm weight must have one element per feature of x");
    assert_eq!(grad.dim(), x.dim(), "the gradient must have the shape of x");
    if x.is_empty() {
        return;
    }
    let weight: Vec<T> = weight.iter().copied().collect();
    let count = T::from_f64(weight.len() as f64);
    let (mut scratch, mut grad_scratch) = (Vec::new(), Vec::new());
    vectorized(
        #[inline(always)]
        || {
            for (row, grad) in x.rows().into_iter().zip(grad.rows_mut()) {
                with_row(row, &mut scratch, |row| {
                    with_row_mut(grad, &mut grad_scratch, |grad| {
                        let mean = lane_sum(row, |v| v * v) / count;
                        let factor = (mean + eps).sqrt().recip();
                        for (g, &w) in grad.iter_mut().zip(&weight) {
                            *g *= w;
                        }
                        let along = lane_sum_of(row, grad, |v, g| v * g) / count * factor * factor;
                        for (g, &v) in grad.iter_mut().zip(row) {
                            *g = (*g - v * along) * factor;
                        }
                    });
                });
            }
        },
    );
}
