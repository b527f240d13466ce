//! The column loop of GPTQ on one tile of rows.
//!
//! # Decision feedback instead of the inverse
//! GPTQ's update after column j is `w_k -= e_j U_jk` with `e_j = (w̃_j − q_j)/U_jj` and `UᵀU = H_d⁻¹`. With `R = U⁻¹`
//! (upper triangular, `R Rᵀ = H_d`) and `W − Q = E U`, that is `E = (W − Q) R`, column k of the last equation reads
//!
//! `w̃_k = w_k + Σ_{j<k} (w_j − q_j) Ũ_jk`, `Ũ_jk = R_jk / R_kk`, `e_k = (w̃_k − q_k) R_kk`,
//!
//! with the **original** weights w: the differences `d_j = w_j − q_j` are final as soon as they are known, so the loop is
//! a left-looking triangular solve whose bulk is a matrix product with a long inner dimension.
//!
//! # Layout
//! A tile of `L` rows is stored transposed, one array of `L` numbers per column: every column operation runs over consecutive
//! numbers, and the products read the differences as they lie. All tiles have the same height (the last is padded with zero
//! rows), so a row's result does not depend on which rows it is computed with.

use std::ops::Range;

use ndarray::ArrayView2;
use quant_core::{ClipSearch, CoreError, Grid, QParams, Variant};
use quant_kernels::{Element, vectorized};

use crate::HessianError;
use crate::feedback::add_feedback;
use crate::lanes;
use crate::panels::{PANEL, Panels};

mod asymmetry;
mod column;
mod feedback;
mod params;

pub(crate) use asymmetry::Asymmetry;
use asymmetry::{EXACT, OFFICIAL, PLAIN, couple_column};
use column::Column;

/// Columns solved one by one between two products inside a block.
const SUB: usize = 32;
/// Columns that receive the feedback of all earlier ones in one product, as whole blocks.
pub(crate) const SUPER: usize = PANEL;

/// When parameters are found, and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupPlan {
    /// One set per row, from the original row, dead columns included.
    Channel,
    /// Groups of consecutive original columns, from the weight with dead columns zeroed.
    Static(usize),
    /// Groups of consecutive processing positions, from the weight as updated by all finished blocks.
    Dynamic(usize),
}

impl GroupPlan {
    pub(crate) fn groups(self, n: usize) -> usize {
        match self {
            Self::Channel => 1,
            Self::Static(size) | Self::Dynamic(size) => n.div_ceil(size).max(1),
        }
    }
}

/// What all tiles share.
pub(crate) struct Problem<'a, T> {
    pub(crate) weight: ArrayView2<'a, f32>,
    pub(crate) panels: &'a Panels<T>,
    pub(crate) aim: Aim<'a, T>,
    /// Column at every processing position.
    pub(crate) order: Option<&'a [u32]>,
    pub(crate) dead: &'a [bool],
    pub(crate) grid: Grid,
    pub(crate) clip: Option<ClipSearch>,
    pub(crate) plan: GroupPlan,
    pub(crate) block: usize,
}

/// Whose outputs the rounded weight shall have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim<'a, T> {
    /// Those of the weight on the same inputs: GPTQ.
    Weight,
    /// Those of the weight on the inputs of the float model, made up for column by column: GPTAQ.
    Asymmetric(Asymmetry<'a, T>),
    /// Those of another weight on the same inputs: Qronos.
    Target(Target<'a, T>),
}

impl<'a, T> Aim<'a, T> {
    fn asymmetry(&self) -> Option<&Asymmetry<'a, T>> {
        match self {
            Self::Asymmetric(asymmetry) => Some(asymmetry),
            Self::Weight | Self::Target(_) => None,
        }
    }
    fn target(&self) -> Option<&Target<'a, T>> {
        match self {
            Self::Target(target) => Some(target),
            Self::Weight | Self::Asymmetric(_) => None,
        }
    }
}

