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
