//! Linears that multiply codes.

use super::{Activations, Backend, LinearOp, codes_of};
use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut2};
use quant_core::CoreError;
use quant_core::operators::{
    Bias, GroupedLinear, GroupedMatmul, InputNumerics, InputQuant, IntegerLinear, PreparedMatmul, QuantMatmul,
};
use quant_graph::{LinearParams, LinearWeight};
use quant_kernels::{Cpu, Element, PackedWeight, Par};
use std::fmt::{self, Debug, Formatter};

/// A product of the codes of its input with those of its weight.
pub struct IntegerOp<T> {
    product: Box<dyn PreparedMatmul>,
    bytes: usize,
    bias: Option<Array1<T>>,
    input: InputQuant,
    numerics: InputNumerics,
    backend: Option<Backend>,
}

impl<T: Debug> Debug for IntegerOp<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntegerOp").field("shape", &self.product.shape()).finish_non_exhaustive()
    }
}

/// A product of floats with a weight that stays packed.
#[derive(Debug)]
pub struct PackedOp<T> {
    weight: PackedWeight,
    codes: bool,
    bias: Option<Array1<T>>,
    narrow: Option<Array1<f32>>,
}

/// The executed form of a linear, if there is one.
///
/// # Errors
/// What a backend says that is to hold the codes.
pub(super) fn executed<T: Element>(
    params: &LinearParams,
    input: Option<InputQuant>,
    backend: Option<Backend>,
    par: Par,
) -> Result<Option<Box<dyn LinearOp<T>>>, CoreError> {
    let LinearWeight::Quantized(weight) = &params.weight else { return Ok(None) };
    let bias = params.bias.as_ref().map(|b| b.mapv(T::from_f32));
    let Some(input) = input else {
        if let Some(backend) = &backend {
            return backend.weight_only(weight, params.bias.as_ref(), par).map(Some);
        }
        let packed = PackedWeight::new(weight, par);
        return Ok(Some(Box::new(PackedOp {
            weight: packed,
            codes: true,
            bias,
            narrow: params.bias.clone(),
        })));
    };
    let Some(numerics) = input.numerics() else { return Ok(None) };
    let (outputs, inputs) = weight.dim();
    let added = params.bias.clone();
    let cpu = Cpu::default();
    let whole = IntegerLinear::from_matrix(weight, added.clone().map_or(Bias::None, Bias::Float));
    let (product, bytes) = match (whole, &backend) {
        (Ok(linear), Some(backend)) => (backend.processor.prepare(&linear, par)?, outputs * inputs),
        (Ok(linear), None) => (cpu.prepare(&linear, par)?, outputs * inputs),
        (Err(error), Some(_)) => return Err(error),
        // Groups of inputs, or zero levels of its own: for four bits and fewer.
        (Err(_), None) => {
            let Ok(linear) = GroupedLinear::new(weight.clone(), added) else { return Ok(None) };
            let parameters = 2 * size_of::<f32>() * weight.scales().len();
            (cpu.prepare_groups(&linear, par)?, (outputs * inputs).div_ceil(2) + parameters)
        }
    };
    Ok(Some(Box::new(IntegerOp { product, bytes, bias, input, numerics, backend })))
}

/// A float linear with its weight as bf16, if all its numbers are such, in the arithmetic of f32.
pub(super) fn narrow<T: Element>(params: &LinearParams, par: Par) -> Option<Box<dyn LinearOp<T>>> {
    let LinearWeight::Float(weight) = &params.weight else { return None };
    // Other elements have products of their own.
    T::as_f32(Array2::zeros((0, 0)).view())?;
    let weight = PackedWeight::of_bf16(weight.dim(), par, |row, out| {
        out.iter_mut().zip(weight.row(row)).for_each(|(out, &x)| *out = x);
    })?;
    let bias = params.bias.as_ref().map(|b| b.mapv(T::from_f32));
    Some(Box::new(PackedOp { weight, codes: false, bias, narrow: params.bias.clone() }))
}

/// Runs a product in f32 whatever the elements are.
pub(super) fn in_f32<T: Element>(
    mut out: ArrayViewMut2<'_, T>,
    run: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), CoreError>,
) -> Result<(), CoreError> {
    if let Some(out) = T::as_f32_mut(out.view_mut()) {
        return run(out);
    }
    let mut narrow = Array2::zeros(out.dim());
    run(narrow.view_mut())?;
    out.zip_mut_with(&narrow, |out, &y| *out = T::from_f32(y));
    Ok(())
}

impl<T: Element> LinearOp<T> for IntegerOp<T> {
    fn in_features(&self) -> usize {
        self.product.shape().1
    }
    fn out_features(&self) -> usize {
        self.product.shape().0
    }
    fn input_quant(&self) -> Option<&InputQuant> {
        Some(&self.input)
    }
    fn takes_codes(&self) -> bool {
        true
    }
    fn is_executed(&self) -> bool {
        true
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
    fn bias(&self) -> Option<ArrayView1<'_, T>> {
        self.bias.as_ref().map(|b| b.view())
    }
    fn backend(&self) -> Option<&Backend> {
        self.backend.as_ref()
    }
    fn product_into(
        &self,
        x: Activations<'_, T>,
        out: ArrayViewMut2<'_, T>,
        par: Par,
    ) -> Result<(), CoreError> {
        let made;
        let codes = match x {
            Activations::Codes(codes) => codes,
            Activations::Float(x) => {
                made = codes_of(self.numerics, self.backend.as_ref(), x, par)?;
                &made
            }
        };
        in_f32(out, |out| match &self.backend {
            Some(backend) => backend.product(&*self.product, codes, out, par),
            None => self.product.forward(codes, out.into(), par),
        })
    }
}

impl<T: Element> LinearOp<T> for PackedOp<T> {
    fn in_features(&self) -> usize {
        self.weight.in_features()
    }
    fn out_features(&self) -> usize {
        self.weight.out_features()
    }
    fn input_quant(&self) -> Option<&InputQuant> {
        None
    }
    fn is_executed(&self) -> bool {
        self.codes
    }
    fn bytes(&self) -> usize {
        self.weight.bytes()
    }
    fn bias(&self) -> Option<ArrayView1<'_, T>> {
        self.bias.as_ref().map(|b| b.view())
    }
    fn product_into(
        &self,
        x: Activations<'_, T>,
        out: ArrayViewMut2<'_, T>,
        par: Par,
    ) -> Result<(), CoreError> {
        let bias = self.narrow.as_ref().map(|b| b.view());
        let x = x.in_f32();
        in_f32(out, |out| {
            self.weight.forward_into(x.view(), bias, out, par);
            Ok(())
        })
    }
}