/// Another weight to be rounded, by processing position: the weight itself then only has the say on scales and zeros, and a
/// dead column is a column like others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a, T> {
    /// `[n, out]`, row-major: a position of all rows is consecutive.
    pub(crate) weight: &'a [T],
    /// What the first position is rounded from, `[out]`; its error is that of `weight` all the same.
    pub(crate) first: &'a [T],
}

impl<T> Target<'_, T> {
    /// The rows of a tile at one position.
    fn lanes(&self, position: usize, first_row: usize, rows: usize) -> &[T] {
        let out = self.first.len();
        &self.weight[position * out + first_row..][..rows]
    }
}

/// Where the results of a tile of `rows` rows go; rows are contiguous.
pub(crate) struct TileOut<'a> {
    /// First row of the tile.
    pub(crate) first_row: usize,
    /// `[rows, n]`, original column order.
    pub(crate) levels: &'a mut [u8],
    /// `[rows, groups]`.
    pub(crate) scales: &'a mut [f32],
    /// `[rows, groups]`.
    pub(crate) zeros: &'a mut [f32],
    /// `Σ_k e_k²/2`, `[rows]`.
    pub(crate) losses: &'a mut [f64],
}

/// The buffers of one worker.
pub(crate) struct Scratch<T, const L: usize> {
    /// `w − q` of finished positions, by processing position.
    diff: Vec<[T; L]>,
    /// `w̃` of the current super-block: what columns are rounded from.
    block: Vec<[T; L]>,
    /// Original weights of the current super-block; `v` of the published GPTAQ.
    origin: Vec<[T; L]>,
    /// Weights from the block's start to the end of its last group, as the finished blocks left them.
    outer: Vec<[T; L]>,
    /// What the finished blocks added to them.
    update: Vec<[T; L]>,
    /// What the first position is rounded from, where that is not `w̃`.
    first: Option<[T; L]>,
    levels: Vec<[u8; L]>,
    /// Parameters by group.
    scales: Vec<[f32; L]>,
    zeros: Vec<[f32; L]>,
    /// One row of a group, contiguous.
    row: Vec<f32>,
    /// `Ũ` of a sub-block, `[k][j]`.
    feedback: Vec<[T; SUB]>,
    /// GPTAQ only, by processing position: what finished positions are to later ones, `w̃` or `q`.
    values: Vec<[T; L]>,
    /// What those add to the positions of one block, where it has two places to go.
    delta: Vec<[T; L]>,
    /// `M̃` or `P` of a sub-block, `[k][j]`.
    coefficients: Vec<[T; SUB]>,
}

/// A block of positions inside the super-block that starts at `left`.
struct Span {
    left: usize,
    columns: Range<usize>,
}

impl Span {
    /// The same positions in the buffers of the super-block.
    fn local(&self) -> Range<usize> {
        self.columns.start - self.left..self.columns.end - self.left
    }
}

