//! The butterflies of a Walsh-Hadamard transform: the stages inside registers, and several at a time across them.
//!
//! A stage of stride `s` inside a register is one shuffle and one fused multiply-add: `y = x[l ^ s] + x` where bit `s` of `l` is
//! clear, `x[l ^ s] - x` where it is set. The product with a sign is exact, so the bits are those of an addition.

use std::arch::x86_64::*;

use crate::arch::kernel::WIDTH;
use crate::arch::level::{InstructionSet, Level};

/// The first stages of f32 on this machine, if it has instructions for them; gives the stride of the next stage in registers of
/// [`WIDTH`] values, whose number is a power of two.
pub(in crate::arch) fn first_pass(level: Level, registers: &mut [[f32; WIDTH]], scale: f32) -> Option<usize> {
    if level.kind() >= InstructionSet::Avx512 {
        // SAFETY: the level is proof of the instructions.
        return Some(unsafe {
            match registers.len() {
                1 => avx512::<1>(registers, scale),
                2 => avx512::<2>(registers, scale),
                4 => avx512::<4>(registers, scale),
                8 | 64 => avx512::<8>(registers, scale),
                _ => avx512::<16>(registers, scale),
            }
        });
    }
    if level.kind() >= InstructionSet::Avx2 {
        // SAFETY: the level is proof of the instructions.
        return Some(unsafe {
            match registers.len() {
                1 => avx2::<1>(registers, scale),
                2 => avx2::<2>(registers, scale),
                _ => avx2::<4>(registers, scale),
            }
        });
    }
    None
}

/// The stages of strides `stride` to `radix / 2 * stride` registers, for a `radix` of 2, 4, 8 or 16; false without instructions for them.
pub(in crate::arch) fn pass(
    level: Level,
    registers: &mut [[f32; WIDTH]],
    stride: usize,
    radix: usize,
) -> bool {
    let (values, stride) = (registers.as_flattened_mut(), stride * WIDTH);
    // SAFETY: the levels are proof of the instructions.
    unsafe {
        if level.kind() >= InstructionSet::Avx512 {
            match radix {
                2 => pass_avx512::<2>(values, stride),
                4 => pass_avx512::<4>(values, stride),
                8 => pass_avx512::<8>(values, stride),
                _ => pass_avx512::<16>(values, stride),
            }
        } else if level.kind() >= InstructionSet::Avx2 {
            match radix {
                2 => pass_avx2::<2>(values, stride),
                4 => pass_avx2::<4>(values, stride),
                8 => pass_avx2::<8>(values, stride),
                // There are sixteen registers in all.
                _ => {
                    pass_avx2::<4>(values, stride);
                    pass_avx2::<4>(values, 4 * stride);
                }
            }
        } else {
            return false;
        }
    }
    true
}

/// `log2(R)` stages across registers.
macro_rules! pass {
    ($name:ident, $features:literal, $lanes:literal, $load:ident, $add:ident, $sub:ident, $store:ident) => {
        /// The stages of strides `stride` to `R / 2 * stride` values, a multiple of those of a register.
        ///
        /// # Safety
        /// The machine has the instructions.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(values: &mut [f32], stride: usize) {
            for group in values.chunks_exact_mut(R * stride) {
                let start = group.as_mut_ptr();
                for at in (0..stride).step_by($lanes) {
                    // SAFETY: `at + r * stride` and the lanes behind it lie in the group, whose length is `R * stride`.
                    unsafe {
                        let place = |r: usize| start.add(at + r * stride);
                        let mut x = [$load(place(0)); R];
                        for r in 1..R {
                            x[r] = $load(place(r));
                        }
                        let mut step = 1;
                        while step < R {
                            // A loop that is unrolled; over a filter it would not be, and `x` would live in memory.
                            for i in 0..R {
                                if i & step == 0 {
                                    let (a, b) = (x[i], x[i + step]);
                                    (x[i], x[i + step]) = ($add(a, b), $sub(a, b));
                                }
                            }
                            step *= 2;
                        }
                        for r in 0..R {
                            $store(place(r), x[r]);
                        }
                    }
                }
            }
        }
    };
}
pass!(pass_avx512, "avx512f", 16, _mm512_loadu_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_storeu_ps);
pass!(pass_avx2, "avx2", 8, _mm256_loadu_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_storeu_ps);

