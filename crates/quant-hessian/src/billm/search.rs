//! How many columns of a block are salient, and where small ends and large begins.
//!
//! A binary code of m numbers v leaves `Σv² − m(μ² + α²)` of their squares, a second code of that rest `Σv² − m(μ² + α² + μ₂² +
//! α₂²)`. `Σv²` is the same for all candidates of a search, so each is told by its means and spreads alone: sums over columns, for
//! many rows at once.

use std::array::from_fn;

use quant_core::Variant;
use quant_kernels::vectorized;

use super::quantiles::quantiles;
use super::{BillmBlock, BillmConfig, SalientMetric};
use crate::HessianError;
use crate::blockwise::{Blockwise, Lanes, ROWS};

/// Salient columns of a block at most.
const MOST: usize = 49;
/// Thresholds that are tried: the quantiles 0.10, 0.11, … 0.90.
const THRESHOLDS: usize = 81;
/// Rows at a time whose sums stay in registers.
const PART: usize = 32;
/// Lanes of a sum over rows.
const LANES: usize = 8;
/// Numbers of some rows.
type Part = [f32; PART];

/// The searches of one block.
pub(super) struct Search<'a> {
    pub(super) config: &'a BillmConfig,
    /// `R_jj` of the block's columns.
    pub(super) pivots: &'a [f32],
}

/// The matrix that the searches code, by tiles; none where it is the weight.
pub(super) type CodedByTile = Vec<Option<Vec<Lanes>>>;
/// What every candidate of a search saves of `Σv²`, summed over rows.
type Saved = Vec<f64>;

impl Search<'_> {
    /// The salience of a block's weights where it is not the weight itself.
    fn salience(&self, block: &[Lanes]) -> Option<Vec<Lanes>> {
        let of_hessian = || {
            let mut salience = block.to_vec();
            vectorized(
                #[inline(always)]
                || {
                    for (lanes, &r) in salience.iter_mut().zip(self.pivots) {
                        let square = r * r;
                        for w in lanes {
                            *w = *w * *w * square;
                        }
                    }
                },
            );
            salience
        };
        (self.config.metric == SalientMetric::Hessian).then(of_hessian)
    }

    /// Both searches, over all `out` rows of the open block, which begins at column `first`; and the matrix that they code, by
    /// tiles, where it is not the weight.
    ///
    /// # Errors
    /// [`HessianError::NotFiniteResult`] for a salience that overflows.
    pub(super) fn run(
        &self,
        work: &mut Blockwise<'_>,
        out: usize,
        first: usize,
    ) -> Result<(BillmBlock, CodedByTile), HessianError> {
        let columns = self.pivots.len();
        let numbers = (out * columns).max(1) as f64;
        let of_tiles: Vec<(Saved, Option<Vec<Lanes>>)> = work.each(|tile, _| {
            let salience = self.salience(&tile.block);
            let scores = salience.as_ref().unwrap_or(&tile.block).iter().map(absolute_sum).collect();
            // The published code codes it.
            (scores, salience.filter(|_| self.config.variant == Variant::Official))
        });
        let (scores, coded): (Vec<Saved>, CodedByTile) = of_tiles.into_iter().unzip();
        let scores = sum(scores);
        if let Some(column) = scores.iter().position(|score| !score.is_finite()) {
            let rows = work.each(|tile, _| {
                let salience = self.salience(&tile.block);
                let column = &salience.as_ref().unwrap_or(&tile.block)[column];
                column.iter().position(|s| !s.is_finite()).map(|row| tile.first_row + row)
            });
            let row = rows.into_iter().flatten().next().unwrap_or_default();
            return Err(HessianError::NotFiniteResult { row, column: first + column });
        }
        let mut ranked: Vec<usize> = (0..columns).collect();
        ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let most = MOST.min(columns.saturating_sub(1)).max(1);
        let of_tiles: Vec<(Saved, Vec<Lanes>)> = work.each(|tile, _| {
            let coded = coded[tile.index()].as_ref().unwrap_or(&tile.block);
            let ordered: Vec<Lanes> = ranked.iter().map(|&column| coded[column]).collect();
            let mut saved = salient_saved(&ordered, most);
            // The squares themselves come last.
            saved.push(ordered.iter().map(square_sum).sum());
            (saved, ordered)
        });
        let (saved, ordered): (Vec<Saved>, Vec<Vec<Lanes>>) = of_tiles.into_iter().unzip();
        let saved = sum(saved);
        let (salient_saved, squares) = saved.split_at(most.min(saved.len()));
        let squares = squares.first().copied().unwrap_or_default();
        let errors = |saved: &[f64]| saved.iter().map(|saved| (squares - saved) / numbers).collect();
        let salient_errors: Vec<f64> = errors(salient_saved);
        let count = 1 + first_smallest(&salient_errors);
        let sizes = work.each(|tile, _| {
            let mut sizes = Vec::with_capacity((columns - count) * tile.rows);
            for lanes in &ordered[tile.index()][count..] {
                sizes.extend(lanes[..tile.rows].iter().map(|v| v.abs()));
            }
            sizes
        });
        let at = (0..THRESHOLDS).map(|i| (10 + i) as f64 / 100.0);
        let thresholds = quantiles(&sizes, count * out, at);
        drop(sizes);
        let saved = sum(work.each(|tile, _| {
            let (salient, rest) = ordered[tile.index()].split_at(count);
            let of_salient = twice_saved(salient);
            threshold_saved(rest, &thresholds).into_iter().map(|saved| saved + of_salient).collect()
        }));
        let threshold_errors: Vec<f64> = errors(&saved);
        let threshold = thresholds[first_smallest(&threshold_errors)];
        let salient = ranked[..count].iter().map(|&column| first + column).collect();
        let found = BillmBlock { salient, salient_errors, thresholds, threshold_errors, threshold };
        Ok((found, coded))
    }
}

