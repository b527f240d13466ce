//! The public solver of the whole mismatch between the float and the quantised model.

use ndarray::ArrayView2;
use quant_core::Variant;
use quant_kernels::{Element, Par};

use crate::descent::Lanes;
use crate::gptq::{check_factor, solve};
use crate::retarget::{Mismatch, Retargeted};
use crate::solve::{Aim, Target};
use crate::{ActOrder, Factor, GptqConfig, GptqResult, HessianError, Retarget, workspace_bytes};

/// What [`qronos`] does to one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct QronosConfig {
    /// Grid, groups, clip search, order and block size, as for [`gptq`](crate::gptq). Scales and zeros come from the weight before
    /// anything else: groups are static.
    pub gptq: GptqConfig,
    /// What becomes of a dead channel that is the first in processing order: its own rounding, as of every other dead channel,
    /// or, as the published code has it, that of 0. Independent of the grid's own variant.
    pub variant: Variant,
}

impl QronosConfig {
    /// These settings with static groups, and the exact variant.
    #[must_use]
    pub fn new(gptq: GptqConfig) -> Self {
        Self { gptq: GptqConfig { static_groups: true, ..gptq }, variant: Variant::Exact }
    }

    /// What a dead channel that comes first is rounded from, as a multiple of its weight.
    pub(crate) fn dead_first(&self) -> f64 {
        if self.variant == Variant::Official { 0.0 } else { 1.0 }
    }

    fn check(&self) -> Result<(), HessianError> {
        let static_groups = self.gptq.static_groups || self.gptq.act_order == ActOrder::Static;
        if self.gptq.group.is_some() && !static_groups {
            return Err(HessianError::Setting {
                name: "static_groups",
                value: "false".to_owned(),
                expected: "true: Qronos takes scales and zeros from the weight before it is changed",
            });
        }
        Ok(())
    }
}

/// A quantised linear, what it cost, and what was aimed at.
#[derive(Clone, Debug, PartialEq)]
pub struct QronosResult {
    /// Levels, scales, zeros and groups; the losses are those of rounding `W*`.
    pub rounded: GptqResult,
    /// `‖W* − W‖ / ‖W‖` (Frobenius): how far the weight was moved before it was rounded. Where it is large, codes pile up at
    /// the ends of a grid that was laid for `W`.
    pub shift: f64,
}

/// Bytes [`qronos`] holds besides its arguments and its result, for a weight `(out, in)` and blocks of 128.
#[must_use]
pub fn qronos_workspace_bytes((out, n): (usize, usize), par: Par) -> usize {
    workspace_bytes(n, par) + out * n * size_of::<f32>()
}

/// Quantises a weight `[out, in]` towards the outputs of the float model, `‖W X_f − Ŵ X‖²` (Qronos, arXiv 2505.11695, `qronos.md`).
///
/// Qronos corrects the past of every column and lets the remaining ones diffuse its error, each time by a least squares
/// problem. With all remaining columns at their joint optimum that is GPTQ's loop on `W* = W + W D H_d⁻¹` in place of `W`
/// ([`Retarget`]), but for the first column, which is rounded from `W_1 + (W D)_1 / H_11`, when the others still are what they
/// were. The identities of [`gptq`](crate::gptq) hold with `W*`: `tr((W* − Ŵ) H_d (W* − Ŵ)ᵀ)` is
/// [`GptqResult::weighted_error`].
///
/// Neither the thread count nor the other rows of the matrix change a row's result. Cost: `out · in²` floating-point
/// operations for the loop, twice that for a product, and, where fewer rows than channels share the input, twice that for two
/// triangular solves.
///
/// ```
/// use quant_hessian::ndarray::Array2;
/// use quant_hessian::{
///     Compute, CrossGram, DampingUnit, FactorSettings, GptqConfig, Grid, Hessian, Par, QronosConfig, Retarget, prepare, qronos,
/// };
///
/// let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0;
/// let float = Array2::from_shape_fn((64, 16), |(t, j)| noise(t, j));
/// let x = Array2::from_shape_fn((64, 16), |(t, j)| noise(t, j) * 0.9);
/// let weight = Array2::from_shape_fn((8, 16), |(i, j)| noise(i + 64, j));
///
/// // What both streams have in common for all linears with this input.
/// let (mut hessian, mut cross) = (Hessian::new(16), CrossGram::new(16, true));
/// hessian.add(x.view(), 1, Compute::F32, Par::Seq)?;
/// cross.add(float.view(), x.view(), 1, Compute::F32, Par::Seq)?;
/// let settings =
///     FactorSettings { damping: 1e-3, damping_unit: DampingUnit::LargestEigenvalue, ..FactorSettings::default() };
/// let factor = prepare(hessian, &settings, Par::Seq)?;
/// let retarget = Retarget::new(cross, &factor, weight.nrows(), Par::Seq)?;
///
/// let config = QronosConfig::new(GptqConfig::new(Grid::int4_asym()));
/// let result = qronos(weight.view(), &factor, &retarget, &config, Par::Seq)?;
/// let error = |w: &Array2<f32>| (x.dot(&w.t()) - float.dot(&weight.t())).mapv(|e| e * e).sum();
/// // Better than the float weight itself, which does not know that its inputs have shrunk.
/// assert!(error(&result.rounded.matrix.dequantize()) < error(&weight));
/// # Ok::<(), quant_hessian::HessianError>(())
/// ```
///
/// # Errors
/// As [`gptq`](crate::gptq), [`HessianError::Setting`] for groups that are not static, [`HessianError::Correction`] if `retarget` was
/// prepared for another number of channels or column order.
pub fn qronos(
    weight: ArrayView2<'_, f32>,
    factor: &Factor,
    retarget: &Retarget,
    config: &QronosConfig,
    par: Par,
) -> Result<QronosResult, HessianError> {
    check_factor(weight, factor, &config.gptq)?;
    config.check()?;
    let problem = Mismatch {
        square: retarget.square(factor)?,
        panels: &factor.panels,
        order: factor.order.as_deref(),
        first_diagonal: factor.first_diagonal,
    };
    quant_core::matrix::check_finite(weight)?;
    let descent = config.gptq.descent(factor)?;
    let moved = problem.retarget(weight, config.dead_first(), par)?;
    let result = solve_moved(weight, &moved, &problem, &factor.dead, config, par)?;
    let Some(descent) = descent else { return Ok(result) };
    let out = weight.nrows();
    let target = |first: usize, rows: usize, lanes: &mut [Lanes]| {
        for (position, values) in moved.weight.chunks_exact(out).enumerate() {
            let lanes = &mut lanes[problem.column(position)];
            lanes[rows..].fill(0.0);
            lanes[..rows].copy_from_slice(&values[first..][..rows]);
        }
    };
    Ok(QronosResult { rounded: descent.run(&target, result.rounded, par)?, ..result })
}

/// The column loop on a moved weight.
pub(crate) fn solve_moved<T: Element>(
    weight: ArrayView2<'_, f32>,
    moved: &Retargeted<T>,
    problem: &Mismatch<'_, T>,
    dead: &[bool],
    config: &QronosConfig,
    par: Par,
) -> Result<QronosResult, HessianError> {
    let aim = Aim::Target(Target { weight: &moved.weight, first: &moved.first });
    let rounded = solve(weight, problem.panels, aim, problem.order, dead, &config.gptq, par)?;
    Ok(QronosResult { rounded, shift: moved.shift })
}
