//! The element types of the kernels.

use std::fmt::{Debug, Display, LowerExp};

use ndarray::{ArrayViewMut2, ScalarOperand};
use num_traits::{Float, NumAssign};
use quant_core::Real;

use crate::{Par, PivotError};

/// A float type the kernels compute in: `f32` for work, `f64` for references and gradient checks. Sealed.
pub trait Element:
    sealed::Primitive
    + Real
    + Float
    + NumAssign
    + ScalarOperand
    + Debug
    + Display
    + LowerExp
    + Default
    + Send
    + Sync
    + 'static
{
}

impl Element for f32 {}
impl Element for f64 {}

/// Which part of a destination a product writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// Every element.
    Full,
    /// Elements `(i, j)` with `i >= j`.
    Lower,
}

pub(crate) mod sealed {
    use super::*;

    /// What differs between the element types.
    pub trait Primitive: Sized + crate::arch::Dispatch {
        /// Factorises the lower triangle of a square matrix in place.
        fn cholesky(h: ArrayViewMut2<'_, Self>, par: Par) -> Result<(), PivotError>;

        /// `e^self` for the row operations, without branches where the type has a vectorisable version.
        fn exp_element(self) -> Self;

        /// This value rounded to bfloat16, halves to even.
        fn round_to_bf16(self) -> Self;
    }

    macro_rules! primitive {
        ($ty:ident, $exp:expr, $round:expr) => {
            impl Primitive for $ty {
                fn cholesky(h: ArrayViewMut2<'_, Self>, par: Par) -> Result<(), PivotError> {
                    crate::cholesky::faer_llt(h, par)
                }

                #[inline(always)]
                fn exp_element(self) -> Self {
                    $exp(self)
                }

                #[inline(always)]
                fn round_to_bf16(self) -> Self {
                    $round(self)
                }
            }
        };
    }
    primitive!(f32, crate::exp::exp_f32, crate::bf16::round_f32);
    primitive!(f64, quant_core::elementary::exp, crate::bf16::round_f64);
}
