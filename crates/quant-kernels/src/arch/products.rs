//! The products of each element type as functions of that type alone.
//!
//! They are compiled here, once. As generic functions every crate that multiplies, and every test of one, would compile all tiles of all
//! instruction sets anew.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::dispatch::{self, PackedOperand};
use super::level::Level;
use super::mix;
use super::sink::Region;
use crate::{Compute, Par};

/// Element types with products; each method is the function of its name in [`dispatch`] or [`mix`].
#[allow(private_interfaces, reason = "sealed: callers are inside the crate")]
pub trait Products: Sized {
    fn product(
        level: Level,
        dst: ArrayViewMut2<'_, Self>,
        region: Region,
        accumulate: bool,
        alpha: Self,
        a: ArrayView2<'_, Self>,
        b: ArrayView2<'_, Self>,
        compute: Compute,
        par: Par,
    );
    fn product_packed(
        dst: ArrayViewMut2<'_, Self>,
        accumulate: bool,
        alpha: Self,
        a: ArrayView2<'_, Self>,
        b: &PackedOperand<Self>,
        par: Par,
    );
    fn pack_operand(level: Level, b: ArrayView2<'_, Self>, compute: Compute, par: Par)
    -> PackedOperand<Self>;
    fn pack_columns(
        level: Level,
        shape: (usize, usize),
        compute: Compute,
        par: Par,
        fill: &(dyn Fn(usize, &mut [Self]) + Sync),
    ) -> PackedOperand<Self>;
    fn packed_element_bytes(level: Level, compute: Compute) -> usize;
    fn mix_blocks(level: Level, x: ArrayViewMut2<'_, Self>, alpha: Self, a: ArrayView2<'_, Self>, par: Par);
}

macro_rules! products {
    ($($ty:ty),*) => {$(
        #[allow(private_interfaces, reason = "sealed: callers are inside the crate")]
        impl Products for $ty {
            fn product(
                level: Level,
                dst: ArrayViewMut2<'_, Self>,
                region: Region,
                accumulate: bool,
                alpha: Self,
                a: ArrayView2<'_, Self>,
                b: ArrayView2<'_, Self>,
                compute: Compute,
                par: Par,
            ) {
                dispatch::product(level, dst, region, accumulate, alpha, a, b, compute, par);
            }
            fn product_packed(
                dst: ArrayViewMut2<'_, Self>,
                accumulate: bool,
                alpha: Self,
                a: ArrayView2<'_, Self>,
                b: &PackedOperand<Self>,
                par: Par,
            ) {
                dispatch::product_packed(dst, accumulate, alpha, a, b, par);
            }
            fn pack_operand(
                level: Level,
                b: ArrayView2<'_, Self>,
                compute: Compute,
                par: Par,
            ) -> PackedOperand<Self> {
                dispatch::pack_operand(level, b, compute, par)
            }
            fn pack_columns(
                level: Level,
                shape: (usize, usize),
                compute: Compute,
                par: Par,
                fill: &(dyn Fn(usize, &mut [Self]) + Sync),
            ) -> PackedOperand<Self> {
                dispatch::pack_columns(level, shape, compute, par, fill)
            }
            fn packed_element_bytes(level: Level, compute: Compute) -> usize {
                dispatch::packed_element_bytes::<Self>(level, compute)
            }
            fn mix_blocks(
                level: Level,
                x: ArrayViewMut2<'_, Self>,
                alpha: Self,
                a: ArrayView2<'_, Self>,
                par: Par,
            ) {
                mix::mix_blocks(level, x, alpha, a, par);
            }
        }
    )*};
}
products!(f32, f64);
