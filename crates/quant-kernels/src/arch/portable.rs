//! The portable tiles: the specification every other level is compared with, and the kernel of machines without a
//! level of their own (on 64-bit ARM the compiler turns it into vector multiply-adds).

use super::kernel::{KC_F32, KC_F64, Kernel, Panel, SUM_INTEGER};

/// Portable f32 and f64 tiles of 4 x 8, and i8 tiles of 4 x 16.
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
        unsafe impl Panel for Portable<$ty> {
            type In = $ty;
            type Word = $ty;

            const PAIR: usize = 1;
            const ZERO: $ty = 0.0;

            #[inline(always)]
            fn word(at: impl Fn(usize) -> $ty) -> $ty {
                at(0)
            }
        }

        // SAFETY: it needs no instruction beyond the compilation target.
        unsafe impl Kernel for Portable<$ty> {
            type In = $ty;
            type Out = $ty;
            type Alpha = $ty;
            type Left = Self;
            type Right = Self;
            type Session = ();

            const MR: usize = 4;
            const NR: usize = 8;
            const KC: usize = $kc;

            fn session(self) {}

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

// SAFETY: it needs no instruction beyond the compilation target.
unsafe impl Panel for Portable<i8> {
    type In = i8;
    type Word = i8;

    const PAIR: usize = 1;
    const ZERO: i8 = 0;

    #[inline(always)]
    fn word(at: impl Fn(usize) -> i8) -> i8 {
        at(0)
    }
}

// SAFETY: it needs no instruction beyond the compilation target.
unsafe impl Kernel for Portable<i8> {
    type In = i8;
    type Out = i32;
    type Alpha = ();
    type Left = Self;
    type Right = Self;
    type Session = ();

    const MR: usize = 4;
    const NR: usize = 16;
    const KC: usize = SUM_INTEGER;

    fn session(self) {}

    unsafe fn tile(
        self,
        rows: usize,
        words: usize,
        a: *const i8,
        b: *const i8,
        (): (),
        accumulate: bool,
        c: *mut i32,
        stride: isize,
    ) {
        // SAFETY: the caller's panels hold `words` words per lane.
        let (a, b) = unsafe {
            (std::slice::from_raw_parts(a, words * Self::MR), std::slice::from_raw_parts(b, words * Self::NR))
        };
        let mut sums = [[0_i32; Self::NR]; Self::MR];
        for (a, b) in a.as_chunks::<{ Self::MR }>().0.iter().zip(b.as_chunks::<{ Self::NR }>().0) {
            for i in 0..Self::MR {
                for j in 0..Self::NR {
                    // A product of two bytes fits in 16 bits: processors multiply more of those at once.
                    sums[i][j] += i32::from(i16::from(a[i]) * i16::from(b[j]));
                }
            }
        }
        for (i, row) in sums.iter().enumerate().take(rows) {
            for (j, &sum) in row.iter().enumerate() {
                // SAFETY: row i < rows and column j < NR of the caller's tile.
                unsafe {
                    let out = c.offset(i as isize * stride).add(j);
                    *out = if accumulate { *out + sum } else { sum };
                }
            }
        }
    }
}
