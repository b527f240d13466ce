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
                            *g = *g / (T::one() + (-*g).exp_element()) * u;
                        }
                    });
                });
            }
        },
    );
}
