//! Salience-determined bit allocation: which groups get a bit less and which a bit more.
//!
//! With a groups of a bit less and a of a bit more, the outputs differ from those with one fewer of each in two groups only, so
//! each candidate costs two products with the columns of a group, and all of them together about one product with the weight.

use std::ops::Range;

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, Slice};
use quant_core::{Bits, Convention, Grid, Variant};
use quant_kernels::{Compute, Par, Stopped, Work, exp_f32, matmul_nn, matmul_nt, tasks, vectorized};

use super::official::Rules;
use super::{SlimConfig, slim_most};

/// Probabilities are at least this.
const LEAST: f32 = 1e-6;
/// Tokens compared by one task; a fixed number, so that sums do not depend on the threads.
const TOKENS: usize = 16;
/// Lanes of a sum.
const LANES: usize = 16;

/// The search for the widths of one weight.
pub(super) struct Allocation<'a> {
    pub(super) weight: ArrayView2<'a, f32>,
    pub(super) dead: &'a [bool],
    pub(super) config: &'a SlimConfig,
    pub(super) rules: &'a Rules,
}

/// Columns of every group.
fn groups(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(size).map(move |start| start..(start + size).min(n))
}

/// `Σ w²/U_jj²` of every group.
pub(super) fn salience(weight: ArrayView2<'_, f32>, dead: &[bool], pivots: &[f32], group: usize) -> Vec<f64> {
    let mut squares = vec![0.0; weight.ncols()];
    for row in weight.rows() {
        squares.iter_mut().zip(row).for_each(|(sum, &w)| *sum += f64::from(w) * f64::from(w));
    }
    let column = |j: usize| if dead[j] { 0.0 } else { squares[j] * f64::from(pivots[j]).powi(2) };
    groups(weight.ncols(), group).map(|columns| columns.map(column).sum()).collect()
}

/// Groups by increasing salience, ties by index.
fn ascending(salience: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..salience.len()).collect();
    order.sort_by(|&a, &b| salience[a].total_cmp(&salience[b]));
    order
}

fn near(bits: Bits, change: i32) -> Bits {
    // The configuration was checked: 2 to 7.
    Bits::new((bits.get() as i32 + change) as u32).unwrap_or(bits)
}

/// Widths of all groups with `narrow` of a bit less and as many of a bit more.
pub(super) fn widths(bits: Bits, salience: &[f64], narrow: usize) -> Vec<Bits> {
    let order = ascending(salience);
    let mut widths = vec![bits; salience.len()];
    order.iter().take(narrow).for_each(|&g| widths[g] = near(bits, -1));
    order.iter().rev().take(narrow).for_each(|&g| widths[g] = near(bits, 1));
    widths
}

impl Allocation<'_> {
    /// How many groups get a bit less, and the divergence of every candidate. Groups are ranked with the diagonal `pivots` of R.
    /// Whether to go on is asked before every group and candidate.
    pub(super) fn run(
        &self,
        pivots: &[f32],
        sample: ArrayView2<'_, f32>,
        bias: Option<ArrayView1<'_, f32>>,
        work: Work<'_>,
    ) -> Result<(usize, Vec<f64>), Stopped> {
        let par = work.par;
        let SlimConfig { bits, group, .. } = *self.config;
        let (out, n) = self.weight.dim();
        let columns: Vec<Range<usize>> = groups(n, group).collect();
        let order = ascending(&salience(self.weight, self.dead, pivots, group));
        let most = slim_most(columns.len());
        if most == 0 {
            return Ok((0, Vec::new()));
        }
        let mut reference = Array2::zeros((sample.nrows(), out));
        matmul_nt(reference.view_mut(), false, 1.0, sample, self.weight, Compute::F32, par);
        let mut outputs = Array2::zeros(reference.dim());
        if let Some(bias) = bias {
            reference += &bias;
            if self.rules.bias {
                outputs += &bias;
            }
        }
        log_probabilities(&mut reference, par);
        let add = |outputs: &mut Array2<f32>, g: usize, from: Option<Bits>, to: Bits| {
            let span = Slice::from(columns[g].clone());
            let x = sample.slice_axis(Axis(1), span);
            let mut change = self.rounded(columns[g].clone(), to, par);
            if let Some(from) = from {
                change -= &self.rounded(columns[g].clone(), from, par);
            }
            matmul_nn(outputs.view_mut(), true, 1.0, x, change.view(), Compute::F32, par);
        };
        for g in 0..columns.len() {
            work.go_on()?;
            add(&mut outputs, g, None, bits);
        }
        let mut divergences = Vec::with_capacity(most);
        for a in 0..most {
            work.go_on()?;
            add(&mut outputs, order[a], Some(bits), near(bits, -1));
            add(&mut outputs, order[order.len() - 1 - a], Some(bits), near(bits, 1));
            divergences.push(divergence(&outputs, &reference, par));
        }
        let mut best = 0;
        for (a, &found) in divergences.iter().enumerate() {
            if found < divergences[best] {
                best = a;
            }
        }
        Ok((best + 1, divergences))
    }

    /// The values `[columns, out]` of a group rounded to nearest.
    fn rounded(&self, columns: Range<usize>, bits: Bits, par: Par) -> Array2<f32> {
        const ROWS: usize = 256;
        let out = self.weight.nrows();
        let scale_type = self.config.scale_type;
        let grid = Grid { convention: Convention::QAsym, bits, variant: Variant::Exact, scale_type };
        let width = columns.len();
        let mut values = Array2::zeros((out, width));
        tasks::for_each(
            values.axis_chunks_iter_mut(Axis(0), ROWS).enumerate(),
            par,
            |(chunk, mut values)| {
                let span = Slice::from(columns.clone());
                let rows = Slice::from(chunk * ROWS..chunk * ROWS + values.nrows());
                values.assign(&self.weight.slice_axis(Axis(1), span).slice_axis(Axis(0), rows));
                for column in columns.clone().filter(|&column| self.dead[column]) {
                    values.column_mut(column - columns.start).fill(0.0);
                }
                for row in values.rows_mut() {
                    let Some(row) = row.into_slice() else { continue };
                    vectorized(
                        #[inline(always)]
                        || {
                            if bits == Bits::ONE {
                                let params = (self.rules.one_bit)(row, scale_type);
                                for w in row {
                                    *w = params.value(grid.level(*w, params));
                                }
                            } else {
                                let (params, top) = (grid.params(row, None), bits.max_level());
                                for w in row {
                                    *w = params.fake(*w, top);
                                }
                            }
                        },
                    );
                }
            },
        );
        values.reversed_axes()
    }
}

