//! Block coordinate descent on a rounded weight.

use ndarray::{ArrayView2, Axis, Slice};
use quant_core::convention::level_byte;
use quant_core::{Grid, QParams, QuantizedMatrix};
use quant_kernels::{Compute, Par, matmul_nn, tasks, vectorized, views};
use std::ops::Range;

use crate::{GptqResult, HessianError};

/// Rows of a tile; fixed, so that a row does not know with whom it is worked on.
const LANES: usize = 64;
/// Columns whose levels are found one by one before the others hear of it.
const BLOCK: usize = 128;
/// Times that a group which is one block gets levels, scale and zero level before the next group.
const ROUNDS: usize = 2;
/// A scale changes at most by this factor at a time.
const LARGEST_STEP: f32 = 4.0;

/// One number for every row of a tile.
pub(crate) type Lanes = [f32; LANES];

/// `min tr((T − Ŵ) H_d (T − Ŵ)ᵀ)` over what a quantised matrix can hold: the target `T` is the weight for GPTQ, the weight moved to
/// its optimum for Qronos.
///
/// The column loops leave scales as they were laid for a weight that has since changed, and a level is final when its column
/// has passed. Here every level, scale and zero level is looked at again, given all the others. With `E = T − Ŵ` and the
/// gradient `G = E H_d`, one level `c_j` of a row with scale s is best at the rounding of `ŵ_j + g_j / H_jj`; the scale of a
/// group with `a = c − z` at `s + (a·g) / (a H a)`; the zero level moves by one where that lowers the objective. No step raises
/// it, so neither does a sweep.
pub(crate) struct Descent<'a> {
    /// `H_d`, `[n, n]`, symmetric, in original column order.
    h: &'a [f32],
    n: usize,
    grid: Grid,
    group: usize,
    sweeps: usize,
    /// `Σ_k H_jk` over the group of j.
    row_sums: Vec<f32>,
}

/// The rows of a tile, contiguous.
struct Tile<'a> {
    first: usize,
    levels: &'a mut [u8],
    scales: &'a mut [f32],
    zeros: &'a mut [f32],
    losses: &'a mut [f64],
}

/// The buffers of one worker, by column.
struct Scratch {
    /// `t − ŵ`.
    error: Vec<Lanes>,
    levels: Vec<Lanes>,
    /// `G` of the columns at work.
    gradient: Vec<Lanes>,
    /// `c − z` of a group, and its product with `H`.
    shifted: Vec<Lanes>,
    product: Vec<Lanes>,
}

/// Writes so many rows of the target from a first one on, by column; the other lanes are zero.
pub(crate) type Target<'a> = dyn Fn(usize, usize, &mut [Lanes]) + Sync + 'a;

impl<'a> Descent<'a> {
    /// On `H_d` of side `n`, row-major.
    pub(crate) fn new(h: &'a [f32], n: usize, grid: Grid, group: Option<usize>, sweeps: usize) -> Self {
        let group = group.unwrap_or(n).clamp(1, n.max(1));
        let sum = |j: usize| {
            let first = j / group * group;
            h[j * n..][first..(first + group).min(n)].iter().sum()
        };
        Self { h, n, grid, group, sweeps, row_sums: (0..n).map(sum).collect() }
    }

