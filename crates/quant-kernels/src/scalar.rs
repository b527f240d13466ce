//! What the floats of the kernels can do by themselves.

use std::fmt::{Debug, Display, LowerExp};

use ndarray::{ArrayView2, ArrayViewMut2, ScalarOperand};
use num_traits::{Float, NumAssign};
use quant_core::Real;

/// A float type with its arithmetic, below everything that is chosen for it: tiles and factorisations.
pub trait Scalar:
    Real + Float + NumAssign + ScalarOperand + Debug + Display + LowerExp + Default + Send + Sync + 'static
{
    /// `e^self` for the row operations, without branches where the type has a vectorisable version.
    fn exp_element(self) -> Self;

    /// This value rounded to bfloat16, halves to even.
    fn round_to_bf16(self) -> Self;

    /// What this value leaves when it is rounded to bfloat16 and that is taken off, as often as said; zero behind a value that rounds to
    /// no finite one. Exact, since a value and its rounding differ in their last places only.
    #[inline(always)]
    fn rest_after(self, roundings: u8) -> Self {
        let mut rest = self;
        for _ in 0..roundings {
            let rounded = rest.round_to_bf16();
            rest = if rounded.is_finite() { rest - rounded } else { Self::zero() };
        }
        rest
    }

    /// This value rounded to IEEE half precision, halves to even; infinite from 65520 on.
    fn round_to_f16(self) -> Self;

    /// The same view, where this type is f32.
    fn as_f32(x: ArrayView2<'_, Self>) -> Option<ArrayView2<'_, f32>>;

    /// The same view, where this type is f32.
    fn as_f32_mut(x: ArrayViewMut2<'_, Self>) -> Option<ArrayViewMut2<'_, f32>>;
}

macro_rules! scalar {
    ($ty:ident, $exp:expr, $bf16:expr, $f16:expr, $narrow:expr) => {
        impl Scalar for $ty {
            #[inline(always)]
            fn exp_element(self) -> Self {
                $exp(self)
            }

            #[inline(always)]
            fn round_to_bf16(self) -> Self {
                $bf16(self)
            }

            #[inline(always)]
            fn round_to_f16(self) -> Self {
                $f16(self)
            }

            fn as_f32(x: ArrayView2<'_, Self>) -> Option<ArrayView2<'_, f32>> {
                $narrow(x)
            }

            fn as_f32_mut(x: ArrayViewMut2<'_, Self>) -> Option<ArrayViewMut2<'_, f32>> {
                $narrow(x)
            }
        }
    };
}
scalar!(f32, crate::exp::exp_f32, crate::bf16::round_f32, crate::f16::round_f32, Some);
scalar!(f64, quant_core::elementary::exp, crate::bf16::round_f64, crate::f16::round_f64, |_| None);