impl<T: Element> Problem<'_, T> {
    fn n(&self) -> usize {
        self.panels.n()
    }
    /// Columns of a super-block: whole blocks.
    fn super_block(&self) -> usize {
        (SUPER / self.block).max(1).saturating_mul(self.block)
    }
    #[inline(always)]
    fn column(&self, position: usize) -> usize {
        self.order.map_or(position, |order| order[position] as usize)
    }
    #[inline(always)]
    fn group(&self, position: usize) -> usize {
        match self.plan {
            GroupPlan::Channel => 0,
            GroupPlan::Static(size) => self.column(position) / size,
            GroupPlan::Dynamic(size) => position / size,
        }
    }

    pub(crate) fn scratch<const L: usize>(&self) -> Scratch<T, L> {
        let n = self.n();
        let block = self.super_block().min(n);
        let groups = self.plan.groups(n);
        let zero = [T::zero(); L];
        let variant = self.aim.asymmetry().map(|a| a.variant);
        Scratch {
            diff: vec![zero; n],
            block: vec![zero; block],
            origin: vec![zero; block],
            outer: Vec::new(),
            update: Vec::new(),
            first: None,
            levels: vec![[0; L]; block],
            scales: vec![[1.0; L]; groups],
            zeros: vec![[0.0; L]; groups],
            row: Vec::new(),
            feedback: vec![[T::zero(); SUB]; SUB],
            values: vec![zero; if variant.is_some() { n } else { 0 }],
            delta: vec![zero; if variant == Some(Variant::Official) { block } else { 0 }],
            coefficients: vec![[T::zero(); SUB]; SUB],
        }
    }

    /// Solves the rows `first_row..` of one tile.
    ///
    /// # Errors
    /// See [`Self::failure`].
    pub(crate) fn solve<const L: usize>(
        &self,
        scratch: &mut Scratch<T, L>,
        out: TileOut<'_>,
    ) -> Result<(), HessianError> {
        let n = self.n();
        let rows = out.losses.len();
        out.losses.fill(0.0);
        self.static_params(scratch, out.first_row, rows);
        scratch.first = self.aim.target().map(|target| {
            let mut lanes = [T::zero(); L];
            lanes[..rows].copy_from_slice(&target.first[out.first_row..][..rows]);
            lanes
        });
        let stride = self.super_block();
        for left in (0..n).step_by(stride) {
            let right = (left + stride).min(n);
            let width = right - left;
            self.load(&mut scratch.origin, left..right, out.first_row, rows);
            scratch.block[..width].copy_from_slice(&scratch.origin[..width]);
            let solved = &scratch.diff[..left];
            self.feed_back(&mut scratch.block[..width], left..right, T::one(), solved, 0..left);
            self.couple(scratch, left, left..right, 0..left);
            for start in (left..right).step_by(self.block) {
                let here = Span { left, columns: start..(start + self.block).min(right) };
                let solved = &scratch.diff[left..start];
                let target = &mut scratch.block[here.local()];
                self.feed_back(target, here.columns.clone(), T::one(), solved, left..start);
                self.couple(scratch, left, here.columns.clone(), left..start);
                if let GroupPlan::Dynamic(size) = self.plan {
                    self.dynamic_params(scratch, size, &here, out.first_row, rows);
                }
                let losses = match self.aim.asymmetry().map(|a| a.variant) {
                    None => self.solve_block::<L, PLAIN>(scratch, &here),
                    Some(Variant::Exact) => self.solve_block::<L, EXACT>(scratch, &here),
                    Some(Variant::Official) => self.solve_block::<L, OFFICIAL>(scratch, &here),
                };
                self.close_block(scratch, &here);
                for (row, loss) in losses[..rows].iter().enumerate() {
                    if !loss.is_finite() {
                        return Err(self.failure(scratch, &here, out.first_row, row));
                    }
                    out.losses[row] += 0.5 * loss.to_f64_exact();
                }
            }
            self.store_levels(&scratch.levels[..width], left, out.levels);
        }
        let groups = scratch.scales.len();
        for row in 0..rows {
            for g in 0..groups {
                out.scales[row * groups + g] = scratch.scales[g][row];
                out.zeros[row * groups + g] = scratch.zeros[g][row];
            }
        }
        Ok(())
    }

    /// Original weights of positions, dead columns and rows beyond the tile's end zeroed.
    fn load<const L: usize>(
        &self,
        target: &mut [[T; L]],
        positions: Range<usize>,
        first_row: usize,
        rows: usize,
    ) {
        let target = &mut target[..positions.len()];
        match self.aim.target() {
            None => {
                let columns = positions.map(|position| self.column(position));
                lanes::load(target, self.weight, self.dead, columns, first_row, rows);
            }
            Some(other) => {
                for (position, lanes) in positions.zip(target) {
                    lanes[rows..].fill(T::zero());
                    lanes[..rows].copy_from_slice(other.lanes(position, first_row, rows));
                }
            }
        }
    }

    /// Quantises the columns of a block in order; returns `Σ e²` over the block, by row.
    fn solve_block<const L: usize, const MODE: u8>(
        &self,
        scratch: &mut Scratch<T, L>,
        span: &Span,
    ) -> [T; L] {
        let positions = span.columns.clone();
        let mut losses = [T::zero(); L];
        let mut start = positions.start;
        while start < positions.end {
            let end = (start + SUB).min(positions.end);
            let local = start - span.left..end - span.left;
            let solved = &scratch.diff[positions.start..start];
            let target = &mut scratch.block[local.clone()];
            self.feed_back(target, start..end, T::one(), solved, positions.start..start);
            if MODE != PLAIN {
                self.couple(scratch, span.left, start..end, positions.start..start);
            }
            let Scratch {
                diff,
                block,
                origin,
                first,
                levels,
                scales,
                zeros,
                feedback,
                values,
                coefficients,
                ..
            } = &mut *scratch;
            let first = first.as_ref().filter(|_| start == 0);
            self.load_feedback(feedback, start..end, T::one());
            if let Some(asymmetry) = self.aim.asymmetry() {
                asymmetry.load(coefficients, start..end);
            }
            let (block, origin, levels) =
                (&mut block[local.clone()], &mut origin[local.clone()], &mut levels[local]);
            vectorized(
                #[inline(always)]
                || {
                    for i in 0..end - start {
                        let (solved, rest) = diff[start..end].split_at_mut(i);
                        add_feedback(&mut block[i], solved, &feedback[i][..i]);
                        if MODE != PLAIN {
                            let values = &mut values[start..=start + i];
                            let coefficients = &coefficients[i][..i];
                            couple_column::<T, L, MODE>(&mut block[i], &mut origin[i], values, coefficients);
                        }
                        let g = self.group(start + i);
                        let pivot = self.panels.diagonal()[start + i];
                        let column = Column {
                            updated: &block[i],
                            rounded: first.filter(|_| i == 0).unwrap_or(&block[i]),
                            origin: &origin[i],
                            scale: &scales[g],
                            zero: &zeros[g],
                        };
                        if self.grid.is_binary() {
                            let level = |w, p| self.grid.level(w, p);
                            column.quantise(level, pivot, &mut rest[0], &mut levels[i], &mut losses);
                        } else {
                            let top = self.grid.bits.max_level();
                            let level = |w, p: QParams| p.level(w, top);
                            column.quantise(level, pivot, &mut rest[0], &mut levels[i], &mut losses);
                        }
                    }
                },
            );
            start = end;
        }
        losses
    }

    /// Why the loss of a row of the tile is not finite after a block: the first scale or column, by position, that made it so.
    fn failure<const L: usize>(
        &self,
        scratch: &Scratch<T, L>,
        span: &Span,
        first_row: usize,
        row: usize,
    ) -> HessianError {
        let mut loss = T::zero();
        for (position, local) in span.columns.clone().zip(span.local()) {
            let g = self.group(position);
            let (origin, scale, zero) = (&scratch.origin[local], &scratch.scales[g], &scratch.zeros[g]);
            let updated = &scratch.block[local];
            let column = Column { updated, rounded: updated, origin, scale, zero };
            let params = column.params(row);
            if !params.scale.is_finite() {
                return HessianError::Core(CoreError::Scale {
                    scale: params.scale,
                    scale_type: self.grid.scale_type.name(),
                    row: first_row + row,
                    group: g,
                });
            }
            let q = T::from_f32(params.value(f32::from(scratch.levels[local][row])));
            let e = column.error(row, q, self.panels.diagonal()[position]);
            loss += e * e;
            if !loss.is_finite() {
                return HessianError::NotFiniteResult { row: first_row + row, column: self.column(position) };
            }
        }
        // The sum above repeats the one that left the finite numbers, so this is not reached.
        HessianError::NotFiniteResult { row: first_row + row, column: self.column(span.columns.end - 1) }
    }

    /// Levels of a super-block into the rows of the result, in original column order.
    fn store_levels<const L: usize>(&self, levels: &[[u8; L]], start: usize, out: &mut [u8]) {
        let n = self.n();
        for (r, row) in out.chunks_exact_mut(n).enumerate() {
            match self.order {
                None => {
                    for (level, lanes) in row[start..].iter_mut().zip(levels) {
                        *level = lanes[r];
                    }
                }
                Some(order) => {
                    for (&column, lanes) in order[start..].iter().zip(levels) {
                        row[column as usize] = lanes[r];
                    }
                }
            }
        }
    }
}