    fn matrix(&self) -> ArrayView2<'_, f32> {
        views::matrix(self.h, self.n, self.n)
    }

    /// Descends from a rounded weight, whose losses become what is left.
    ///
    /// # Errors
    /// [`HessianError::NotFiniteResult`] where arithmetic overflows.
    pub(crate) fn run(
        &self,
        target: &Target<'_>,
        from: GptqResult,
        par: Par,
    ) -> Result<GptqResult, HessianError> {
        let n = self.n;
        let (widths, levels, scales, zeros, groups) = from.matrix.into_parts();
        let mut row_losses = from.row_losses;
        let [mut scales, mut zeros] = [scales, zeros].map(|values| values.as_standard_layout().into_owned());
        let mut levels = levels.as_standard_layout().into_owned();
        let of_row = groups.count(n);
        if let (Some(levels), Some(scales), Some(zeros)) =
            (levels.as_slice_mut(), scales.as_slice_mut(), zeros.as_slice_mut())
        {
            let tiles = levels
                .chunks_mut((LANES * n).max(1))
                .zip(scales.chunks_mut(LANES * of_row))
                .zip(zeros.chunks_mut(LANES * of_row))
                .zip(row_losses.chunks_mut(LANES))
                .enumerate()
                .map(|(tile, (((levels, scales), zeros), losses))| Tile {
                    first: tile * LANES,
                    levels,
                    scales,
                    zeros,
                    losses,
                });
            tasks::try_for_each_with(
                tiles,
                par,
                || self.scratch(),
                |scratch, tile| self.tile(target, scratch, tile),
            )?;
        }
        Ok(GptqResult { matrix: QuantizedMatrix::new(widths, levels, scales, zeros, groups)?, row_losses })
    }

    fn scratch(&self) -> Scratch {
        let lanes = |columns: usize| vec![[0.0; LANES]; columns];
        let n = self.n;
        Scratch {
            error: lanes(n),
            levels: lanes(n),
            gradient: lanes(self.group.max(BLOCK).min(n)),
            shifted: lanes(self.group),
            product: lanes(self.group),
        }
    }

    fn groups(&self) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let (n, group) = (self.n, self.group);
        (0..n).step_by(group).map(move |first| first..(first + group).min(n)).enumerate()
    }

    fn tile(&self, target: &Target<'_>, scratch: &mut Scratch, tile: Tile<'_>) -> Result<(), HessianError> {
        let Tile { first, levels, scales, zeros, losses } = tile;
        let (n, rows) = (self.n, losses.len());
        let of_row = n.div_ceil(self.group).max(1);
        // Rows beyond the last are of zeros on a grid that has it: nothing moves there.
        let (mut scale, mut zero) = (vec![[1.0; LANES]; of_row], vec![[0.0; LANES]; of_row]);
        for r in 0..rows {
            for g in 0..of_row {
                (scale[g][r], zero[g][r]) = (scales[r * of_row + g], zeros[r * of_row + g]);
            }
        }
        target(first, rows, &mut scratch.error);
        for (g, columns) in self.groups() {
            for j in columns {
                let (error, level) = (&mut scratch.error[j], &mut scratch.levels[j]);
                *level = [0.0; LANES];
                for r in 0..rows {
                    level[r] = f32::from(levels[r * n + j]);
                    error[r] -= QParams { scale: scale[g][r], zero: zero[g][r] }.value(level[r]);
                }
            }
        }
        for _ in 0..self.sweeps {
            for (g, columns) in self.groups() {
                self.group(scratch, columns, &mut scale[g], &mut zero[g]);
            }
        }
        losses.fill(0.0);
        for columns in self.blocks(0..n) {
            self.gradient(scratch, columns.clone());
            for (gradient, error) in scratch.gradient.iter().zip(&scratch.error[columns]) {
                for (r, loss) in losses.iter_mut().enumerate() {
                    *loss += 0.5 * f64::from(error[r]) * f64::from(gradient[r]);
                }
            }
        }
        if let Some(row) = losses.iter().position(|loss| !loss.is_finite()) {
            let column = scratch.error.iter().position(|error| !error[row].is_finite()).unwrap_or(0);
            return Err(HessianError::NotFiniteResult { row: first + row, column });
        }
        for r in 0..rows {
            for (level, lanes) in levels[r * n..][..n].iter_mut().zip(&scratch.levels) {
                *level = level_byte(lanes[r]);
            }
            for g in 0..of_row {
                (scales[r * of_row + g], zeros[r * of_row + g]) = (scale[g][r], zero[g][r]);
            }
        }
        Ok(())
    }

    fn blocks(&self, columns: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = columns.end;
        columns.step_by(BLOCK).map(move |first| first..(first + BLOCK).min(end))
    }

    /// One group of all rows.
    fn group(&self, scratch: &mut Scratch, columns: Range<usize>, scale: &mut Lanes, zero: &mut Lanes) {
        if columns.len() <= BLOCK {
            self.gradient(scratch, columns.clone());
            for _ in 0..ROUNDS {
                self.levels(scratch, columns.clone(), scale, zero);
                self.params(scratch, columns.clone(), scale, zero);
            }
            return;
        }
        for block in self.blocks(columns.clone()) {
            self.gradient(scratch, block.clone());
            self.levels(scratch, block, scale, zero);
        }
        self.gradient(scratch, columns.clone());
        self.params(scratch, columns, scale, zero);
    }

    /// `G` of these columns.
    fn gradient(&self, scratch: &mut Scratch, columns: Range<usize>) {
        let h = self.matrix().slice_axis_move(Axis(0), Slice::from(columns.clone()));
        let target = scratch.gradient[..columns.len()].as_flattened_mut();
        let target = views::matrix_mut(target, columns.len(), LANES);
        let error = views::matrix(scratch.error.as_flattened(), self.n, LANES);
        matmul_nn(target, false, 1.0, h, error, Compute::F32, Par::Seq);
    }

    /// The levels of a block, one column after the other; keeps its gradient up to date.
    fn levels(&self, scratch: &mut Scratch, columns: Range<usize>, scale: &Lanes, zero: &Lanes) {
        let rows = self.h[columns.start * self.n..columns.end * self.n].chunks_exact(self.n);
        let gradient = &mut scratch.gradient[..columns.len()];
        let (error, levels) = (&mut scratch.error[columns.clone()], &mut scratch.levels[columns.clone()]);
        let top = self.grid.bits.max_level();
        vectorized(
            #[inline(always)]
            || {
                for (j, row) in rows.enumerate() {
                    let row = &row[columns.clone()];
                    let inverse = row[j].recip();
                    let mut moved = [0.0; LANES];
                    for r in 0..LANES {
                        let params = QParams { scale: scale[r], zero: zero[r] };
                        let level = levels[j][r];
                        let wanted = params.value(level) + gradient[j][r] * inverse;
                        let best = if self.grid.is_binary() {
                            self.grid.level(wanted, params)
                        } else {
                            params.level(wanted, top)
                        };
                        moved[r] = scale[r] * (best - level);
                        levels[j][r] = best;
                        error[j][r] -= moved[r];
                    }
                    for (gradient, &h) in gradient.iter_mut().zip(row) {
                        for r in 0..LANES {
                            gradient[r] -= moved[r] * h;
                        }
                    }
                }
            },
        );
    }

    /// Scale and zero level of a group whose gradient is known; keeps that up to date.
    fn params(&self, scratch: &mut Scratch, columns: Range<usize>, scale: &mut Lanes, zero: &mut Lanes) {
        let width = columns.len();
        let Scratch { error, levels, gradient, shifted, product } = scratch;
        let (gradient, shifted, product) =
            (&mut gradient[..width], &mut shifted[..width], &mut product[..width]);
        let error = &mut error[columns.clone()];
        for (shifted, level) in shifted.iter_mut().zip(&levels[columns.clone()]) {
            for r in 0..LANES {
                shifted[r] = level[r] - zero[r];
            }
        }
        let within = Slice::from(columns.clone());
        let h = self.matrix().slice_axis_move(Axis(0), within).slice_axis_move(Axis(1), within);
        let target = views::matrix_mut(product.as_flattened_mut(), width, LANES);
        let source = views::matrix(shifted.as_flattened(), width, LANES);
        matmul_nn(target, false, 1.0, h, source, Compute::F32, Par::Seq);
        let row_sums = &self.row_sums[columns];
        vectorized(
            #[inline(always)]
            || {
                self.step_scale(error, gradient, shifted, product, scale);
                if !self.grid.convention.is_symmetric() && !self.grid.is_binary() {
                    self.step_zero(error, gradient, row_sums, scale, zero);
                }
            },
        );
    }

    /// `s + (a·g) / (a H a)`.
    #[inline(always)]
    fn step_scale(
        &self,
        error: &mut [Lanes],
        gradient: &mut [Lanes],
        shifted: &[Lanes],
        product: &[Lanes],
        scale: &mut Lanes,
    ) {
        let (mut slope, mut curvature) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        for ((a, g), p) in shifted.iter().zip(&*gradient).zip(product) {
            for r in 0..LANES {
                slope[r] += a[r] * g[r];
                curvature[r] += a[r] * p[r];
            }
        }
        let mut step = [0.0; LANES];
        for r in 0..LANES {
            let best = scale[r] + slope[r] / curvature[r];
            // Where all levels are zero the scale does not matter, and is no number here.
            let near = best * LARGEST_STEP > scale[r] && best < scale[r] * LARGEST_STEP;
            let next = self.grid.scale_type.round_scale(if near { best } else { scale[r] });
            // A scale is stored rounded, which may be further from the best one than the old one was.
            let gain = |step: f32| step * (2.0 * slope[r] - step * curvature[r]);
            let next = if gain(next - scale[r]) > 0.0 { next } else { scale[r] };
            step[r] = next - scale[r];
            scale[r] = next;
        }
        for (((e, g), a), p) in error.iter_mut().zip(gradient).zip(shifted).zip(product) {
            for r in 0..LANES {
                e[r] -= step[r] * a[r];
                g[r] -= step[r] * p[r];
            }
        }
    }

    /// One level up or down for the zero, by which every value of the group moves a step down or up.
    #[inline(always)]
    fn step_zero(
        &self,
        error: &mut [Lanes],
        gradient: &mut [Lanes],
        row_sums: &[f32],
        scale: &Lanes,
        zero: &mut Lanes,
    ) {
        let top = self.grid.bits.max_level();
        let total: f32 = row_sums.iter().sum();
        let mut sum = [0.0_f32; LANES];
        for g in &*gradient {
            for r in 0..LANES {
                sum[r] += g[r];
            }
        }
        let mut moved = [0.0_f32; LANES];
        for r in 0..LANES {
            let towards = if sum[r] < 0.0 { 1.0 } else { -1.0 };
            let next = zero[r] + towards;
            // Against the slope `2 |Σ g|` stands the curvature `s Σ H`.
            let better = scale[r] * total < 2.0 * sum[r].abs() && next >= 0.0 && next <= top;
            let change = if better { towards } else { 0.0 };
            moved[r] = -scale[r] * change;
            zero[r] += change;
        }
        for ((e, g), &h) in error.iter_mut().zip(gradient).zip(row_sums) {
            for r in 0..LANES {
                e[r] -= moved[r];
                g[r] -= moved[r] * h;
            }
        }
    }
}

/// Bytes that [sweeps](crate::GptqConfig::sweeps) hold besides the factor, for `n` input channels in groups of that many.
#[must_use]
pub fn descent_bytes(n: usize, group: Option<usize>, par: Par) -> usize {
    let group = group.unwrap_or(n).min(n);
    par.threads() * (2 * n + group.max(BLOCK).min(n) + 2 * group) * size_of::<Lanes>()
}
