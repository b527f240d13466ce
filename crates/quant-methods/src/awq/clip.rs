//! The search for clipped ranges on the error of a group's share of the output.

use super::energy::Energy;
use super::round::clipped_differences;
use super::{channels, refused};
use crate::{MethodError, Spacing};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_core::matrix::check_finite;
use quant_core::{Grid, Groups};
use quant_kernels::{Work, tasks, vectorized};

/// Settings of the search for clipped ranges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Steps per unit of shrinking. 20 in the published code.
    pub n_grid: usize,
    /// Largest fraction taken off the range, itself not tried: `⌊max_shrink · n_grid⌋` candidates `t = M (1 − s/n_grid)`. 0.5 in
    /// the published code, which gives `M` times 1.00, 0.95, …, 0.55.
    pub max_shrink: f32,
    /// How a group is rounded: the grid the weights are rounded to afterwards.
    pub grid: Grid,
    /// Columns per group; none is one group per output channel.
    pub group: Option<usize>,
}

/// Weight rows of one task; a fixed number, so that the division of work never depends on the thread count. With ten
/// candidates their differences are a multiple of the 14 rows of an AVX-512 tile.
const TILE: usize = 28;

impl Clip {
    /// The factors `1 − s/n_grid`; in f64 until rounded once, as the published code has them.
    fn factors(&self) -> Result<Vec<f32>, MethodError> {
        let count = (self.max_shrink * self.n_grid as f32) as usize;
        if count == 0 || self.max_shrink > 1.0 {
            return Err(refused(
                "candidates of AWQ's search for ranges",
                "max_shrink up to 1 and max_shrink · n_grid of at least 1",
                format!("{} · {}", self.max_shrink, self.n_grid),
            ));
        }
        Ok((0..count).map(|s| (1.0 - s as f64 / self.n_grid as f64) as f32).collect())
    }
}

/// At least `count` tokens at equal distances, `[tokens, in]`: every `⌊T / count⌋`-th from the first, or all where there are
/// fewer. The published code looks at 512 (to 1023) of them.
#[must_use]
pub fn every_token(mut tokens: ArrayView2<'_, f32>, count: usize) -> ArrayView2<'_, f32> {
    let step = Spacing::AtLeast(count).step(tokens.nrows());
    tokens.slice_axis_inplace(Axis(0), Slice::from(..).step_by(step as isize));
    tokens
}

/// The best largest `|w|` of every group, `[out, groups]`.
///
/// `weight` is `[out, in]`, with its scales in it; `tokens` are its inputs `[tokens, in]`, divided by them. For the candidates `t`
/// of [`Clip`] the error of row `i` and group `k` is that of the group's share of the output,
///
/// ```text
/// e(t) = 1/T Σ_tokens (Σ_{j in k} x_j (Q(clip(w_j, −t, t)) − w_j))²
/// ```
///
/// with the parameters of `Q` from the clipped group; terms between groups are left out. The least error wins, and of equal
/// ones the largest range. Nothing is clipped here, see [`clamp_to`].
///
/// Clip and round the very bits that were searched: a group clipped on both sides has the range `±t`, whose zero point
/// `−round(−t/s)` under `q-awq` is a tie between two integers that one unit in the last place decides.
///
/// # Errors
/// No tokens or candidates; channel counts that differ; weights, inputs or an error that are not finite, by their place;
/// [`MethodError::Stopped`], asked for between some rows and the next.
pub fn clip_ranges<'w>(
    clip: &Clip,
    weight: ArrayView2<'_, f32>,
    tokens: ArrayView2<'_, f32>,
    work: impl Into<Work<'w>>,
) -> Result<Array2<f32>, MethodError> {
    let work: Work<'_> = work.into();
    let par = work.par;
    let (out, n) = weight.dim();
    if tokens.ncols() != n {
        return Err(channels("the inputs", n, tokens.ncols()));
    }
    if tokens.is_empty() {
        return Err(refused("inputs of AWQ's search for ranges", "at least one token and channel", "none"));
    }
    let factors = clip.factors()?;
    check_finite(weight)?;
    check_finite(tokens)?;
    let groups = Groups::from_size(clip.group);
    let (size, count) = (groups.size(n), groups.count(n));
    let energies: Vec<Energy> =
        tokens.axis_chunks_iter(Axis(1), size).map(|x| Energy::new(x, out * factors.len(), par)).collect();
    let weight = weight.as_standard_layout();
    // Whole rows per channel are wide: fewer at a time keep their differences in the cache.
    let tile = if size > 1024 { TILE / 4 } else { TILE };
    let found = tasks::map(0..out.div_ceil(tile), par, |i| {
        work.go_on()?;
        let rows = weight.slice_axis(Axis(0), Slice::from(i * tile..((i + 1) * tile).min(out)));
        Ok::<_, MethodError>(tile_ranges(clip, &factors, size, rows, &energies))
    });
    let mut ranges = Array2::zeros((out, count));
    for (i, found) in found.into_iter().enumerate() {
        match found? {
            Ok(best) => {
                let rows = Slice::from(i * tile..i * tile + best.nrows());
                ranges.slice_axis_mut(Axis(0), rows).assign(&best);
            }
            Err((row, group, error)) => {
                return Err(refused(
                    "output error of AWQ's search for ranges",
                    format!("a finite number for row {}, group {group}", i * tile + row),
                    format!("{error}; the calibration activations or a scale overflowed"),
                ));
            }
        }
    }
    Ok(ranges)
}