/// Sums over the tiles, in their order.
fn sum(tiles: Vec<Saved>) -> Saved {
    let mut tiles = tiles.into_iter();
    let mut total = tiles.next().unwrap_or_default();
    for tile in tiles {
        total.iter_mut().zip(tile).for_each(|(total, saved)| *total += saved);
    }
    total
}

/// Index of the first of the smallest; the first of all where none is a number.
fn first_smallest(errors: &[f64]) -> usize {
    let mut best = 0;
    for (i, &error) in errors.iter().enumerate() {
        if error < errors[best] {
            best = i;
        }
    }
    best
}

fn absolute_sum(lanes: &Lanes) -> f64 {
    lane_sum(lanes, |v| f64::from(v.abs()))
}

fn square_sum(lanes: &Lanes) -> f64 {
    lane_sum(lanes, |v| f64::from(v) * f64::from(v))
}

/// The sum of what is made of every row.
fn lane_sum(lanes: &Lanes, of: impl Fn(f32) -> f64) -> f64 {
    const WIDE: usize = 8;
    vectorized(
        #[inline(always)]
        || {
            let mut sums = [0.0; WIDE];
            for part in lanes.as_chunks::<WIDE>().0 {
                for r in 0..WIDE {
                    sums[r] += of(part[r]);
                }
            }
            sums.into_iter().sum()
        },
    )
}

/// Some rows of some columns.
#[inline(always)]
fn part(lanes: &Lanes, p: usize) -> &Part {
    &lanes.as_chunks::<PART>().0[p]
}

/// What two codes save of the numbers of each row, whose sums are `sums`: `m(μ² + α² + μ₂² + α₂²)`, over the rows.
#[inline(always)]
fn two_codes(columns: &[Lanes], p: usize, sums: &Part) -> f64 {
    let count = columns.len().max(1) as f32;
    let each = count.recip();
    let (mut mean, mut spread, mut upper) = ([0.0_f32; PART], [0.0_f32; PART], [0.0_f32; PART]);
    for r in 0..PART {
        mean[r] = sums[r] / count;
    }
    for lanes in columns {
        let v = part(lanes, p);
        for r in 0..PART {
            let t = v[r] - mean[r];
            spread[r] += t.abs();
            upper[r] += if t >= 0.0 { 1.0 } else { 0.0 };
        }
    }
    // The mean of v − μ is 0, so the mean of the rest is what the signs leave.
    let (mut rest, mut above, mut below) = ([0.0_f32; PART], [0.0_f32; PART], [0.0_f32; PART]);
    for r in 0..PART {
        spread[r] *= each;
        rest[r] = -spread[r] * (2.0 * upper[r] - count) * each;
        (above[r], below[r]) = (spread[r] + rest[r], rest[r] - spread[r]);
    }
    let mut second = [0.0_f32; PART];
    for lanes in columns {
        let v = part(lanes, p);
        for r in 0..PART {
            let t = v[r] - mean[r];
            second[r] += (t - if t >= 0.0 { above[r] } else { below[r] }).abs();
        }
    }
    let mut saved = [0.0_f64; LANES];
    for r in 0..PART {
        let square = |x: f32| f64::from(x) * f64::from(x);
        saved[r % LANES] += square(mean[r]) + square(spread[r]) + square(rest[r]) + square(second[r] * each);
    }
    f64::from(count) * lane_total(saved)
}

