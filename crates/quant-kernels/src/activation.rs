//! The gated activation of SwiGLU feed-forward blocks.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::element::Element;
use crate::rows::{with_row, with_row_mut};
use crate::vectorized;

/// `gate <- silu(gate) * up` with `silu(g) = g / (1 + e^-g)`, both `[tokens, features]` (Shazeer 2020).
///
/// # Panics
/// If the shapes differ.
pub fn silu_mul<T: Element>(mut gate: ArrayViewMut2<'_, T>, up: ArrayView2<'_, T>) {
    assert_eq!(gate.dim(), up.dim(), "gate and up projections must have one shape");
    let (mut gate_scratch, mut up_scratch) = (Vec::new(), Vec::new());
    vectorized(
        #[inline(always)]
        || {
            for (gate, up) in gate.rows_mut().into_iter().zip(up.rows()) {
                with_row_mut(gate, &mut gate_scratch, |gate| {
                    with_row(up, &mut up_scratch, |up| {
                        for (g, &u) in gate.iter_mut().zip(up) {
                            *g = silu_times(*g, u);
                        }
                    });
                });
            }
        },
    );
}

/// `silu(gate) * up` of one element.
#[inline(always)]
pub(crate) fn silu_times<T: Element>(gate: T, up: T) -> T {
    gate / (T::one() + (-gate).exp_element()) * up
}

/// The backward of [`silu_mul`]: `gate`, `up` and `grad` are `[tokens, features]`, `grad` the gradient of the loss with
/// respect to `silu(gate) * up`. With `s = 1 / (1 + e^-g)`, replaces `gate` by its gradient
/// `grad * up * s * (1 + g (1 - s))` and `up` by its gradient `grad * g * s`.
///
/// # Panics
/// If the shapes differ.
pub fn silu_mul_backward<T: Element>(
    mut gate: ArrayViewMut2<'_, T>,
    mut up: ArrayViewMut2<'_, T>,
    grad: ArrayView2<'_, T>,
) {
    assert_eq!(gate.dim(), up.dim(), "gate and up projections must have one shape");
    assert_eq!(gate.dim(), grad.dim(), "the gradient must have the shape of the activation");
    let (mut gate_scratch, mut up_scratch, mut grad_scratch) = (Vec::new(), Vec::new(), Vec::new());
    vectorized(
        #[inline(always)]
        || {
            for ((gate, up), grad) in gate.rows_mut().into_iter().zip(up.rows_mut()).zip(grad.rows()) {
                with_row_mut(gate, &mut gate_scratch, |gate| {
                    with_row_mut(up, &mut up_scratch, |up| {
                        with_row(grad, &mut grad_scratch, |grad| {
                            for ((g, u), &d) in gate.iter_mut().zip(up.iter_mut()).zip(grad) {
                                let sigmoid = (T::one() + (-*g).exp_element()).recip();
                                let silu = *g * sigmoid;
                                // s + g s (1 - s), without a difference of large numbers.
                                let slope = sigmoid + silu * (T::one() - sigmoid);
                                (*g, *u) = (d * *u * slope, d * silu);
                            }
                        });
                    });
                });
            }
        },
    );
}
