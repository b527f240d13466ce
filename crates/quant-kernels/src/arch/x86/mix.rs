//! A small matrix applied to rows in place where they lie: all its rows of sums are one register tile, so every element is read
//! once, nothing is packed, and sums are written when the columns they are of have been read.

use std::arch::x86_64::*;

use ndarray::ArrayView2;

use crate::arch::buffer::{Buffer, LINE};
use crate::arch::level::{InstructionSet, Level};

/// Rows of sums that AVX-512 has registers for, beside one of `x`; half as many beside two.
const MOST_AVX512: usize = 28;
/// The same of AVX2, beside one of `x` and an entry of the matrix.
const MOST_AVX2: usize = 14;

/// `X_t <- alpha * A X_t` for every `X_t` `[k, m]` of `x`, which is all of them, with `a` `[k, k]`; false, with `x` as it was, for
/// levels and shapes this has no tile for. Bit for bit what the general tiles give: a sum of fused multiply-adds in
/// increasing order.
pub(in crate::arch) fn mix_in_place(
    level: Level,
    x: &mut [f32],
    m: usize,
    alpha: f32,
    a: ArrayView2<'_, f32>,
) -> bool {
    let k = a.nrows();
    let wide = level.kind() >= InstructionSet::Avx512 && m >= 16;
    let narrow = level.kind() >= InstructionSet::Avx2 && m >= 8 && k <= MOST_AVX2;
    let rows = match k {
        2..=4 => 4,
        5..=8 => 8,
        9..=12 => 12,
        13..=14 => 14,
        15..=16 => 16,
        17..=20 => 20,
        21..=24 => 24,
        25..=MOST_AVX512 => MOST_AVX512,
        _ => return false,
    };
    if !(wide || narrow) {
        return false;
    }
    let mut columns = Buffer::new::<f32>(k * rows);
    let start = columns.as_mut_ptr::<f32>();
    for p in 0..k {
        for r in 0..rows {
            let entry = if r < k { a[(r, p)] } else { 0.0 };
            // SAFETY: `p * rows + r` is below the `k * rows` numbers of the buffer.
            unsafe { start.add(p * rows + r).write(entry) };
        }
    }
    let core = Core { columns: start, k, alpha };
    // SAFETY: the levels are proof of the instructions, the buffer holds `k` columns of `rows` entries.
    unsafe {
        match (wide, rows) {
            (true, 4) => avx512::<4, 2>(&core, x, m),
            (true, 8) => avx512::<8, 2>(&core, x, m),
            (true, 12) => avx512::<12, 2>(&core, x, m),
            (true, 14) => avx512::<14, 2>(&core, x, m),
            (true, 16) => avx512::<16, 1>(&core, x, m),
            (true, 20) => avx512::<20, 1>(&core, x, m),
            (true, 24) => avx512::<24, 1>(&core, x, m),
            (true, _) => avx512::<28, 1>(&core, x, m),
            (false, 4) => avx2::<4, 2>(&core, x, m),
            (false, 8) => avx2::<8, 1>(&core, x, m),
            (false, 12) => avx2::<12, 1>(&core, x, m),
            (false, _) => avx2::<14, 1>(&core, x, m),
        }
    }
    true
}

/// The matrix, column after column, each filled up with zeros to the rows of a tile.
struct Core {
    columns: *const f32,
    k: usize,
    alpha: f32,
}

macro_rules! mix {
    (
        $name:ident, $strip:ident, $features:literal, $lanes:literal,
        $set:ident, $load:ident, $madd:ident, $mul:ident, $store:ident
    ) => {
        /// All tokens of `x`, with tiles of `ROWS` rows and `V` registers.
        ///
        /// # Safety
        /// The machine has the instructions; the core has at most `ROWS` rows and columns filled up to `ROWS`.
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize, const V: usize>(core: &Core, x: &mut [f32], m: usize) {
            let k = core.k;
            // Tails of rows, put side by side where registers can read them.
            let mut aside = [[0.0_f32; $lanes]; ROWS];
            for token in x.chunks_exact_mut(k * m) {
                let start = token.as_mut_ptr();
                let mut ahead = start.wrapping_add(k * m);
                let mut column = 0;
                // SAFETY: all columns of a strip are below `m`, those of `aside` below the lanes of a register.
                unsafe {
                    while column + V * $lanes <= m {
                        for _ in 0..(k * V * $lanes).div_ceil(LINE / size_of::<f32>()) {
                            _mm_prefetch::<_MM_HINT_T0>(ahead.cast_const().cast());
                            ahead = ahead.wrapping_add(LINE / size_of::<f32>());
                        }
                        $strip::<ROWS, V>(core, start.add(column), m);
                        column += V * $lanes;
                    }
                    while column + $lanes <= m {
                        $strip::<ROWS, 1>(core, start.add(column), m);
                        column += $lanes;
                    }
                    if column < m {
                        for r in 0..k {
                            for l in column..m {
                                aside[r][l - column] = *start.add(r * m + l);
                            }
                        }
                        $strip::<ROWS, 1>(core, aside.as_flattened_mut().as_mut_ptr(), $lanes);
                        for r in 0..k {
                            for l in column..m {
                                *start.add(r * m + l) = aside[r][l - column];
                            }
                        }
                    }
                }
            }
        }

        /// `V` registers of every row, `stride` apart.
        ///
        /// # Safety
        /// As the caller, and `x` points to such rows.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $strip<const ROWS: usize, const V: usize>(core: &Core, x: *mut f32, stride: usize) {
            // SAFETY: rows below `k`, columns of the core below `k` with `ROWS` entries.
            unsafe {
                let mut sums = [[$set(0.0); V]; ROWS];
                let (mut row, mut entries) = (x.cast_const(), core.columns);
                for _ in 0..core.k {
                    let mut values = [$load(row); V];
                    for v in 1..V {
                        values[v] = $load(row.add(v * $lanes));
                    }
                    for r in 0..ROWS {
                        let entry = $set(*entries.add(r));
                        for v in 0..V {
                            sums[r][v] = $madd(entry, values[v], sums[r][v]);
                        }
                    }
                    row = row.wrapping_add(stride);
                    entries = entries.add(ROWS);
                }
                let alpha = $set(core.alpha);
                for r in 0..ROWS {
                    if r < core.k {
                        for v in 0..V {
                            $store(x.add(r * stride + v * $lanes), $mul(alpha, sums[r][v]));
                        }
                    }
                }
            }
        }
    };
}
mix!(
    avx512,
    avx512_strip,
    "avx512f",
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_mul_ps,
    _mm512_storeu_ps
);
mix!(
    avx2,
    avx2_strip,
    "avx2,fma",
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    _mm256_mul_ps,
    _mm256_storeu_ps
);
