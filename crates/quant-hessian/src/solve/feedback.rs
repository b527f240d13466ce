//! What finished columns add to later ones.

use std::ops::Range;

use quant_kernels::Element;

use super::{Problem, SUB};

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
        self.panels.feed_back(target, to, sign, sources, from);
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
