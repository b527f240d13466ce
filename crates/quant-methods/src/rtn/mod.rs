//! Round-to-nearest: every group to its own grid, no data (`Ŵ = s · (clip(round(W/s) + z) − z)`).

use crate::{Kind, Method, MethodError, Needs, Rounded, WeightQuantizer};
use ndarray::{Array2, ArrayView1, ArrayView2};
use quant_core::matrix::{check_finite, check_scales, round_row};
use quant_core::{ClipSearch, Grid, Groups, QuantizedMatrix};
use quant_hessian::Factor;
use quant_kernels::{Par, vectorized};
use rayon::prelude::*;
use std::borrow::Cow;

/// Registry line.
pub static METHOD: Method = Method {
    id: "rtn",
    summary: "round to nearest, optionally with a clip search per group; needs no data",
    source: "the baseline of every PTQ paper; grids of GPTQ (arXiv 2210.17323) and QuaRot (arXiv 2404.00456) code",
    kind: Kind::Rounding,
    needs: Needs { hessian: false, channel_max: false },
    tier: 1,
};

/// Settings of round-to-nearest.
#[derive(Clone, Debug, PartialEq)]
pub struct Rtn {
    /// How a group gets its parameters.
    pub grid: Grid,
    /// Columns per group; none is one scale per output channel.
    pub group: Option<usize>,
    /// Clip search, if wanted.
    pub clip: Option<ClipSearch>,
}

/// Rounds `weight` `[out, in]`, rows in at most `par.threads()` parallel tasks; equal to
/// [`quant_core::matrix::round_matrix`] in every bit.
///
/// # Errors
/// A NaN or infinity, named by row and column; a range whose scale overflows the grid's scale type, by row and group.
pub fn round(rtn: &Rtn, weight: ArrayView2<'_, f32>, par: Par) -> Result<QuantizedMatrix, MethodError> {
    check_finite(weight)?;
    let groups = Groups::from_size(rtn.group);
    let (out, columns) = weight.dim();
    let (size, count) = (groups.size(columns), groups.count(columns));
    let mut levels = vec![0_u8; out * columns];
    let mut scales = vec![1.0_f32; out * count];
    let mut zeros = vec![0.0_f32; out * count];
    let results =
        levels.chunks_mut(columns.max(1)).zip(scales.chunks_mut(count)).zip(zeros.chunks_mut(count));
    let mut rows: Vec<Row<'_>> = weight
        .rows()
        .into_iter()
        .zip(results)
        .map(|(weight, ((levels, scales), zeros))| Row { weight, levels, scales, zeros })
        .collect();
    let round_rows = |rows: &mut [Row<'_>]| {
        vectorized(
            // Without it the loops are compiled for the baseline instruction set.
            #[inline(always)]
            || {
                for Row { weight, levels, scales, zeros } in rows {
                    // The columns of a view may lie apart.
                    let row = weight.to_slice().map_or_else(|| Cow::Owned(weight.to_vec()), Cow::Borrowed);
                    round_row(&rtn.grid, rtn.clip.as_ref(), size, &row, levels, scales, zeros);
                }
            },
        );
    };
    match par {
        Par::Seq => round_rows(&mut rows),
        Par::Threads(threads) => {
            rows.par_chunks_mut(out.div_ceil(threads.get()).max(1)).for_each(round_rows);
        }
    }
    let scales = shaped(scales, out, count);
    check_scales(scales.view(), rtn.grid.scale_type)?;
    let (levels, zeros) = (shaped(levels, out, columns), shaped(zeros, out, count));
    Ok(QuantizedMatrix { bits: rtn.grid.bits, levels, scales, zeros, groups })
}

/// A row of the weight and where its results go.
struct Row<'a> {
    weight: ArrayView1<'a, f32>,
    levels: &'a mut [u8],
    scales: &'a mut [f32],
    zeros: &'a mut [f32],
}

#[expect(clippy::expect_used, reason = "the buffers were allocated with exactly this size")]
fn shaped<A>(values: Vec<A>, rows: usize, columns: usize) -> Array2<A> {
    Array2::from_shape_vec((rows, columns), values).expect("rows * columns elements")
}

impl WeightQuantizer for Rtn {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        _: Option<&Factor>,
        par: Par,
    ) -> Result<Rounded, MethodError> {
        Ok(Rounded { matrix: round(self, weight, par)?, loss: None })
    }
}
