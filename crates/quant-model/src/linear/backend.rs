//! Codes that run on a processor, in the arithmetic of a device.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use quant_core::operators::{InputNumerics, Output, PreparedMatmul, Processor, QuantizedActivations};
use quant_core::{CoreError, FloatType};
use quant_kernels::Par;
use std::sync::Arc;

/// A processor that runs the codes of a model, in the arithmetic that NPUs have: numbers are rounded to the type of the model before they
/// become codes, and results are cast once to it. Two processors then differ in nothing but where the work is done.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Where codes are made and multiplied.
    pub processor: Arc<dyn Processor>,
    /// The type of the model.
    pub model: FloatType,
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.processor, &other.processor) && self.model == other.model
    }
}

impl Backend {
    /// Codes of `x` `[tokens, features]`, rounded before.
    pub(super) fn codes(
        &self,
        numerics: InputNumerics,
        x: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        let x = x.mapv(|x| self.model.round(x));
        match numerics {
            InputNumerics::Dynamic(numerics) => self.processor.quantize(&numerics, x.view(), par),
            InputNumerics::Static { numerics, bits, params } => {
                self.processor.quantize_static(numerics, bits, params, x.view(), par)
            }
        }
    }

    /// A product whose results are cast to the type of the model.
    pub(super) fn product(
        &self,
        product: &dyn PreparedMatmul,
        codes: &QuantizedActivations,
        mut out: ArrayViewMut2<'_, f32>,
        par: Par,
    ) -> Result<(), CoreError> {
        macro_rules! cast {
            ($type:ty) => {{
                let mut narrow = Array2::<$type>::from_elem(out.dim(), <$type>::ZERO);
                product.forward(codes, Output::from(narrow.view_mut()), par)?;
                out.zip_mut_with(&narrow, |out, y| *out = y.to_f32());
                Ok(())
            }};
        }
        match self.model {
            FloatType::Bf16 => cast!(half::bf16),
            FloatType::F16 => cast!(half::f16),
            FloatType::F32 => product.forward(codes, out.into(), par),
        }
    }
}
