//! The loss of a block: how far its output is from that of the float block.

use ndarray::{Array2, ArrayView2};
use quant_kernels::Element;

/// A loss and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss<T> {
    /// The mean squared error over all tokens and features.
    pub value: f64,
    /// With respect to the output, `[tokens, hidden]`.
    pub gradient: Array2<T>,
}

/// `mean((output - target)^2)` of outputs `[tokens, hidden]`, and its gradient `2 (output - target) / count`; the sum is in f64.
///
/// ```
/// use quant_methods::flatquant::mean_squared_error;
/// use quant_methods::ndarray::array;
///
/// let loss = mean_squared_error(array![[1.0_f32, 3.0]].view(), array![[1.0, 1.0]].view());
/// assert_eq!((loss.value, loss.gradient.clone()), (2.0, array![[0.0, 2.0]]));
/// assert_eq!(loss.logarithmic().gradient, array![[0.0, 1.0]]);
/// ```
///
/// # Panics
/// If the shapes differ.
#[must_use]
pub fn mean_squared_error<T: Element>(output: ArrayView2<'_, T>, target: ArrayView2<'_, T>) -> Loss<T> {
    let mut gradient = &output - &target;
    let count = gradient.len().max(1) as f64;
    let sum: f64 = gradient.iter().map(|d| d.to_f64_exact() * d.to_f64_exact()).sum();
    let factor = T::from_f64(2.0 / count);
    gradient.mapv_inplace(|d| d * factor);
    Loss { value: sum / count, gradient }
}

impl<T: Element> Loss<T> {
    /// With the gradient of the logarithm of the value, which training goes by: blocks with errors of any size then have
    /// gradients of one. A value of zero keeps its gradient of zero.
    #[must_use]
    pub fn logarithmic(self) -> Self {
        if self.value == 0.0 {
            return self;
        }
        let factor = T::from_f64(self.value.recip());
        Self { gradient: self.gradient.mapv_into(|g| g * factor), ..self }
    }
}
