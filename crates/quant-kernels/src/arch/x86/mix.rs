//! A small matrix applied to rows in place, a strip of one register's lanes at a time. Where one tile holds a sum for each row of the
//! matrix, every element is read where it lies, once, and overwritten when the columns of its strip have been read: nothing is
//! packed. Larger matrices take several tiles of a strip that is copied into a first-level cache.

use std::arch::x86_64::*;

use ndarray::ArrayView2;

use crate::arch::buffer::Buffer;
use crate::arch::level::{InstructionSet, Level};

/// Rows of the tiles with AVX-512: as many registers of sums, one of `x`, entries of the matrix from memory.
const AVX512: [usize; 7] = [28, 24, 20, 16, 12, 8, 4];
/// Rows of the tiles with AVX2: one register of `x` and one entry of the matrix beside the sums.
const AVX2: [usize; 4] = [12, 10, 8, 4];
/// Fewer rows than this keep the multipliers waiting for sums, where a strip has one register.
const LEAST: usize = 8;
/// The largest matrix that passes by from a second-level cache, beside a strip in a first-level one.
const LARGEST: usize = 256;

/// `X_t <- alpha * A X_t` for every `X_t` `[k, m]` of `x`, which is all of them, with `a` `[k, k]`; false, with `x` as it was, on
/// levels and for sizes without tiles here. Bit for bit what the general tiles give: sums of fused multiply-adds in increasing order
/// of the summed index.
pub(in crate::arch) fn mix_in_place(
    level: Level,
    x: &mut [f32],
    m: usize,
    alpha: f32,
    a: ArrayView2<'_, f32>,
) -> bool {
    let k = a.nrows();
    if level.kind() < InstructionSet::Avx2 || k > LARGEST {
        return false;
    }
    // Rows that fill one narrow register are not put together to wide ones, which would wait for what was just written.
    let avx512 = level.kind() >= InstructionSet::Avx512 && !(8..16).contains(&m);
    let rows = tile_rows(if avx512 { &AVX512 } else { &AVX2 }, k);
    let mut columns = Buffer::new::<f32>(k * k.next_multiple_of(rows));
    let mut next = columns.as_mut_ptr::<f32>();
    for row in (0..k).step_by(rows) {
        for p in 0..k {
            for r in row..row + rows {
                // SAFETY: one of the `k` columns of `rows` entries of every tile, for which the buffer has room.
                unsafe {
                    next.write(if r < k { a[(r, p)] } else { 0.0 });
                    next = next.add(1);
                }
            }
        }
    }
    let core = Core { columns: columns.as_ptr(), k, alpha };
    // SAFETY: the level is proof of the instructions, and the buffer holds tiles of `rows` rows.
    unsafe {
        match (avx512, rows) {
            (true, 4) => zmm::<4, 2>(&core, x, m),
            (true, 8) => zmm::<8, 2>(&core, x, m),
            (true, 12) => zmm::<12, 1>(&core, x, m),
            (true, 16) => zmm::<16, 1>(&core, x, m),
            (true, 20) => zmm::<20, 1>(&core, x, m),
            (true, 24) => zmm::<24, 1>(&core, x, m),
            (true, _) => zmm::<28, 1>(&core, x, m),
            (false, 4) => ymm::<4, 2>(&core, x, m),
            (false, 8) => ymm::<8, 1>(&core, x, m),
            (false, 10) => ymm::<10, 1>(&core, x, m),
            (false, _) => ymm::<12, 1>(&core, x, m),
        }
    }
    true
}

/// The rows of the tiles for a matrix of `k` rows: those that fill up with the fewest rows of nothing, the larger of two alike.
fn tile_rows(choices: &[usize], k: usize) -> usize {
    let fits = |&&rows: &&usize| rows >= LEAST || rows >= k;
    choices.iter().filter(fits).min_by_key(|&&rows| k.next_multiple_of(rows)).copied().unwrap_or(LEAST)
}

/// The matrix in tiles of rows: tile after tile, column after column of it, the last filled up with zeros.
struct Core {
    columns: *const f32,
    k: usize,
    alpha: f32,
}

/// Copies adjacent numbers, by four while there are: a call would cost more than the few there are.
///
/// # Safety
/// Both pointers are to `count` numbers.
#[inline(always)]
unsafe fn copy(mut from: *const f32, mut to: *mut f32, count: usize) {
    // SAFETY: as many numbers as the caller says.
    unsafe {
        for _ in 0..count / 4 {
            to.cast::<[f32; 4]>().write_unaligned(from.cast::<[f32; 4]>().read_unaligned());
            (from, to) = (from.add(4), to.add(4));
        }
        for i in 0..count % 4 {
            *to.add(i) = *from.add(i);
        }
    }
}

