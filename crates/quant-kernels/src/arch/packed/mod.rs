//! Products of floats with packed levels, in the arithmetic and the order of the f32 tiles.
//!
//! A weight is `scale * (level - zero)`, two rounded operations. Columns are taken one after the other; a sum of products begins
//! at zero for every block of `KC_F32` columns and is one fused multiply-add per column, and the sums of the blocks are added in
//! order: what [`Kernel`](super::kernel::Kernel) asks of a tile, so that the bits are those of a product with the float matrix.
//!
//! A level becomes a float without a conversion: its bits are moved into the mantissa of a power of two, whose unit they then
//! count, and the power is subtracted together with the zero level.

mod vector;

use super::kernel::KC_F32;
use super::level::{InstructionSet, Level};
#[cfg(target_arch = "x86_64")]
use super::x86::{Ymm, Zmm};
use crate::panels::{LANES, LevelPanels, Row};
use vector::Plain;
pub(super) use vector::Vector;

/// The most tokens of a call of [`decode`].
pub(crate) const MAX_TOKENS: usize = 8;

/// `2^15`, whose mantissa counts ones from bit 8 on, and `2^11`, which counts them from bit 12 on.
const LOW: (f32, i32) = (32_768.0, 0x4700_0000);
const HIGH: (f32, i32) = (2048.0, 0x4500_0000);

/// Whether zeros may be subtracted together with the powers of two: their sums are exact.
pub(crate) fn zeros_are_plain(panels: &LevelPanels) -> bool {
    let exact = |zero: f32| (zero + LOW.0) - LOW.0 == zero && (zero + HIGH.0) - HIGH.0 == zero;
    (0..panels.count()).all(|panel| panels.zeros(panel).iter().all(|row| row.0.iter().copied().all(exact)))
}

/// Adds to `totals`, or replaces them without `accumulate`, the products of up to [`MAX_TOKENS`] tokens `[in]` with the rows of a panel: a row of totals
/// for each token. `plain` is what [`zeros_are_plain`] says.
pub(crate) fn decode(
    level: Level,
    panels: &LevelPanels,
    plain: bool,
    panel: usize,
    x: &[&[f32]],
    accumulate: bool,
    totals: &mut [Row<f32>],
) {
    assert!(x.len() <= MAX_TOKENS && x.len() == totals.len(), "a row of totals for every token");
    assert!(x.iter().all(|x| x.len() == panels.inputs()) && panel < panels.count(), "operands that fit");
    run(level, plain, panels.bits(), Decode { panels, panel, x, accumulate, totals });
}

/// Writes weights as floats: those of rows `lanes` of a panel and columns `columns`, column by column, `lanes.len()` adjacent.
///
/// # Safety
/// The rows lie in one panel, in whole registers of every level (8 or 16 numbers) from its beginning; `to` is valid for writes of
/// as many numbers and aligned to the registers of `level`.
pub(super) unsafe fn expand(
    level: Level,
    panels: &LevelPanels,
    plain: bool,
    lane: usize,
    width: usize,
    columns: std::ops::Range<usize>,
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
            (_, true) => work.run::<V, 8, true>(),
            (_, false) => work.run::<V, 8, false>(),
        }
    }
}

/// Registers of rows that a tile takes at once.
const REGISTERS: usize = 2;

struct Decode<'a> {
    panels: &'a LevelPanels,
    panel: usize,
    x: &'a [&'a [f32]],
    accumulate: bool,
    totals: &'a mut [Row<f32>],
}

impl Work for Decode<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const BITS: usize, const PLAIN: bool>(mut self) {
        // Sixteen registers hold four rows of two sums, 32 hold eight.
        let most = if V::LANES == 16 { 8 } else { 4 };
        for first in (0..self.x.len()).step_by(most) {
            let rows = first..(first + most).min(self.x.len());
            // SAFETY: forwarded from the caller.
            unsafe {
                match rows.len() {
                    1 => self.rows::<V, BITS, PLAIN, 1>(rows),
                    2 => self.rows::<V, BITS, PLAIN, 2>(rows),
                    3 | 4 => self.rows::<V, BITS, PLAIN, 4>(rows),
                    _ => self.rows::<V, BITS, PLAIN, 8>(rows),
                }
            }
        }
    }
}

