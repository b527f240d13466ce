//! Products of floats with packed levels, in the arithmetic and the order of the f32 tiles.
//!
//! A weight is `scale * (level - zero)`, two rounded operations. Columns are taken one after the other; a sum of products begins
//! at zero for every block of `KC_F32` columns and is one fused multiply-add per column, and the sums of the blocks are added in
//! order: what [`Kernel`](super::kernel::Kernel) asks of a tile, so that the bits are those of a product with the float matrix.
//!
//! A level becomes a float without a conversion: its bits are moved into the mantissa of a power of two, whose unit they then
//! count, and the power is subtracted together with the zero level. A bf16 number is the upper half of a float.

use std::ops::Range;

use super::kernel::KC_F32;
use super::lanes::{Plain, Vector};
use super::level::{InstructionSet, Level};
#[cfg(target_arch = "x86_64")]
use super::x86::{Ymm, Zmm};
use crate::panels::{LANES, LevelPanels, Row};

/// The most tokens of a call of [`decode`].
pub(crate) const MAX_TOKENS: usize = 16;
/// The most panels of a call of [`decode`]: where tokens are few, sums of two keep the multipliers busy.
pub(crate) const MAX_PANELS: usize = 2;

/// `2^15`, whose mantissa counts ones from bit 8 on, and `2^11`, which counts them from bit 12 on.
const LOW: (f32, i32) = (32_768.0, 0x4700_0000);
const HIGH: (f32, i32) = (2048.0, 0x4500_0000);

/// Whether zeros may be subtracted together with the powers of two: their sums are exact.
pub(crate) fn zeros_are_plain(panels: &LevelPanels) -> bool {
    let exact = |zero: f32| (zero + LOW.0) - LOW.0 == zero && (zero + HIGH.0) - HIGH.0 == zero;
    (0..panels.count()).all(|panel| panels.zeros(panel).iter().all(|row| row.0.iter().copied().all(exact)))
}

/// Adds to `totals`, or replaces them without `accumulate`, the products of up to [`MAX_TOKENS`] tokens `[in]` with the rows of one
/// or two panels from `panel` on: as many rows of totals for each token. `plain` is what [`zeros_are_plain`] says.
pub(crate) fn decode(
    level: Level,
    panels: &LevelPanels,
    plain: bool,
    panel: usize,
    x: &[&[f32]],
    accumulate: bool,
    totals: &mut [Row<f32>],
) {
    let count = totals.len() / x.len().max(1);
    assert!(x.len() <= MAX_TOKENS && totals.len() == count * x.len(), "rows of totals for every token");
    assert!((1..=MAX_PANELS).contains(&count) && panel + count <= panels.count(), "one or two panels");
    assert!(x.iter().all(|x| x.len() == panels.inputs()), "tokens of as many features as the weight");
    run(level, plain, panels.bits(), Decode { panels, panel, count, x, accumulate, totals });
}

/// Writes weights as floats: `width` rows from `lane` on of the columns `columns`, column by column. `width` is that of an f32 tile of
/// the level.
///
/// # Safety
/// `lane` is a multiple of `width`; `to` is valid for writes of as many numbers and aligned to the registers of `level`.
pub(super) unsafe fn expand(
    level: Level,
    panels: &LevelPanels,
    plain: bool,
    lane: usize,
    width: usize,
    columns: Range<usize>,
    to: *mut f32,
) {
    assert!(columns.end <= panels.inputs() && lane / LANES < panels.count() && lane % LANES + width <= LANES);
    run(level, plain, panels.bits(), Expand { panels, lane, width, columns, to });
}

/// Work that is generic over the instruction set and the storage.
trait Work {
    /// # Safety
    /// The machine has the instructions of `V`.
    unsafe fn run<V: Vector, const BITS: usize, const PLAIN: bool>(self);
}

