//! Products of linears with a common input.

use crate::fake_quant::fake_quantized;
use crate::linear::LinearOp;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use quant_core::ActQuant;
use quant_kernels::{Element, Par};

/// Outputs of linears with one input `[tokens, in]`; every distinct quantiser among them runs once.
pub(crate) fn forward_shared<'o, T: Element>(
    linears: &[&dyn LinearOp<T>],
    x: ArrayView2<'_, T>,
    outputs: impl IntoIterator<Item = ArrayViewMut2<'o, T>>,
    par: Par,
) {
    let mut quantized: Vec<(ActQuant, Array2<T>)> = Vec::new();
    for (linear, out) in linears.iter().zip(outputs) {
        match linear.input_quant() {
            None => linear.product_into(x, out, par),
            Some(quant) => {
                let known = quantized.iter().position(|(q, _)| q == quant).unwrap_or_else(|| {
                    quantized.push((*quant, fake_quantized(quant, x, par)));
                    quantized.len() - 1
                });
                linear.product_into(quantized[known].1.view(), out, par);
            }
        }
    }
}
