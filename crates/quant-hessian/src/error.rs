use quant_core::{CoreError, Stopped};
use thiserror::Error;

use crate::attempt::Attempt;

/// What can be wrong with a Hessian, its factorisation or a GPTQ or GPTAQ problem.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum HessianError {
    /// Two shapes that must agree do not.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// The shape required.
        expected: String,
        /// The shape given.
        found: String,
    },
    /// A factor was asked of a Hessian that has seen no calibration sequence.
    #[error(
        "the Hessian of {columns} inputs has seen no calibration sequence: add activations before using it"
    )]
    Empty {
        /// Side of the Hessian.
        columns: usize,
    },
    /// A NaN or an infinity in the accumulated Hessian, found on its diagonal.
    #[error(
        "Hessian accumulation: the diagonal entry of input channel {column} is {value}; the calibration activations of \
         that channel contain NaN or infinity, or overflow f32 when squared"
    )]
    NotFiniteHessian {
        /// The input channel.
        column: usize,
        /// The diagonal entry.
        value: f32,
    },
    /// A NaN or an infinity in the accumulated cross product `D` of the two activation streams.
    #[error(
        "cross product of activations: the entry of float-model channel {row} and channel {column} is {value}; the \
         calibration activations of one of them contain NaN or infinity, or their products overflow f32"
    )]
    NotFiniteCross {
        /// The input channel the difference is of.
        row: usize,
        /// The input channel of the quantised model.
        column: usize,
        /// The entry.
        value: f32,
    },
    /// A setting outside its range.
    #[error("setting `{name}` is {value}: expected {expected}")]
    Setting {
        /// Name of the field.
        name: &'static str,
        /// The value given.
        value: String,
        /// The values allowed.
        expected: &'static str,
    },
    /// No damping within the limits made the Hessian positive definite to working precision.
    #[error(
        "the Hessian stayed indefinite or inaccurate through {} factorisations, last with damping {:.4}: {}; use more \
         calibration tokens, a larger damping, or check the activations for overflow",
        .attempts.len(),
        .attempts.last().map_or(0.0, |a| a.damping),
        .attempts.last().map_or_else(String::new, |a| a.outcome.to_string())
    )]
    NotPositiveDefinite {
        /// Every factorisation tried, in order.
        attempts: Vec<Attempt>,
    },
    /// The factor was prepared with another column order than the configuration asks for.
    #[error(
        "the factor was prepared with act_order = {factor}, but the configuration asks for act_order = {asked}"
    )]
    Order {
        /// Whether the factor has a permutation.
        factor: bool,
        /// Whether the configuration wants one.
        asked: bool,
    },
    /// Act-order permutes both axes of the cross product, so that its entries below the diagonal are needed too.
    #[error(
        "the factor was prepared with act_order, which needs the whole cross product of its {columns} inputs, but only \
         the entries above the diagonal were summed: use CrossGram::new({columns}, true)"
    )]
    HalfCross {
        /// Side of the cross product.
        columns: usize,
    },
    /// The correction of a GPTAQ or Qronos problem was prepared for another one.
    #[error(
        "the correction for the float model's inputs: expected {expected}, but it was prepared with {found}"
    )]
    Correction {
        /// What the factor or the configuration asks for.
        expected: String,
        /// What the correction has.
        found: String,
    },
    /// The weight holds a NaN or an infinity, or a quantiser part does not fit.
    #[error("GPTQ weight: {0}")]
    Core(#[from] CoreError),
    /// The caller wanted no more of it.
    #[error("{0}")]
    Stopped(#[from] Stopped),
    /// The updated weight of a column, or its squared error, overflowed or became NaN.
    #[error(
        "GPTQ column loop: the updated weight of row {row}, column {column} or its loss is not finite; the weight is too large for \
         f32 arithmetic or the Hessian is too badly scaled"
    )]
    NotFiniteResult {
        /// Row of the weight.
        row: usize,
        /// Column of the weight, in original order.
        column: usize,
    },
}
