//! A linear layer as an object: float, or with its input quantised and dequantised first.

use crate::parallel::for_rows;
use ndarray::{Array1, Array2, ArrayView2};
use quant_core::ActQuant;
use quant_graph::LinearParams;
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
    /// The product and bias alone: `x` `[tokens, in]` is taken as it is; returns `[tokens, out]`.
    ///
    /// # Panics
    /// If `x` does not have [`Self::in_features`] columns.
    fn product(&self, x: ArrayView2<'_, T>, par: Par) -> Array2<T>;
    /// The whole layer, `[tokens, in]` to `[tokens, out]`.
    ///
    /// # Panics
    /// If `x` does not have [`Self::in_features`] columns.
    fn forward(&self, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
        match self.input_quant() {
            None => self.product(x, par),
            Some(quant) => self.product(fake_quantized(quant, x, par).view(), par),
        }
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
    /// From the values of a weight `[out, in]` and its bias `[out]`; the caller has checked that they fit.
    #[must_use]
    pub fn new(weight: Array2<f32>, bias: Option<Array1<f32>>, compute: Compute) -> Self {
        let weight: Array2<T> = weight.mapv_into_any(T::from_f32);
        Self {
            weight: PreparedWeight::new(weight.view(), compute),
            bias: bias.map(|b| b.mapv_into_any(T::from_f32)),
        }
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
    fn product(&self, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
        self.weight.forward(x, self.bias.as_ref().map(|b| b.view()), par)
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
    fn product(&self, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
        self.float.product(x, par)
    }
}

/// The object that computes `params`; quantised weights are dequantised once, here.
#[must_use]
pub fn linear_op<T: Element>(params: LinearParams, compute: Compute) -> Box<dyn LinearOp<T>> {
    let float = FloatLinear::new(params.weight.into_values(), params.bias, compute);
    match params.input {
        None => Box::new(float),
        Some(input) => Box::new(FakeQuantLinear::new(float, input)),
    }
}

/// Outputs of linears with one input `[tokens, in]`; every distinct quantiser among them runs once.
pub(crate) fn forward_shared<T: Element>(
    linears: &[&dyn LinearOp<T>],
    x: ArrayView2<'_, T>,
    par: Par,
) -> Vec<Array2<T>> {
    let mut quantized: Vec<(ActQuant, Array2<T>)> = Vec::new();
    linears
        .iter()
        .map(|linear| match linear.input_quant() {
            None => linear.product(x, par),
            Some(quant) => {
                let known = quantized.iter().position(|(q, _)| q == quant).unwrap_or_else(|| {
                    quantized.push((*quant, fake_quantized(quant, x, par)));
                    quantized.len() - 1
                });
                linear.product(quantized[known].1.view(), par)
            }
        })
        .collect()
}

fn fake_quantized<T: Element>(quant: &ActQuant, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
    // Row-major whatever x is: the quantiser works on contiguous rows.
    let mut copy = Array2::zeros(x.dim());
    copy.assign(&x);
    for_rows(copy.view_mut(), par, |_, rows| {
        vectorized(
            #[inline(always)]
            || quant.fake_quantize(rows),
        );
    });
    copy
}
