//! A linear layer as an object: float, simulated (its input quantised and dequantised first), or executed with codes.

mod backend;
mod executed;
mod weight_only;

use crate::fake_quant::fake_quantized_by;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, CowArray, Ix2};
use quant_core::CoreError;
use quant_core::operators::{InputNumerics, InputQuant, Profile, QuantizedActivations};
use quant_graph::{LinearParams, LinearWeight};
use quant_kernels::{Compute, Element, Par, PreparedWeight, quantize_static, quantize_tokens, vectorized};
use std::fmt::Debug;

pub use backend::Backend;
pub use executed::{IntegerOp, PackedOp};
pub use weight_only::WeightOnlyOp;

/// How quantised linears are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Execution {
    /// As float products of the numbers that codes stand for.
    #[default]
    Simulated,
    /// With the codes themselves: products of bytes where inputs are quantised, of packed weights where they are not. What has no such
    /// product is simulated.
    Integer,
}

/// The arithmetic of a block's linears: of their products, of the codes of their inputs, and whether codes are executed.
///
/// ```
/// use quant_model::{Arithmetic, Compute, Execution};
///
/// let simulated = Arithmetic::from(Compute::F32);
/// assert_eq!(simulated.execution, Execution::Simulated);
/// assert_eq!(simulated.clone().executed(), Arithmetic { execution: Execution::Integer, ..simulated });
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Arithmetic {
    /// Of float products.
    pub compute: Compute,
    /// Whether codes are executed.
    pub execution: Execution,
    /// Whose arithmetic quantises inputs.
    pub profile: Profile,
    /// What executes codes, in the arithmetic of a device; none executes them here, on numbers that stay f32.
    pub backend: Option<Backend>,
    /// Whether float weights whose numbers are all bf16 are held as such where products are those of f32: the same bits from half
    /// the memory, in half the time where tokens come one by one, and a little later where they come by the hundred.
    pub narrow: bool,
}

impl From<Compute> for Arithmetic {
    /// Simulated, as calibration computes.
    fn from(compute: Compute) -> Self {
        Self {
            compute,
            execution: Execution::Simulated,
            profile: Profile::Calibration,
            backend: None,
            narrow: false,
        }
    }
}

impl Arithmetic {
    /// The same in the arithmetic of a client.
    #[must_use]
    pub fn of(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }
    /// The same with codes executed.
    #[must_use]
    pub fn executed(self) -> Self {
        Self { execution: Execution::Integer, ..self }
    }
    /// The same with bf16 weights held as such.
    #[must_use]
    pub fn narrow(self) -> Self {
        Self { narrow: true, ..self }
    }
}

/// What a product takes in.
#[derive(Clone, Copy, Debug)]
pub enum Activations<'a, T> {
    /// Numbers, `[tokens, in]`.
    Float(ArrayView2<'a, T>),
    /// Codes with their parameters.
    Codes(&'a QuantizedActivations),
}

impl<'a, T> From<ArrayView2<'a, T>> for Activations<'a, T> {
    fn from(x: ArrayView2<'a, T>) -> Self {
        Self::Float(x)
    }
}

impl<T: Element> Activations<'_, T> {
    /// The numbers in f32, or those that codes stand for.
    pub(crate) fn in_f32(&self) -> CowArray<'_, f32, Ix2> {
        match self {
            Self::Float(x) => T::as_f32(*x).map_or_else(|| x.mapv(T::to_f32_lossy).into(), CowArray::from),
            Self::Codes(codes) => codes.dequantize().into(),
        }
    }
}

impl<T> Activations<'_, T> {
    /// Tokens and features.
    #[must_use]
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::Float(x) => x.dim(),
            Self::Codes(codes) => codes.codes.dim(),
        }
    }
}

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
    fn input_quant(&self) -> Option<&InputQuant>;
    /// Whether the product takes the codes of the input, and not the numbers they stand for.
    fn takes_codes(&self) -> bool {
        false
    }
    /// What makes the codes of its input, if not this crate.
    fn backend(&self) -> Option<&Backend> {
        None
    }
    /// Whether its weight is multiplied as codes.
    fn is_executed(&self) -> bool {
        false
    }
    /// Bytes that its weight holds.
    fn bytes(&self) -> usize;
    /// What is added after the product, `[out]`.
    fn bias(&self) -> Option<ArrayView1<'_, T>>;
    /// The product and bias alone: `x` `[tokens, in]` is taken as it is, as codes where the linear takes them; `out` `[tokens, out]`
    /// is written, its old content not read.
    ///
    /// # Errors
    /// [`CoreError::Processor`] from a [`Backend`].
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    fn product_into(
        &self,
        x: Activations<'_, T>,
        out: ArrayViewMut2<'_, T>,
        par: Par,
    ) -> Result<(), CoreError>;
    /// The whole layer, `[tokens, in]` to `[tokens, out]`.
    ///
    /// # Errors
    /// [`CoreError::Processor`] from a [`Backend`].
    ///
    /// # Panics
    /// If `x` does not have [`Self::in_features`] columns.
    fn forward(&self, x: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, CoreError> {
        let mut out = Array2::zeros((x.nrows(), self.out_features()));
        match self.input_quant() {
            None => self.product_into(Activations::Float(x), out.view_mut(), par)?,
            Some(quant) => {
                let codes = self.takes_codes().then(|| self.backend());
                let input = quantized_input(quant, codes, x, par)?;
                self.product_into(input.activations(), out.view_mut(), par)?;
            }
        }
        Ok(out)
    }
}

