//! What finished columns add to later ones.

use std::ops::Range;

use quant_kernels::{Compute, Element, Par, matmul_nn};

use super::{Problem, SUB};
use crate::views;

impl<T: Element> Problem<'_, T> {
    /// `target_k += sign · Σ_j sources_j Ũ_jk` for the positions k of `target` and j of `from`.
    pub(super) fn feed_back<const L: usize>(
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
    pub(super) fn load_feedback(&self, feedback: &mut [[T; SUB]], positions: Range<usize>, sign: T) {
        for k in positions.clone() {
            for j in positions.start..k {
                feedback[k - positions.start][j - positions.start] = sign * self.panels.at(j, k);
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
    const { assert!(L.is_multiple_of(ROWS), "a tile is whole parts") }
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
