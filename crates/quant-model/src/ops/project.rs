//! Products of linears with a common input.

use crate::linear::{Activations, LinearOp, QuantizedInput, quantized_input};
use ndarray::ArrayViewMut2;
use quant_core::CoreError;
use quant_core::operators::InputQuant;
use quant_kernels::{Element, Par};

/// Outputs of linears with one input `[tokens, in]`; every distinct quantiser among them runs once. An input of codes is what their
/// quantisers would have made of it.
///
/// # Errors
/// [`CoreError::Processor`] from the backend of a linear.
pub(crate) fn forward_shared<'o, T: Element>(
    linears: &[&dyn LinearOp<T>],
    x: Activations<'_, T>,
    outputs: impl IntoIterator<Item = ArrayViewMut2<'o, T>>,
    par: Par,
) -> Result<(), CoreError> {
    let mut quantized: Vec<(InputQuant, bool, QuantizedInput<T>)> = Vec::new();
    for (linear, out) in linears.iter().zip(outputs) {
        let codes = linear.takes_codes();
        match (linear.input_quant(), x) {
            (None, _) | (_, Activations::Codes(_)) => linear.product_into(x, out, par)?,
            (Some(quant), Activations::Float(x)) => {
                let known = quantized.iter().position(|(q, c, _)| (q, *c) == (quant, codes));
                let known = match known {
                    Some(known) => known,
                    None => {
                        let input = quantized_input(quant, codes.then(|| linear.backend()), x, par)?;
                        quantized.push((*quant, codes, input));
                        quantized.len() - 1
                    }
                };
                linear.product_into(quantized[known].2.activations(), out, par)?;
            }
        }
    }
    Ok(())
}
