//! Tiles of bytes: `vpdpbusd` in both encodings, and `vpmaddwd` on widened bytes where there is neither.
//!
//! A word is four bytes of one lane. `vpdpbusd` multiplies unsigned by signed ones, so A is packed with 128 added to every byte,
//! and what that adds to a sum, 128 times the sum of a column of B, is in the head of the column's panel with the sign
//! changed: sums begin with it. `vpmaddubsw` would do the same on AVX2, but adds two products with saturation, which
//! -128 and 255 meet; there bytes are widened to 16 bits instead, whose pairs of products never overflow.

use std::arch::x86_64::*;

use super::tile::{panel, register_tile};
use super::transpose::transpose_words;
use crate::arch::integer_level::{IntegerLevel, IntegerSet};
use crate::arch::kernel::{Kernel, LeftWord, Panel, RightWord, STEP, SUM_INTEGER};

/// Four bytes, the earliest one lowest.
#[inline(always)]
pub(super) fn bytes(at: impl Fn(usize) -> i8) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|p| at(p).cast_unsigned()))
}

/// Four bytes with 128 added to each.
#[inline(always)]
fn biased(at: impl Fn(usize) -> i8) -> u32 {
    bytes(at) ^ 0x8080_8080
}

/// Four bytes as 16-bit numbers: the first and third below the second and fourth, as [`widened`] has those of B.
#[inline(always)]
fn even_and_odd(at: impl Fn(usize) -> i8) -> u64 {
    let half = |p: usize| u64::from(i16::from(at(p)).cast_unsigned());
    half(0) | (half(2) << 16) | (half(1) << 32) | (half(3) << 48)
}

/// The bytes of a register as 16-bit numbers: the first and third of every word, and the second and fourth.
///
/// # Safety
/// `b` points to a register of words on its alignment, and the machine has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widened(b: *const u32) -> (__m256i, __m256i) {
    // SAFETY: the caller's pointer.
    let words = unsafe { _mm256_load_si256(b.cast()) };
    (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(words)), _mm256_srai_epi16::<8>(words))
}

/// # Safety
/// `a` is readable, and the machine has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast_halves(a: *const u64) -> (__m256i, __m256i) {
    let word: *const i32 = a.cast();
    // SAFETY: the two halves of the caller's word.
    unsafe { (_mm256_set1_epi32(*word), _mm256_set1_epi32(*word.add(1))) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn madd_halves(sum: __m256i, a: (__m256i, __m256i), b: (__m256i, __m256i)) -> __m256i {
    let (even, odd) = (_mm256_madd_epi16(a.0, b.0), _mm256_madd_epi16(a.1, b.1));
    _mm256_add_epi32(_mm256_add_epi32(sum, even), odd)
}

/// Fills the head of a panel of `lanes` lanes: what 128 in every byte of A adds to the sums, to be taken off again.
///
/// # Safety
/// As [`Kernel::head`].
#[inline(always)]
unsafe fn compensate(block: *mut u32, words: usize, lanes: usize) {
    // SAFETY: the head and the words behind it.
    let (head, words) = unsafe {
        (
            std::slice::from_raw_parts_mut(block, lanes),
            std::slice::from_raw_parts(block.add(lanes), words * lanes),
        )
    };
    head.fill(0);
    for row in words.chunks_exact(lanes) {
        for (head, word) in head.iter_mut().zip(row) {
            let sum: i32 = word.to_le_bytes().into_iter().map(|byte| i32::from(byte.cast_signed())).sum();
            *head = head.wrapping_sub((128 * sum).cast_unsigned());
        }
    }
}

/// B of all tiles of bytes here.
#[derive(Clone, Copy, Debug)]
pub(in crate::arch) struct Bytes;
panel! { Bytes, i8 as u32 of 4, bytes, transpose [] }

/// A of the `vpdpbusd` tiles.
#[derive(Clone, Copy, Debug)]
pub(in crate::arch) struct Biased;
panel! { Biased, i8 as u32 of 4, biased, transpose [] }

/// B and A with AVX-512.
#[derive(Clone, Copy, Debug)]
pub(in crate::arch) struct WideBytes;
panel! { WideBytes, i8 as u32 of 4, bytes, transpose [transpose_words] }

#[derive(Clone, Copy, Debug)]
pub(in crate::arch) struct WideBiased;
panel! { WideBiased, i8 as u32 of 4, biased, transpose [transpose_words] }

register_tile! {
    /// 14 x 32 i32 sums with AVX-512 VNNI.
    Avx512VnniI8, IntegerLevel where |level| level.kind() >= IntegerSet::Avx512Vnni, features "avx512f,avx512vnni",
    i8 to i32 in 16 lanes, alpha (), panels WideBiased, WideBytes, 14 x 2,
    block SUM_INTEGER, rows [1, 2, 4, 8], head 1 by compensate,
    start |b: *const u32| _mm512_load_si512(b.cast()), load |b: *const u32| _mm512_load_si512(b.cast()),
    broadcast |a: *const u32| _mm512_set1_epi32((*a).cast_signed()),
    madd |sum, a, b| _mm512_dpbusd_epi32(sum, a, b),
    scaled |(), sum| sum, add _mm512_add_epi32,
    read |c: *const i32| _mm512_loadu_si512(c.cast()), write |c: *mut i32, x| _mm512_storeu_si512(c.cast(), x)
}

register_tile! {
    /// 6 x 16 i32 sums with AVX-VNNI.
    AvxVnniI8, IntegerLevel where |level| level.kind() == IntegerSet::AvxVnni, features "avx2,avxvnni",
    i8 to i32 in 8 lanes, alpha (), panels Biased, Bytes, 6 x 2,
    block SUM_INTEGER, rows [1, 2, 4], head 1 by compensate,
    start |b: *const u32| _mm256_load_si256(b.cast()), load |b: *const u32| _mm256_load_si256(b.cast()),
    broadcast |a: *const u32| _mm256_set1_epi32((*a).cast_signed()),
    madd |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b),
    scaled |(), sum| sum, add _mm256_add_epi32,
    read |c: *const i32| _mm256_loadu_si256(c.cast()), write |c: *mut i32, x| _mm256_storeu_si256(c.cast(), x)
}

/// A of the AVX2 tile.
#[derive(Clone, Copy, Debug)]
pub(in crate::arch) struct Halves;
panel! { Halves, i8 as u64 of 4, even_and_odd, transpose [] }

register_tile! {
    /// 4 x 16 i32 sums with AVX2.
    Avx2I8, IntegerLevel where |level| level.kind() == IntegerSet::Avx2, features "avx2",
    i8 to i32 in 8 lanes, alpha (), panels Halves, Bytes, 4 x 2,
    block SUM_INTEGER, rows [1, 2], head 0,
    start |_| _mm256_setzero_si256(), load widened, broadcast broadcast_halves, madd madd_halves,
    scaled |(), sum| sum, add _mm256_add_epi32,
    read |c: *const i32| _mm256_loadu_si256(c.cast()), write |c: *mut i32, x| _mm256_storeu_si256(c.cast(), x)
}
