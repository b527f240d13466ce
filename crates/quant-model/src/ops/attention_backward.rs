//! The backward of causal grouped-query attention over one sequence.

use super::attention::{AttentionShape, QUERY_BLOCK, SoftmaxRows, head};
use super::packed_head::KEY_BLOCK;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_kernels::views::{columns, rows, rows_mut};
use quant_kernels::{
    Compute, Element, Par, matmul_nn, matmul_nt, row_dots, softmax_tile_backward, tasks, views,
};

/// What a forward over one sequence had and gave: queries and attended values `[tokens, heads · head_dim]`, keys and values
/// `[tokens, kv_heads · head_dim]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attended<'a, T> {
    pub(crate) q: ArrayView2<'a, T>,
    pub(crate) k: ArrayView2<'a, T>,
    pub(crate) v: ArrayView2<'a, T>,
    pub(crate) out: ArrayView2<'a, T>,
    pub(crate) rows: &'a SoftmaxRows<T>,
}

/// Bytes that [`causal_attention_backward`] holds beside its arguments, whatever the number of threads, for one sequence.
pub(crate) fn attention_backward_bytes(shape: &AttentionShape, tokens: usize, element: usize) -> usize {
    2 * tokens * shape.query_width() * element
}

/// Gradients with respect to queries, keys and values, written into `into` in this order, from `grad` `[tokens,
/// heads · head_dim]`, that of the attended values: with weights `P` and scores `S`, `dV = Pᵀ dO`, `dP = dO Vᵀ`,
/// `dS = P ∘ (dP − rowsum(dO ∘ O))`, `dQ = dS K / sqrt(head_dim)`, `dK = dSᵀ Q / sqrt(head_dim)`, tile by tile, each tile's
/// weights formed again from the numbers of its rows (Dao et al. 2022).
///
/// A task is a query head. The gradients of a key and value head are summed over its query heads in their order, and over
/// tiles in theirs, so that threads change nothing.
pub(crate) fn causal_attention_backward<T: Element>(
    forward: Attended<'_, T>,
    grad: ArrayView2<'_, T>,
    shape: &AttentionShape,
    into: [ArrayViewMut2<'_, T>; 3],
    par: Par,
) {
    let (tokens, width) = (grad.nrows(), shape.head_dim);
    let [mut dq, dk, dv] = into;
    // Rows of keys and rows of values of every query head, beside each other.
    let mut of_heads = Array2::<T>::zeros((shape.heads * tokens, 2 * width));
    let heads = dq
        .axis_chunks_iter_mut(Axis(1), width.max(1))
        .zip(of_heads.axis_chunks_iter_mut(Axis(0), tokens.max(1)))
        .enumerate();
    tasks::for_each_with(heads, par, Tiles::default, |tiles, (index, (dq, dkv))| {
        head_backward(&forward, grad, shape, index, dq, dkv, tiles);
    });
    let group = shape.heads / shape.kv_heads.max(1);
    for (first_column, sums) in [(0, dk), (width, dv)] {
        tasks::for_rows(sums, par, |first, mut sums| {
            let count = sums.nrows();
            for (key_head, mut sum) in sums.axis_chunks_iter_mut(Axis(1), width.max(1)).enumerate() {
                for member in 0..group {
                    let start = (key_head * group + member) * tokens + first;
                    let part = rows(of_heads.view(), start..start + count);
                    let part = columns(part, first_column..first_column + width);
                    if member == 0 {
                        sum.assign(&part);
                    } else {
                        sum += &part;
                    }
                }
            }
        });
    }
}

/// What a worker keeps from head to head.
#[derive(Default)]
struct Tiles<T> {
    scores: Vec<T>,
    grads: Vec<T>,
    along: Vec<T>,
}

/// One query head: `dq` `[tokens, head_dim]`, and `dkv` `[tokens, 2 head_dim]`, zero before.
fn head_backward<T: Element>(
    forward: &Attended<'_, T>,
    grad: ArrayView2<'_, T>,
    shape: &AttentionShape,
    index: usize,
    mut dq: ArrayViewMut2<'_, T>,
    dkv: ArrayViewMut2<'_, T>,
    tiles: &mut Tiles<T>,
) {
    let (tokens, width) = dq.dim();
    let scale = T::from_f64((width as f64).sqrt().recip());
    let (own, key_head) = (head(index, width), head(index / (shape.heads / shape.kv_heads), width));
    let (q, out, grad) =
        (columns(forward.q, own.clone()), columns(forward.out, own.clone()), columns(grad, own));
    let (k, v) = (columns(forward.k, key_head.clone()), columns(forward.v, key_head));
    let (mut dk, mut dv) = dkv.split_at(Axis(1), width);
    let (largest, total) = (forward.rows.largest.row(index), forward.rows.total.row(index));
    let (Some(largest), Some(total)) = (largest.to_slice(), total.to_slice()) else { return };
    tiles.along.resize(tokens, T::zero());
    row_dots(out, grad, &mut tiles.along);
    for start in (0..tokens).step_by(QUERY_BLOCK) {
        let queries = start..(start + QUERY_BLOCK).min(tokens);
        let (q, grad) = (rows(q, queries.clone()), rows(grad, queries.clone()));
        let mut dq = rows_mut(&mut dq, queries.clone());
        let first = shape.window.map_or(0, |w| (start + 1).saturating_sub(w)) / KEY_BLOCK * KEY_BLOCK;
        for from in (first..queries.end).step_by(KEY_BLOCK) {
            let keys = from..(from + KEY_BLOCK).min(queries.end);
            let (k, v) = (rows(k, keys.clone()), rows(v, keys.clone()));
            let dim = (q.nrows(), k.nrows());
            let mut p = views::scratch(&mut tiles.scores, dim);
            let mut ds = views::scratch(&mut tiles.grads, dim);
            matmul_nt(p.view_mut(), false, scale, q, k, Compute::F32, Par::Seq);
            matmul_nt(ds.view_mut(), false, T::one(), grad, v, Compute::F32, Par::Seq);
            let numbers = (&largest[queries.clone()], &total[queries.clone()]);
            let along = &tiles.along[queries.clone()];
            softmax_tile_backward(p.view_mut(), ds.view_mut(), from, start, shape.window, numbers, along);
            let (mut dk, mut dv) = (rows_mut(&mut dk, keys.clone()), rows_mut(&mut dv, keys));
            matmul_nn(dv.view_mut(), true, T::one(), p.t(), grad, Compute::F32, Par::Seq);
            matmul_nn(dk.view_mut(), true, scale, ds.t(), q, Compute::F32, Par::Seq);
            matmul_nn(dq.view_mut(), from > first, scale, ds.view(), k, Compute::F32, Par::Seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::causal_attention_into;
    use quant_testkit::Numbers;

    fn random(rows: usize, columns: usize, numbers: &mut Numbers) -> Array2<f64> {
        numbers.matrix(rows, columns, 1.5).mapv(f64::from)
    }

    fn forward<T: Element>(x: &[Array2<T>; 3], shape: &AttentionShape) -> (Array2<T>, SoftmaxRows<T>) {
        let [q, k, v] = x.each_ref().map(|x| x.view());
        let mut out = Array2::from_elem(q.dim(), T::nan());
        let mut rows = SoftmaxRows::new(shape.heads, q.nrows());
        causal_attention_into(q, k, v, shape, 0, out.view_mut(), Some(&mut rows), Par::Seq);
        (out, rows)
    }

    fn backward<T: Element>(
        x: &[Array2<T>; 3],
        grad: &Array2<T>,
        shape: &AttentionShape,
        par: Par,
    ) -> [Array2<T>; 3] {
        let (out, rows) = forward(x, shape);
        let [q, k, v] = x.each_ref().map(|x| x.view());
        let mut into = x.each_ref().map(|x| Array2::from_elem(x.dim(), T::nan()));
        let attended = Attended { q, k, v, out: out.view(), rows: &rows };
        causal_attention_backward(attended, grad.view(), shape, into.each_mut().map(|x| x.view_mut()), par);
        into
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let cases = [
            (1, 1, 1, None),
            (40, 4, 2, None),
            (300, 6, 2, None),
            (150, 3, 3, Some(20)),
            (KEY_BLOCK + 200, 2, 1, Some(KEY_BLOCK + 30)),
            (KEY_BLOCK + 200, 2, 1, Some(30)),
        ];
        for (tokens, heads, kv_heads, window) in cases {
            let shape = AttentionShape { heads, kv_heads, head_dim: 8, window };
            let numbers = &mut Numbers::new(tokens as u64);
            let widths = [heads * 8, kv_heads * 8, kv_heads * 8];
            let x = widths.map(|width| random(tokens, width, numbers));
            let grad = random(tokens, heads * 8, numbers);
            let got = backward(&x, &grad, &shape, Par::Seq);
            for (which, got) in got.iter().enumerate() {
                let direction = random(tokens, widths[which], numbers);
                let loss = |step: f64| {
                    let mut moved = x.clone();
                    moved[which] = &x[which] + &direction * step;
                    (&forward(&moved, &shape).0 * &grad).sum()
                };
                let central = |h: f64| (loss(h) - loss(-h)) / (2.0 * h);
                let want = (4.0 * central(5e-4) - central(1e-3)) / 3.0;
                let got = (got * &direction).sum();
                assert!(
                    (got - want).abs() < 1e-6 * want.abs().max(1e-2),
                    "{shape:?}, {which}: {got}, {want}"
                );
            }
            assert_eq!(got, backward(&x, &grad, &shape, Par::new(3)));
            let narrow = |x: &Array2<f64>| x.mapv(|x| x as f32);
            let short = backward(&x.each_ref().map(narrow), &narrow(&grad), &shape, Par::Seq);
            for (short, got) in short.iter().zip(&got) {
                let size = got.iter().fold(0.1_f64, |m, x| m.max(x.abs()));
                assert!(short.iter().zip(got).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5 * size));
            }
        }
    }
}
