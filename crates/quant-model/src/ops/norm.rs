//! RMS norms of rows and of heads.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use quant_kernels::{Element, Par, rms_norm, tasks, views};

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
