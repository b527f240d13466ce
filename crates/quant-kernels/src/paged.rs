//! Attention of a few queries over a cache in pages, of floats or of codes.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::rows::{lane_max, lane_sum};
use crate::softmax::{seen, weight};
use crate::vectorized;

/// Positions of a page: what one pass of the running softmax takes in. Pages lie at multiples of it, so that the sums of a query are
/// cut at the same positions whoever else is there.
pub const PAGE: usize = 64;

/// Keys or values of one head on one page.
///
/// Keys lie `[head_dim, PAGE]`, a feature of all positions together, so that scores of neighbouring positions are made side by side;
/// values lie `[PAGE, head_dim]`. Positions that were not written yet may hold anything.
#[derive(Clone, Copy, Debug)]
pub enum PageEntries<'a> {
    /// As they are.
    Float(&'a [f32]),
    /// `scale · (level − zero)` with the parameters of each position, `[PAGE]`.
    TokenHead {
        /// Unsigned levels.
        levels: &'a [u8],
        /// Scales.
        scales: &'a [f32],
        /// Zero levels.
        zeros: &'a [f32],
    },
    /// `scale · (level − zero)` with the parameters of each feature, `[head_dim]`.
    Channel {
        /// Unsigned levels.
        levels: &'a [u8],
        /// Scales.
        scales: &'a [f32],
        /// Zero levels.
        zeros: &'a [f32],
        /// Added to every feature of a position, `[PAGE]`: 0, or NaN where no level stands for its numbers.
        poison: &'a [f32],
    },
}

/// Pages of one sequence and head: keys and values by the index of the page.
pub type PageLookup<'a, 'p> = dyn Fn(usize) -> (PageEntries<'p>, PageEntries<'p>) + Sync + 'a;

/// One key head and the queries that read it.
#[derive(Clone, Copy, Debug)]
pub struct PagedQueries<'a> {
    /// Queries, `[rows, head_dim]`.
    pub queries: &'a [f32],
    /// The position of each row, which sees itself and what stands before it; not falling.
    pub positions: &'a [usize],
    /// Features of a head.
    pub head_dim: usize,
    /// Positions that a query sees at most, itself included.
    pub window: Option<usize>,
}

/// Buffers that are worth keeping from call to call.
#[derive(Clone, Debug, Default)]
pub struct PagedScratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    largest: Vec<f32>,
    total: Vec<f32>,
}

/// Rows that share what is read of a page.
const ROWS: usize = 8;
/// Registers of positions, or of features, that a row has sums in at a time.
const SIDE: usize = 2;

