//! The interface of methods that turn one weight into levels.

use crate::MethodError;
use ndarray::ArrayView2;
use quant_core::QuantizedMatrix;
use quant_hessian::Factor;
use quant_kernels::Par;

/// A rounded weight and what the method knows about it.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// Levels, scales, zeros, groups.
    pub matrix: QuantizedMatrix,
    /// `½ Σ ((w − q)/U_ii)²` of second-order methods.
    pub loss: Option<f64>,
}

/// A rounding method with its settings.
pub trait WeightQuantizer: Send + Sync {
    /// Its registry line.
    fn method(&self) -> &'static crate::Method;
    /// Rounds `weight` `[out, in]`, using the factor of its input's Hessian if the method needs one.
    ///
    /// # Errors
    /// A NaN in the weight, a missing factor, shapes that do not fit.
    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        factor: Option<&Factor>,
        par: Par,
    ) -> Result<Rounded, MethodError>;
    /// A weight `(out, in)` to be rounded as its rows arrive; none for methods that want all of it, or statistics.
    fn by_rows(&self, shape: (usize, usize)) -> Option<Box<dyn RowRounding>> {
        let _ = shape;
        None
    }
}

/// A weight that is rounded some rows at a time: no row needs to know another.
pub trait RowRounding: Send {
    /// Rounds `rows` `[rows, in]`, the first of which is row `first` of the weight.
    ///
    /// # Errors
    /// A NaN or infinity, named by the row of the weight and the column; rows outside the weight.
    fn rows(&mut self, first: usize, rows: ArrayView2<'_, f32>, par: Par) -> Result<(), MethodError>;
    /// The weight so far; rows that have not arrived are zero.
    fn matrix(&self) -> &QuantizedMatrix;
    /// The weight, when all rows have arrived.
    fn finish(self: Box<Self>) -> QuantizedMatrix;
}

/// The rounding methods as one value, for plans and reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Rounding {
    /// Round to nearest.
    Rtn(crate::rtn::Rtn),
    /// GPTQ.
    Gptq(crate::gptq::Gptq),
}

impl Rounding {
    /// The method behind the settings.
    #[must_use]
    pub fn quantizer(&self) -> &dyn WeightQuantizer {
        match self {
            Self::Rtn(rtn) => rtn,
            Self::Gptq(gptq) => gptq,
        }
    }
}
