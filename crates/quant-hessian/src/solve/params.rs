//! Scales and zero levels of groups: from the original weight, or from what finished blocks made of it.

use quant_core::{QParams, Variant};
use quant_kernels::{Element, vectorized};

use super::{GroupPlan, Problem, SUB, Scratch, Span};
use crate::feedback::add_feedback;

impl<T: Element> Problem<'_, T> {
    /// Parameters that do not depend on the column loop, from the original rows.
    pub(super) fn static_params<const L: usize>(
        &self,
        scratch: &mut Scratch<T, L>,
        first_row: usize,
        rows: usize,
    ) {
        let Scratch { scales, zeros, row: buffer, .. } = scratch;
        let size = match self.plan {
            GroupPlan::Channel => self.n().max(1),
            GroupPlan::Static(size) => size,
            GroupPlan::Dynamic(_) => return,
        };
        for r in 0..rows {
            buffer.clear();
            buffer.extend(self.weight.row(first_row + r).iter().zip(self.dead).map(|(&w, &dead)| {
                // The published per-channel search runs before dead columns are zeroed, the grouped one after; with another
                // target they are not.
                let zeroed = dead && self.plan != GroupPlan::Channel && self.aim.target().is_none();
                if zeroed { 0.0 } else { w }
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
    ///
    /// With GPTAQ `E_S = D_S R_SS + α W̃_S M_SS` and `W_F` also gains `W̃_S P_SF = α W̃_S (M_SS U_SF + M_SF U_FF)`. The terms with
    /// `M_SS` cancel, so `δ = (D_S R_SF + α W̃_S M_SF) R_FF⁻¹`: the first sum gains `Σ_{j∈S} w̃_j M̃_jk`, which the block has
    /// received too. The published GPTAQ is GPTQ with v for w: `W_F` becomes `V_F`, what S passed on, the rest stays.
    pub(super) fn dynamic_params<const L: usize>(
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
        let Scratch { diff, block, origin, outer, update, scales, zeros, row, feedback, values, .. } =
            scratch;
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
            self.feed_back(&mut update[width..], beyond.clone(), T::one(), &diff[..begin], 0..begin);
            if let Some(asymmetry) = self.aim.asymmetry() {
                let target = match asymmetry.variant {
                    Variant::Exact => &mut update[width..],
                    Variant::Official => &mut outer[width..],
                };
                asymmetry.add(target, beyond, &values[..begin], 0..begin);
            }
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
}