/// `softmax(q k^T / sqrt(head_dim) + mask) v` of one head over the pages of its cache (Vaswani et al. 2017; the running softmax of Milakov
/// and Gimelshein 2018), into `out` `[rows, head_dim]`, whose old content is not read.
///
/// Codes are made floats as they are read: a cache of codes gives the bits of a cache that holds what they stand for. A score is one
/// chain of fused multiply-adds over the features, an output one over the positions, cut at pages: the bits of a row depend on no other
/// row, and on no order of pages in memory.
///
/// ```
/// use quant_kernels::{PAGE, PageEntries, PagedQueries, PagedScratch, attend_paged};
///
/// // One feature; two positions with the keys 0 and 0 and the values 1 and 3.
/// let (keys, mut values) = (vec![0.0; PAGE], vec![f32::NAN; PAGE]);
/// (values[0], values[1]) = (1.0, 3.0);
/// let page = |_: usize| (PageEntries::Float(&keys), PageEntries::Float(&values));
/// let queries = PagedQueries { queries: &[1.0, 1.0], positions: &[0, 1], head_dim: 1, window: None };
/// let mut out = [f32::NAN; 2];
/// attend_paged(&queries, &page, &mut PagedScratch::default(), &mut out);
/// assert_eq!(out, [1.0, 2.0]);
/// ```
///
/// # Panics
/// If queries and output are not `[rows, head_dim]`, positions fall, or a page is too short.
pub fn attend_paged(
    queries: &PagedQueries<'_>,
    pages: &PageLookup<'_, '_>,
    scratch: &mut PagedScratch,
    out: &mut [f32],
) {
    let PagedQueries { queries: q, positions, head_dim, window } = *queries;
    let rows = positions.len();
    assert!(
        q.len() == rows * head_dim && out.len() == rows * head_dim,
        "{} queries and {} outputs of {rows} rows of {head_dim}",
        q.len(),
        out.len()
    );
    assert!(positions.is_sorted(), "positions of queries fall");
    let Some(&last) = positions.last() else { return };
    let begin = window.map_or(0, |w| (positions[0] + 1).saturating_sub(w));
    let scale = (head_dim as f64).sqrt().recip() as f32;
    let PagedScratch { keys: key_floats, values: value_floats, largest, total } = scratch;
    largest.clear();
    largest.resize(rows, f32::NEG_INFINITY);
    total.clear();
    total.resize(rows, 0.0);
    out.fill(0.0);
    for page in begin / PAGE..=last / PAGE {
        // What a row sees of this page.
        let seen = |row: usize| seen(positions[row], window, page * PAGE, PAGE);
        let (keys, values) = pages(page);
        let (keys, values) = vectorized(
            #[inline(always)]
            || (keys_of(keys, head_dim, key_floats), values_of(values, head_dim, value_floats)),
        );
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            let count = if left >= ROWS { ROWS } else { 1 << left.ilog2() };
            let range = row * head_dim..(row + count) * head_dim;
            let rows = Rows {
                q: &q[range.clone()],
                out: &mut out[range],
                largest: &mut largest[row..row + count],
                total: &mut total[row..row + count],
                seen: std::array::from_fn(|i| seen((row + i).min(rows - 1))),
                scale,
            };
            pulp::Arch::new().dispatch(TakeIn { rows, count, keys, values });
            row += count;
        }
    }
    for (out, total) in out.chunks_exact_mut(head_dim.max(1)).zip(total) {
        out.iter_mut().for_each(|x| *x /= *total);
    }
}

/// Some rows on their way through a page.
struct Rows<'a> {
    q: &'a [f32],
    out: &'a mut [f32],
    largest: &'a mut [f32],
    total: &'a mut [f32],
    seen: [Range<usize>; ROWS],
    scale: f32,
}

/// A page and some rows, for whatever registers there are.
struct TakeIn<'a> {
    rows: Rows<'a>,
    count: usize,
    keys: &'a [f32],
    values: &'a [f32],
}

impl WithSimd for TakeIn<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, count, keys, values } = self;
        match count {
            1 => take_in::<S, 1>(simd, rows, keys, values),
            2 => take_in::<S, 2>(simd, rows, keys, values),
            4 => take_in::<S, 4>(simd, rows, keys, values),
            _ => take_in::<S, ROWS>(simd, rows, keys, values),
        }
    }
}

/// Takes a page into the running softmax of `R` rows.
#[inline(always)]
fn take_in<S: Simd, const R: usize>(simd: S, rows: Rows<'_>, keys: &[f32], values: &[f32]) {
    let Rows { q, out, largest, total, seen, scale } = rows;
    let head_dim = q.len() / R;
    let mut weights = [[0.0_f32; PAGE]; R];
    scores::<S, R>(simd, q, keys, &mut weights);
    for r in 0..R {
        let out = &mut out[r * head_dim..(r + 1) * head_dim];
        soften(&mut weights[r], &seen[r], scale, &mut largest[r], &mut total[r], out);
    }
    // What all of the rows see goes through registers together, in order; before and after it each has its own.
    let from = seen[..R].iter().map(|s| s.start).max().unwrap_or(0);
    let to = seen[..R].iter().map(|s| s.end).min().unwrap_or(0).max(from);
    for r in 0..R {
        let own = seen[r].start..from.min(seen[r].end);
        add_values::<S, 1>(simd, &mut out[r * head_dim..(r + 1) * head_dim], values, [&weights[r]], own);
    }
    add_values::<S, R>(simd, out, values, weights.each_ref(), from..to);
    for r in 0..R {
        let own = to.max(seen[r].start)..seen[r].end;
        add_values::<S, 1>(simd, &mut out[r * head_dim..(r + 1) * head_dim], values, [&weights[r]], own);
    }
}

