//! The portable tile: the specification every other level is compared with, and the kernel of machines without a
//! level of their own (on 64-bit ARM the compiler turns it into vector multiply-adds).

use super::kernel::{KC_F32, KC_F64, Kernel};

/// Portable f32 and f64 tiles of 4 x 8.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable<T>(std::marker::PhantomData<T>);

impl<T> Portable<T> {
    pub(super) fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

macro_rules! portable {
    ($ty:ident, $kc:expr) => {
        // SAFETY: it needs no instruction beyond the compilation target.
        unsafe impl Kernel for Portable<$ty> {
            type Elem = $ty;
            type Word = $ty;

            const MR: usize = 4;
            const NR: usize = 8;
            const PAIR: usize = 1;
            const KC: usize = $kc;
            const ZERO: $ty = 0.0;

            #[inline(always)]
            fn word(low: $ty, _high: $ty) -> $ty {
                low
            }

            unsafe fn tile(
                self,
                rows: usize,
                words: usize,
                a: *const $ty,
                b: *const $ty,
                alpha: $ty,
                accumulate: bool,
                c: *mut $ty,
                stride: isize,
            ) {
                // SAFETY: the caller's panels hold `words` words per lane.
                let (a, b) = unsafe {
                    (
                        std::slice::from_raw_parts(a, words * Self::MR),
                        std::slice::from_raw_parts(b, words * Self::NR),
                    )
                };
                let mut sums = [[0.0; Self::NR]; Self::MR];
                for (a, b) in a.chunks_exact(Self::MR).zip(b.chunks_exact(Self::NR)) {
                    for i in 0..Self::MR {
                        for j in 0..Self::NR {
                            sums[i][j] = a[i].mul_add(b[j], sums[i][j]);
                        }
                    }
                }
                for (i, row) in sums.iter().enumerate().take(rows) {
                    for (j, &sum) in row.iter().enumerate() {
                        // SAFETY: row i < rows and column j < NR of the caller's tile.
                        unsafe {
                            let out = c.offset(i as isize * stride).add(j);
                            *out = if accumulate { *out + alpha * sum } else { alpha * sum };
                        }
                    }
                }
            }
        }
    };
}
portable!(f32, KC_F32);
portable!(f64, KC_F64);
