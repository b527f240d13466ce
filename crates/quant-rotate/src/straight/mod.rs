//! Quantisers with learned clipping and gradients straight through the rounding.

mod clip;
mod extremes;
mod quantiser;
#[cfg(test)]
mod tests;

use ndarray::Array1;
use quant_core::codec_of_fields;
use quant_kernels::Element;

pub use self::clip::{clip_weight, clip_weight_gradient};
pub use self::quantiser::{QuantGradient, StraightThrough};

/// Logits of clip factors, or their gradients: the upper end of a range is multiplied by `sigmoid(max)`, the lower by `sigmoid(min)`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipLogits<T> {
    /// Of the upper ends.
    pub max: Array1<T>,
    /// Of the lower ends, as many.
    pub min: Array1<T>,
}

codec_of_fields!(ClipLogits<f32> { max, min });

impl<T: Element> ClipLogits<T> {
    /// Those with which training begins: 4, a factor of 0.982 (FlatQuant).
    #[must_use]
    pub fn initial(count: usize) -> Self {
        let four = Array1::from_elem(count, T::from_f32(4.0));
        Self { max: four.clone(), min: four }
    }

    /// Zeros, for gradients.
    pub(crate) fn zeros(count: usize) -> Self {
        Self { max: Array1::zeros(count), min: Array1::zeros(count) }
    }
}
