//! Floats times coded weights in the arithmetic of a device.

use super::executed::in_f32;
use super::{Activations, Backend, LinearOp};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_core::operators::{InputQuant, WeightOnlyProduct};
use quant_core::{CoreError, FloatType, QuantizedMatrix};
use quant_kernels::{Compute, Element, Par, PreparedWeight};

/// Inputs whose products are one sum: the sums of consecutive pieces of so many are added in their order.
///
/// CANN says that its cube unit adds in f32 and not in which order; this is the one that is stated ([`WeightOnlyOp`]).
const PIECE: usize = 256;

/// A product of floats with a coded weight as NPUs compute it, on the host.
///
/// With `T` the type of the model (bf16, f16) and everything that arrives rounded to it:
///
/// - a weight is `T((code + offset) · scale)` with signed codes, in f32 and rounded once; where `T` is f16 the sum before the product is
///   rounded too;
/// - products of numbers of `T` are exact, and are added in f32: in increasing order of the inputs within pieces of 256, whose sums
///   are added in their order;
/// - the bias, in f16 beside f16 and in f32 beside bf16, is added to that, and the result is rounded to `T`.
///
/// An output depends on its own token alone. CANN has another way for few tokens (integer digits of the activations), which is not this.
///
/// ```
/// use quant_core::{Bits, FloatType, Groups, QuantizedMatrix};
/// use quant_model::{LinearOp, Par, WeightOnlyOp, ndarray::array};
///
/// let (levels, scales, zeros) = (array![[129, 131]], array![[0.1]], array![[128.0]]);
/// let weight = QuantizedMatrix::new(Bits::new(8)?, levels, scales, zeros, Groups::Channel)?;
/// let linear = WeightOnlyOp::<f32>::new(&weight, None, FloatType::Bf16, Par::Seq);
/// // 0.1 becomes 0.10009765625 and three times that 0.30078125: bf16 has eight bits.
/// assert_eq!(linear.forward(array![[1.0, 1.0]].view(), Par::Seq)?, array![[0.40039062]]);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Debug)]
pub struct WeightOnlyOp<T> {
    /// Of up to [`PIECE`] inputs each.
    pieces: Vec<PreparedWeight<f32>>,
    shape: (usize, usize),
    /// As it is added.
    rounded: Option<Array1<f32>>,
    bias: Option<Array1<T>>,
    model: FloatType,
}

/// The numbers of a row of a coded weight on a device, from column `first` on.
fn write_row(weight: &QuantizedMatrix, model: FloatType, row: usize, first: usize, out: &mut [f32]) {
    let (levels, groups) = (weight.levels().row(row), weight.groups());
    for (column, out) in (first..).zip(out) {
        let group = groups.of(column);
        let (params, middle) = (weight.params(row, group), weight.widths().of(group).mid_level());
        let (code, offset) = (f32::from(levels[column]) - middle, model.round(middle - params.zero));
        let scale = model.round(params.scale);
        *out = match model {
            FloatType::F16 => model.round(model.round(code + offset) * scale),
            FloatType::Bf16 | FloatType::F32 => model.round((code + offset) * scale),
        };
    }
}

impl<T: Element> WeightOnlyOp<T> {
    /// A coded weight `[out, in]` with a bias `[out]`, for models of type `model`.
    #[must_use]
    pub fn new(weight: &QuantizedMatrix, bias: Option<&Array1<f32>>, model: FloatType, par: Par) -> Self {
        let (outputs, inputs) = weight.dim();
        let pieces = (0..inputs).step_by(PIECE).map(|first| {
            let width = PIECE.min(inputs - first);
            PreparedWeight::from_rows((outputs, width), Compute::F32, par, |row, out: &mut [f32]| {
                write_row(weight, model, row, first, out);
            })
        });
        let rounded = bias.map(|bias| match model {
            FloatType::F16 => bias.mapv(|b| model.round(b)),
            FloatType::Bf16 | FloatType::F32 => bias.clone(),
        });
        Self {
            pieces: pieces.collect(),
            shape: (outputs, inputs),
            bias: bias.map(|bias| bias.mapv(T::from_f32)),
            rounded,
            model,
        }
    }

    /// Results in f32 for activations that have been rounded.
    fn run(&self, x: ArrayView2<'_, f32>, par: Par) -> Array2<f32> {
        let mut y = Array2::zeros((x.nrows(), self.shape.0));
        let mut sum = Array2::zeros(if self.pieces.len() > 1 { y.dim() } else { (0, 0) });
        for (at, piece) in self.pieces.iter().enumerate() {
            let first = at * PIECE;
            let x = x.slice_axis(Axis(1), Slice::from(first..first + piece.in_features()));
            if at == 0 {
                piece.forward_into(x, None, y.view_mut(), par);
            } else {
                piece.forward_into(x, None, sum.view_mut(), par);
                y += &sum;
            }
        }
        if let Some(bias) = &self.rounded {
            y += bias;
        }
        y.mapv_inplace(|y| self.model.round(y));
        y
    }
}

impl<T: Element> LinearOp<T> for WeightOnlyOp<T> {
    fn in_features(&self) -> usize {
        self.shape.1
    }
    fn out_features(&self) -> usize {
        self.shape.0
    }
    fn input_quant(&self) -> Option<&InputQuant> {
        None
    }
    fn is_executed(&self) -> bool {
        true
    }
    fn bytes(&self) -> usize {
        self.pieces.iter().map(PreparedWeight::bytes).sum()
    }
    fn bias(&self) -> Option<ArrayView1<'_, T>> {
        self.bias.as_ref().map(|b| b.view())
    }
    fn product_into(
        &self,
        x: Activations<'_, T>,
        mut out: ArrayViewMut2<'_, T>,
        par: Par,
    ) -> Result<(), CoreError> {
        let x = x.in_f32().mapv(|x| self.model.round(x));
        out.zip_mut_with(&self.run(x.view(), par), |out, &y| *out = T::from_f32(y));
        Ok(())
    }
}

/// The same product where a processor holds the weight.
#[derive(Debug)]
struct OnProcessor<T> {
    product: Box<dyn WeightOnlyProduct>,
    bias: Option<Array1<T>>,
    bytes: usize,
}

impl<T: Element> LinearOp<T> for OnProcessor<T> {
    fn in_features(&self) -> usize {
        self.product.shape().1
    }
    fn out_features(&self) -> usize {
        self.product.shape().0
    }
    fn input_quant(&self) -> Option<&InputQuant> {
        None
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
    fn product_into(
        &self,
        x: Activations<'_, T>,
        out: ArrayViewMut2<'_, T>,
        _par: Par,
    ) -> Result<(), CoreError> {
        in_f32(out, |out| self.product.forward(x.in_f32().view(), out))
    }
}

impl Backend {
    /// A product of floats with a coded weight, in the arithmetic of the device: there, or here where the processor has none.
    pub(super) fn weight_only<T: Element>(
        &self,
        weight: &QuantizedMatrix,
        bias: Option<&Array1<f32>>,
        par: Par,
    ) -> Result<Box<dyn LinearOp<T>>, CoreError> {
        let Some(product) = self.processor.weight_only(weight, bias)? else {
            return Ok(Box::new(WeightOnlyOp::new(weight, bias, self.model, par)));
        };
        let bias = bias.map(|bias| bias.mapv(T::from_f32));
        let bytes = (weight.levels().len() * weight.bits().get() as usize).div_ceil(8);
        Ok(Box::new(OnProcessor { product, bias, bytes }))
    }
}
