//! RMS norms of rows and of heads.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use quant_kernels::{Element, Par, rms_norm, rms_norm_backward, tasks, views};

/// RMS norm of rows `h` `[tokens, features]` by `weight` `[features]`, in blocks of tokens: what stands before the head, and
/// before every stage that begins with a norm.
///
/// # Panics
/// If the weight has not the features of the rows.
pub fn normed<T: Element>(h: ArrayView2<'_, T>, weight: ArrayView1<'_, T>, eps: T, par: Par) -> Array2<T> {
    if par == Par::Seq {
        return rms_norm(h, weight, eps);
    }
    let mut out = Array2::zeros(h.dim());
    tasks::for_rows(out.view_mut(), par, |first, mut rows| {
        let part = views::rows(h, first..first + rows.nrows());
        rows.assign(&rms_norm(part, weight, eps));
    });
    out
}

/// RMS norm of every head of `x` `[tokens, heads · head_dim]` in place.
pub(crate) fn norm_heads<T: Element>(mut x: ArrayViewMut2<'_, T>, weight: ArrayView1<'_, T>, eps: T) {
    let head_dim = weight.len();
    for mut heads in x.axis_chunks_iter_mut(Axis(1), head_dim) {
        let normed = rms_norm(heads.view(), weight, eps);
        heads.assign(&normed);
    }
}

/// The backward of [`normed`] for rows `h`: `grad` becomes the gradient with respect to them.
pub(crate) fn normed_backward<T: Element>(
    h: ArrayView2<'_, T>,
    weight: ArrayView1<'_, T>,
    eps: T,
    grad: ArrayViewMut2<'_, T>,
    par: Par,
) {
    tasks::for_rows(grad, par, |first, rows| {
        rms_norm_backward(views::rows(h, first..first + rows.nrows()), weight, eps, rows);
    });
}

/// The backward of [`norm_heads`] for heads `x`, as they were before the norm.
pub(crate) fn norm_heads_backward<T: Element>(
    x: ArrayView2<'_, T>,
    weight: ArrayView1<'_, T>,
    eps: T,
    mut grad: ArrayViewMut2<'_, T>,
) {
    let head_dim = weight.len();
    for (x, grad) in x.axis_chunks_iter(Axis(1), head_dim).zip(grad.axis_chunks_iter_mut(Axis(1), head_dim)) {
        rms_norm_backward(x, weight, eps, grad);
    }
}
