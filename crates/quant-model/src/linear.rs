//! A linear layer as an object: float, or with its input quantised and dequantised first.

use crate::fake_quant::fake_quantized;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2};
use quant_core::ActQuant;
use quant_graph::{LinearParams, LinearWeight};
use quant_kernels::{Compute, Element, Par, PreparedWeight, vectorized};
use std::fmt::Debug;

/// A linear layer, `y = Q(x) W^T + b`, whatever arithmetic it stands for.
///
/// The input quantiser is separate from the product, so that linears with a common input and a common quantiser can
/// share its result.
pub trait LinearOp<T: Element>: Debug + Send + Sync {
    /// Columns of the weight.
    fn in_features(&self) -> usize;
    /// Rows of the weight.
    fn out_features(&self) -> usize;
    /// What happens to the input before the product.
    fn input_quant(&self) -> Option<&ActQuant>;
    /// What is added after the product, `[out]`.
    fn bias(&self) -> Option<ArrayView1<'_, T>>;
    /// The product and bias alone: `x` `[tokens, in]` is taken as it is; `out` `[tokens, out]` is written, its old content
    /// not read.
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    fn product_into(&self, x: ArrayView2<'_, T>, out: ArrayViewMut2<'_, T>, par: Par);
    /// The whole layer, `[tokens, in]` to `[tokens, out]`.
    ///
    /// # Panics
    /// If `x` does not have [`Self::in_features`] columns.
    fn forward(&self, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
        let mut out = Array2::zeros((x.nrows(), self.out_features()));
        match self.input_quant() {
            None => self.product_into(x, out.view_mut(), par),
            Some(quant) => self.product_into(fake_quantized(quant, x, par).view(), out.view_mut(), par),
        }
        out
    }
}

/// A float product with a float input.
#[derive(Clone, Debug)]
pub struct FloatLinear<T> {
    weight: PreparedWeight<T>,
    bias: Option<Array1<T>>,
}

/// A product with the dequantised weight, of an input that is quantised and dequantised on the way in.
#[derive(Clone, Debug)]
pub struct FakeQuantLinear<T> {
    float: FloatLinear<T>,
    input: ActQuant,
}

impl<T: Element> FloatLinear<T> {
    /// The values of a weight `[out, in]`, quantised or not, and its bias `[out]`; the caller has checked that they fit.
    #[must_use]
    pub fn new(weight: &LinearWeight, bias: Option<&Array1<f32>>, compute: Compute, par: Par) -> Self {
        Self {
            weight: PreparedWeight::from_rows(weight.dim(), compute, par, |row, out| {
                vectorized(
                    #[inline(always)]
                    || weight.write_row(row, out),
                );
            }),
            bias: bias.map(|b| b.mapv(T::from_f32)),
        }
    }
}

impl FloatLinear<f32> {
    /// A weight `[out, in]` with a bias `[out]`.
    pub(crate) fn of_view(
        weight: ArrayView2<'_, f32>,
        bias: Option<Array1<f32>>,
        compute: Compute,
        par: Par,
    ) -> Self {
        Self { weight: PreparedWeight::new(weight, compute, par), bias }
    }
}

impl<T: Element> LinearOp<T> for FloatLinear<T> {
    fn in_features(&self) -> usize {
        self.weight.in_features()
    }
    fn out_features(&self) -> usize {
        self.weight.out_features()
    }
    fn input_quant(&self) -> Option<&ActQuant> {
        None
    }
    fn bias(&self) -> Option<ArrayView1<'_, T>> {
        self.bias.as_ref().map(|b| b.view())
    }
    fn product_into(&self, x: ArrayView2<'_, T>, out: ArrayViewMut2<'_, T>, par: Par) {
        self.weight.forward_into(x, self.bias.as_ref().map(|b| b.view()), out, par);
    }
}

impl<T: Element> FakeQuantLinear<T> {
    /// Puts a quantiser in front of a linear.
    #[must_use]
    pub fn new(float: FloatLinear<T>, input: ActQuant) -> Self {
        Self { float, input }
    }
}

impl<T: Element> LinearOp<T> for FakeQuantLinear<T> {
    fn in_features(&self) -> usize {
        self.float.in_features()
    }
    fn out_features(&self) -> usize {
        self.float.out_features()
    }
    fn input_quant(&self) -> Option<&ActQuant> {
        Some(&self.input)
    }
    fn bias(&self) -> Option<ArrayView1<'_, T>> {
        self.float.bias()
    }
    fn product_into(&self, x: ArrayView2<'_, T>, out: ArrayViewMut2<'_, T>, par: Par) {
        self.float.product_into(x, out, par);
    }
}

/// The object that computes `params`; quantised weights are dequantised once, here, row by row.
#[must_use]
pub fn linear_op<T: Element>(params: &LinearParams, compute: Compute, par: Par) -> Box<dyn LinearOp<T>> {
    let float = FloatLinear::new(&params.weight, params.bias.as_ref(), compute, par);
    match params.input {
        None => Box::new(float),
        Some(input) => Box::new(FakeQuantLinear::new(float, input)),
    }
}
