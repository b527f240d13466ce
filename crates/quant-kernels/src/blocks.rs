//! One small matrix applied to many blocks of rows.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::element::Element;
use crate::{Level, Par};

/// Multiplies every row of `x` from the left, seen as a matrix: `X_t <- alpha * A X_t` with `A` `[k, k]` and row `t` of `x`
/// `[tokens, k * m]` as `X_t` `[k, m]` in row-major order. In other words `x <- alpha * x (A^T kron I_m)`.
///
/// The core of Hadamard matrices that are no power of two, the left factor of a Kronecker product and what mixes heads are
/// of this form. Works in place, in f32 with all sums of a few columns in registers where the machine has AVX2 or AVX-512, else with
/// the tiles of the products: every element is one sum in increasing order of the summed index, whatever the level or the
/// number of threads.
///
/// # Panics
/// If `a` is not square or its side does not divide the number of columns of `x`.
pub fn mix_blocks_in_place<T: Element>(x: ArrayViewMut2<'_, T>, alpha: T, a: ArrayView2<'_, T>, par: Par) {
    let k = a.nrows();
    assert!(
        k == a.ncols() && k > 0 && x.ncols().is_multiple_of(k),
        "a matrix [{}, {}] must be square, with a side that divides the {} columns it mixes",
        k,
        a.ncols(),
        x.ncols()
    );
    T::mix_blocks(Level::detect(), x, alpha, a, par);
}
