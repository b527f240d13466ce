//! AVX-512 tiles: 28 registers of sums, two of B, one broadcast of A.

use std::arch::x86_64::*;

use super::tile::register_tile;
use super::transpose::transpose_words;
use crate::arch::kernel::{KC_F32, KC_F64, Kernel, STEP};
use crate::arch::level::{InstructionSet, Level};

register_tile! {
    /// 14 x 32 f32.
    Avx512F32, level Avx512, features "avx512f",
    f32 in 16 lanes, f32 of 1, 14 x 2, block KC_F32,
    rows [1, 2, 4, 8],
    pack |low, _| low, transpose [transpose_words], load _mm512_load_ps, broadcast |a: *const f32| _mm512_set1_ps(*a),
    madd |sum, a, b| _mm512_fmadd_ps(a, b, sum),
    zero _mm512_setzero_ps, splat _mm512_set1_ps, mul _mm512_mul_ps, add _mm512_add_ps,
    read _mm512_loadu_ps, write _mm512_storeu_ps
}

register_tile! {
    /// 14 x 16 f64.
    Avx512F64, level Avx512, features "avx512f",
    f64 in 8 lanes, f64 of 1, 14 x 2, block KC_F64,
    rows [1, 2, 4, 8],
    pack |low, _| low, transpose [], load _mm512_load_pd, broadcast |a: *const f64| _mm512_set1_pd(*a),
    madd |sum, a, b| _mm512_fmadd_pd(a, b, sum),
    zero _mm512_setzero_pd, splat _mm512_set1_pd, mul _mm512_mul_pd, add _mm512_add_pd,
    read _mm512_loadu_pd, write _mm512_storeu_pd
}