macro_rules! mix {
    (
        $name:ident, $strip:ident, $part:ident, $features:literal, $lanes:literal,
        $set:ident, $load:ident, $madd:ident, $mul:ident, $store:ident
    ) => {
        /// All tokens of `x`, with tiles of `ROWS` rows and, where one tile is all, `V` registers.
        ///
        /// # Safety
        /// The machine has the instructions, and the core is in tiles of `ROWS` rows.
        #[target_feature(enable = $features)]
        unsafe fn $name<const ROWS: usize, const V: usize>(core: &Core, x: &mut [f32], m: usize) {
            let k = core.k;
            // A strip to read and, for lanes of several tokens or the last of one, a strip to write.
            let mut memory = vec![[[0.0_f32; $lanes]; 2]; k];
            let aside = memory.as_flattened_mut().as_flattened_mut().as_mut_ptr();
            if m < $lanes {
                for tokens in x.chunks_mut($lanes / m * k * m) {
                    let count = tokens.len() / (k * m);
                    // SAFETY: so many tokens of `m` lanes fit side by side into a register.
                    unsafe { $part::<ROWS>(core, tokens.as_mut_ptr(), m, m, count, aside) };
                }
                return;
            }
            for token in x.chunks_exact_mut(k * m) {
                let start = token.as_mut_ptr();
                // The next token is fetched while this one is mixed.
                let mut ahead = start.cast_const().wrapping_add(k * m);
                let mut column = 0;
                while column < m {
                    let left = m - column;
                    let width = if left >= V * $lanes && k <= ROWS { V * $lanes } else { left.min($lanes) };
                    // SAFETY: the columns of the strip are below `m`; one tile reads all of it before it writes.
                    unsafe {
                        let to = start.add(column);
                        if width < $lanes {
                            $part::<ROWS>(core, to, m, width, 1, aside);
                        } else if k <= ROWS && width > $lanes {
                            $strip::<ROWS, V>(core, to, m, to, m, ahead);
                        } else if k <= ROWS {
                            $strip::<ROWS, 1>(core, to, m, to, m, ahead);
                        } else {
                            for r in 0..k {
                                $store(aside.add(r * $lanes), $load(to.add(r * m)));
                            }
                            $strip::<ROWS, 1>(core, aside, $lanes, to, m, ahead);
                        }
                    }
                    column += width;
                    ahead = ahead.wrapping_add(k * width);
                }
            }
        }

        /// `width` columns, from `x` on, of each of `count` tokens `[k, m]`: less than a register has lanes, side by side.
        ///
        /// # Safety
        /// As the caller, `x` points to the first column of the first token, and `aside` has room for two strips.
        #[target_feature(enable = $features)]
        unsafe fn $part<const ROWS: usize>(
            core: &Core,
            x: *mut f32,
            m: usize,
            width: usize,
            count: usize,
            aside: *mut f32,
        ) {
            let k = core.k;
            // SAFETY: `count * width` is at most the lanes of a register.
            unsafe {
                let mixed = aside.add(k * $lanes);
                for r in 0..k {
                    for t in 0..count {
                        copy(x.add((t * k + r) * m), aside.add(r * $lanes + t * width), width);
                    }
                }
                $strip::<ROWS, 1>(core, aside, $lanes, mixed, $lanes, aside);
                for r in 0..k {
                    for t in 0..count {
                        copy(mixed.add(r * $lanes + t * width), x.add((t * k + r) * m), width);
                    }
                }
            }
        }

        /// `V` registers of every row, rows of `from` and of `to` as far apart as their strides. Where one tile is all, both may
        /// be the same. From `ahead` on as many numbers are fetched as are read.
        ///
        /// # Safety
        /// As the caller, and the pointers are to `k` such rows.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $strip<const ROWS: usize, const V: usize>(
            core: &Core,
            from: *const f32,
            from_stride: usize,
            to: *mut f32,
            to_stride: usize,
            mut ahead: *const f32,
        ) {
            let (mut entries, mut step) = (core.columns, V * $lanes);
            for first in (0..core.k).step_by(ROWS) {
                // SAFETY: rows below `k` of both, and `k` columns of `ROWS` entries a tile.
                unsafe {
                    let mut sums = [[$set(0.0); V]; ROWS];
                    let mut row = from;
                    for _ in 0..core.k {
                        // A line at a time, which leaves room for other misses. A prefetch may name any address.
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        ahead = ahead.wrapping_add(step);
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
                        row = row.wrapping_add(from_stride);
                        entries = entries.add(ROWS);
                    }
                    step = 0;
                    let alpha = $set(core.alpha);
                    let (rows, mut row) = (core.k - first, to.add(first * to_stride));
                    // So short that it is unrolled for every tile; otherwise the sums would live in memory.
                    for r in 0..ROWS {
                        if r < rows {
                            for v in 0..V {
                                $store(row.add(v * $lanes), $mul(alpha, sums[r][v]));
                            }
                            row = row.wrapping_add(to_stride);
                        }
                    }
                }
            }
        }
    };
}
mix!(
    zmm,
    zmm_strip,
    zmm_part,
    "avx512f",
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_mul_ps,
    _mm512_storeu_ps
);
mix!(
    ymm,
    ymm_strip,
    ymm_part,
    "avx2,fma",
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    _mm256_mul_ps,
    _mm256_storeu_ps
);
