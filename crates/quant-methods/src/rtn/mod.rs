//! Round-to-nearest: every group to its own grid, no data (`Ŵ = s · (clip(round(W/s) + z) − z)`).

use crate::rounding::{CONVENTION, INPUT_SHARDS, MSE_CLIP, SCHEME, SYMMETRIC, VARIANT};
use crate::{
    Method, MethodError, MethodKind, Modifier, PlannedRounding, Prepared, Rounded, Rounding, RowRounding,
    Solver, WeightSettings,
};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_core::matrix::{check_finite, check_scales, round_row};
use quant_core::{ActOrder, ClipSearch, CoreError, FloatType, Grid, QuantizedMatrix, RowsMut};
use quant_graph::WeightSpec;
use quant_kernels::{Par, Work, tasks, vectorized};
use std::sync::Arc;

/// Registry line.
pub static METHOD: Method = Method {
    id: "rtn",
    summary: "round to nearest, optionally with a clip search per group; needs no data",
    source: "the baseline of every PTQ paper; grids of GPTQ (arXiv 2210.17323) and QuaRot (arXiv 2404.00456) code",
    kind: MethodKind::Rounding,
    build: |settings| Ok(Modifier::rounding(Rounds { weights: WeightSettings::read(settings)? })),
    fields: &[SCHEME, SYMMETRIC, CONVENTION, MSE_CLIP, INPUT_SHARDS, VARIANT],
    tier: 1,
};

/// The modifier of a recipe.
#[derive(Debug)]
struct Rounds {
    weights: WeightSettings,
}

impl Rounding for Rounds {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn weights(&self) -> &WeightSettings {
        &self.weights
    }
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError> {
        let stored = self.weights.stored(weight, scale_type, ActOrder::None)?;
        Ok(stored.map(|(grid, weight)| PlannedRounding {
            weight,
            grid,
            solver: Arc::new(Rtn { grid, group: weight.group, clip: self.weights.clip }),
        }))
    }
}

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

/// Rows rounded by one task; a fixed number, so that the division of work never depends on the thread count.
const TILE: usize = 16;

/// Rounds `weight` `[out, in]`, tiles of rows in parallel; equal to
/// [`quant_core::matrix::round_matrix`] in every bit.
///
/// # Errors
/// A NaN or infinity, named by row and column; a range whose scale overflows the grid's scale type, by row and group.
pub fn round(rtn: &Rtn, weight: ArrayView2<'_, f32>, par: Par) -> Result<QuantizedMatrix, MethodError> {
    let mut rows = ByRows::new(rtn.clone(), weight.dim());
    rows.rows(0, weight, par)?;
    Ok(rows.matrix)
}

/// A weight whose rows are rounded as they arrive.
#[derive(Debug)]
struct ByRows {
    rtn: Rtn,
    matrix: QuantizedMatrix,
}

impl ByRows {
    fn new(rtn: Rtn, shape: (usize, usize)) -> Self {
        let matrix = QuantizedMatrix::unfilled(rtn.grid.bits, shape, rtn.group);
        Self { rtn, matrix }
    }
}

impl RowRounding for ByRows {
    fn rows(&mut self, first: usize, rows: ArrayView2<'_, f32>, par: Par) -> Result<(), MethodError> {
        let (out, columns) = self.matrix.dim();
        let end = first + rows.nrows();
        if rows.ncols() != columns || end > out {
            return Err(MethodError::Channels {
                method: METHOD.id,
                what: format!("a weight [{out}, {columns}], to which rows {first} to {end} were given,"),
                expected: columns,
                found: rows.ncols(),
            });
        }
        let rows = rows.as_standard_layout();
        let Self { rtn, matrix } = self;
        let size = matrix.groups().size(columns);
        let round_tile = |(tile, (((rows, mut levels), mut scales), mut zeros)): (usize, Tile<'_>)| {
            vectorized(
                // Without it the loops are compiled for the baseline instruction set.
                #[inline(always)]
                || {
                    // Checked here, so that the rows come from memory once.
                    check_finite(rows).map_err(|error| error.in_rows_from(first + tile * TILE))?;
                    for i in 0..rows.nrows() {
                        if let (Some(row), Some(l), Some(s), Some(z)) = (
                            rows.row(i).to_slice(),
                            levels.row_mut(i).into_slice(),
                            scales.row_mut(i).into_slice(),
                            zeros.row_mut(i).into_slice(),
                        ) {
                            round_row(&rtn.grid, rtn.clip.as_ref(), size, row, l, s, z);
                        }
                    }
                    Ok::<(), CoreError>(())
                },
            )
        };
        let span = Slice::from(first..end);
        matrix.fill_rows(first..end, |RowsMut { mut levels, mut scales, mut zeros }| {
            let tiles = rows
                .axis_chunks_iter(Axis(0), TILE)
                .zip(levels.axis_chunks_iter_mut(Axis(0), TILE))
                .zip(scales.axis_chunks_iter_mut(Axis(0), TILE))
                .zip(zeros.axis_chunks_iter_mut(Axis(0), TILE));
            tasks::try_for_each(tiles.enumerate(), par, round_tile)
        })??;
        let scales = matrix.scales().slice_axis(Axis(0), span);
        check_scales(scales, rtn.grid.scale_type).map_err(|error| error.in_rows_from(first))?;
        Ok(())
    }
    fn matrix(&self) -> &QuantizedMatrix {
        &self.matrix
    }
    fn finish(self: Box<Self>) -> QuantizedMatrix {
        self.matrix
    }
}

/// A tile of the weight and of what is written for it: levels, scales, zeros.
type Tile<'a> =
    (((ArrayView2<'a, f32>, ArrayViewMut2<'a, u8>), ArrayViewMut2<'a, f32>), ArrayViewMut2<'a, f32>);

impl Solver for Rtn {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn round(
        &self,
        weight: ArrayView2<'_, f32>,
        _: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError> {
        Ok(Rounded::levels(round(self, weight, work.par)?))
    }
    fn rows_alone(&self) -> bool {
        true
    }
    fn by_rows(&self, shape: (usize, usize)) -> Option<Box<dyn RowRounding>> {
        Some(Box::new(ByRows::new(self.clone(), shape)))
    }
}
