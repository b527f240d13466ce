//! Rounding to a grid and back, into buffers, for weights that exist only to be measured.
//!
//! The loops are over zipped slices of one length and nothing else: an index with its check, or a fold across lanes one by
//! one, would cost more than the arithmetic.

use super::energy::fold;
use ndarray::{ArrayView2, ArrayViewMut2};
use quant_core::{Grid, QParams};

/// Values whose extremes are kept side by side.
const LANES: usize = 16;

/// The lesser of two finite numbers: one instruction, where the method of floats also passes over a NaN.
#[inline(always)]
fn lesser(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The greater of two finite numbers.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Writes `value(w, c)` of every pair into `out` and gives the extremes of what was written; finite numbers, at least one.
#[inline(always)]
fn write_with_extremes(a: &[f32], b: &[f32], out: &mut [f32], value: impl Fn(f32, f32) -> f32) -> (f32, f32) {
    let (mut lo, mut hi) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        for l in 0..LANES {
            out[l] = value(a[l], b[l]);
            lo[l] = lesser(lo[l], out[l]);
            hi[l] = greater(hi[l], out[l]);
        }
    }
    for (((lo, hi), out), (&a, &b)) in lo.iter_mut().zip(&mut hi).zip(out_tail).zip(a_tail.iter().zip(b_tail))
    {
        *out = value(a, b);
        *lo = lesser(*lo, *out);
        *hi = greater(*hi, *out);
    }
    (fold(lo, lesser), fold(hi, greater))
}

/// `finish(Q(v), a, b)` in place of every `v` of a group under given parameters, with the elements of two more slices.
#[inline(always)]
fn round_group(
    grid: &Grid,
    params: QParams,
    group: &mut [f32],
    (a, b): (&[f32], &[f32]),
    finish: impl Fn(f32, f32, f32) -> f32,
) {
    let all = group.iter_mut().zip(a).zip(b);
    if grid.is_binary() {
        for ((v, &a), &b) in all {
            *v = finish(params.value(grid.level(*v, params)), a, b);
        }
    } else {
        let top = grid.bits.max_level();
        for ((v, &a), &b) in all {
            *v = finish(params.fake(*v, top), a, b);
        }
    }
}

/// Parameters of a group whose extremes are known.
#[inline(always)]
fn params(grid: &Grid, group: &[f32], (min, max): (f32, f32)) -> QParams {
    if grid.is_binary() { grid.params(group, None) } else { grid.from_range(min, max) }
}

/// `out = Q(w ∘ c) / c` of every row, less the row itself where `difference` is asked for, in groups of `size` columns. Multiplied
/// and divided as the published code does it. `weight` and `out` are `[rows, in]` in standard layout, `scales` `[in]`.
#[inline(always)]
pub(super) fn scaled_rows(
    grid: &Grid,
    size: usize,
    weight: ArrayView2<'_, f32>,
    scales: &[f32],
    mut out: ArrayViewMut2<'_, f32>,
    difference: bool,
) {
    for i in 0..weight.nrows() {
        let (Some(row), Some(out)) = (weight.row(i).to_slice(), out.row_mut(i).into_slice()) else {
            continue;
        };
        for ((w, c), out) in row.chunks(size).zip(scales.chunks(size)).zip(out.chunks_mut(size)) {
            let range = write_with_extremes(w, c, out, |w, c| w * c);
            let params = params(grid, out, range);
            if difference {
                round_group(grid, params, out, (w, c), |q, w, c| q / c - w);
            } else {
                round_group(grid, params, out, (w, c), |q, _, c| q / c);
            }
        }
    }
}

/// `Q(clip(w, −t, t)) − w` of one group for every `t = max |w| · factor`, `[candidates, width]` in `out`, with the parameters of the
/// clipped group. Gives `max |w|`.
#[inline(always)]
pub(super) fn clipped_differences(grid: &Grid, factors: &[f32], group: &[f32], out: &mut [f32]) -> f32 {
    let (min, max) = quant_core::convention::min_max(group);
    let largest = max.max(-min);
    for (&factor, out) in factors.iter().zip(out.chunks_exact_mut(group.len())) {
        let t = largest * factor;
        let clip = |w: f32| lesser(greater(w, -t), t);
        for (out, &w) in out.iter_mut().zip(group) {
            *out = clip(w);
        }
        // The extremes of a clipped group are the clipped extremes.
        let params = params(grid, out, (clip(min), clip(max)));
        round_group(grid, params, out, (group, group), |q, w, _| q - w);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use proptest::prelude::*;
    use quant_core::matrix::round_matrix;
    use quant_core::{Bits, Convention, FloatType, Groups, Variant};
    use quant_testkit::Numbers;

    proptest! {
        /// The loops against the specification of the grids.
        #[test]
        fn rounded_as_specified(
            bits in 1_u32..=8, convention in 0..4_usize, size in 1_usize..40, n in 1_usize..90, seed in any::<u64>(),
        ) {
            let convention = Convention::ALL[convention];
            let grid = Grid::new(convention, Bits::new(bits).unwrap(), Variant::Exact, FloatType::Bf16).unwrap();
            let mut numbers = Numbers::new(seed);
            let weight = numbers.matrix(3, n, 0.5);
            let scales = numbers.vector(n, 1.0, 0.9);
            let expect = |w: &Array2<f32>| {
                round_matrix(&grid, None, Groups::Size(size), w.view()).unwrap().dequantize()
            };

            let expected = expect(&(&weight * &scales)) / &scales;
            let mut out = Array2::from_elem((3, n), f32::NAN);
            let c = scales.as_slice().unwrap();
            scaled_rows(&grid, size, weight.view(), c, out.view_mut(), false);
            prop_assert_eq!(&out, &expected);
            scaled_rows(&grid, size, weight.view(), c, out.view_mut(), true);
            prop_assert_eq!(&out, &(&expected - &weight));

            let row = weight.row(0);
            let largest = row.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            let factors = [1.0, 0.8, 0.55];
            let mut out = vec![f32::NAN; 3 * n];
            prop_assert_eq!(clipped_differences(&grid, &factors, row.to_slice().unwrap(), &mut out), largest);
            for (factor, out) in factors.iter().zip(out.chunks(n)) {
                let t = largest * factor;
                let clipped = row.map(|w| w.clamp(-t, t)).insert_axis(ndarray::Axis(0));
                let q = round_matrix(&grid, None, Groups::Channel, clipped.view()).unwrap().dequantize();
                prop_assert_eq!(out.to_vec(), (&q.row(0) - &row).to_vec());
            }
        }
    }
}
