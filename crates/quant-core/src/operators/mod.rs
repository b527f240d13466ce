//! Operators of integer execution: data, the scalar specification, and traits that a CPU, a simulator or a device implements.
//!
//! | what | where |
//! |---|---|
//! | activations as codes, and the arithmetic that makes them | [`QuantizedActivations`], [`DynamicNumerics`], [`StaticNumerics`] |
//! | whose arithmetic that is: one value for simulation and execution | [`Profile`], [`InputQuant`] |
//! | a linear as codes, and what is done with its sums | [`IntegerLinear`], [`Bias`], [`finish`] |
//! | the same with scales for groups of inputs | [`GroupedLinear`], [`finish_groups`] |
//! | traits | [`DynamicQuant`], [`StaticQuant`], [`QuantMatmul`], [`GroupedMatmul`], [`PreparedMatmul`] |
//! | what runs a model's operators, coded weights and a cache that it holds | [`Processor`], [`WeightOnlyProduct`], [`CodeCache`] |
//! | the implementation that the others are compared with | [`Reference`], with [`check_operands`] for all |
//!
//! A code stands for `scale · (code − zero)`. Sums of products of codes are exact, so implementations differ in nothing but speed:
//! given one input, their codes, scales and results are equal to the bit.
//!
//! ```
//! use quant_core::ndarray::{Array1, Array2, array};
//! use quant_core::operators::{Bias, DynamicNumerics, DynamicQuant, IntegerLinear, QuantMatmul, Reference};
//! use quant_core::{Bits, Par};
//!
//! let numerics = DynamicNumerics::Ascend { bits: Bits::new(8)? };
//! let x = Reference.quantize(&numerics, array![[0.5_f32, -1.0, 0.25]].view(), Par::Seq)?;
//! assert_eq!(x.codes, array![[64, -127, 32]]);
//! let linear = IntegerLinear::new(array![[2, 0, 0], [0, 1, 0]], array![0.5, 1.0], Bias::Float(array![0.0, 3.0]))?;
//! let mut y = Array2::<f32>::zeros((1, 2));
//! Reference.prepare(&linear, Par::Seq)?.forward(&x, y.view_mut().into(), Par::Seq)?;
//! assert!((y[(0, 0)] - 0.5_f32).abs() < 0.01 && (y[(0, 1)] - 2.0).abs() < 0.01);
//! # Ok::<(), quant_core::CoreError>(())
//! ```

mod activations;
mod grouped;
mod linear;
mod processor;
mod profile;
mod reference;

pub use activations::{DynamicNumerics, QuantizedActivations, StaticNumerics, TokenParams};
pub use grouped::{GroupedLinear, GroupedMatmul, finish_groups};
pub use linear::{Bias, IntegerLinear, Output, finish, fp19, requantize};
pub use processor::{
    CacheDemand, Cached, ChannelCodes, CodeCache, CodeCacheForm, Demand, Processor, StaticQuant,
    WeightOnlyProduct,
};
pub use profile::{InputNumerics, InputQuant, Profile};
pub use reference::{Reference, check_operands};

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::{CoreError, Par};

/// Quantises activations token by token as they arrive.
pub trait DynamicQuant: Send + Sync {
    /// Codes of `x` `[tokens, features]`, with parameters of each token: bit for bit those of [`DynamicNumerics::token`]. A device that
    /// has no f32 input gives those of `x` rounded to the type of its model.
    ///
    /// # Errors
    /// [`CoreError::Processor`] for arithmetic that a device lacks, or what went wrong on it.
    fn quantize(
        &self,
        numerics: &DynamicNumerics,
        x: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<QuantizedActivations, CoreError>;
}

/// Makes products of codes.
pub trait QuantMatmul: Send + Sync {
    /// A linear in whatever form its products want.
    ///
    /// # Errors
    /// What the implementation cannot run, and why.
    fn prepare(&self, linear: &IntegerLinear, par: Par) -> Result<Box<dyn PreparedMatmul>, CoreError>;
}

/// A linear that was prepared for products.
pub trait PreparedMatmul: Send + Sync {
    /// Output and input features.
    fn shape(&self) -> (usize, usize);

    /// `out` `[tokens, out]` becomes [`finish`] of the sums of codes, rounded once to the type of `out`. Its old content is not
    /// read.
    ///
    /// # Errors
    /// [`CoreError::Shape`] where activations or output do not fit the linear.
    fn forward(&self, x: &QuantizedActivations, out: Output<'_>, par: Par) -> Result<(), CoreError>;

    /// The bare sums `Σ code · weight`, without zero points, bias or scales, into `out` `[tokens, out]`.
    ///
    /// # Errors
    /// As [`PreparedMatmul::forward`].
    fn sums(&self, codes: ArrayView2<'_, i8>, out: ArrayViewMut2<'_, i32>, par: Par)
    -> Result<(), CoreError>;
}

/// The most inputs of a product of bytes: `255 · 128` times this many, which is the most that activations with a zero point and
/// weights can add up to, fit into 32 bits.
pub const MAX_DEPTH: usize = 1 << 16;

/// Whether sums over this many inputs fit into 32 bits.
///
/// # Errors
/// [`CoreError::Shape`] beyond [`MAX_DEPTH`].
pub fn check_depth(inputs: usize) -> Result<(), CoreError> {
    if inputs <= MAX_DEPTH {
        return Ok(());
    }
    Err(CoreError::Shape {
        what: "inputs of an integer product (cut the weight into parts of fewer columns and add their results)",
        expected: format!("at most {MAX_DEPTH}, whose sums fit into 32 bits"),
        found: inputs.to_string(),
    })
}
