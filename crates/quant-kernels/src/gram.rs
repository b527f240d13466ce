//! Gram matrices `X^T X`, and the triangle of a product `A^T B`.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::arch::Region;
use crate::element::Element;
use crate::{Compute, Level, Par};

/// `H[n, n] = alpha * X^T X` for activations `X` `[tokens, n]`, or `H += alpha * X^T X` with `accumulate`; lower triangle only:
/// elements `(i, j)` with `i < j` are neither read nor written (see [`mirror_lower`]).
///
/// Sums run over tokens in the element type of `H`. Any strides are accepted; row-major `X` is the fast layout.
///
/// # Panics
/// If `h` is not square with the column count of `x`.
pub fn gram_lower<T: Element>(
    h: ArrayViewMut2<'_, T>,
    accumulate: bool,
    alpha: T,
    x: ArrayView2<'_, T>,
    compute: Compute,
    par: Par,
) {
    let n = x.ncols();
    assert_eq!(h.dim(), (n, n), "a Gram matrix of [tokens, {n}] activations is [{n}, {n}]");
    T::product(Level::detect(), h, Region::Lower, accumulate, alpha, x.reversed_axes(), x, compute, par);
}

/// `D[n, n] = alpha * A^T B` for `A` and `B` `[tokens, n]`, or `D += alpha * A^T B` with `accumulate`; lower triangle only:
/// elements `(i, j)` with `i < j` are neither read nor written. [`gram_lower`] of two matrices, for products whose upper half nobody needs: half the
/// operations of [`matmul_nn`](crate::matmul_nn), and with `alpha = 1` the same bits in that half.
///
/// Sums run over tokens in the element type of `D`. Any strides are accepted; row-major operands are the fast layout.
///
/// # Panics
/// If `a` and `b` differ in shape, or `d` is not square with their column count.
pub fn cross_gram_lower<T: Element>(
    d: ArrayViewMut2<'_, T>,
    accumulate: bool,
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    compute: Compute,
    par: Par,
) {
    let n = a.ncols();
    assert_eq!(a.dim(), b.dim(), "both operands are [tokens, n]");
    assert_eq!(d.dim(), (n, n), "a cross product of [tokens, {n}] activations is [{n}, {n}]");
    T::product(Level::detect(), d, Region::Lower, accumulate, alpha, a.reversed_axes(), b, compute, par);
}

/// Copies the strict lower triangle of a square matrix onto its upper triangle, in cache-sized blocks.
///
/// # Panics
/// If `h` is not square.
pub fn mirror_lower<T: Copy>(mut h: ArrayViewMut2<'_, T>) {
    // Two blocks of 64 x 64 f64 are 64 KiB: the transposed reads stay in the second-level cache.
    const BLOCK: usize = 64;
    let n = h.nrows();
    assert_eq!(h.ncols(), n, "only a square matrix can be mirrored");
    for row in (0..n).step_by(BLOCK) {
        for col in (0..=row).step_by(BLOCK) {
            for i in row..(row + BLOCK).min(n) {
                for j in col..(col + BLOCK).min(i) {
                    h[(j, i)] = h[(i, j)];
                }
            }
        }
    }
}
