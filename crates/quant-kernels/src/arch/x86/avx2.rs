//! AVX2 + FMA tiles: 12 registers of sums, two of B, one broadcast of A.

use std::arch::x86_64::*;

use super::tile::register_tile;
use crate::arch::kernel::{KC_F32, KC_F64, Kernel};
use crate::arch::level::{InstructionSet, Level};

register_tile! {
    /// 6 x 16 f32.
    Avx2F32, level Avx2, features "avx2,fma",
    f32 in 8 lanes, f32 of 1, 6 x 2, block KC_F32,
    rows [1, 2, 4],
    pack |low, _| low, transpose [], load _mm256_load_ps, broadcast |a: *const f32| _mm256_set1_ps(*a),
    madd |sum, a, b| _mm256_fmadd_ps(a, b, sum),
    zero _mm256_setzero_ps, splat _mm256_set1_ps, mul _mm256_mul_ps, add _mm256_add_ps,
    read _mm256_loadu_ps, write _mm256_storeu_ps
}

register_tile! {
    /// 6 x 8 f64.
    Avx2F64, level Avx2, features "avx2,fma",
    f64 in 4 lanes, f64 of 1, 6 x 2, block KC_F64,
    rows [1, 2, 4],
    pack |low, _| low, transpose [], load _mm256_load_pd, broadcast |a: *const f64| _mm256_set1_pd(*a),
    madd |sum, a, b| _mm256_fmadd_pd(a, b, sum),
    zero _mm256_setzero_pd, splat _mm256_set1_pd, mul _mm256_mul_pd, add _mm256_add_pd,
    read _mm256_loadu_pd, write _mm256_storeu_pd
}