fn run(level: Level, plain: bool, bits: usize, work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    {
        if level.kind() >= InstructionSet::Avx512 {
            // SAFETY: the level is proof of the instructions.
            return unsafe { with_avx512(plain, bits, work) };
        }
        if level.kind() >= InstructionSet::Avx2 {
            // SAFETY: the level is proof of the instructions.
            return unsafe { with_avx2(plain, bits, work) };
        }
    }
    let _ = (level, InstructionSet::Scalar);
    // SAFETY: it needs none.
    unsafe { choose::<Plain, _>(plain, bits, work) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn with_avx512<W: Work>(plain: bool, bits: usize, work: W) {
    // SAFETY: the features are those of the register.
    unsafe { choose::<Zmm, W>(plain, bits, work) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn with_avx2<W: Work>(plain: bool, bits: usize, work: W) {
    // SAFETY: the features are those of the register.
    unsafe { choose::<Ymm, W>(plain, bits, work) };
}

/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn choose<V: Vector, W: Work>(plain: bool, bits: usize, work: W) {
    // SAFETY: forwarded from the caller.
    unsafe {
        match (bits, plain) {
            (4, true) => work.run::<V, 4, true>(),
            (4, false) => work.run::<V, 4, false>(),
            (16, _) => work.run::<V, 16, true>(),
            (_, true) => work.run::<V, 8, true>(),
            (_, false) => work.run::<V, 8, false>(),
        }
    }
}

struct Decode<'a> {
    panels: &'a LevelPanels,
    panel: usize,
    count: usize,
    x: &'a [&'a [f32]],
    accumulate: bool,
    totals: &'a mut [Row<f32>],
}

impl Work for Decode<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const BITS: usize, const PLAIN: bool>(mut self) {
        if self.panels.inputs() == 0 && !self.accumulate {
            self.totals.fill(Row([0.0; LANES]));
        }
        // Sixteen registers hold eight sums beside what else there is, 32 hold sixteen.
        let most = if V::LANES == 16 { 8 } else { 4 };
        for first in (0..self.x.len()).step_by(most) {
            let rows = first..(first + most).min(self.x.len());
            // SAFETY: forwarded from the caller.
            unsafe {
                match rows.len() {
                    // Two registers of sums would wait for each other.
                    1 if self.count * LANES >= 4 * V::LANES => self.rows::<V, BITS, PLAIN, 1, 4>(rows),
                    1 => self.rows::<V, BITS, PLAIN, 1, 2>(rows),
                    2 => self.rows::<V, BITS, PLAIN, 2, 2>(rows),
                    3 | 4 => self.rows::<V, BITS, PLAIN, 4, 2>(rows),
                    _ => self.rows::<V, BITS, PLAIN, 8, 2>(rows),
                }
            }
        }
    }
}

impl Decode<'_> {
    /// # Safety
    /// The machine has the instructions of `V`; `rows` are not more than `ROWS`; the panels have whole groups of `N` registers.
    #[inline(always)]
    unsafe fn rows<V: Vector, const BITS: usize, const PLAIN: bool, const ROWS: usize, const N: usize>(
        &mut self,
        rows: Range<usize>,
    ) {
        let inputs = self.panels.inputs();
        // Rows that are not there are those of the last one again.
        let x: [*const f32; ROWS] =
            std::array::from_fn(|r| self.x[(rows.start + r).min(rows.end - 1)].as_ptr());
        for lane in (0..self.count * LANES).step_by(N * V::LANES) {
            for first in (0..inputs).step_by(KC_F32) {
                let end = inputs.min(first + KC_F32);
                // SAFETY: columns of the panels and of the tokens, and registers of the totals.
                unsafe {
                    let mut sums = [[V::splat(0.0); N]; ROWS];
                    for_weights::<V, N, BITS, PLAIN>(
                        self.panels,
                        self.panel * LANES + lane,
                        first..end,
                        #[inline(always)]
                        |column, weights| {
                            for r in 0..ROWS {
                                let factor = V::splat(*x[r].add(column));
                                for v in 0..N {
                                    sums[r][v] = weights[v].times_plus(factor, sums[r][v]);
                                }
                            }
                        },
                    );
                    let totals = &mut self.totals[rows.start * self.count..rows.end * self.count];
                    for (sums, total) in sums.iter().zip(totals.chunks_exact_mut(self.count)) {
                        let total: *mut f32 = total.as_mut_ptr().cast();
                        for (v, sum) in sums.iter().enumerate() {
                            let total = total.add(lane + v * V::LANES);
                            let add = self.accumulate || first > 0;
                            let new = if add { V::load(total).plus(*sum) } else { *sum };
                            new.store(total);
                        }
                    }
                }
            }
        }
    }
}

struct Expand<'a> {
    panels: &'a LevelPanels,
    lane: usize,
    width: usize,
    columns: Range<usize>,
    to: *mut f32,
}

