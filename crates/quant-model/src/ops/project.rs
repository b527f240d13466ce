//! Products of linears with a common input.

use crate::linear::{Activations, LinearOp, QuantizedInput, quantized_input};
use ndarray::{ArrayView2, ArrayViewMut2};
use quant_core::operators::InputQuant;
use quant_kernels::{Element, Par};

/// Outputs of linears with one input `[tokens, in]`; every distinct quantiser among them runs once.
pub(crate) fn forward_shared<'o, T: Element>(
    linears: &[&dyn LinearOp<T>],
    x: ArrayView2<'_, T>,
    outputs: impl IntoIterator<Item = ArrayViewMut2<'o, T>>,
    par: Par,
) {
    let mut quantized: Vec<(InputQuant, bool, QuantizedInput<T>)> = Vec::new();
    for (linear, out) in linears.iter().zip(outputs) {
        let codes = linear.takes_codes();
        match linear.input_quant() {
            None => linear.product_into(Activations::Float(x), out, par),
            Some(quant) => {
                let known = quantized.iter().position(|(q, c, _)| (q, *c) == (quant, codes));
                let known = known.unwrap_or_else(|| {
                    quantized.push((*quant, codes, quantized_input(quant, codes, x, par)));
                    quantized.len() - 1
                });
                linear.product_into(quantized[known].2.activations(), out, par);
            }
        }
    }
}