/// Products of `R` queries `[R, head_dim]` with the keys of a page `[head_dim, PAGE]`: each a chain of multiply-adds over the features.
#[inline(always)]
fn scores<S: Simd, const R: usize>(simd: S, q: &[f32], keys: &[f32], scores: &mut [[f32; PAGE]; R]) {
    let head_dim = q.len() / R;
    let keys = S::as_simd_f32s(keys).0;
    let registers = PAGE / S::F32_LANES;
    for first in (0..registers).step_by(SIDE) {
        let mut sums = [[simd.splat_f32s(0.0); SIDE]; R];
        for feature in 0..head_dim {
            let keys: [S::f32s; SIDE] = std::array::from_fn(|i| keys[feature * registers + first + i]);
            for r in 0..R {
                let q = simd.splat_f32s(q[r * head_dim + feature]);
                for i in 0..SIDE {
                    sums[r][i] = simd.mul_add_f32s(q, keys[i], sums[r][i]);
                }
            }
        }
        for r in 0..R {
            S::as_mut_simd_f32s(&mut scores[r]).0[first..first + SIDE].copy_from_slice(&sums[r]);
        }
    }
}

/// Adds the values of some positions, `[PAGE, head_dim]`, to `R` outputs `[R, head_dim]` under their weights: each element a chain of
/// multiply-adds over the positions.
#[inline(always)]
fn add_values<S: Simd, const R: usize>(
    simd: S,
    out: &mut [f32],
    values: &[f32],
    weights: [&[f32; PAGE]; R],
    positions: Range<usize>,
) {
    if positions.is_empty() {
        return;
    }
    let head_dim = out.len() / R;
    let registers = head_dim / S::F32_LANES;
    let mut first = 0;
    while first + SIDE <= registers {
        add_registers::<S, R, SIDE>(simd, out, values, weights, positions.clone(), first);
        first += SIDE;
    }
    while first < registers {
        add_registers::<S, R, 1>(simd, out, values, weights, positions.clone(), first);
        first += 1;
    }
    for r in 0..R {
        for feature in registers * S::F32_LANES..head_dim {
            let mut sum = out[r * head_dim + feature];
            for position in positions.clone() {
                sum = weights[r][position].mul_add(values[position * head_dim + feature], sum);
            }
            out[r * head_dim + feature] = sum;
        }
    }
}

/// [`add_values`] for `N` registers of features from `first` on.
#[inline(always)]
fn add_registers<S: Simd, const R: usize, const N: usize>(
    simd: S,
    out: &mut [f32],
    values: &[f32],
    weights: [&[f32; PAGE]; R],
    positions: Range<usize>,
    first: usize,
) {
    let head_dim = out.len() / R;
    let range = first * S::F32_LANES..(first + N) * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); N]; R];
    for r in 0..R {
        sums[r].copy_from_slice(S::as_simd_f32s(&out[r * head_dim..][range.clone()]).0);
    }
    for position in positions {
        let values = S::as_simd_f32s(&values[position * head_dim..][range.clone()]).0;
        let values: [S::f32s; N] = std::array::from_fn(|i| values[i]);
        for r in 0..R {
            let weight = simd.splat_f32s(weights[r][position]);
            for i in 0..N {
                sums[r][i] = simd.mul_add_f32s(weight, values[i], sums[r][i]);
            }
        }
    }
    for r in 0..R {
        S::as_mut_simd_f32s(&mut out[r * head_dim..][range.clone()]).0.copy_from_slice(&sums[r]);
    }
}

