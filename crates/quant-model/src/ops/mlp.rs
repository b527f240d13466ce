//! The gated activation of the MLP.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use quant_kernels::{Element, Par, silu_mul, silu_mul_backward, tasks, views};

/// `gate ← silu(gate) · up`, both `[tokens, intermediate]`.
pub(crate) fn gated<T: Element>(gate: ArrayViewMut2<'_, T>, up: ArrayView2<'_, T>, par: Par) {
    tasks::for_rows(gate, par, |first, rows| {
        let up = views::rows(up, first..first + rows.nrows());
        silu_mul(rows, up);
    });
}

/// The backward of [`gated`]: `gate` and `up` become their gradients, `grad` is the one of the activation.
pub(crate) fn gated_backward<T: Element>(
    mut gate: ArrayViewMut2<'_, T>,
    mut up: ArrayViewMut2<'_, T>,
    grad: ArrayView2<'_, T>,
    par: Par,
) {
    // As many tasks as threads, each with the same rows of both.
    let block = gate.nrows().div_ceil(par.threads()).max(16);
    let pairs = gate.axis_chunks_iter_mut(Axis(0), block).zip(up.axis_chunks_iter_mut(Axis(0), block));
    tasks::for_each(pairs.enumerate(), par, |(i, (gate, up))| {
        let grad = views::rows(grad, i * block..i * block + gate.nrows());
        silu_mul_backward(gate, up, grad);
    });
}