impl Work for Expand<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const BITS: usize, const PLAIN: bool>(self) {
        /// Registers of the rows of a tile.
        const REGISTERS: usize = 2;
        let width = REGISTERS * V::LANES;
        assert_eq!(self.width, width, "the width of a tile of the level");
        let (first, to) = (self.columns.start, self.to);
        // SAFETY: columns of the panel, and numbers of the caller's.
        unsafe {
            for_weights::<V, REGISTERS, BITS, PLAIN>(
                self.panels,
                self.lane,
                self.columns.clone(),
                #[inline(always)]
                |column, weights| {
                    let to = to.add((column - first) * width);
                    weights[0].store(to);
                    weights[1].store(to.add(V::LANES));
                },
            );
        }
    }
}

/// Hands the weights of a range of columns to `take`, in order: `N` registers of rows, from `lane` on, of all panels.
///
/// # Safety
/// The machine has the instructions of `V`; the panels have the columns, and whole registers from `lane` on.
#[inline(always)]
unsafe fn for_weights<V: Vector, const N: usize, const BITS: usize, const PLAIN: bool>(
    panels: &LevelPanels,
    lane: usize,
    columns: Range<usize>,
    mut take: impl FnMut(usize, [V; N]),
) {
    let per_word = 32 / BITS;
    const { assert!(matches!(BITS, 4 | 8 | 16), "bits of a level or a number") };
    // A register lies in one panel, those of a group perhaps in two.
    let place = |v: usize| ((lane + v * V::LANES) / LANES, (lane + v * V::LANES) % LANES);
    let words: [*const u32; N] = std::array::from_fn(|v| {
        let (panel, lane) = place(v);
        panels.words(panel).as_ptr().cast::<u32>().wrapping_add(lane)
    });
    if BITS == 16 {
        // SAFETY: forwarded from the caller; words of the panels.
        unsafe { for_numbers::<V, N>(words, columns, take) };
        return;
    }
    let mut column = columns.start;
    while column < columns.end {
        let (group, end) = panels.run(column);
        let end = end.min(columns.end);
        // SAFETY: forwarded from the caller; words of the panels.
        unsafe {
            let load = |of: fn(&LevelPanels, usize) -> &[Row<f32>]| -> [V; N] {
                each(
                    #[inline(always)]
                    |v| {
                        let (panel, lane) = place(v);
                        V::load(of(panels, panel)[group].0.as_ptr().add(lane))
                    },
                )
            };
            let group = Group { scales: load(LevelPanels::scales), zeros: load(LevelPanels::zeros) };
            let (low, high) = (group.offsets::<PLAIN>(LOW.0), group.offsets::<PLAIN>(HIGH.0));
            // Whole words, and columns one by one in front of and behind them.
            let begin = column.next_multiple_of(per_word).min(end);
            let whole = begin + (end - begin) / per_word * per_word;
            for single in column..begin {
                take(single, group.single::<BITS, PLAIN>(words, single, low));
            }
            for word in begin / per_word..whole / per_word {
                let column = word * per_word;
                let words: [V::Words; N] = each(
                    #[inline(always)]
                    |v| V::words(words[v].add(word * LANES)),
                );
                for byte in 0..4 {
                    let words: [V::Words; N] = each(
                        #[inline(always)]
                        |v| second_byte::<V>(words[v], byte),
                    );
                    take(
                        column + byte * 8 / BITS,
                        group.weights::<PLAIN>(low_levels::<V, N, BITS>(words), low, LOW.0),
                    );
                    if BITS == 4 {
                        let levels: [V; N] = each(
                            #[inline(always)]
                            |v| V::field::<0xF000, { HIGH.1 }>(words[v]),
                        );
                        take(column + byte * 2 + 1, group.weights::<PLAIN>(levels, high, HIGH.0));
                    }
                }
            }
            for single in whole.max(column)..end {
                take(single, group.single::<BITS, PLAIN>(words, single, low));
            }
        }
        column = end;
    }
}

