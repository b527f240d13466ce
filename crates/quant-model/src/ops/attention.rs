//! Causal grouped-query attention over one sequence.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_kernels::views::{columns, rows};
use quant_kernels::{CausalSoftmax, Compute, Element, Par, matmul_nn, matmul_nt, tasks, views};

/// Queries and keys of one tile of scores, which stays in the second-level cache with the packed keys and values it meets.
pub(crate) const QUERY_BLOCK: usize = 128;
pub(crate) const KEY_BLOCK: usize = 512;

/// The most that one worker holds besides queries, keys, values and outputs, in bytes: a tile of scores and the packed
/// operands of its two products. Beyond the length of a tile, the number of tokens is not in it.
#[must_use]
pub fn attention_workspace_bytes(head_dim: usize, tokens: usize) -> usize {
    let (queries, keys) = (tokens.min(QUERY_BLOCK), tokens.min(KEY_BLOCK));
    // Scores are packed again for the second product.
    size_of::<f32>() * (2 * queries * keys + (keys + queries) * head_dim)
}

/// How queries, keys and values are laid out and which of them meet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
}

impl AttentionShape {
    /// `heads · head_dim`.
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// `kv_heads · head_dim`.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// The largest score and the sum of weights of every query, both `[heads, tokens]`: what a backward forms the weights
/// from again, tile by tile.
#[derive(Clone, Debug)]
pub(crate) struct SoftmaxRows<T> {
    pub(crate) largest: Array2<T>,
    pub(crate) total: Array2<T>,
}

impl<T: Element> SoftmaxRows<T> {
    pub(crate) fn new(heads: usize, tokens: usize) -> Self {
        Self { largest: Array2::zeros((heads, tokens)), total: Array2::zeros((heads, tokens)) }
    }
}

/// `softmax(q k^T / sqrt(head_dim) + mask) v` per head (Vaswani et al. 2017), key head `h / (heads / kv_heads)` serving
/// query head `h` (Ainslie et al. 2023).
///
/// `q` is `[tokens, heads · head_dim]`; `k` and `v` are `[past + tokens, kv_heads · head_dim]`, so that query `i` stands
/// at position `past + i`. It sees keys `j <= past + i`, with a window only `j > past + i − window`.
/// Writes `out` `[tokens, heads · head_dim]`, whose old content is not read, and `rows` for a backward. A task is a block of queries of one head; its
/// scores exist one tile of keys at a time. Tiles are cut at fixed key positions and summed in their order, so that the
/// output of a query depends neither on the threads nor on which other queries are there. All in f32 or f64, whatever the
/// compute setting of the linears.
pub(crate) fn causal_attention_into<T: Element>(
    q: ArrayView2<'_, T>,
    k: ArrayView2<'_, T>,
    v: ArrayView2<'_, T>,
    shape: &AttentionShape,
    past: usize,
    out: ArrayViewMut2<'_, T>,
    rows_of: Option<&mut SoftmaxRows<T>>,
    par: Par,
) {
    let mut tasks = tiles(out, shape.head_dim, rows_of);
    // The longest tiles first, or the last worker finishes alone.
    tasks.sort_by_key(|tile| std::cmp::Reverse(tile.start));
    let scale = T::from_f64((shape.head_dim as f64).sqrt().recip());
    tasks::for_each_with(tasks, par, Scratch::default, |scratch, mut tile| {
        let (start, end) = (past + tile.start, past + tile.start + tile.out.nrows());
        let first = shape.window.map_or(0, |w| (start + 1).saturating_sub(w));
        let key_head = head(tile.head / (shape.heads / shape.kv_heads), shape.head_dim);
        let queries = columns(rows(q, start - past..end - past), head(tile.head, shape.head_dim));
        scratch.softmax.start(queries.nrows());
        for from in (first / KEY_BLOCK * KEY_BLOCK..end).step_by(KEY_BLOCK) {
            let range = from..(from + KEY_BLOCK).min(end);
            let keys = columns(rows(k, range.clone()), key_head.clone());
            let values = columns(rows(v, range), key_head.clone());
            let dim = (queries.nrows(), keys.nrows());
            let mut scores = views::scratch(&mut scratch.scores, dim);
            matmul_nt(scores.view_mut(), false, scale, queries, keys, Compute::F32, Par::Seq);
            scratch.softmax.tile(scores.view_mut(), from, start, shape.window, tile.out.view_mut());
            matmul_nn(tile.out.view_mut(), true, T::one(), scores.view(), values, Compute::F32, Par::Seq);
        }
        if let Some((largest, total)) = tile.rows {
            let found = scratch.softmax.rows();
            largest.copy_from_slice(found.0);
            total.copy_from_slice(found.1);
        }
        scratch.softmax.finish(tile.out);
    });
}

/// What a worker keeps from tile to tile.
#[derive(Default)]
struct Scratch<T> {
    scores: Vec<T>,
    softmax: CausalSoftmax<T>,
}

/// The outputs of one block of queries of one head.
struct Tile<'a, T> {
    head: usize,
    start: usize,
    out: ArrayViewMut2<'a, T>,
    rows: Option<(&'a mut [T], &'a mut [T])>,
}