#[inline(always)]
fn lane_total(lanes: [f64; LANES]) -> f64 {
    let mut total = 0.0;
    for lane in lanes {
        total += lane;
    }
    total
}

/// Sums of the rows of all columns.
#[inline(always)]
fn sums(columns: &[Lanes], p: usize) -> Part {
    let mut sums = [0.0; PART];
    for lanes in columns {
        let v = part(lanes, p);
        for r in 0..PART {
            sums[r] += v[r];
        }
    }
    sums
}

/// What two codes of all columns save.
fn twice_saved(columns: &[Lanes]) -> f64 {
    vectorized(
        #[inline(always)]
        || {
            let mut saved = 0.0;
            for p in 0..ROWS / PART {
                saved += two_codes(columns, p, &sums(columns, p));
            }
            saved
        },
    )
}

/// What is saved with 1, 2, … `most` salient columns, two codes for them and two for the rest. Columns are ordered by salience.
fn salient_saved(columns: &[Lanes], most: usize) -> Saved {
    let mut saved = vec![0.0; most];
    vectorized(
        #[inline(always)]
        || {
            for p in 0..ROWS / PART {
                // From the back, so that the small sums of the rest are not differences of large ones.
                let mut behind = vec![[0.0; PART]; columns.len() + 1];
                for c in (0..columns.len()).rev() {
                    let v = part(&columns[c], p);
                    behind[c] = from_fn(|r| behind[c + 1][r] + v[r]);
                }
                let mut before = [0.0; PART];
                for (c, saved) in saved.iter_mut().enumerate() {
                    let v = part(&columns[c], p);
                    before = from_fn(|r| before[r] + v[r]);
                    let (top, rest) = columns.split_at(c + 1);
                    let top = two_codes(top, p, &before);
                    let rest = two_codes(rest, p, &behind[c + 1]);
                    *saved += top + rest;
                }
            }
        },
    );
    saved
}

/// What is saved with each threshold, a code for what is below it and one for what is not.
fn threshold_saved(columns: &[Lanes], thresholds: &[f32]) -> Saved {
    let mut saved = vec![0.0; thresholds.len()];
    let count = columns.len() as f32;
    vectorized(
        #[inline(always)]
        || {
            for p in 0..ROWS / PART {
                let all = sums(columns, p);
                for (&threshold, saved) in thresholds.iter().zip(&mut saved) {
                    let (mut small, mut members) = ([0.0_f32; PART], [0.0_f32; PART]);
                    for lanes in columns {
                        let v = part(lanes, p);
                        for r in 0..PART {
                            let is_small = v[r].abs() < threshold;
                            small[r] += if is_small { v[r] } else { 0.0 };
                            members[r] += if is_small { 1.0 } else { 0.0 };
                        }
                    }
                    let (mut small_mean, mut large_mean) = ([0.0_f32; PART], [0.0_f32; PART]);
                    for r in 0..PART {
                        small_mean[r] = small[r] / members[r].max(1.0);
                        large_mean[r] = (all[r] - small[r]) / (count - members[r]).max(1.0);
                    }
                    let (mut of_small, mut of_all) = ([0.0_f32; PART], [0.0_f32; PART]);
                    for lanes in columns {
                        let v = part(lanes, p);
                        for r in 0..PART {
                            let is_small = v[r].abs() < threshold;
                            let t = (v[r] - if is_small { small_mean[r] } else { large_mean[r] }).abs();
                            of_small[r] += if is_small { t } else { 0.0 };
                            of_all[r] += t;
                        }
                    }
                    let mut rows = [0.0_f64; LANES];
                    for r in 0..PART {
                        let code = |members: f32, mean: f32, spread: f32| {
                            let spread = f64::from(spread) / f64::from(members.max(1.0));
                            f64::from(members) * (f64::from(mean) * f64::from(mean) + spread * spread)
                        };
                        rows[r % LANES] += code(members[r], small_mean[r], of_small[r])
                            + code(count - members[r], large_mean[r], of_all[r] - of_small[r]);
                    }
                    *saved += lane_total(rows);
                }
            }
        },
    );
    saved
}
