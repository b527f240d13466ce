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
use quant_core::{ClipSearch, Grid, QParams};
use quant_kernels::{Compute, Element, Par, matmul_nn, vectorized};

use crate::panels::{PANEL, Panels};
use crate::views;

/// Columns solved one by one between two products inside a block.
const SUB: usize = 32;
/// Columns that receive the feedback of all earlier ones in one product, as whole blocks.
pub(crate) const SUPER: usize = PANEL;

/// When parameters are found, and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// One set per row, from the original row, dead columns included.
    Channel,
    /// Groups of consecutive original columns, from the weight with dead columns zeroed.
    Static(usize),
    /// Groups of consecutive processing positions, from the weight as updated by all finished blocks.
    Dynamic(usize),
}

impl Plan {
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
    /// Column at every processing position.
    pub(crate) order: Option<&'a [u32]>,
    pub(crate) dead: &'a [bool],
    pub(crate) grid: Grid,
    pub(crate) clip: Option<ClipSearch>,
    pub(crate) plan: Plan,
    pub(crate) block: usize,
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
    /// `w̃` of the current super-block.
    block: Vec<[T; L]>,
    /// Original weights of the current super-block.
    origin: Vec<[T; L]>,
    /// Weights from the block's start to the end of its last group, as the finished blocks left them.
    outer: Vec<[T; L]>,
    /// What the finished blocks added to them.
    update: Vec<[T; L]>,
    levels: Vec<[u8; L]>,
    /// Parameters by group.
    scales: Vec<[f32; L]>,
    zeros: Vec<[f32; L]>,
    /// One row of a group, contiguous.
    row: Vec<f32>,
    /// `Ũ` of a sub-block, `[k][j]`.
    feedback: Vec<[T; SUB]>,
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
            Plan::Channel => 0,
            Plan::Static(size) => self.column(position) / size,
            Plan::Dynamic(size) => position / size,
        }
    }

    pub(crate) fn scratch<const L: usize>(&self) -> Scratch<T, L> {
        let n = self.n();
        let block = self.super_block().min(n);
        let groups = self.plan.groups(n);
        let zero = [T::zero(); L];
        Scratch {
            diff: vec![zero; n],
            block: vec![zero; block],
            origin: vec![zero; block],
            outer: Vec::new(),
            update: Vec::new(),
            levels: vec![[0; L]; block],
            scales: vec![[1.0; L]; groups],
            zeros: vec![[0.0; L]; groups],
            row: Vec::new(),
            feedback: vec![[T::zero(); SUB]; SUB],
        }
    }

    /// Solves the rows `first_row..` of one tile.
    ///
    /// # Errors
    /// `(row, column)` of the first updated weight (by position) that is not finite.
    pub(crate) fn solve<const L: usize>(
        &self,
        scratch: &mut Scratch<T, L>,
        out: TileOut<'_>,
    ) -> Result<(), (usize, usize)> {
        let n = self.n();
        let rows = out.losses.len();
        out.losses.fill(0.0);
        self.static_params(scratch, out.first_row, rows);
        let stride = self.super_block();
        for left in (0..n).step_by(stride) {
            let right = (left + stride).min(n);
            let width = right - left;
            self.load(&mut scratch.origin, left..right, out.first_row, rows);
            scratch.block[..width].copy_from_slice(&scratch.origin[..width]);
            let solved = &scratch.diff[..left];
            self.feed_back(&mut scratch.block[..width], left..right, T::one(), solved, 0..left);
            for start in (left..right).step_by(self.block) {
                let here = Span { left, columns: start..(start + self.block).min(right) };
                let solved = &scratch.diff[left..start];
                let target = &mut scratch.block[here.local()];
                self.feed_back(target, here.columns.clone(), T::one(), solved, left..start);
                if let Plan::Dynamic(size) = self.plan {
                    self.dynamic_params(scratch, size, &here, out.first_row, rows);
                }
                let losses = self.solve_block(scratch, &here);
                for (row, loss) in losses[..rows].iter().enumerate() {
                    if !loss.is_finite() {
                        let mut block = scratch.block[here.local()].iter();
                        let at = block.position(|w| !w[row].is_finite()).unwrap_or(0);
                        return Err((out.first_row + row, self.column(start + at)));
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
        if rows < L {
            target.fill([T::zero(); L]);
        }
        // 16 rows at a time: one cache line of every target column is filled before moving on.
        for r0 in (0..rows).step_by(16) {
            for (position, lanes) in positions.clone().zip(target.iter_mut()) {
                let column = self.column(position);
                let dead = self.dead[column];
                for r in r0..(r0 + 16).min(rows) {
                    lanes[r] =
                        if dead { T::zero() } else { T::from_f32(self.weight[(first_row + r, column)]) };
                }
            }
        }
    }

    /// `target_k += sign · Σ_j sources_j Ũ_jk` for the positions k of `target` and j of `from`.
    fn feed_back<const L: usize>(
        &self,
        target: &mut [[T; L]],
        to: Range<usize>,
        sign: T,
        sources: &[[T; L]],
        from: Range<usize>,
    ) {
        if from.is_empty() {
            return;
        }
        let sources = views::matrix(sources.as_flattened(), from.len(), L);
        let first = to.start;
        self.panels.for_columns(to, from, |column, panel| {
            let width = panel.ncols();
            let part = target[column - first..][..width].as_flattened_mut();
            let part = views::matrix_mut(part, width, L);
            matmul_nn(part, true, sign, panel.reversed_axes(), sources, Compute::F32, Par::Seq);
        });
    }

    /// `sign · Ũ_jk` inside the sub-block that starts at `start`.
    fn load_feedback(&self, feedback: &mut [[T; SUB]], positions: Range<usize>, sign: T) {
        for k in positions.clone() {
            for j in positions.start..k {
                feedback[k - positions.start][j - positions.start] = sign * self.panels.at(j, k);
            }
        }
    }

    /// Parameters that do not depend on the column loop, from the original rows.
    fn static_params<const L: usize>(&self, scratch: &mut Scratch<T, L>, first_row: usize, rows: usize) {
        let Scratch { scales, zeros, row: buffer, .. } = scratch;
        let size = match self.plan {
            Plan::Channel => self.n().max(1),
            Plan::Static(size) => size,
            Plan::Dynamic(_) => return,
        };
        for r in 0..rows {
            buffer.clear();
            buffer.extend(self.weight.row(first_row + r).iter().zip(self.dead).map(|(&w, &dead)| {
                // The published per-channel search runs before dead columns are zeroed, the grouped one after.
                if dead && self.plan != Plan::Channel { 0.0 } else { w }
            }));
            vectorized(
                #[inline(always)]
                || {
                    for (g, group) in buffer.chunks(size).enumerate() {
                        let params = self.grid.params(group, self.clip.as_ref());
                        scales[g][r] = params.scale;
                        zeros[g][r] = params.zero;
                    }
                },
            );
        }
    }

    /// Parameters of the groups that start in a block, from the weight as the finished blocks left it.
    ///
    /// The current block's own updates are deliberately not in it (`gptq.md` section 2, step 7): the published code writes
    /// a block back only when it is finished. That weight is `W_F + δ`, where S are the finished positions, F the others and
    /// `δ = −E_S U_SF = D_S R_SF R_FF⁻¹`; column by column, `δ_k = Σ_{j∈S} d_j Ũ_jk − Σ_{j∈F, j<k} δ_j Ũ_jk`. The first sum
    /// is what the block already received, the second is a forward substitution.
    fn dynamic_params<const L: usize>(
        &self,
        scratch: &mut Scratch<T, L>,
        size: usize,
        span: &Span,
        first_row: usize,
        rows: usize,
    ) {
        let n = self.n();
        let positions = span.columns.clone();
        let (begin, width) = (positions.start, positions.len());
        let first = begin.div_ceil(size) * size;
        let last = (positions.end - 1) / size * size;
        if last < first {
            return;
        }
        let reach = (last + size).min(n).max(positions.end);
        let Scratch { diff, block, origin, outer, update, scales, zeros, row, feedback, .. } = scratch;
        let (block, origin) = (&block[span.local()], &origin[span.local()]);
        outer.resize(reach - begin, [T::zero(); L]);
        outer[..width].copy_from_slice(origin);
        self.load(&mut outer[width..], positions.end..reach, first_row, rows);
        if begin > 0 {
            update.clear();
            update.resize(reach - begin, [T::zero(); L]);
            for ((update, block), origin) in update.iter_mut().zip(block).zip(origin) {
                for r in 0..L {
                    update[r] = block[r] - origin[r];
                }
            }
            let beyond = positions.end..reach;
            self.feed_back(&mut update[width..], beyond, T::one(), &diff[..begin], 0..begin);
            for start in (0..reach - begin).step_by(SUB) {
                let end = (start + SUB).min(reach - begin);
                let here = begin + start..begin + end;
                let (solved, rest) = update.split_at_mut(start);
                let rest = &mut rest[..end - start];
                self.feed_back(rest, here.clone(), -T::one(), solved, begin..begin + start);
                self.load_feedback(feedback, here, -T::one());
                vectorized(
                    #[inline(always)]
                    || {
                        for i in 0..rest.len() {
                            let (solved, rest) = rest.split_at_mut(i);
                            add_feedback(&mut rest[0], solved, &feedback[i][..i]);
                        }
                    },
                );
            }
            for (outer, update) in outer.iter_mut().zip(update.iter()) {
                for r in 0..L {
                    outer[r] += update[r];
                }
            }
        }
        for start in (first..positions.end).step_by(size) {
            let columns = &outer[start - begin..(start + size).min(n) - begin];
            let g = start / size;
            vectorized(
                #[inline(always)]
                || self.group_params(columns, rows, row, &mut scales[g], &mut zeros[g]),
            );
        }
    }

    #[inline(always)]
    fn group_params<const L: usize>(
        &self,
        columns: &[[T; L]],
        rows: usize,
        row: &mut Vec<f32>,
        scales: &mut [f32; L],
        zeros: &mut [f32; L],
    ) {
        if self.clip.is_none() && !self.grid.is_binary() {
            // Without a search only the extremes count, and those are found for all rows at once.
            let mut lo: [f32; L] = std::array::from_fn(|r| columns[0][r].to_f32_lossy());
            let mut hi = lo;
            for lanes in columns {
                for r in 0..L {
                    let w = lanes[r].to_f32_lossy();
                    lo[r] = lo[r].min(w);
                    hi[r] = hi[r].max(w);
                }
            }
            for r in 0..L {
                let QParams { scale, zero } = self.grid.from_range(lo[r], hi[r]);
                scales[r] = scale;
                zeros[r] = zero;
            }
            return;
        }
        for r in 0..rows {
            row.clear();
            row.extend(columns.iter().map(|lanes| lanes[r].to_f32_lossy()));
            let params = self.grid.params(row, self.clip.as_ref());
            scales[r] = params.scale;
            zeros[r] = params.zero;
        }
    }

    /// Quantises the columns of a block in order; returns `Σ e²` over the block, by row.
    fn solve_block<const L: usize>(&self, scratch: &mut Scratch<T, L>, span: &Span) -> [T; L] {
        let Scratch { diff, block, origin, levels, scales, zeros, feedback, .. } = scratch;
        let positions = span.columns.clone();
        let mut losses = [T::zero(); L];
        let mut start = positions.start;
        while start < positions.end {
            let end = (start + SUB).min(positions.end);
            let local = start - span.left..end - span.left;
            let solved = &diff[positions.start..start];
            self.feed_back(&mut block[local.clone()], start..end, T::one(), solved, positions.start..start);
            self.load_feedback(feedback, start..end, T::one());
            let (block, origin, levels) =
                (&mut block[local.clone()], &origin[local.clone()], &mut levels[local]);
            vectorized(
                #[inline(always)]
                || {
                    for i in 0..end - start {
                        let (solved, rest) = diff[start..end].split_at_mut(i);
                        add_feedback(&mut block[i], solved, &feedback[i][..i]);
                        let g = self.group(start + i);
                        let pivot = self.panels.diagonal()[start + i];
                        let column = Column {
                            updated: &block[i],
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

/// `target += Σ_j solved_j · feedback_j` over all rows of a tile, fused, the sum in the order of j.
#[inline(always)]
pub(crate) fn add_feedback<T: Element, const L: usize>(
    target: &mut [T; L],
    solved: &[[T; L]],
    feedback: &[T],
) {
    // As many rows at a time as stay in registers.
    const ROWS: usize = 64;
    for part in 0..L / ROWS {
        let range = part * ROWS..(part + 1) * ROWS;
        let mut acc = [T::zero(); ROWS];
        acc.copy_from_slice(&target[range.clone()]);
        for (lanes, &u) in solved.iter().zip(feedback) {
            let lanes = &lanes[range.clone()];
            for r in 0..ROWS {
                acc[r] = lanes[r].mul_add(u, acc[r]);
            }
        }
        target[range].copy_from_slice(&acc);
    }
}

/// One column of a tile, ready to be quantised.
struct Column<'a, T, const L: usize> {
    updated: &'a [T; L],
    origin: &'a [T; L],
    scale: &'a [f32; L],
    zero: &'a [f32; L],
}

impl<T: Element, const L: usize> Column<'_, T, L> {
    #[inline(always)]
    fn quantise(
        &self,
        level: impl Fn(f32, QParams) -> f32,
        pivot: T,
        diff: &mut [T; L],
        levels: &mut [u8; L],
        losses: &mut [T; L],
    ) {
        for r in 0..L {
            let w = self.updated[r];
            let params = QParams { scale: self.scale[r], zero: self.zero[r] };
            let l = level(w.to_f32_lossy(), params);
            let q = T::from_f32(params.value(l));
            diff[r] = self.origin[r] - q;
            let e = (w - q) * pivot;
            losses[r] += e * e;
            // A level is an integer from 0 to 255; added to 2^23 it stands in the low bits. A saturating cast would keep
            // the whole loop scalar.
            levels[r] = (l + 8_388_608.0).to_bits() as u8;
        }
    }
}