fn tiles<'a, T>(
    out: ArrayViewMut2<'a, T>,
    head_dim: usize,
    rows_of: Option<&'a mut SoftmaxRows<T>>,
) -> Vec<Tile<'a, T>> {
    let mut tiles = Vec::new();
    let (largest, total) = match rows_of {
        None => (&mut [][..], &mut [][..]),
        Some(SoftmaxRows { largest, total }) => {
            (largest.as_slice_mut().unwrap_or_default(), total.as_slice_mut().unwrap_or_default())
        }
    };
    // A row of a head has as many numbers as there are tokens, so that its blocks are those of the queries.
    let tokens = out.nrows().max(1);
    let blocks = |x: &'a mut [T]| x.chunks_mut(tokens).flat_map(|head| head.chunks_mut(QUERY_BLOCK));
    let mut numbers = blocks(largest).zip(blocks(total));
    let mut rest = out;
    let mut index = 0;
    while rest.ncols() > 0 {
        let (mut left, right) = rest.split_at(Axis(1), head_dim);
        let mut start = 0;
        while left.nrows() > 0 {
            let rows = left.nrows().min(QUERY_BLOCK);
            let (tile, below) = left.split_at(Axis(0), rows);
            tiles.push(Tile { head: index, start, out: tile, rows: numbers.next() });
            start += rows;
            left = below;
        }
        index += 1;
        rest = right;
    }
    tiles
}

pub(crate) fn head(index: usize, head_dim: usize) -> std::ops::Range<usize> {
    index * head_dim..(index + 1) * head_dim
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use proptest::prelude::*;

    fn filled(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Array2::from_shape_simple_fn((rows, columns), || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
    }

    fn causal_attention(
        q: ArrayView2<'_, f64>,
        k: ArrayView2<'_, f64>,
        v: ArrayView2<'_, f64>,
        shape: &AttentionShape,
        past: usize,
        par: Par,
    ) -> Array2<f64> {
        let mut out = Array2::from_elem(q.dim(), f64::NAN);
        causal_attention_into(q, k, v, shape, past, out.view_mut(), None, par);
        out
    }

    /// The definition, one query at a time.
    fn reference(
        q: &Array2<f64>,
        k: &Array2<f64>,
        v: &Array2<f64>,
        shape: &AttentionShape,
        past: usize,
    ) -> Array2<f64> {
        let d = shape.head_dim;
        let mut out = Array2::zeros(q.dim());
        for h in 0..shape.heads {
            let g = h / (shape.heads / shape.kv_heads);
            for i in 0..q.nrows() {
                let p = past + i;
                let first = shape.window.map_or(0, |w| (p + 1).saturating_sub(w));
                let scores: Vec<f64> = (first..=p)
                    .map(|j| {
                        (0..d).map(|c| q[(i, h * d + c)] * k[(j, g * d + c)]).sum::<f64>() / (d as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for (j, score) in (first..=p).zip(&scores) {
                    for c in 0..d {
                        out[(i, h * d + c)] += (score - max).exp() / total * v[(j, g * d + c)];
                    }
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn tiles_compute_the_definition(
            tokens in 1_usize..200, past in 0_usize..20, kv_heads in 1_usize..3, group in 1_usize..4,
            window in prop::option::of(1_usize..150), seed in any::<u64>(),
        ) {
            let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim: 8, window };
            let q = filled(tokens, shape.heads * 8, seed);
            let k = filled(past + tokens, kv_heads * 8, seed ^ 1);
            let v = filled(past + tokens, kv_heads * 8, seed ^ 2);
            let expected = reference(&q, &k, &v, &shape, past);
            let got = causal_attention(q.view(), k.view(), v.view(), &shape, past, Par::Seq);
            let worst = (&got - &expected).iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            prop_assert!(worst < 1e-12, "{worst}");
            let threaded = causal_attention(q.view(), k.view(), v.view(), &shape, past, Par::new(3));
            prop_assert_eq!(got, threaded);
        }
    }

    /// What a server does: keys of a long past, and a few queries at a time. Tiles are cut in other places, rows are not.
    #[test]
    fn a_query_does_not_depend_on_the_others() {
        let tokens = 2 * KEY_BLOCK + 100;
        for window in [None, Some(KEY_BLOCK + 50), Some(30)] {
            let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 8, window };
            let (q, k, v) = (filled(tokens, 16, 7), filled(tokens, 8, 8), filled(tokens, 8, 9));
            let whole = causal_attention(q.view(), k.view(), v.view(), &shape, 0, Par::Seq);
            let expected = reference(&q, &k, &v, &shape, 0);
            let worst = (&whole - &expected).iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            assert!(worst < 1e-12, "{window:?}: {worst}");
            for range in [0..1, KEY_BLOCK - 1..KEY_BLOCK + 1, KEY_BLOCK + 77..tokens, tokens - 1..tokens] {
                let seen = |x| rows(x, 0..range.end);
                let (queries, past) = (rows(q.view(), range.clone()), range.start);
                let part = causal_attention(queries, seen(k.view()), seen(v.view()), &shape, past, Par::Seq);
                assert_eq!(part, rows(whole.view(), range.clone()), "{window:?}, {range:?}");
            }
        }
    }

    #[test]
    fn grouped_heads_equal_repeated_key_heads() {
        let grouped = AttentionShape { heads: 6, kv_heads: 2, head_dim: 8, window: None };
        let full = AttentionShape { kv_heads: 6, ..grouped };
        let (q, k, v) = (filled(140, 48, 1), filled(140, 16, 2), filled(140, 16, 3));
        let repeat =
            |x: &Array2<f64>| Array2::from_shape_fn((140, 48), |(t, c)| x[(t, c / 8 / 3 * 8 + c % 8)]);
        assert_eq!(
            causal_attention(q.view(), k.view(), v.view(), &grouped, 0, Par::Seq),
            causal_attention(q.view(), repeat(&k).view(), repeat(&v).view(), &full, 0, Par::Seq),
        );
    }

    #[test]
    fn a_window_of_one_copies_the_value() {
        let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 8, window: Some(1) };
        let (q, k, v) = (filled(50, 16, 4), filled(50, 16, 5), filled(50, 16, 6));
        assert_eq!(causal_attention(q.view(), k.view(), v.view(), &shape, 0, Par::Seq), v);
    }
}
