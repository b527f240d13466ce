//! The butterflies of a Walsh-Hadamard transform, in the portable form that specifies them.

use super::kernel::WIDTH;
use super::level::Level;
use crate::scalar::Scalar;

/// Element types with the stages of a transform. The bits are the same on every level.
pub trait Butterflies: Sized {
    /// Multiplies registers, a power of two of them, by `scale`, does the stages inside them and perhaps some across them, in
    /// increasing order; gives the stride of the next stage, in registers.
    fn first_stages(level: Level, registers: &mut [[Self; WIDTH]], scale: Self) -> usize;

    /// The stages of strides `stride`, `2 * stride`, ... `radix / 2 * stride` registers, in this order, for a `radix` of 2, 4, 8 or 16.
    fn pass(level: Level, registers: &mut [[Self; WIDTH]], stride: usize, radix: usize);
}

impl Butterflies for f32 {
    #[inline(always)]
    fn first_stages(level: Level, registers: &mut [[Self; WIDTH]], scale: Self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some(stride) = super::x86::first_pass(level, registers, scale) {
            return stride;
        }
        let _ = level;
        portable(registers, scale)
    }

    #[inline(always)]
    fn pass(level: Level, registers: &mut [[Self; WIDTH]], stride: usize, radix: usize) {
        #[cfg(target_arch = "x86_64")]
        if super::x86::pass(level, registers, stride, radix) {
            return;
        }
        let _ = level;
        portable_pass(registers, stride, radix);
    }
}

impl Butterflies for f64 {
    #[inline(always)]
    fn first_stages(_level: Level, registers: &mut [[Self; WIDTH]], scale: Self) -> usize {
        portable(registers, scale)
    }

    #[inline(always)]
    fn pass(_level: Level, registers: &mut [[Self; WIDTH]], stride: usize, radix: usize) {
        portable_pass(registers, stride, radix);
    }
}

#[inline(always)]
fn portable<T: Scalar>(registers: &mut [[T; WIDTH]], scale: T) -> usize {
    for register in registers {
        for value in register.iter_mut() {
            *value *= scale;
        }
        *register = exchange::<T, 1>(*register);
        *register = exchange::<T, 2>(*register);
        *register = exchange::<T, 4>(*register);
        *register = exchange::<T, 8>(*register);
    }
    1
}

/// The stage of stride `S`.
#[inline(always)]
fn exchange<T: Scalar, const S: usize>(x: [T; WIDTH]) -> [T; WIDTH] {
    std::array::from_fn(|l| if l & S == 0 { x[l] + x[l ^ S] } else { x[l ^ S] - x[l] })
}

#[inline(always)]
fn portable_pass<T: Scalar>(registers: &mut [[T; WIDTH]], stride: usize, radix: usize) {
    match radix {
        2 => pass_of_2(registers, stride),
        4 => pass_of_4(registers, stride),
        8 => pass::<T, 8>(registers, stride),
        _ => pass::<T, 16>(registers, stride),
    }
}

/// `log2(R)` stages across registers, `stride` registers apart.
#[inline(always)]
fn pass<T: Scalar, const R: usize>(registers: &mut [[T; WIDTH]], stride: usize) {
    for group in registers.chunks_exact_mut(R * stride) {
        for at in 0..stride {
            let taken = butterflies::<T, R>(std::array::from_fn(|r| group[at + r * stride]));
            for (r, register) in taken.into_iter().enumerate() {
                group[at + r * stride] = register;
            }
        }
    }
}

/// Passes of few registers are loops over their values, which the compiler vectorises where it gives up on those over registers.
#[inline(always)]
fn pass_of_2<T: Scalar>(registers: &mut [[T; WIDTH]], stride: usize) {
    for group in registers.chunks_exact_mut(2 * stride) {
        let (low, high) = group.split_at_mut(stride);
        for (a, b) in low.as_flattened_mut().iter_mut().zip(high.as_flattened_mut()) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

/// The stages of this stride and of twice it.
#[inline(always)]
fn pass_of_4<T: Scalar>(registers: &mut [[T; WIDTH]], stride: usize) {
    for group in registers.chunks_exact_mut(4 * stride) {
        let (low, high) = group.split_at_mut(2 * stride);
        let (a, b) = low.as_flattened_mut().split_at_mut(stride * WIDTH);
        let (c, d) = high.as_flattened_mut().split_at_mut(stride * WIDTH);
        for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
            let (e, f, g, h) = (*a + *b, *a - *b, *c + *d, *c - *d);
            (*a, *b, *c, *d) = (e + g, f + h, e - g, f - h);
        }
    }
}

/// The transform of `R` registers, lane by lane.
#[inline(always)]
fn butterflies<T: Scalar, const R: usize>(mut x: [[T; WIDTH]; R]) -> [[T; WIDTH]; R] {
    let mut stride = 1;
    while stride < R {
        for i in 0..R {
            if i & stride == 0 {
                for l in 0..WIDTH {
                    let (a, b) = (x[i][l], x[i + stride][l]);
                    x[i][l] = a + b;
                    x[i + stride][l] = a - b;
                }
            }
        }
        stride *= 2;
    }
    x
}