/// The best ranges of a few rows, `[rows, groups]`, or the row, group and value of an error that is not finite.
fn tile_ranges(
    clip: &Clip,
    factors: &[f32],
    size: usize,
    rows: ArrayView2<'_, f32>,
    energies: &[Energy],
) -> Result<Array2<f32>, (usize, usize, f64)> {
    let count = factors.len();
    let mut best = Array2::zeros((rows.nrows(), energies.len()));
    let mut buffer = vec![0.0; rows.nrows() * count * size.min(rows.ncols())];
    let (mut scratch, mut errors) = (Vec::new(), vec![0.0; rows.nrows() * count]);
    let mut largest = vec![0.0; rows.nrows()];
    for (k, (group, energy)) in rows.axis_chunks_iter(Axis(1), size).zip(energies).enumerate() {
        let width = group.ncols();
        let length = rows.nrows() * count * width;
        vectorized(
            // Without it the loops are compiled for the baseline instruction set.
            #[inline(always)]
            || {
                let rows = group.rows().into_iter().zip(buffer.chunks_mut(count * width));
                for ((row, to), largest) in rows.zip(&mut largest) {
                    if let Some(row) = row.to_slice() {
                        *largest = clipped_differences(&clip.grid, factors, row, to);
                    }
                }
            },
        );
        if let Ok(d) = ArrayView2::from_shape((rows.nrows() * count, width), &buffer[..length]) {
            energy.of_rows(d, &mut scratch, &mut errors);
        }
        for (i, errors) in errors.chunks(count).enumerate() {
            if let Some(&error) = errors.iter().find(|e| !e.is_finite()) {
                return Err((i, k, error));
            }
            let mut at = 0;
            for (s, error) in errors.iter().enumerate() {
                if *error < errors[at] {
                    at = s;
                }
            }
            best[(i, k)] = largest[i] * factors[at];
        }
    }
    Ok(best)
}

/// Clips every group of `weight` `[out, in]` to `±ranges` `[out, groups]`.
///
/// # Errors
/// Ranges of another shape; one that is negative or NaN, by its place. Then nothing has been changed.
pub fn clamp_to(
    mut weight: ArrayViewMut2<'_, f32>,
    ranges: ArrayView2<'_, f32>,
    group: Option<usize>,
) -> Result<(), MethodError> {
    let (out, n) = weight.dim();
    let groups = Groups::from_size(group);
    let expected = (out, groups.count(n));
    if ranges.dim() != expected {
        let found = format!("{:?}", ranges.dim());
        return Err(refused(
            "clipped ranges of AWQ",
            format!("{expected:?} for a weight {out} x {n}"),
            found,
        ));
    }
    if let Some(((row, group), t)) = ranges.indexed_iter().find(|(_, t)| t.is_nan() || **t < 0.0) {
        let found = format!("{t} in row {row}, group {group}");
        return Err(refused("clipped ranges of AWQ", "largest absolute values", found));
    }
    for (mut part, ranges) in weight.axis_chunks_iter_mut(Axis(1), groups.size(n)).zip(ranges.columns()) {
        for (mut row, &t) in part.rows_mut().into_iter().zip(ranges) {
            row.mapv_inplace(|w| w.max(-t).min(t));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn candidates_are_those_of_the_published_code() {
        let clip = Clip { n_grid: 20, max_shrink: 0.5, grid: Grid::int4_asym(), group: None };
        let factors = clip.factors().unwrap();
        assert_eq!(factors, [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55]);
        assert_eq!(Clip { max_shrink: 0.7, ..clip }.factors().unwrap().len(), 14);
    }

    #[test]
    fn tokens_at_equal_distances() {
        let x = Array2::from_shape_fn((11, 1), |(t, _)| t as f32);
        let at = |count| every_token(x.view(), count).column(0).to_vec();
        assert_eq!(at(5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(at(6).len(), 11);
        assert_eq!(at(100).len(), 11);
        assert_eq!(at(1), [0.0]);
    }

    #[test]
    fn groups_are_clipped_on_their_own() {
        let mut weight = array![[1.0_f32, -2.0, 3.0, -4.0, 5.0]];
        clamp_to(weight.view_mut(), array![[1.5, 9.0, 0.0]].view(), Some(2)).unwrap();
        assert_eq!(weight, array![[1.0, -1.5, 3.0, -4.0, 0.0]]);
        for (ranges, message) in [
            (array![[1.0_f32, 1.0]], "expected (1, 3) for a weight 1 x 5, found (1, 2)"),
            (array![[1.0, f32::NAN, 1.0]], "NaN in row 0, group 1"),
            (array![[-1.0, 1.0, 1.0]], "-1 in row 0, group 0"),
        ] {
            let error = clamp_to(weight.view_mut(), ranges.view(), Some(2)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
