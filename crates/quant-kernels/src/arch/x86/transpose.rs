//! Transposing 16 x 16 blocks of 4-byte words in registers.

use std::arch::x86_64::*;

use crate::arch::kernel::STEP;

/// Index vectors that interleave groups of `GROUP` words of two registers: the result takes the lower (`high` false)
/// or upper group of each pair of groups, alternating between the registers.
const fn interleave(group: usize, high: bool) -> [i32; STEP] {
    let mut index = [0; STEP];
    let mut l = 0;
    while l < STEP {
        let second = (l / group) % 2 == 1;
        let base = l / (2 * group) * (2 * group) + l % group + if high { group } else { 0 };
        index[l] = (base + if second { STEP } else { 0 }) as i32;
        l += 1;
    }
    index
}

/// `dst[t * width + l] = block[l * 16 + t]` for `l < columns` and `t < rows`.
///
/// Four rounds exchange off-diagonal quarters of ever smaller squares: after the round for `group`, every square
/// of `2 * group` words is transposed as a 2 x 2 matrix of squares.
///
/// # Safety
/// The machine has AVX-512; `block` points to 256 readable words; `columns <= 16`, `rows <= 16`; `dst` is valid for
/// writes of `columns` words at each of `rows` multiples of `width`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_words(
    block: *const u32,
    columns: usize,
    rows: usize,
    dst: *mut u32,
    width: usize,
) {
    const INDEX: [[[i32; STEP]; 2]; 4] = [
        [interleave(8, false), interleave(8, true)],
        [interleave(4, false), interleave(4, true)],
        [interleave(2, false), interleave(2, true)],
        [interleave(1, false), interleave(1, true)],
    ];
    // SAFETY: all reads are inside the block and the index tables.
    unsafe {
        let mut lines = [_mm512_setzero_si512(); STEP];
        for l in 0..STEP {
            lines[l] = _mm512_loadu_si512(block.add(l * STEP).cast());
        }
        for (round, index) in INDEX.iter().enumerate() {
            let group = 8 >> round;
            let low = _mm512_loadu_si512(index[0].as_ptr().cast());
            let high = _mm512_loadu_si512(index[1].as_ptr().cast());
            for l in 0..STEP {
                if l & group == 0 {
                    let (upper, lower) = (lines[l], lines[l | group]);
                    lines[l] = _mm512_permutex2var_epi32(upper, low, lower);
                    lines[l | group] = _mm512_permutex2var_epi32(upper, high, lower);
                }
            }
        }
        let mask = ((1_u32 << columns) - 1) as u16;
        for t in 0..STEP {
            if t < rows {
                _mm512_mask_storeu_epi32(dst.add(t * width).cast(), mask, lines[t]);
            }
        }
    }
}
