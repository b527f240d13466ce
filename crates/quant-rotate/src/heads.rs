//! One matrix for every head, and one across heads.
//!
//! A row of `heads * D` columns is `X` `[heads, D]`. [`per_head`] multiplies every head from the right, `X M` (the rotation of
//! keys and values), [`across_heads`] mixes the heads from the left, `M^T X` (that of an attention output); the two commute, and
//! together they are `x (A kron B)`, the [`Kronecker`](crate::Kronecker) transform.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_kernels::{Compute, Element, Par, matmul_nn, matmul_nt, mix_blocks_in_place};

use crate::runs::{as_runs, in_runs};

/// Rows gathered at a time for the gradient of [`across_heads`]: enough for a product of good size, few enough for caches.
const GATHERED: usize = 64;

/// `y = x (I kron M)` for `x` `[rows, heads * D]` and `M` `[D, D]`: every run of `D` columns times `M`. One run is a dense rotation.
///
/// ```
/// use quant_rotate::ndarray::array;
/// use quant_rotate::{Par, per_head};
///
/// let y = per_head(array![[1.0_f32, 2.0, 3.0, 4.0]].view(), array![[0.0, 1.0], [1.0, 0.0]].view(), Par::Seq);
/// assert_eq!(y, array![[2.0, 1.0, 4.0, 3.0]]);
/// ```
///
/// # Panics
/// If `M` is not square or its side does not divide the columns of `x`.
#[must_use]
pub fn per_head<T: Element>(x: ArrayView2<'_, T>, m: ArrayView2<'_, T>, par: Par) -> Array2<T> {
    let mut y = Array2::zeros(x.dim());
    per_head_into(x, m, y.view_mut(), par);
    y
}

/// [`per_head`] into an array of the shape of `x`, whose old content is not read.
pub(crate) fn per_head_into<T: Element>(
    x: ArrayView2<'_, T>,
    m: ArrayView2<'_, T>,
    y: ArrayViewMut2<'_, T>,
    par: Par,
) {
    in_runs(y, m.nrows(), |y| {
        matmul_nn(y, false, T::one(), as_runs(x, m.nrows()).view(), m, Compute::F32, par);
    });
}

/// The gradient of [`per_head`] with respect to `M`, `sum X^T G` over rows and heads, for the gradient `g` of its result.
///
/// # Panics
/// If `x` and `g` differ in shape, or `side` does not divide their columns.
#[must_use]
pub fn per_head_gradient<T: Element>(
    x: ArrayView2<'_, T>,
    g: ArrayView2<'_, T>,
    side: usize,
    par: Par,
) -> Array2<T> {
    let (x, g) = (as_runs(x, side), as_runs(g, side));
    let mut gradient = Array2::zeros((side, side));
    matmul_nn(gradient.view_mut(), false, T::one(), x.t(), g.view(), Compute::F32, par);
    gradient
}

/// `x <- x (M kron I)` in place for `x` `[rows, heads * D]` and `M` `[heads, heads]`: the heads of a row become `M^T X`.
///
/// ```
/// use quant_rotate::ndarray::array;
/// use quant_rotate::{Par, across_heads};
///
/// let mut x = array![[1.0_f32, 2.0, 3.0, 4.0]];
/// across_heads(x.view_mut(), array![[0.0, 1.0], [1.0, 0.0]].view(), Par::Seq);
/// assert_eq!(x, array![[3.0, 4.0, 1.0, 2.0]]);
/// ```
///
/// # Panics
/// If `M` is not square or its side does not divide the columns of `x`.
pub fn across_heads<T: Element>(x: ArrayViewMut2<'_, T>, m: ArrayView2<'_, T>, par: Par) {
    mix_blocks_in_place(x, T::one(), m.t(), par);
}

/// The gradient of [`across_heads`] with respect to `M`, `sum X G^T` over rows, for its input `x` and the gradient `g` of its result.
///
/// # Panics
/// If `x` and `g` differ in shape, or `heads` does not divide their columns.
#[must_use]
pub fn across_heads_gradient<T: Element>(
    x: ArrayView2<'_, T>,
    g: ArrayView2<'_, T>,
    heads: usize,
    par: Par,
) -> Array2<T> {
    assert!(
        x.dim() == g.dim() && heads > 0 && x.ncols() > 0 && x.ncols().is_multiple_of(heads),
        "activations {:?} and gradients {:?} of {heads} heads",
        x.dim(),
        g.dim()
    );
    let width = x.ncols() / heads;
    let sources = [as_runs(x, width), as_runs(g, width)];
    let mut gradient = Array2::zeros((heads, heads));
    // [heads, rows * width] each: the sum over rows and columns of a head becomes that of one product.
    let mut gathered = [(); 2].map(|()| Array2::zeros((heads, GATHERED.min(x.nrows()) * width)));
    for first in (0..x.nrows()).step_by(GATHERED) {
        let rows = GATHERED.min(x.nrows() - first);
        for (all, source) in gathered.iter_mut().zip(&sources) {
            // Runs are in standard layout.
            let Some(source) = source.as_slice() else { continue };
            for (head, mut line) in all.rows_mut().into_iter().enumerate() {
                let Some(line) = line.as_slice_mut() else { continue };
                for (row, to) in line.chunks_exact_mut(width).take(rows).enumerate() {
                    let from = ((first + row) * heads + head) * width;
                    to.copy_from_slice(&source[from..from + width]);
                }
            }
        }
        let [x, g] = gathered.each_ref().map(|all| all.slice_axis(Axis(1), Slice::from(..rows * width)));
        matmul_nt(gradient.view_mut(), first > 0, T::one(), x, g, Compute::F32, par);
    }
    gradient
}
