//! What quantised activations do to a float product.

use ndarray::{Array2, ArrayView2};
use quant_core::ActQuant;
use quant_core::operators::InputQuant;
use quant_kernels::{Element, Par, tasks, vectorized};

/// `x` `[tokens, features]` quantised and dequantised by `quant`: what a linear behind it multiplies.
#[must_use]
pub fn fake_quantized<T: Element>(quant: &ActQuant, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
    fake_quantized_by(&InputQuant::from(*quant), x, par)
}

/// The same in the arithmetic of a client.
pub(crate) fn fake_quantized_by<T: Element>(quant: &InputQuant, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
    // Row-major whatever x is: the quantiser works on contiguous rows.
    let mut copy = Array2::zeros(x.dim());
    copy.assign(&x);
    tasks::for_rows(copy.view_mut(), par, |_, rows| {
        vectorized(
            #[inline(always)]
            || quant.fake_quantize(rows),
        );
    });
    copy
}
