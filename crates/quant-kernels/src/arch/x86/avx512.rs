//! AVX-512 tiles: 28 registers of sums, two of B, one broadcast of A.

use std::arch::x86_64::*;

use super::tile::{first, panel, register_tile};
use super::transpose::transpose_words;
use crate::arch::kernel::{KC_F32, KC_F64, Kernel, LeftWord, Panel, RightWord, STEP};
use crate::arch::level::{InstructionSet, Level};

panel! { Avx512F32, f32 as f32 of 1, first, transpose [transpose_words] }
register_tile! {
    /// 14 x 32 f32.
    Avx512F32, Level where |level| level.kind() >= InstructionSet::Avx512, features "avx512f",
    f32 to f32 in 16 lanes, alpha f32, panels Avx512F32, Avx512F32, 14 x 2,
    block KC_F32, rows [1, 2, 4, 8], head 0,
    start |_| _mm512_setzero_ps(), load _mm512_load_ps, broadcast |a: *const f32| _mm512_set1_ps(*a),
    madd |sum, a, b| _mm512_fmadd_ps(a, b, sum),
    scaled |alpha, sum| _mm512_mul_ps(_mm512_set1_ps(alpha), sum), add _mm512_add_ps,
    read _mm512_loadu_ps, write _mm512_storeu_ps
}

panel! { Avx512F64, f64 as f64 of 1, first, transpose [] }
register_tile! {
    /// 14 x 16 f64.
    Avx512F64, Level where |level| level.kind() >= InstructionSet::Avx512, features "avx512f",
    f64 to f64 in 8 lanes, alpha f64, panels Avx512F64, Avx512F64, 14 x 2,
    block KC_F64, rows [1, 2, 4, 8], head 0,
    start |_| _mm512_setzero_pd(), load _mm512_load_pd, broadcast |a: *const f64| _mm512_set1_pd(*a),
    madd |sum, a, b| _mm512_fmadd_pd(a, b, sum),
    scaled |alpha, sum| _mm512_mul_pd(_mm512_set1_pd(alpha), sum), add _mm512_add_pd,
    read _mm512_loadu_pd, write _mm512_storeu_pd
}
