//! Against the definition, and against products that pack their operands each time.

use super::*;
use proptest::prelude::*;
use quant_kernels::{Compute, matmul_nn, matmul_nt};
use quant_testkit::Numbers;

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
    let repeat = |x: &Array2<f64>| Array2::from_shape_fn((140, 48), |(t, c)| x[(t, c / 8 / 3 * 8 + c % 8)]);
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

/// What [`causal_attention_into`] computes, head by head and block by block, with operands that every product packs anew: what
/// it writes for queries and for a backward.
fn with_products_of_views<T: Element>(
    [q, k, v]: [ArrayView2<'_, T>; 3],
    shape: &AttentionShape,
    past: usize,
) -> (Array2<T>, SoftmaxRows<T>) {
    let tokens = q.nrows();
    let mut out = Array2::from_elem(q.dim(), T::nan());
    let mut numbers = SoftmaxRows::new(shape.heads, tokens);
    let scale = T::from_f64((shape.head_dim as f64).sqrt().recip());
    let mut softmax = CausalSoftmax::default();
    for index in 0..shape.heads {
        let own = head(index, shape.head_dim);
        let key_head = head(index / (shape.heads / shape.kv_heads), shape.head_dim);
        for start in (0..tokens).step_by(QUERY_BLOCK) {
            let block = start..(start + QUERY_BLOCK).min(tokens);
            let queries = columns(rows(q, block.clone()), own.clone());
            let mut out = views::columns_mut(&mut out, own.clone());
            let mut out = views::rows_mut(&mut out, block.clone());
            softmax.start(queries.nrows());
            let end = past + block.end;
            for from in (shape.first_key(past + start) / KEY_BLOCK * KEY_BLOCK..end).step_by(KEY_BLOCK) {
                let part = |x| columns(rows(x, from..(from + KEY_BLOCK).min(end)), key_head.clone());
                let (keys, values) = (part(k), part(v));
                let mut scores = Array2::zeros((queries.nrows(), keys.nrows()));
                matmul_nt(scores.view_mut(), false, scale, queries, keys, Compute::F32, Par::Seq);
                softmax.tile(scores.view_mut(), from, past + start, shape.window, out.view_mut());
                matmul_nn(out.view_mut(), true, T::one(), scores.view(), values, Compute::F32, Par::Seq);
            }
            for (i, (&largest, &total)) in softmax.rows().0.iter().zip(softmax.rows().1).enumerate() {
                numbers.largest[(index, start + i)] = largest;
                numbers.total[(index, start + i)] = total;
            }
            softmax.finish(out);
        }
    }
    (out, numbers)
}

/// Shared heads, one head and heads of their own; lengths on both sides of every edge of blocks and tiles; heads that are longer
/// than a block of the sums, and of one number; windows; a past; parts of blocks, which five threads take.
#[test]
fn packing_once_changes_no_bit() {
    fn check<T: Element>(shape: &AttentionShape, past: usize, tokens: usize, narrow: impl Fn(f32) -> T) {
        let numbers = &mut Numbers::new((past * 7919 + tokens) as u64);
        let widths = [shape.query_width(), shape.kv_width(), shape.kv_width()];
        let lengths = [tokens, past + tokens, past + tokens];
        let mut random = |i: usize| numbers.matrix(lengths[i], widths[i], 2.0).mapv(&narrow);
        let x: [Array2<T>; 3] = [random(0), random(1), random(2)];
        let x = x.each_ref().map(|x| x.view());
        let bits = |x: &Array2<T>| x.mapv(|x| x.to_f64_exact().to_bits());
        let (expected, rows) = with_products_of_views(x, shape, past);
        for threads in [1, 2, 5] {
            let mut out = Array2::from_elem(expected.dim(), T::nan());
            let mut found = SoftmaxRows::new(shape.heads, tokens);
            let [q, k, v] = x;
            causal_attention_into(q, k, v, shape, past, out.view_mut(), Some(&mut found), Par::new(threads));
            let at = format!("{shape:?}, {tokens} tokens behind {past}, {threads} threads");
            assert_eq!(bits(&out), bits(&expected), "{at}");
            assert_eq!(bits(&found.largest), bits(&rows.largest), "{at}");
            assert_eq!(bits(&found.total), bits(&rows.total), "{at}");
        }
    }
    let edges = [1, 2, 33, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 300];
    let tiles = [KEY_BLOCK - 1, KEY_BLOCK, KEY_BLOCK + 1, 2 * KEY_BLOCK + QUERY_BLOCK + 3];
    for tokens in edges.into_iter().chain(tiles) {
        for (heads, kv_heads, head_dim) in [(6, 2, 16), (3, 3, 8), (7, 1, 33), (2, 1, 1)] {
            let shape = AttentionShape { heads, kv_heads, head_dim, window: None };
            check(&shape, 0, tokens, |x| x);
        }
    }
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 16, window: None };
    for window in [None, Some(1), Some(100), Some(KEY_BLOCK), Some(KEY_BLOCK + 77)] {
        let shape = AttentionShape { window, ..shape };
        for (past, tokens) in [(0, 700), (5, 130), (KEY_BLOCK - 3, 9), (600, 777), (KEY_BLOCK, 1)] {
            check(&shape, past, tokens, |x| x);
            check(&shape, past, tokens, f64::from);
        }
    }
    let long = AttentionShape { heads: 2, kv_heads: 1, head_dim: 400, window: None };
    check(&long, 0, 200, |x| x);
    check(&long, 300, 300, f64::from);
}

/// What no query of a block sees does not reach it, whatever it is.
#[test]
fn later_keys_and_values_reach_nobody() {
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 8, window: None };
    let tokens = KEY_BLOCK + QUERY_BLOCK;
    let (q, mut k, mut v) = (filled(tokens, 16, 7), filled(tokens, 8, 8), filled(tokens, 8, 9));
    let whole = causal_attention(q.view(), k.view(), v.view(), &shape, 0, Par::Seq);
    for first in [QUERY_BLOCK, 3 * QUERY_BLOCK, KEY_BLOCK] {
        let (mut k, mut v) = (k.clone(), v.clone());
        views::rows_mut(&mut k, first..tokens).fill(f64::NAN);
        views::rows_mut(&mut v, first..tokens).fill(f64::NAN);
        let got = causal_attention(q.view(), k.view(), v.view(), &shape, 0, Par::new(2));
        assert_eq!(rows(got.view(), 0..first), rows(whole.view(), 0..first), "{first}");
        assert!(rows(got.view(), first..tokens).iter().all(|x| x.is_nan()), "{first}");
    }
    k.fill(f64::NAN);
    v.fill(f64::NAN);
    assert!(causal_attention(q.view(), k.view(), v.view(), &shape, 0, Par::Seq).iter().all(|x| x.is_nan()));
}

#[test]
fn few_tasks_are_smaller() {
    assert_eq!(queries_of_a_task(12, 2048, 2), TASK_QUERIES);
    assert_eq!(queries_of_a_task(12, 512, 24), TASK_QUERIES);
    assert_eq!(queries_of_a_task(12, 512, 25), LEAST_QUERIES);
    assert_eq!(queries_of_a_task(12, 512, 192), LEAST_QUERIES);
    assert_eq!(queries_of_a_task(1, 10, 1), TASK_QUERIES);
    assert!(QUERY_BLOCK.is_multiple_of(TASK_QUERIES) && TASK_QUERIES.is_multiple_of(LEAST_QUERIES));
}
