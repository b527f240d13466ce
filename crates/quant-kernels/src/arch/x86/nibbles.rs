//! The operations of products of bytes with packed levels: `vpdpbusd` in both encodings, and `vpmaddubsw` where there is neither.

use std::arch::x86_64::*;

use crate::arch::nibbles::Nibbles;

macro_rules! nibbles {
    (
        $(#[$doc:meta])* $name:ident of $lanes:literal, words $words:ty, zero $zero:ident, set $set:ident, load $load:ident,
        and $and:ident, right $right:ident, add $add:ident, store $store:ident, dot |$sum:ident, $levels:ident, $x:ident| $dot:expr
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(in crate::arch) struct $name;

        // SAFETY: the operations are called where a level proves the instructions.
        unsafe impl Nibbles for $name {
            type Words = $words;

            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn zero() -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn splat(word: i32) -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $set(word) }
            }
            #[inline(always)]
            unsafe fn words(from: *const u32) -> $words {
                // SAFETY: the caller's words.
                unsafe { $load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn low(words: $words) -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $and(words, $set(0x0F0F_0F0F)) }
            }
            #[inline(always)]
            unsafe fn high(words: $words) -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $and($right::<4>(words), $set(0x0F0F_0F0F)) }
            }
            #[inline(always)]
            unsafe fn dot($sum: $words, $levels: $words, $x: $words) -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $dot }
            }
            #[inline(always)]
            unsafe fn plus(a: $words, b: $words) -> $words {
                // SAFETY: forwarded from the caller.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn store(words: $words, to: *mut i32) {
                // SAFETY: the caller's words.
                unsafe { $store(to.cast(), words) };
            }
        }
    };
}

nibbles! {
    /// AVX-512 VNNI.
    NibblesAvx512 of 16, words __m512i, zero _mm512_setzero_si512, set _mm512_set1_epi32, load _mm512_load_si512,
    and _mm512_and_si512, right _mm512_srli_epi32, add _mm512_add_epi32, store _mm512_store_si512,
    dot |sum, levels, x| _mm512_dpbusd_epi32(sum, levels, x)
}

nibbles! {
    /// AVX-VNNI.
    NibblesAvxVnni of 8, words __m256i, zero _mm256_setzero_si256, set _mm256_set1_epi32, load _mm256_load_si256,
    and _mm256_and_si256, right _mm256_srli_epi32, add _mm256_add_epi32, store _mm256_store_si256,
    dot |sum, levels, x| _mm256_dpbusd_avx_epi32(sum, levels, x)
}

nibbles! {
    /// AVX2: pairs of products fit into 16 bits, `2 · 15 · 128`.
    NibblesAvx2 of 8, words __m256i, zero _mm256_setzero_si256, set _mm256_set1_epi32, load _mm256_load_si256,
    and _mm256_and_si256, right _mm256_srli_epi32, add _mm256_add_epi32, store _mm256_store_si256,
    dot |sum, levels, x| {
        let pairs = _mm256_maddubs_epi16(levels, x);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}