/// Scores become weights under the largest score so far, 0 where they are not seen; what was summed before is scaled to it.
#[inline(always)]
fn soften(
    scores: &mut [f32; PAGE],
    seen: &Range<usize>,
    scale: f32,
    largest: &mut f32,
    total: &mut f32,
    out: &mut [f32],
) {
    if seen.is_empty() {
        return;
    }
    for (position, score) in scores.iter_mut().enumerate() {
        let scaled = *score * scale;
        *score = if seen.contains(&position) { scaled } else { f32::NEG_INFINITY };
    }
    let found = lane_max(&scores[..]);
    if found > *largest {
        let kept = weight(*largest - found);
        *total *= kept;
        out.iter_mut().for_each(|x| *x *= kept);
        *largest = found;
    }
    for score in scores.iter_mut() {
        *score = weight(*score - *largest);
    }
    *total += lane_sum(&scores[..], |x| x);
}

/// Keys as floats, `[head_dim, PAGE]`.
#[inline(always)]
fn keys_of<'x>(entries: PageEntries<'x>, head_dim: usize, buffer: &'x mut Vec<f32>) -> &'x [f32] {
    let count = head_dim * PAGE;
    match entries {
        PageEntries::Float(keys) => &keys[..count],
        PageEntries::TokenHead { levels, scales, zeros } => {
            let (scales, zeros) = (&scales[..PAGE], &zeros[..PAGE]);
            buffer.resize(count, 0.0);
            for (out, levels) in buffer.chunks_exact_mut(PAGE).zip(levels[..count].chunks_exact(PAGE)) {
                for (((out, &level), scale), zero) in out.iter_mut().zip(levels).zip(scales).zip(zeros) {
                    *out = scale * (f32::from(level) - zero);
                }
            }
            buffer
        }
        PageEntries::Channel { levels, scales, zeros, poison } => {
            buffer.resize(count, 0.0);
            let features = scales[..head_dim].iter().zip(&zeros[..head_dim]);
            let rows = buffer.chunks_exact_mut(PAGE).zip(levels[..count].chunks_exact(PAGE));
            for ((out, levels), (scale, zero)) in rows.zip(features) {
                for ((out, &level), poison) in out.iter_mut().zip(levels).zip(&poison[..PAGE]) {
                    *out = scale * (f32::from(level) - zero) + poison;
                }
            }
            buffer
        }
    }
}

/// Values as floats, `[PAGE, head_dim]`.
#[inline(always)]
fn values_of<'x>(entries: PageEntries<'x>, head_dim: usize, buffer: &'x mut Vec<f32>) -> &'x [f32] {
    let count = head_dim * PAGE;
    match entries {
        PageEntries::Float(values) => &values[..count],
        PageEntries::TokenHead { levels, scales, zeros } => {
            buffer.resize(count, 0.0);
            let rows = buffer.chunks_exact_mut(head_dim).zip(levels[..count].chunks_exact(head_dim));
            for ((out, levels), (scale, zero)) in rows.zip(scales[..PAGE].iter().zip(&zeros[..PAGE])) {
                for (out, &level) in out.iter_mut().zip(levels) {
                    *out = scale * (f32::from(level) - zero);
                }
            }
            buffer
        }
        PageEntries::Channel { levels, scales, zeros, poison } => {
            let (scales, zeros) = (&scales[..head_dim], &zeros[..head_dim]);
            buffer.resize(count, 0.0);
            let rows = buffer.chunks_exact_mut(head_dim).zip(levels[..count].chunks_exact(head_dim));
            for ((out, levels), poison) in rows.zip(&poison[..PAGE]) {
                for (((out, &level), scale), zero) in out.iter_mut().zip(levels).zip(scales).zip(zeros) {
                    *out = scale * (f32::from(level) - zero) + poison;
                }
            }
            buffer
        }
    }
}

#[cfg(test)]
mod tests;