/// Hands bf16 numbers of a range of columns, which begins with a whole word, to `take`, in order.
///
/// # Safety
/// The machine has the instructions of `V`; the words have the columns.
#[inline(always)]
unsafe fn for_numbers<V: Vector, const N: usize>(
    words: [*const u32; N],
    columns: Range<usize>,
    mut take: impl FnMut(usize, [V; N]),
) {
    const UPPER: i32 = 0xFFFF_0000_u32.cast_signed();
    assert!(columns.start.is_multiple_of(2), "blocks of the summed index are even");
    for word in columns.start / 2..columns.end.div_ceil(2) {
        // SAFETY: forwarded from the caller.
        unsafe {
            let (mut lower, mut upper) = ([V::splat(0.0); N], [V::splat(0.0); N]);
            for v in 0..N {
                let words = V::words(words[v].add(word * LANES));
                lower[v] = V::field::<-1, 0>(V::left::<16>(words));
                upper[v] = V::field::<UPPER, 0>(words);
            }
            take(2 * word, lower);
            if 2 * word + 1 < columns.end {
                take(2 * word + 1, upper);
            }
        }
    }
}

/// What `of` gives for each place. Unlike [`std::array::from_fn`], which is a function of its own, without the instructions of its caller,
/// where it is not inlined, and then calls every one of them.
#[inline(always)]
fn each<T: Copy, const N: usize>(mut of: impl FnMut(usize) -> T) -> [T; N] {
    let mut all = [of(0); N];
    for (v, place) in all.iter_mut().enumerate().skip(1) {
        *place = of(v);
    }
    all
}

/// Words with the byte of this number as their second one.
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn second_byte<V: Vector>(words: V::Words, byte: usize) -> V::Words {
    // SAFETY: forwarded from the caller.
    unsafe {
        match byte {
            0 => V::left::<8>(words),
            1 => words,
            2 => V::right::<8>(words),
            _ => V::right::<16>(words),
        }
    }
}

/// The levels in the second byte of words, or its lower half, above the power [`LOW`].
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn low_levels<V: Vector, const N: usize, const BITS: usize>(words: [V::Words; N]) -> [V; N] {
    each(
        #[inline(always)]
        |v| {
            // SAFETY: forwarded from the caller.
            unsafe {
                if BITS == 4 {
                    V::field::<0x0F00, { LOW.1 }>(words[v])
                } else {
                    V::field::<0xFF00, { LOW.1 }>(words[v])
                }
            }
        },
    )
}

/// Parameters of a group of columns in registers of rows.
#[derive(Clone, Copy)]
struct Group<V, const N: usize> {
    scales: [V; N],
    zeros: [V; N],
}

impl<V: Vector, const N: usize> Group<V, N> {
    /// What is subtracted from a level that stands above `power`.
    ///
    /// # Safety
    /// The machine has the instructions of `V`.
    #[inline(always)]
    unsafe fn offsets<const PLAIN: bool>(&self, power: f32) -> [V; N] {
        if !PLAIN {
            return self.zeros;
        }
        each(
            #[inline(always)]
            // SAFETY: forwarded from the caller.
            |v| unsafe { self.zeros[v].plus(V::splat(power)) },
        )
    }

    /// `scale * (level - zero)`.
    ///
    /// # Safety
    /// The machine has the instructions of `V`.
    #[inline(always)]
    unsafe fn weights<const PLAIN: bool>(&self, levels: [V; N], offsets: [V; N], power: f32) -> [V; N] {
        each(
            #[inline(always)]
            |v| {
                // SAFETY: forwarded from the caller.
                unsafe {
                    let level = if PLAIN { levels[v] } else { levels[v].minus(V::splat(power)) };
                    self.scales[v].times(level.minus(offsets[v]))
                }
            },
        )
    }

    /// The weights of one column of the words of a panel, wherever in its word it stands.
    ///
    /// # Safety
    /// The machine has the instructions of `V`, and the words have the column; `low` are the offsets of [`LOW`].
    #[inline(always)]
    unsafe fn single<const BITS: usize, const PLAIN: bool>(
        &self,
        words: [*const u32; N],
        column: usize,
        low: [V; N],
    ) -> [V; N] {
        let per_word = 32 / BITS;
        let shift = column % per_word * BITS;
        let words: [V::Words; N] = each(
            #[inline(always)]
            |v| {
                // SAFETY: forwarded from the caller.
                unsafe {
                    V::left::<8>(V::right_by(V::words(words[v].add(column / per_word * LANES)), shift as u32))
                }
            },
        );
        // SAFETY: forwarded from the caller.
        unsafe { self.weights::<PLAIN>(low_levels::<V, N, BITS>(words), low, LOW.0) }
    }
}
