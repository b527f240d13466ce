//! A rounding method: error diffusion along the row.
//!
//! Every weight is rounded with a share `s` of the error of the one before it added,
//!
//! ```text
//! v_j = w_j + s · e_{j−1}      q_j = Q(v_j)      e_j = v_j − q_j      e_{−1} = 0
//! ```
//!
//! so that errors of neighbours cancel in their sum: with `s = 1` no run of columns, wherever it begins and ends, is off by
//! more than a step in total (while nothing is clipped), where round-to-nearest may be off by half a step for every column. It
//! is the one-dimensional form of what printers do (Floyd and Steinberg 1976) and the first-order noise shaping of audio
//! converters. It pays where neighbouring inputs carry like values; `s = 0` is round-to-nearest, bit for bit.
//!
//! It needs no data and no row needs another, so weights are rounded as their rows are read.

use ptq::core::matrix::{check_finite, check_scales};
use ptq::core::{ActOrder, CoreError, FloatType, Grid, QuantizedMatrix};
use ptq::graph::WeightSpec;
use ptq::methods::rounding::{CONVENTION, SCHEME, SYMMETRIC, VARIANT};
use ptq::methods::settings::FieldKind;
use ptq::methods::{
    Convention, Field, Method, MethodError, MethodKind, Modifier, Par, PlannedRounding, Prepared, Rounded,
    Rounding, RowRounding, Solver, WeightSettings, Work,
};
use ptq::ndarray::{ArrayView2, Axis, Slice};
use std::sync::Arc;

/// The line of the registry: what `ptq list` and the schema say, and how a section of a recipe becomes a method.
pub static METHOD: Method = Method {
    id: "diffuse",
    summary: "round to nearest, handing a share of every error to the next column; needs no data",
    source: "error diffusion after Floyd and Steinberg 1976, along one axis",
    kind: MethodKind::Rounding,
    build: |settings| {
        let weights = WeightSettings::read_without_clip(settings, Convention::QSym, Convention::QAsym)?;
        Ok(Modifier::rounding(Diffuse { weights, strength: settings.number("strength")? as f32 }))
    },
    fields: &[SCHEME, SYMMETRIC, CONVENTION, VARIANT, STRENGTH],
    tier: 3,
};

/// The key that is this method's own; the others are shared by all roundings.
const STRENGTH: Field = Field {
    name: "strength",
    kind: FieldKind::Number(0.0, 1.0),
    default: "0.5",
    help: "share of a weight's error that the next column takes over; 0 is round to nearest",
    run_wide: false,
};

/// A section of a recipe, read.
#[derive(Debug)]
struct Diffuse {
    weights: WeightSettings,
    strength: f32,
}

impl Rounding for Diffuse {
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
            solver: Arc::new(Diffusion { grid, group: weight.group, strength: self.strength }),
        }))
    }
}

/// The method at work on one weight.
#[derive(Clone, Debug)]
pub struct Diffusion {
    /// How a group gets its parameters.
    pub grid: Grid,
    /// Columns per group; none is one scale per output channel.
    pub group: Option<usize>,
    /// Share of an error that the next column takes over, from 0 to 1.
    pub strength: f32,
}

impl Diffusion {
    /// Rounds `weight` `[out, in]`.
    ///
    /// # Errors
    /// A NaN or infinity, named by row and column; a range whose scale overflows the grid's scale type.
    pub fn round(&self, weight: ArrayView2<'_, f32>) -> Result<QuantizedMatrix, MethodError> {
        let mut rows = Rows::new(self.clone(), weight.dim());
        rows.rows(0, weight, Par::Seq)?;
        Ok(rows.matrix)
    }
}

impl Solver for Diffusion {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn round(&self, weight: ArrayView2<'_, f32>, _: &Prepared, _: Work<'_>) -> Result<Rounded, MethodError> {
        Ok(Rounded::levels(Self::round(self, weight)?))
    }
    fn rows_alone(&self) -> bool {
        true
    }
    fn by_rows(&self, shape: (usize, usize)) -> Option<Box<dyn RowRounding>> {
        Some(Box::new(Rows::new(self.clone(), shape)))
    }
}

/// A weight whose rows are rounded as they arrive.
#[derive(Debug)]
struct Rows {
    settings: Diffusion,
    matrix: QuantizedMatrix,
}

impl Rows {
    fn new(settings: Diffusion, shape: (usize, usize)) -> Self {
        let matrix = QuantizedMatrix::unfilled(settings.grid.bits, shape, settings.group);
        Self { settings, matrix }
    }
}

