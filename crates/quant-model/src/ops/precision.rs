//! How exactly the results of a training pass are held.

use ndarray::ArrayViewMut2;
use quant_kernels::{Element, Par, tasks, vectorized};

/// To what the result of every op of a training pass is rounded, forward and backward: products with their bias, norms,
/// rope, attention, the gated activation, what an insert gives, sums of the residual stream, and every gradient. Inside an op
/// the arithmetic is that of the elements.
///
/// Training in less than f32 is how published code fails; this is for tests that show it, and what withstands it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// As they are.
    #[default]
    Full,
    /// bfloat16.
    Bf16,
    /// IEEE half precision: infinite from 65520 on, nothing below 2^-25.
    Fp16,
}

impl Precision {
    /// Rounds a result.
    pub(crate) fn round<T: Element>(self, x: ArrayViewMut2<'_, T>, par: Par) {
        let to: fn(ArrayViewMut2<'_, T>) = match self {
            Self::Full => return,
            Self::Bf16 => |mut x| {
                vectorized(
                    #[inline(always)]
                    || x.mapv_inplace(|x| x.round_to_bf16()),
                );
            },
            Self::Fp16 => |mut x| {
                vectorized(
                    #[inline(always)]
                    || x.mapv_inplace(|x| x.round_to_f16()),
                );
            },
        };
        tasks::for_rows(x, par, |_, rows| to(rows));
    }
}
