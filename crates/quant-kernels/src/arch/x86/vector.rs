//! The operations of products with packed levels, with AVX2 and with AVX-512.

use std::arch::x86_64::*;

use crate::arch::lanes::Vector;

macro_rules! vector {
    (
        $(#[$doc:meta])* $name:ident of $lanes:literal, words $words:ty, floats $floats:ty,
        load_words $load_words:ident, left $left:ident, right_by $right_by:ident,
        field |$x:ident, $mask:ident, $rest:ident| $field:expr, set $set:ident, $set_words:ident,
        load $load:ident, store $store:ident, add $add:ident, sub $sub:ident, mul $mul:ident, madd $madd:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(in crate::arch) struct $name($floats);

        // SAFETY: the operations are called where a level proves the instructions.
        unsafe impl Vector for $name {
            type Words = $words;

            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn words(from: *const u32) -> $words {
                // SAFETY: the caller's words.
                unsafe { $load_words(from.cast()) }
            }
            #[inline(always)]
            unsafe fn left<const BITS: u32>(words: $words) -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $left(words, _mm_cvtsi32_si128(BITS.cast_signed())) }
            }
            #[inline(always)]
            unsafe fn right<const BITS: u32>(words: $words) -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $right_by(words, _mm_cvtsi32_si128(BITS.cast_signed())) }
            }
            #[inline(always)]
            unsafe fn right_by(words: $words, bits: u32) -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $right_by(words, _mm_cvtsi32_si128(bits.cast_signed())) }
            }
            #[inline(always)]
            unsafe fn field<const MASK: i32, const REST: i32>($x: $words) -> Self {
                // SAFETY: forwarded from the caller.
                Self(unsafe {
                    let ($mask, $rest) = ($set_words(MASK), $set_words(REST));
                    $field
                })
            }
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                // SAFETY: forwarded from the caller.
                Self(unsafe { $set(value) })
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: the caller's numbers.
                Self(unsafe { $load(from) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: the caller's numbers.
                unsafe { $store(to, self.0) };
            }
            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                // SAFETY: forwarded from the caller.
                Self(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn minus(self, other: Self) -> Self {
                // SAFETY: forwarded from the caller.
                Self(unsafe { $sub(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn times(self, other: Self) -> Self {
                // SAFETY: forwarded from the caller.
                Self(unsafe { $mul(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn times_plus(self, factor: Self, sum: Self) -> Self {
                // SAFETY: forwarded from the caller.
                Self(unsafe { $madd(factor.0, self.0, sum.0) })
            }
        }
    };
}

vector! {
    /// 8 numbers with AVX2 and FMA.
    Ymm of 8, words __m256i, floats __m256,
    load_words _mm256_load_si256, left _mm256_sll_epi32, right_by _mm256_srl_epi32,
    field |x, mask, rest| _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(x, mask), rest)),
    set _mm256_set1_ps, _mm256_set1_epi32,
    load _mm256_load_ps, store _mm256_store_ps, add _mm256_add_ps, sub _mm256_sub_ps, mul _mm256_mul_ps, madd _mm256_fmadd_ps
}

vector! {
    /// 16 numbers with AVX-512.
    Zmm of 16, words __m512i, floats __m512,
    load_words _mm512_load_si512, left _mm512_sll_epi32, right_by _mm512_srl_epi32,
    // (x and mask) or rest.
    field |x, mask, rest| _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xEA>(x, mask, rest)),
    set _mm512_set1_ps, _mm512_set1_epi32,
    load _mm512_load_ps, store _mm512_store_ps, add _mm512_add_ps, sub _mm512_sub_ps, mul _mm512_mul_ps, madd _mm512_fmadd_ps
}