impl Decode<'_> {
    /// # Safety
    /// The machine has the instructions of `V`; `rows` are not more than `ROWS`.
    #[inline(always)]
    unsafe fn rows<V: Vector, const BITS: usize, const PLAIN: bool, const ROWS: usize>(
        &mut self,
        rows: std::ops::Range<usize>,
    ) {
        let inputs = self.panels.inputs();
        // Rows that are not there are those of the last one again.
        let x: [*const f32; ROWS] =
            std::array::from_fn(|r| self.x[(rows.start + r).min(rows.end - 1)].as_ptr());
        for lane in (0..LANES).step_by(REGISTERS * V::LANES) {
            if inputs == 0 && !self.accumulate {
                self.totals[rows.clone()].fill(Row([0.0; LANES]));
            }
            for first in (0..inputs).step_by(KC_F32) {
                let end = inputs.min(first + KC_F32);
                // SAFETY: columns of the panel and of the tokens, and registers of the totals.
                unsafe {
                    let mut sums = [[V::splat(0.0); REGISTERS]; ROWS];
                    for_weights::<V, BITS, PLAIN>(
                        self.panels,
                        self.panel,
                        lane,
                        first..end,
                        #[inline(always)]
                        |column, weights| {
                            for r in 0..ROWS {
                                let factor = V::splat(*x[r].add(column));
                                for v in 0..REGISTERS {
                                    sums[r][v] = weights[v].times_plus(factor, sums[r][v]);
                                }
                            }
                        },
                    );
                    for (sums, total) in sums.iter().zip(&mut self.totals[rows.clone()]) {
                        for (v, sum) in sums.iter().enumerate() {
                            let total = total.0.as_mut_ptr().add(lane + v * V::LANES);
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
    columns: std::ops::Range<usize>,
    to: *mut f32,
}

impl Work for Expand<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const BITS: usize, const PLAIN: bool>(self) {
        let (panel, lane) = (self.lane / LANES, self.lane % LANES);
        let (first, width, to) = (self.columns.start, self.width, self.to);
        for lanes in (0..width).step_by(REGISTERS * V::LANES) {
            // SAFETY: columns of the panel, and numbers of the caller's.
            unsafe {
                for_weights::<V, BITS, PLAIN>(
                    self.panels,
                    panel,
                    lane + lanes,
                    self.columns.clone(),
                    #[inline(always)]
                    |column, weights: [V; REGISTERS]| {
                        for (v, weight) in weights.into_iter().enumerate() {
                            if lanes + v * V::LANES < width {
                                weight.store(to.add((column - first) * width + lanes + v * V::LANES));
                            }
                        }
                    },
                );
            }
        }
    }
}

/// Hands the weights of a range of columns to `take`, in order: registers of the rows of a panel from `lane` on.
///
/// # Safety
/// The machine has the instructions of `V`; the panel has the columns, and whole registers from `lane` on.
#[inline(always)]
unsafe fn for_weights<V: Vector, const BITS: usize, const PLAIN: bool>(
    panels: &LevelPanels,
    panel: usize,
    lane: usize,
    columns: std::ops::Range<usize>,
    mut take: impl FnMut(usize, [V; REGISTERS]),
) {
    let per_word = 32 / BITS;
    let words: *const u32 = panels.words(panel).as_ptr().cast();
    let (scales, zeros) = (panels.scales(panel), panels.zeros(panel));
    let mut column = columns.start;
    while column < columns.end {
        let (group, end) = panels.run(column);
        let end = end.min(columns.end);
        // SAFETY: the group and the lanes exist.
        let group = unsafe {
            let at = |row: &Row<f32>, v: usize| V::load(row.0.as_ptr().add(lane + v * V::LANES));
            Group::<V> {
                scales: [at(&scales[group], 0), at(&scales[group], 1)],
                zeros: [at(&zeros[group], 0), at(&zeros[group], 1)],
            }
        };
        // SAFETY: forwarded from the caller; words of the panel.
        unsafe {
            let (low, high) = (group.offsets::<PLAIN>(LOW.0), group.offsets::<PLAIN>(HIGH.0));
            let load = |word: usize| {
                let from = words.add(word * LANES + lane);
                [V::words(from), V::words(from.add(V::LANES))]
            };
            while column < end {
                if !column.is_multiple_of(per_word) || end - column < per_word {
                    let shift = if BITS == 4 { column % 4 * 8 + column % 8 / 4 * 4 } else { column % 4 * 8 };
                    let words = load(column / per_word);
                    let words = words.map(
                        #[inline(always)]
                        |word| V::left::<8>(V::right_by(word, shift as u32)),
                    );
                    take(column, group.weights::<PLAIN>(low_levels::<V, BITS>(words), low, LOW.0));
                    column += 1;
                    continue;
                }
                let words = load(column / per_word);
                let placed = [
                    [V::left::<8>(words[0]), V::left::<8>(words[1])],
                    words,
                    [V::right::<8>(words[0]), V::right::<8>(words[1])],
                    [V::right::<16>(words[0]), V::right::<16>(words[1])],
                ];
                for (i, words) in placed.into_iter().enumerate() {
                    let levels = low_levels::<V, BITS>(words);
                    take(column + i, group.weights::<PLAIN>(levels, low, LOW.0));
                }
                if BITS == 4 {
                    for (i, [a, b]) in placed.into_iter().enumerate() {
                        let levels = [V::field::<0xF000, { HIGH.1 }>(a), V::field::<0xF000, { HIGH.1 }>(b)];
                        take(column + 4 + i, group.weights::<PLAIN>(levels, high, HIGH.0));
                    }
                }
                column += per_word;
            }
        }
    }
}

/// The levels in the second byte of words, or its lower half, above the power [`LOW`].
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
unsafe fn low_levels<V: Vector, const BITS: usize>([a, b]: [V::Words; REGISTERS]) -> [V; REGISTERS] {
    // SAFETY: forwarded from the caller.
    unsafe {
        if BITS == 4 {
            [V::field::<0x0F00, { LOW.1 }>(a), V::field::<0x0F00, { LOW.1 }>(b)]
        } else {
            [V::field::<0xFF00, { LOW.1 }>(a), V::field::<0xFF00, { LOW.1 }>(b)]
        }
    }
}

/// Parameters of a group of columns in a panel.
#[derive(Clone, Copy)]
struct Group<V> {
    scales: [V; REGISTERS],
    zeros: [V; REGISTERS],
}

impl<V: Vector> Group<V> {
    /// What is subtracted from a level that stands above `power`.
    ///
    /// # Safety
    /// The machine has the instructions of `V`.
    #[inline(always)]
    unsafe fn offsets<const PLAIN: bool>(&self, power: f32) -> [V; REGISTERS] {
        if !PLAIN {
            return self.zeros;
        }
        // SAFETY: forwarded from the caller.
        unsafe {
            let power = V::splat(power);
            [self.zeros[0].plus(power), self.zeros[1].plus(power)]
        }
    }

    /// `scale * (level - zero)`.
    ///
    /// # Safety
    /// The machine has the instructions of `V`.
    #[inline(always)]
    unsafe fn weights<const PLAIN: bool>(
        &self,
        levels: [V; REGISTERS],
        offsets: [V; REGISTERS],
        power: f32,
    ) -> [V; REGISTERS] {
        // SAFETY: forwarded from the caller.
        unsafe {
            let weight = |v: usize| {
                let level = if PLAIN { levels[v] } else { levels[v].minus(V::splat(power)) };
                self.scales[v].times(level.minus(offsets[v]))
            };
            [weight(0), weight(1)]
        }
    }
}