/// The signs of `x` in the stages of strides 1, 2, 4 and 8, lane by lane.
static SIGNS: [[f32; WIDTH]; 4] = [signs(1), signs(2), signs(4), signs(8)];

const fn signs(s: usize) -> [f32; WIDTH] {
    let mut signs = [1.0; WIDTH];
    let mut lane = 0;
    while lane < WIDTH {
        if lane & s != 0 {
            signs[lane] = -1.0;
        }
        lane += 1;
    }
    signs
}

/// # Safety
/// The machine has AVX-512.
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(registers: &mut [[f32; WIDTH]], scale: f32) -> usize {
    // SAFETY: every load and store is of the sixteen values of an array.
    unsafe {
        let scale = _mm512_set1_ps(scale);
        let [s1, s2, s4, s8] = SIGNS.each_ref().map(|signs| _mm512_loadu_ps(signs.as_ptr()));
        for group in registers.as_chunks_mut::<R>().0 {
            let mut x = [scale; R];
            for (x, values) in x.iter_mut().zip(&*group) {
                let v = _mm512_mul_ps(_mm512_loadu_ps(values.as_ptr()), scale);
                let v = _mm512_fmadd_ps(v, s1, _mm512_permute_ps::<0b10_11_00_01>(v));
                let v = _mm512_fmadd_ps(v, s2, _mm512_permute_ps::<0b01_00_11_10>(v));
                let v = _mm512_fmadd_ps(v, s4, _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v));
                *x = _mm512_fmadd_ps(v, s8, _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v));
            }
            let mut stride = 1;
            while stride < R {
                for i in 0..R {
                    if i & stride == 0 {
                        let (a, b) = (x[i], x[i + stride]);
                        (x[i], x[i + stride]) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
                    }
                }
                stride *= 2;
            }
            for (&x, values) in x.iter().zip(group) {
                _mm512_storeu_ps(values.as_mut_ptr(), x);
            }
        }
    }
    R
}

/// # Safety
/// The machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize>(registers: &mut [[f32; WIDTH]], scale: f32) -> usize {
    // SAFETY: every load and store is of eight of the sixteen values of an array.
    unsafe {
        let scale = _mm256_set1_ps(scale);
        let [s1, s2, s4, _] = SIGNS.each_ref().map(|signs| _mm256_loadu_ps(signs.as_ptr()));
        for group in registers.as_chunks_mut::<R>().0 {
            let mut x = [[scale; 2]; R];
            for (x, values) in x.iter_mut().zip(&*group) {
                for (x, half) in x.iter_mut().zip(values.as_chunks::<8>().0) {
                    let v = _mm256_mul_ps(_mm256_loadu_ps(half.as_ptr()), scale);
                    let v = _mm256_fmadd_ps(v, s1, _mm256_permute_ps::<0b10_11_00_01>(v));
                    let v = _mm256_fmadd_ps(v, s2, _mm256_permute_ps::<0b01_00_11_10>(v));
                    *x = _mm256_fmadd_ps(v, s4, _mm256_permute2f128_ps::<1>(v, v));
                }
                let [a, b] = *x;
                *x = [_mm256_add_ps(a, b), _mm256_sub_ps(a, b)];
            }
            let mut stride = 1;
            while stride < R {
                for i in 0..R {
                    if i & stride == 0 {
                        let ([a, b], [c, d]) = (x[i], x[i + stride]);
                        x[i] = [_mm256_add_ps(a, c), _mm256_add_ps(b, d)];
                        x[i + stride] = [_mm256_sub_ps(a, c), _mm256_sub_ps(b, d)];
                    }
                }
                stride *= 2;
            }
            for (x, values) in x.iter().zip(group) {
                for (&x, half) in x.iter().zip(values.as_chunks_mut::<8>().0) {
                    _mm256_storeu_ps(half.as_mut_ptr(), x);
                }
            }
        }
    }
    R
}
