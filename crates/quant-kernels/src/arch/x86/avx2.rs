//! AVX2 + FMA tiles: 12 registers of sums, two of B, one broadcast of A.

use std::arch::x86_64::*;

use super::tile::{first, panel, register_tile};
use crate::arch::kernel::{KC_F32, KC_F64, Kernel, LeftWord, Panel, RightWord};
use crate::arch::level::{InstructionSet, Level};

panel! { Avx2F32, f32 as f32 of 1, first, transpose [] }
register_tile! {
    /// 6 x 16 f32.
    Avx2F32, Level where |level| level.kind() >= InstructionSet::Avx2, features "avx2,fma",
    f32 to f32 in 8 lanes, alpha f32, panels Avx2F32, Avx2F32, 6 x 2,
    block KC_F32, rows [1, 2, 4], head 0,
    start |_| _mm256_setzero_ps(), load _mm256_load_ps, broadcast |a: *const f32| _mm256_set1_ps(*a),
    madd |sum, a, b| _mm256_fmadd_ps(a, b, sum),
    scaled |alpha, sum| _mm256_mul_ps(_mm256_set1_ps(alpha), sum), add _mm256_add_ps,
    read _mm256_loadu_ps, write _mm256_storeu_ps
}

panel! { Avx2F64, f64 as f64 of 1, first, transpose [] }
register_tile! {
    /// 6 x 8 f64.
    Avx2F64, Level where |level| level.kind() >= InstructionSet::Avx2, features "avx2,fma",
    f64 to f64 in 4 lanes, alpha f64, panels Avx2F64, Avx2F64, 6 x 2,
    block KC_F64, rows [1, 2, 4], head 0,
    start |_| _mm256_setzero_pd(), load _mm256_load_pd, broadcast |a: *const f64| _mm256_set1_pd(*a),
    madd |sum, a, b| _mm256_fmadd_pd(a, b, sum),
    scaled |alpha, sum| _mm256_mul_pd(_mm256_set1_pd(alpha), sum), add _mm256_add_pd,
    read _mm256_loadu_pd, write _mm256_storeu_pd
}
