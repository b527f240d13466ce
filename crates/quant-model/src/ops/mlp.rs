//! The gated activation of the MLP.

use ndarray::{ArrayView2, ArrayViewMut2};
use quant_kernels::{Element, Par, silu_mul, tasks, views};

/// `gate ← silu(gate) · up`, both `[tokens, intermediate]`.
pub(crate) fn gated<T: Element>(gate: ArrayViewMut2<'_, T>, up: ArrayView2<'_, T>, par: Par) {
    tasks::for_rows(gate, par, |first, rows| {
        let up = views::rows(up, first..first + rows.nrows());
        silu_mul(rows, up);
    });
}
