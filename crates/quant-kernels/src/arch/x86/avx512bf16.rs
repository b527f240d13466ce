//! AVX-512 BF16 tile: `vdpbf16ps` multiplies pairs of bf16 and adds both products to an f32 lane.

use std::arch::x86_64::*;

use super::tile::{panel, register_tile};
use super::transpose::transpose_words;
use crate::arch::kernel::{KC_F32, Kernel, LeftWord, Panel, RightWord, STEP};
use crate::arch::level::{InstructionSet, Level};
use crate::bf16;

/// Two elements of the summed index, the earlier one in the low half.
#[inline(always)]
pub(super) fn pair(at: impl Fn(usize) -> f32) -> u32 {
    bf16::bits(at(0)) | (bf16::bits(at(1)) << 16)
}

/// # Safety
/// `a` is readable, and the machine has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn broadcast(a: *const u32) -> __m512bh {
    // SAFETY: the caller's pointer; the two register types are 512 plain bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32((*a).cast_signed())) }
}

/// # Safety
/// `b` points to 16 words on a cache line, and the machine has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load(b: *const u32) -> __m512bh {
    // SAFETY: the caller's pointer; the two register types are 512 plain bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_load_si512(b.cast())) }
}

panel! { Avx512Bf16, f32 as u32 of 2, pair, transpose [transpose_words], rounds true }
register_tile! {
    /// 14 x 32 f32 sums of bf16 products.
    ///
    /// The instruction treats subnormal bf16 operands as zero and flushes subnormal sums, and adds the two products
    /// of a word one after the other, rounding to nearest even.
    Avx512Bf16, Level where |level| level.kind() >= InstructionSet::Avx512Bf16, features "avx512f,avx512bf16",
    f32 to f32 in 16 lanes, alpha f32, panels Avx512Bf16, Avx512Bf16, 14 x 2,
    block 2 * KC_F32, rows [1, 2, 4, 8], head 0,
    start |_| _mm512_setzero_ps(), load load, broadcast broadcast, madd _mm512_dpbf16_ps,
    scaled |alpha, sum| _mm512_mul_ps(_mm512_set1_ps(alpha), sum), add _mm512_add_ps,
    read _mm512_loadu_ps, write _mm512_storeu_ps
}
