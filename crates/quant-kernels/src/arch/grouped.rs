//! Sums of products of bytes with packed levels of 4 bits, one group of columns at a time.
//!
//! Levels are unsigned and activations signed, which is what the instructions for products of bytes take, so no operand needs a
//! correction here; `255 · 128` is the most that a product of them could be, `15 · 128` what it is, so two of them fit
//! into 16 bits and nothing saturates.

use super::integer_level::{IntegerLevel, IntegerSet};
use super::nibbles::{Nibbles, Plain};
#[cfg(target_arch = "x86_64")]
use super::x86::{NibblesAvx2, NibblesAvx512, NibblesAvxVnni};
use crate::panels::{LANES, Row};

/// The most tokens of a tile on any level.
pub(crate) const MAX_ROWS: usize = 12;

/// Tokens of a tile on this level: as many as its registers hold sums of.
pub(crate) fn most_rows(level: IntegerLevel) -> usize {
    if level.kind() >= IntegerSet::Avx512Vnni { MAX_ROWS } else { 4 }
}

/// Rows of the narrowest tile for so many tokens: 1, 2, 4, 8 or 12.
pub(crate) fn tile_rows(tokens: usize) -> usize {
    [1, 2, 4, 8].into_iter().find(|&rows| tokens <= rows).unwrap_or(MAX_ROWS)
}

/// Columns of a word of levels.
pub(crate) const PER_WORD: usize = 8;

/// Packs tokens for [`group_sums`]: for every word of [`PER_WORD`] columns its even columns of all rows, four bytes of each, and its
/// odd ones. `at(row, column)` is called for columns below `words * PER_WORD` and all `rows`.
pub(crate) fn pack_tokens(rows: usize, words: usize, into: &mut Vec<i32>, at: impl Fn(usize, usize) -> i8) {
    into.clear();
    into.extend((0..words * 2 * rows).map(|i| {
        let (first, row) = (i / (2 * rows) * PER_WORD + i / rows % 2, i % rows);
        i32::from_le_bytes([0, 2, 4, 6].map(|c| at(row, first + c).cast_unsigned()))
    }));
}

/// [`group_sums`] with the instructions of a level.
#[cfg(target_arch = "x86_64")]
type GroupSums = unsafe fn(&[Row<u32>], &[i32], &mut [Row<i32>]);

/// `sums[r][l] = Σ x[r, c] · level[l, c]` over the columns of `words`, a row of words for each [`PER_WORD`] of them, with tokens as
/// [`pack_tokens`] packs `sums.len()` rows.
#[inline]
pub(crate) fn group_sums(level: IntegerLevel, words: &[Row<u32>], x: &[i32], sums: &mut [Row<i32>]) {
    assert_eq!(x.len(), words.len() * 2 * sums.len(), "packed tokens for every word");
    #[cfg(target_arch = "x86_64")]
    {
        let run: GroupSums = match level.kind() {
            IntegerSet::Avx512Vnni | IntegerSet::AmxInt8 => with_avx512,
            IntegerSet::AvxVnni => with_avx_vnni,
            IntegerSet::Avx2 => with_avx2,
            IntegerSet::Portable => choose::<Plain>,
        };
        // SAFETY: the level is proof of the instructions.
        unsafe { run(words, x, sums) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        debug_assert_eq!(level.kind(), IntegerSet::Portable);
        // SAFETY: it needs none.
        unsafe { choose::<Plain>(words, x, sums) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn with_avx512(words: &[Row<u32>], x: &[i32], sums: &mut [Row<i32>]) {
    // SAFETY: the features are those of the register.
    unsafe { choose::<NibblesAvx512>(words, x, sums) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn with_avx_vnni(words: &[Row<u32>], x: &[i32], sums: &mut [Row<i32>]) {
    // SAFETY: the features are those of the register.
    unsafe { choose::<NibblesAvxVnni>(words, x, sums) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn with_avx2(words: &[Row<u32>], x: &[i32], sums: &mut [Row<i32>]) {
    // SAFETY: the features are those of the register.
    unsafe { choose::<NibblesAvx2>(words, x, sums) };
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn choose<V: Nibbles>(words: &[Row<u32>], x: &[i32], sums: &mut [Row<i32>]) {
    // SAFETY: forwarded from the caller.
    unsafe {
        match sums.len() {
            1 => tile::<V, 1>(words, x, sums),
            2 => tile::<V, 2>(words, x, sums),
            4 => tile::<V, 4>(words, x, sums),
            8 => tile::<V, 8>(words, x, sums),
            rows => {
                assert_eq!(rows, MAX_ROWS, "the rows of a tile");
                tile::<V, MAX_ROWS>(words, x, sums);
            }
        }
    }
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn tile<V: Nibbles, const ROWS: usize>(words: &[Row<u32>], x: &[i32], sums: &mut [Row<i32>]) {
    /// Registers of lanes that a pass takes.
    const N: usize = 2;
    for lane in (0..LANES).step_by(N * V::LANES) {
        // SAFETY: registers of the rows; numbers of every word and row in `x`, whose length the caller checked.
        unsafe {
            let mut even = [[V::zero(); N]; ROWS];
            // One row alone would wait for its own sums: its odd columns have sums of their own.
            let mut odd = [V::zero(); N];
            let mut x = x.as_ptr();
            for word in words {
                let from = word.0.as_ptr().add(lane);
                let words = [V::words(from), V::words(from.add(V::LANES))];
                let (low, high) =
                    ([V::low(words[0]), V::low(words[1])], [V::high(words[0]), V::high(words[1])]);
                for r in 0..ROWS {
                    let (first, second) = (V::splat(*x.add(r)), V::splat(*x.add(ROWS + r)));
                    for v in 0..N {
                        even[r][v] = V::dot(even[r][v], low[v], first);
                        if ROWS == 1 {
                            odd[v] = V::dot(odd[v], high[v], second);
                        } else {
                            even[r][v] = V::dot(even[r][v], high[v], second);
                        }
                    }
                }
                x = x.add(2 * ROWS);
            }
            for r in 0..ROWS {
                for v in 0..N {
                    let sum = if ROWS == 1 { V::plus(even[r][v], odd[v]) } else { even[r][v] };
                    V::store(sum, sums[r].0.as_mut_ptr().add(lane + v * V::LANES));
                }
            }
        }
    }
}
