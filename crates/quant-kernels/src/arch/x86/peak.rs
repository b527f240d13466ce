//! Chains of multiply-adds in registers, as many as keep every unit busy.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::amx::{bf16_tile_operations, integer_tile_operations};
use crate::arch::integer_level::{IntegerLevel, IntegerSet};
use crate::arch::level::{InstructionSet, Level};

/// Enough to hide the latency of a multiply-add, and with two constants as few as sixteen registers hold.
const CHAINS: usize = 12;

macro_rules! chains {
    ($name:ident, $features:literal, $start:expr, $factor:expr, $madd:ident) => {
        #[target_feature(enable = $features)]
        fn $name(steps: usize) {
            let (start, a, b) = ($start, $factor, $factor);
            let mut sums = [start; CHAINS];
            for _ in 0..steps {
                for sum in &mut sums {
                    *sum = $madd(*sum, a, b);
                }
            }
            black_box(sums);
        }
    };
}
chains!(
    chains_avx512_vnni,
    "avx512f,avx512vnni",
    _mm512_setzero_si512(),
    _mm512_set1_epi32(black_box(3)),
    _mm512_dpbusd_epi32
);
chains!(
    chains_avx_vnni,
    "avx2,avxvnni",
    _mm256_setzero_si256(),
    _mm256_set1_epi32(black_box(3)),
    _mm256_dpbusd_avx_epi32
);
chains!(chains_bf16, "avx512f,avx512bf16", _mm512_setzero_ps(), ones_of_bf16(), _mm512_dpbf16_ps);

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn ones_of_bf16() -> __m512bh {
    _mm512_cvtne2ps_pbh(_mm512_set1_ps(black_box(1.0)), _mm512_set1_ps(black_box(1.0)))
}

/// A product and an addition for each of `elements` numbers of every chain and step.
fn operations(elements: usize, steps: usize) -> u64 {
    2 * (elements * CHAINS * steps) as u64
}

/// Does `steps` multiply-adds of bytes in each of several chains of registers, and gives the multiplications and additions done; none
/// where the level has no instruction for them.
pub(in crate::arch) fn integer_peak_operations(level: IntegerLevel, steps: usize) -> Option<u64> {
    let bytes = match level.kind() {
        IntegerSet::AmxInt8 => return integer_tile_operations(level, steps),
        IntegerSet::Avx512Vnni => {
            // SAFETY: the level is proof of the instructions.
            unsafe { chains_avx512_vnni(steps) };
            64
        }
        IntegerSet::AvxVnni => {
            // SAFETY: the level is proof of the instructions.
            unsafe { chains_avx_vnni(steps) };
            32
        }
        IntegerSet::Avx2 | IntegerSet::Portable => return None,
    };
    Some(operations(bytes, steps))
}

/// The same for bf16.
pub(in crate::arch) fn bf16_peak_operations(level: Level, steps: usize) -> Option<u64> {
    match level.kind() {
        InstructionSet::AmxBf16 => bf16_tile_operations(level, steps),
        InstructionSet::Avx512Bf16 => {
            // SAFETY: the level is proof of the instructions.
            unsafe { chains_bf16(steps) };
            Some(operations(32, steps))
        }
        InstructionSet::Avx512 | InstructionSet::Avx2 | InstructionSet::Scalar => None,
    }
}