impl RowRounding for Rows {
    fn rows(&mut self, first: usize, rows: ArrayView2<'_, f32>, _: Par) -> Result<(), MethodError> {
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
        check_finite(rows).map_err(|error| error.in_rows_from(first))?;
        let Self { settings: Diffusion { grid, strength, .. }, matrix } = self;
        let size = matrix.groups().size(columns);
        matrix.fill_rows(first..end, |mut filled| {
            for (i, row) in rows.rows().into_iter().enumerate() {
                let row = row.to_vec();
                let mut error = 0.0;
                for (g, group) in row.chunks(size).enumerate() {
                    // The range is that of the weights; an error that leads out of it is clipped like any value.
                    let params = grid.params(group, None);
                    filled.scales[(i, g)] = params.scale;
                    filled.zeros[(i, g)] = params.zero;
                    for (j, &w) in group.iter().enumerate() {
                        let wanted = w + *strength * error;
                        let level = grid.level(wanted, params);
                        filled.levels[(i, g * size + j)] = level as u8;
                        error = wanted - params.value(level);
                    }
                }
            }
        })?;
        let scales = matrix.scales().slice_axis(Axis(0), Slice::from(first..end));
        check_scales(scales, grid.scale_type).map_err(|error| error.in_rows_from(first))?;
        Ok(())
    }
    fn matrix(&self) -> &QuantizedMatrix {
        &self.matrix
    }
    fn finish(self: Box<Self>) -> QuantizedMatrix {
        self.matrix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptq::core::Groups;
    use ptq::core::matrix::round_matrix;
    use ptq::ndarray::Array2;

    /// Values in (−1, 1) that do not repeat within a row.
    fn weight(out: usize, columns: usize) -> Array2<f32> {
        let mut state = 7_u32;
        Array2::from_shape_fn((out, columns), |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
    }

    #[test]
    fn without_strength_it_is_round_to_nearest() {
        let weight = weight(5, 96);
        for (grid, group) in [(Grid::int4_asym(), Some(32)), (Grid::int8_sym(), None)] {
            let ours = Diffusion { grid, group, strength: 0.0 }.round(weight.view()).unwrap();
            let nearest = round_matrix(&grid, None, Groups::from_size(group), weight.view()).unwrap();
            assert_eq!(ours, nearest);
        }
    }

    #[test]
    fn at_full_strength_no_run_of_columns_is_off_by_more_than_a_step() {
        let mut bounded = weight(8, 256) * 0.5;
        // The first two are the ends of the range, and levels of a grid with steps of 1/8; nothing else comes near enough to
        // be clipped.
        bounded.column_mut(0).fill(-1.0);
        bounded.column_mut(1).fill(0.875);
        let full = Diffusion { grid: Grid::int4_asym(), group: None, strength: 1.0 };
        let matrix = full.round(bounded.view()).unwrap();
        let error = &bounded - &matrix.dequantize();
        for (row, scales) in error.axis_iter(Axis(0)).zip(matrix.scales().rows()) {
            let mut sum = 0.0_f32;
            for value in row {
                sum += value;
                // From the first column on it is at most half a step, so that between any two it is at most one.
                assert!(sum.abs() <= 0.5 * scales[0] * 1.001, "{sum} at a step of {}", scales[0]);
            }
        }
        // Round-to-nearest is not bounded so.
        let nearest = Diffusion { strength: 0.0, ..full }.round(bounded.view()).unwrap();
        let sums = (&bounded - &nearest.dequantize()).sum_axis(Axis(1));
        assert!(sums.iter().zip(nearest.scales().column(0)).any(|(sum, step)| sum.abs() > *step));
    }

    #[test]
    fn rows_may_come_in_parts() {
        let weight = weight(7, 64);
        let settings = Diffusion { grid: Grid::int4_sym(), group: Some(32), strength: 0.5 };
        let mut parts = settings.by_rows(weight.dim()).unwrap();
        for first in [0, 3, 6] {
            let rows = weight.slice_axis(Axis(0), Slice::from(first..(first + 3).min(7)));
            parts.rows(first, rows, Par::Seq).unwrap();
        }
        assert_eq!(parts.finish(), settings.round(weight.view()).unwrap());
        let mut broken = weight.clone();
        broken[(4, 9)] = f32::NAN;
        let error = settings.round(broken.view()).unwrap_err().to_string();
        assert!(error.contains('4') && error.contains('9'), "{error}");
        let error =
            settings.by_rows((7, 64)).unwrap().rows(5, weight.view(), Par::Seq).unwrap_err().to_string();
        assert!(error.starts_with("diffuse: a weight [7, 64]"), "{error}");
    }
}