/// Numbers of a row in lanes of their own, the rest of a row filled up with `fill`.
#[inline(always)]
fn lanes(row: &[f32], fill: f32, mut work: impl FnMut(&[f32; LANES], usize)) {
    let (whole, rest) = row.as_chunks::<LANES>();
    for (i, part) in whole.iter().enumerate() {
        work(part, i * LANES);
    }
    if !rest.is_empty() {
        let mut part = [fill; LANES];
        part[..rest.len()].copy_from_slice(rest);
        work(&part, row.len() - rest.len());
    }
}

/// The largest of a row, and the logarithm of the sum of exponentials below it.
#[inline(always)]
fn log_sum(row: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    lanes(row, f32::NEG_INFINITY, |part, _| {
        for l in 0..LANES {
            largest[l] = largest[l].max(part[l]);
        }
    });
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0_f32; LANES];
    lanes(row, f32::NEG_INFINITY, |part, _| {
        for l in 0..LANES {
            sums[l] += exp_f32(part[l] - largest);
        }
    });
    largest + quant_core::elementary::ln(f64::from(sums.into_iter().sum::<f32>())) as f32
}

/// `ln max(softmax, 1e-6)` of every row, in place.
fn log_probabilities(rows: &mut Array2<f32>, par: Par) {
    let least = least();
    tasks::for_each(rows.axis_chunks_iter_mut(Axis(0), TOKENS), par, |mut rows| {
        for row in rows.rows_mut() {
            let Some(row) = row.into_slice() else { continue };
            vectorized(
                #[inline(always)]
                || {
                    let sum = log_sum(row);
                    for y in row {
                        *y = (*y - sum).max(least);
                    }
                },
            );
        }
    });
}

fn least() -> f32 {
    quant_core::elementary::ln(f64::from(LEAST)) as f32
}

/// `Σ p (ln p − ln r)` over all rows, p the probabilities of `outputs` and ln r the `reference`.
fn divergence(outputs: &Array2<f32>, reference: &Array2<f32>, par: Par) -> f64 {
    let least = least();
    let chunks =
        || outputs.axis_chunks_iter(Axis(0), TOKENS).zip(reference.axis_chunks_iter(Axis(0), TOKENS));
    let mut sums = vec![0.0_f64; outputs.nrows().div_ceil(TOKENS)];
    tasks::for_each(chunks().zip(&mut sums), par, |((outputs, reference), total)| {
        for (row, reference) in outputs.rows().into_iter().zip(reference.rows()) {
            let (Some(row), Some(reference)) = (row.to_slice(), reference.to_slice()) else { continue };
            let of_row = vectorized(
                #[inline(always)]
                || {
                    let sum = log_sum(row);
                    let mut total = [0.0_f32; LANES];
                    lanes(row, f32::NEG_INFINITY, |part, first| {
                        let mut other = [0.0; LANES];
                        let count = LANES.min(reference.len() - first);
                        other[..count].copy_from_slice(&reference[first..first + count]);
                        for l in 0..LANES {
                            let p = (part[l] - sum).max(least);
                            let term = exp_f32(p) * (p - other[l]);
                            total[l] += if l < count { term } else { 0.0 };
                        }
                    });
                    total.into_iter().map(f64::from).sum::<f64>()
                },
            );
            *total += of_row;
        }
    });
    sums.into_iter().sum()
}

/// Bytes of the search: outputs twice, and the values of a group twice.
pub(super) fn workspace_bytes((out, n): (usize, usize), group: usize, tokens: usize) -> usize {
    2 * size_of::<f32>() * (tokens * out + out * group.min(n))
}
