//! Matrix products and linear layers.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2};

use crate::arch::Region;
use crate::element::Element;
use crate::{Compute, Level, Par};

/// `dst[m, n] = alpha * a[m, k] * b[n, k]^T`, or `+=` with `accumulate`.
///
/// `b` is row-major `[n, k]`, the layout of a weight `[out, in]`. Any strides are accepted. Without `accumulate`
/// the old content of `dst` is not read, so it may be NaN; with `k = 0` the product is zero.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn matmul_nt<T: Element>(
    dst: ArrayViewMut2<'_, T>,
    accumulate: bool,
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    compute: Compute,
    par: Par,
) {
    matmul_nn(dst, accumulate, alpha, a, b.reversed_axes(), compute, par);
}

/// `dst[m, n] = alpha * a[m, k] * b[k, n]`, or `+=` with `accumulate`. Any strides are accepted.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn matmul_nn<T: Element>(
    dst: ArrayViewMut2<'_, T>,
    accumulate: bool,
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    compute: Compute,
    par: Par,
) {
    check_shapes(dst.dim(), a.dim(), b.dim());
    T::product(Level::detect(), dst, Region::Full, accumulate, alpha, a, b, compute, par);
}

/// The linear layer `y = x W^T + bias`: `x` is `[tokens, in]`, `w` is `[out, in]`, `bias` is `[out]`, and the result
/// is `[tokens, out]` in row-major order.
///
/// # Panics
/// If the shapes do not fit each other.
#[must_use]
pub fn linear<T: Element>(
    x: ArrayView2<'_, T>,
    w: ArrayView2<'_, T>,
    bias: Option<ArrayView1<'_, T>>,
    compute: Compute,
    par: Par,
) -> Array2<T> {
    let mut y = Array2::zeros((x.nrows(), w.nrows()));
    linear_into(x, w, bias, y.view_mut(), compute, par);
    y
}

/// [`linear`] into an existing `[tokens, out]` array, whose old content is not read.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn linear_into<T: Element>(
    x: ArrayView2<'_, T>,
    w: ArrayView2<'_, T>,
    bias: Option<ArrayView1<'_, T>>,
    mut dst: ArrayViewMut2<'_, T>,
    compute: Compute,
    par: Par,
) {
    let accumulate = fill_with_bias(&mut dst, bias);
    matmul_nt(dst, accumulate, T::one(), x, w, compute, par);
}

/// Writes the bias into every row and tells the product to add to it.
pub(crate) fn fill_with_bias<T: Element>(
    dst: &mut ArrayViewMut2<'_, T>,
    bias: Option<ArrayView1<'_, T>>,
) -> bool {
    let Some(bias) = bias else { return false };
    assert_eq!(bias.len(), dst.ncols(), "bias [out] must have as many elements as the weight has rows");
    dst.assign(&bias);
    true
}

pub(crate) fn check_shapes(dst: (usize, usize), a: (usize, usize), b: (usize, usize)) {
    assert!(
        a.1 == b.0 && dst == (a.0, b.1),
        "product of [{}, {}] and [{}, {}] (as [m, k] and [k, n]) does not fit a destination [{}, {}]",
        a.0,
        a.1,
        b.0,
        b.1,
        dst.0,
        dst.1,
    );
}
