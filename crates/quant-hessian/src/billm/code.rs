//! Coding a tile of a block whose groups are known.

use std::array::from_fn;

use ndarray::{Array2, Array3};
use quant_core::binary::{BinaryCode, RowCodes, SECOND, UPPER};
use quant_kernels::vectorized;

use crate::blockwise::{Lanes, ROWS};

/// A tile of a block in binary residual codes.
pub(super) struct Coded {
    /// Codes by column.
    codes: Vec<[u8; ROWS]>,
    /// Codes of every row.
    rows: Vec<RowCodes>,
    /// `q − w` by column.
    pub(super) change: Vec<Lanes>,
}

/// Mean and spread of some numbers of every row: one code for all rows of a tile.
struct Codes {
    mean: Lanes,
    spread: Lanes,
}

impl Codes {
    /// Of those numbers of the columns that `member` holds of, by column and row; a row without any has the code 0.
    #[inline(always)]
    fn of(columns: &[Lanes], member: impl Fn(usize, usize) -> bool) -> Self {
        let (mut sums, mut counts) = ([0.0; ROWS], [0.0_f32; ROWS]);
        for (c, v) in columns.iter().enumerate() {
            for r in 0..ROWS {
                sums[r] += if member(c, r) { v[r] } else { 0.0 };
                counts[r] += if member(c, r) { 1.0 } else { 0.0 };
            }
        }
        let mean: Lanes = from_fn(|r| sums[r] / counts[r].max(1.0));
        let mut spread = [0.0; ROWS];
        for (c, v) in columns.iter().enumerate() {
            for r in 0..ROWS {
                spread[r] += if member(c, r) { (v[r] - mean[r]).abs() } else { 0.0 };
            }
        }
        Self { mean, spread: from_fn(|r| spread[r] / counts[r].max(1.0)) }
    }
    #[inline(always)]
    fn row(&self, r: usize) -> BinaryCode {
        BinaryCode { mean: self.mean[r], spread: self.spread[r] }
    }
}

impl Coded {
    /// Codes a tile of a block. `sized` `[columns]` tells small from large by `threshold`, `salient` which columns are.
    pub(super) fn new(sized: &[Lanes], block: &[Lanes], salient: &[bool], threshold: f32) -> Self {
        vectorized(
            #[inline(always)]
            || {
                let small = |c: usize, r: usize| !salient[c] & (sized[c][r].abs() < threshold);
                let large = |c: usize, r: usize| !salient[c] & (sized[c][r].abs() >= threshold);
                let of_salient = Codes::of(block, |c, _| salient[c]);
                let mut rest = block.to_vec();
                for lanes in &mut rest {
                    for r in 0..ROWS {
                        lanes[r] -= of_salient.row(r).value(lanes[r] >= of_salient.mean[r]);
                    }
                }
                let of_rest = Codes::of(&rest, |c, _| salient[c]);
                let (of_small, of_large) = (Codes::of(block, small), Codes::of(block, large));
                let mut rows = Vec::with_capacity(ROWS);
                let (mut once, mut twice) = ([[0.0_f32; ROWS]; 4], [[0.0_f32; ROWS]; 4]);
                for r in 0..ROWS {
                    let (small, large) = (of_small.row(r), of_large.row(r));
                    let codes =
                        RowCodes { small, large, salient: of_salient.row(r), residual: of_rest.row(r) };
                    let values = [codes.values(false), codes.values(true)];
                    for code in 0..4 {
                        (once[code][r], twice[code][r]) = (values[0][code], values[1][code]);
                    }
                    rows.push(codes);
                }
                let mut codes = vec![[0_u8; ROWS]; block.len()];
                let mut change = vec![[0.0_f32; ROWS]; block.len()];
                for (c, v) in block.iter().enumerate() {
                    let values = if salient[c] { &twice } else { &once };
                    let (codes, change) = (&mut codes[c], &mut change[c]);
                    for r in 0..ROWS {
                        let (mean, second) = if salient[c] {
                            (of_salient.mean[r], rest[c][r] >= of_rest.mean[r])
                        } else {
                            let second = sized[c][r].abs() >= threshold;
                            (if second { of_large.mean[r] } else { of_small.mean[r] }, second)
                        };
                        let upper = v[r] >= mean;
                        codes[r] = (u8::from(upper) * UPPER) | (u8::from(second) * SECOND);
                        let (low, high) = if second {
                            (values[usize::from(SECOND)][r], values[usize::from(UPPER | SECOND)][r])
                        } else {
                            (values[0][r], values[usize::from(UPPER)][r])
                        };
                        change[r] = if upper { high } else { low } - v[r];
                    }
                }
                Self { codes, rows, change }
            },
        )
    }

    /// Adds `Σ e²/2` of the block to that of every row.
    pub(super) fn losses(&self, pivots: &[f32], losses: &mut [f64; ROWS]) {
        for (change, &pivot) in self.change.iter().zip(pivots) {
            for (loss, &change) in losses.iter_mut().zip(change) {
                let error = f64::from(change) * f64::from(pivot);
                *loss += 0.5 * error * error;
            }
        }
    }

    /// Writes the codes of the rows from `first_row` and columns from `first_column` on, and the numbers of their block.
    pub(super) fn store(
        &self,
        first_row: usize,
        first_column: usize,
        block: usize,
        codes: &mut Array2<u8>,
        numbers: &mut Array3<f32>,
    ) {
        let rows = ROWS.min(codes.nrows() - first_row);
        for (r, of_row) in self.rows[..rows].iter().enumerate() {
            for (c, column) in self.codes.iter().enumerate() {
                codes[(first_row + r, first_column + c)] = column[r];
            }
            for (i, number) in of_row.numbers().into_iter().enumerate() {
                numbers[(first_row + r, block, i)] = number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_testkit::Golden;

    /// The residual codes of the published operator, of the numbers under a mask.
    #[test]
    fn codes_of_the_golden_file() {
        let Some(golden) = Golden::shared("billm.safetensors") else { return };
        let weight = golden.matrix("W");
        let (rows, columns) = weight.dim();
        let mask = golden.tensor("op.mask").i64();
        let member = |c: usize, r: usize| r < rows && mask[r * columns + c] != 0;
        let lanes = |value: &dyn Fn(usize, usize) -> f32| -> Vec<Lanes> {
            (0..columns).map(|c| from_fn(|r| if r < rows { value(r, c) } else { 0.0 })).collect()
        };
        let weight = lanes(&|r, c| weight[(r, c)]);
        let mut sum = lanes(&|_, _| 0.0);
        for order in 1..=3 {
            let rest = lanes(&|r, c| weight[c][r] - sum[c][r]);
            let code = Codes::of(&rest, member);
            let wanted = golden.matrix(&format!("op.residual.order{order}"));
            for ((r, c), wanted) in wanted.indexed_iter() {
                if member(c, r) {
                    sum[c][r] += code.row(r).value(rest[c][r] >= code.mean[r]);
                }
                assert!((sum[c][r] - wanted).abs() <= 1e-5, "{order} ({r}, {c}): {} {wanted}", sum[c][r]);
            }
        }
    }
}