/// A quantised input, as its linears take it.
#[derive(Debug)]
pub(crate) enum QuantizedInput<T> {
    Simulated(Array2<T>),
    Codes(QuantizedActivations),
}

impl<T> QuantizedInput<T> {
    pub(crate) fn activations(&self) -> Activations<'_, T> {
        match self {
            Self::Simulated(x) => Activations::Float(x.view()),
            Self::Codes(codes) => Activations::Codes(codes),
        }
    }
}

/// `x` `[tokens, features]` through a quantiser: as codes, made by the backend that is given, or as the numbers that they stand for.
pub(crate) fn quantized_input<T: Element>(
    quant: &InputQuant,
    codes: Option<Option<&Backend>>,
    x: ArrayView2<'_, T>,
    par: Par,
) -> Result<QuantizedInput<T>, CoreError> {
    match (quant.numerics(), codes) {
        (Some(numerics), Some(backend)) => codes_of(numerics, backend, x, par).map(QuantizedInput::Codes),
        _ => Ok(QuantizedInput::Simulated(fake_quantized_by(quant, x, par))),
    }
}

fn codes_of<T: Element>(
    numerics: InputNumerics,
    backend: Option<&Backend>,
    x: ArrayView2<'_, T>,
    par: Par,
) -> Result<QuantizedActivations, CoreError> {
    let narrow;
    let x = match T::as_f32(x) {
        Some(x) => x,
        None => {
            narrow = x.mapv(T::to_f32_lossy);
            narrow.view()
        }
    };
    if let Some(backend) = backend {
        return backend.codes(numerics, x, par);
    }
    Ok(match numerics {
        InputNumerics::Dynamic(numerics) => quantize_tokens(numerics, x, par),
        InputNumerics::Static { numerics, bits, params } => quantize_static(numerics, bits, params, x, par),
    })
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
    input: InputQuant,
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
    fn input_quant(&self) -> Option<&InputQuant> {
        None
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
        let bias = self.bias.as_ref().map(|b| b.view());
        match x {
            Activations::Float(x) => self.weight.forward_into(x, bias, out, par),
            // Nobody hands codes to a linear that does not take them; what they stand for is right all the same.
            Activations::Codes(codes) => {
                let x = codes.dequantize().mapv(T::from_f32);
                self.weight.forward_into(x.view(), bias, out, par);
            }
        }
        Ok(())
    }
}

impl<T: Element> FakeQuantLinear<T> {
    /// Puts a quantiser in front of a linear.
    #[must_use]
    pub fn new(float: FloatLinear<T>, input: impl Into<InputQuant>) -> Self {
        Self { float, input: input.into() }
    }
}

impl<T: Element> LinearOp<T> for FakeQuantLinear<T> {
    fn in_features(&self) -> usize {
        self.float.in_features()
    }
    fn out_features(&self) -> usize {
        self.float.out_features()
    }
    fn input_quant(&self) -> Option<&InputQuant> {
        Some(&self.input)
    }
    fn bytes(&self) -> usize {
        self.float.bytes()
    }
    fn bias(&self) -> Option<ArrayView1<'_, T>> {
        self.float.bias()
    }
    fn product_into(
        &self,
        x: Activations<'_, T>,
        out: ArrayViewMut2<'_, T>,
        par: Par,
    ) -> Result<(), CoreError> {
        self.float.product_into(x, out, par)
    }
}

/// The object that computes `params`. Simulated, quantised weights are dequantised once, here, row by row; executed, they stay
/// codes wherever there is a product for them.
///
/// # Errors
/// [`CoreError::Processor`] from a [`Backend`] that takes over the codes.
pub fn linear_op<T: Element>(
    params: &LinearParams,
    arithmetic: impl Into<Arithmetic>,
    par: Par,
) -> Result<Box<dyn LinearOp<T>>, CoreError> {
    let Arithmetic { compute, execution, profile, backend, narrow } = arithmetic.into();
    let input = params.input.map(|quant| InputQuant { quant, profile });
    if execution == Execution::Integer
        && let Some(executed) = executed::executed(params, input, backend, par)?
    {
        return Ok(executed);
    }
    if narrow
        && compute == Compute::F32
        && input.is_none()
        && let Some(narrow) = executed::narrow(params, par)
    {
        return Ok(narrow);
    }
    let float = FloatLinear::new(&params.weight, params.bias.as_ref(), compute, par);
    Ok(match input {
        None => Box::new(float),
        Some(input) => Box::new(FakeQuantLinear::new(float, input)),
    })
}
