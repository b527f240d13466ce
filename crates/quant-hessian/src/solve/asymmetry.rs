//! What asymmetric calibration (GPTAQ) adds to the column loop.
//!
//! # Decision feedback with a target of its own
//! GPTAQ's update after column j is `w_k −= e_j U_jk − w̃_j P_jk` with `P = α M U`, `M = striu(D Uᵀ)` (`gptaq.md` section 1).
//! Taken for all columns, `W − Q = E U − W̃ P`, that is `E = (W − Q) R + α W̃ M` with `R = U⁻¹`, column k of which reads
//!
//! `w̃_k = w_k + Σ_{j<k} (w_j − q_j) Ũ_jk + Σ_{j<k} w̃_j M̃_jk`, `M̃_jk = α M_jk / R_kk`:
//!
//! one more left-looking sum, over the updated weights where GPTQ's is over the differences. `P` is never formed, and the
//! block size is invisible as in GPTQ ([`Variant::Exact`]).
//!
//! # The published loop
//! It overwrites every column of a block by its own update, so that what the block passes on to later blocks are the rounded
//! columns q_j, not w̃_j ([`Variant::Official`]). The errors then belong to different targets and `P` stays in:
//!
//! `v_k = w_k + Σ_{j in finished blocks} q_j P_jk + Σ_{j<k in this block} w̃_j P_jk`,
//! `w̃_k = v_k + Σ_{j<k} (v_j − q_j) Ũ_jk`,
//!
//! which is GPTQ's sum with v in the place of the original weights.

use std::ops::Range;

use quant_core::{QParams, Variant};
use quant_kernels::{Compute, Element, Par, matmul_nn, views};

use super::{Problem, SUB, Scratch, Span};
use crate::coupling::Coupling;
use crate::feedback::add_feedback;

/// No asymmetric calibration.
pub(super) const PLAIN: u8 = 0;
/// [`Variant::Exact`].
pub(super) const EXACT: u8 = 1;
/// [`Variant::Official`].
pub(super) const OFFICIAL: u8 = 2;

/// The second sum of the column loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asymmetry<'a, T> {
    /// `M̃`, or `P` for [`Variant::Official`].
    pub(crate) coupling: &'a Coupling<T>,
    pub(crate) variant: Variant,
}

impl<T: Element> Asymmetry<'_, T> {
    /// `target_k += Σ_j values_j C_jk` for the positions k of `to` and j of `from`.
    pub(super) fn add<const L: usize>(
        &self,
        target: &mut [[T; L]],
        to: Range<usize>,
        values: &[[T; L]],
        from: Range<usize>,
    ) {
        if from.is_empty() || to.is_empty() {
            return;
        }
        let values = views::matrix(values.as_flattened(), from.len(), L);
        let target = views::matrix_mut(target.as_flattened_mut(), to.len(), L);
        matmul_nn(target, true, T::one(), self.coupling.block(to, from), values, Compute::F32, Par::Seq);
    }

    /// The entries inside the sub-block of `positions`, `[k][j]`.
    pub(super) fn load(&self, coefficients: &mut [[T; SUB]], positions: Range<usize>) {
        for k in positions.clone() {
            for j in positions.start..k {
                coefficients[k - positions.start][j - positions.start] = self.coupling.at(j, k);
            }
        }
    }
}

impl<T: Element> Problem<'_, T> {
    /// Adds to positions `to` of the super-block that starts at `left` what those of `from` pass on.
    pub(super) fn couple<const L: usize>(
        &self,
        scratch: &mut Scratch<T, L>,
        left: usize,
        to: Range<usize>,
        from: Range<usize>,
    ) {
        let Some(asymmetry) = self.aim.asymmetry() else { return };
        if from.is_empty() {
            return;
        }
        let local = to.start - left..to.end - left;
        let Scratch { block, origin, values, delta, .. } = scratch;
        let (block, origin, values) = (&mut block[local.clone()], &mut origin[local], &values[from.clone()]);
        if asymmetry.variant == Variant::Exact {
            asymmetry.add(block, to, values, from);
            return;
        }
        let delta = &mut delta[..to.len()];
        delta.fill([T::zero(); L]);
        asymmetry.add(delta, to, values, from);
        for ((block, origin), delta) in block.iter_mut().zip(origin).zip(delta) {
            add_both(block, origin, delta);
        }
    }

    /// What a finished block passes on to later ones: with [`Variant::Official`] the rounded columns.
    pub(super) fn close_block<const L: usize>(&self, scratch: &mut Scratch<T, L>, span: &Span) {
        if self.aim.asymmetry().is_none_or(|a| a.variant != Variant::Official) {
            return;
        }
        let Scratch { values, levels, scales, zeros, .. } = scratch;
        for (position, local) in span.columns.clone().zip(span.local()) {
            let g = self.group(position);
            let (levels, scales, zeros) = (&levels[local], &scales[g], &zeros[g]);
            for (r, value) in values[position].iter_mut().enumerate() {
                let params = QParams { scale: scales[r], zero: zeros[r] };
                *value = T::from_f32(params.value(f32::from(levels[r])));
            }
        }
    }
}

/// One column receives from the columns before it in its sub-block, and becomes a value itself: the last of `values`.
#[inline(always)]
pub(super) fn couple_column<T: Element, const L: usize, const MODE: u8>(
    block: &mut [T; L],
    origin: &mut [T; L],
    values: &mut [[T; L]],
    coefficients: &[T],
) {
    let Some((own, before)) = values.split_last_mut() else { return };
    if MODE == OFFICIAL {
        let mut delta = [T::zero(); L];
        add_feedback(&mut delta, before, coefficients);
        add_both(block, origin, &delta);
    } else {
        add_feedback(block, before, coefficients);
    }
    *own = *block;
}

#[inline(always)]
fn add_both<T: Element, const L: usize>(block: &mut [T; L], origin: &mut [T; L], delta: &[T; L]) {
    for r in 0..L {
        block[r] += delta[r];
        origin[r] += delta[r];
    }
}
