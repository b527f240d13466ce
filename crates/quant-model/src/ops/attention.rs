//! Causal grouped-query attention over one sequence.

use super::packed_head::{KEY_BLOCK, PackedHead, Seen};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_kernels::views::{columns, rows};
use quant_kernels::{CausalSoftmax, Element, Par, tasks, views};
use std::sync::Arc;

/// Queries whose last tile of keys ends at the same position.
pub(crate) const QUERY_BLOCK: usize = 128;
/// Queries of one task, part of a block: its scores stay in the second-level cache with the packed keys and values they meet.
const TASK_QUERIES: usize = 64;
/// Fewer are not worth a task: a register tile has some rows, and every task packs its scores.
const LEAST_QUERIES: usize = 32;
/// Tasks a thread, where there are queries enough, so that the last one to finish keeps nobody waiting for long.
const TASKS_A_THREAD: usize = 4;

/// The most that attention over one sequence holds besides queries, keys, values and outputs, in bytes, on that many
/// threads: of every worker a tile of scores, the packed left operands of its two products and the packed values that its
/// queries see of their last tile; packed keys and values of the heads that are worked on at once, at most one a worker.
#[must_use]
pub fn attention_workspace_bytes(kv_heads: usize, head_dim: usize, tokens: usize, threads: usize) -> usize {
    let (queries, keys) = (tokens.min(TASK_QUERIES), tokens.min(KEY_BLOCK));
    // Scores are packed again for the second product.
    let worker = 2 * queries * keys + (keys + queries) * head_dim;
    let heads = threads.min(kv_heads) * 2 * tokens * head_dim;
    size_of::<f32>() * (threads * worker + heads)
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
    /// The first position that a query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |width| (position + 1).saturating_sub(width))
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
/// Writes `out` `[tokens, heads · head_dim]`, whose old content is not read, and `rows` for a backward. A task is some queries of one
/// head; its scores exist one tile of keys at a time. Keys and values are packed once for all tasks that meet them. Tiles are cut at fixed key positions and summed in their order, so that the
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
    let scale = T::from_f64((shape.head_dim as f64).sqrt().recip());
    let work = work((k, v), shape, past, tiles(out, shape, rows_of, par));
    tasks::for_each_with(work, par, Scratch::default, |scratch, work| match work {
        Work::Pack(head, index) => {
            head.keys(index);
            head.values(index);
        }
        Work::Attend(seen, tile) => tile.attend(q, &seen, shape, (past, scale), scratch),
    });
}

/// What a worker keeps from tile to tile.
#[derive(Default)]
struct Scratch<T> {
    scores: Vec<T>,
    softmax: CausalSoftmax<T>,
}

/// What one task does.
enum Work<'a, T> {
    /// Packs a tile of keys and values that others will ask for.
    Pack(Arc<PackedHead<'a, T>>, usize),
    /// Computes the outputs of some queries.
    Attend(Arc<Seen<'a, T>>, Tile<'a, T>),
}

/// The outputs of some queries of one head, neighbours of one block.
struct Tile<'a, T> {
    head: usize,
    start: usize,
    out: ArrayViewMut2<'a, T>,
    rows: Option<(&'a mut [T], &'a mut [T])>,
}

impl<T: Element> Tile<'_, T> {
    /// The first query of the block.
    fn block(&self) -> usize {
        self.start / QUERY_BLOCK * QUERY_BLOCK
    }

    fn attend(
        mut self,
        q: ArrayView2<'_, T>,
        seen: &Seen<'_, T>,
        shape: &AttentionShape,
        (past, scale): (usize, T),
        scratch: &mut Scratch<T>,
    ) {
        let tokens = self.start..self.start + self.out.nrows();
        let queries = columns(rows(q, tokens), head(self.head, shape.head_dim));
        scratch.softmax.start(queries.nrows());
        let first = shape.first_key(past + self.block());
        for index in first / KEY_BLOCK..seen.end().div_ceil(KEY_BLOCK) {
            let from = index * KEY_BLOCK;
            let dim = (queries.nrows(), KEY_BLOCK.min(seen.end() - from));
            let mut scores = views::scratch(&mut scratch.scores, dim);
            seen.keys(index).product_into(scores.view_mut(), false, scale, queries, Par::Seq);
            let first_query = past + self.start;
            scratch.softmax.tile(scores.view_mut(), from, first_query, shape.window, self.out.view_mut());
            let values = seen.values(index);
            values.product_into(self.out.view_mut(), true, T::one(), scores.view(), Par::Seq);
        }
        if let Some((largest, total)) = self.rows {
            let found = scratch.softmax.rows();
            largest.copy_from_slice(found.0);
            total.copy_from_slice(found.1);
        }
        scratch.softmax.finish(self.out);
    }
}

/// The tasks in their order: those of one head of keys and values together, so that few of them are packed at a time; of a head
/// the packing, so that nobody waits for long, and then the longest first, or the last worker finishes alone.
fn work<'a, T: Element>(
    (k, v): (ArrayView2<'a, T>, ArrayView2<'a, T>),
    shape: &AttentionShape,
    past: usize,
    mut tiles: Vec<Tile<'a, T>>,
) -> Vec<Work<'a, T>> {
    let tokens = k.nrows() - past;
    let key_head = |tile: &Tile<'_, T>| tile.head / (shape.heads / shape.kv_heads);
    tiles.sort_by_key(|tile| (key_head(tile), std::cmp::Reverse(tile.start), tile.head));
    let mut work = Vec::with_capacity(tiles.len() + shape.kv_heads * k.nrows().div_ceil(KEY_BLOCK));
    let mut of_head: Option<(usize, Arc<PackedHead<'a, T>>)> = None;
    let mut of_block: Option<(usize, Arc<Seen<'a, T>>)> = None;
    for tile in tiles {
        let index = key_head(&tile);
        let packed = match &of_head {
            Some((same, packed)) if *same == index => Arc::clone(packed),
            _ => {
                let part = |x| columns(x, head(index, shape.head_dim));
                let packed = Arc::new(PackedHead::new(part(k), part(v)));
                let needed = shape.first_key(past) / KEY_BLOCK..k.nrows().div_ceil(KEY_BLOCK);
                work.extend(needed.map(|tile| Work::Pack(Arc::clone(&packed), tile)));
                of_head = Some((index, Arc::clone(&packed)));
                of_block = None;
                packed
            }
        };
        let seen = match &of_block {
            Some((same, seen)) if *same == tile.block() => Arc::clone(seen),
            _ => {
                let end = past + (tile.block() + QUERY_BLOCK).min(tokens);
                let seen = Arc::new(Seen::new(packed, end));
                of_block = Some((tile.block(), Arc::clone(&seen)));
                seen
            }
        };
        work.push(Work::Attend(seen, tile));
    }
    work
}

fn tiles<'a, T>(
    out: ArrayViewMut2<'a, T>,
    shape: &AttentionShape,
    rows_of: Option<&'a mut SoftmaxRows<T>>,
    par: Par,
) -> Vec<Tile<'a, T>> {
    let mut tiles = Vec::new();
    let (largest, total) = match rows_of {
        None => (&mut [][..], &mut [][..]),
        Some(SoftmaxRows { largest, total }) => {
            (largest.as_slice_mut().unwrap_or_default(), total.as_slice_mut().unwrap_or_default())
        }
    };
    // A row of a head has as many numbers as there are tokens, so that its parts are those of the queries.
    let tokens = out.nrows().max(1);
    let length = queries_of_a_task(shape.heads, tokens, par.threads());
    let parts = |x: &'a mut [T]| x.chunks_mut(tokens).flat_map(move |head| head.chunks_mut(length));
    let mut numbers = parts(largest).zip(parts(total));
    let mut rest = out;
    let mut index = 0;
    while rest.ncols() > 0 {
        let (mut left, right) = rest.split_at(Axis(1), shape.head_dim);
        let mut start = 0;
        while left.nrows() > 0 {
            let rows = left.nrows().min(length);
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

/// An even part of a block, a smaller one where tasks would be too few for the threads.
fn queries_of_a_task(heads: usize, tokens: usize, threads: usize) -> usize {
    let mut length = TASK_QUERIES;
    while threads > 1 && length > LEAST_QUERIES && heads * tokens.div_ceil(length) < TASKS_A_THREAD * threads
    {
        length /= 2;
    }
    length
}

pub(crate) fn head(index: usize, head_dim: usize) -> std::ops::Range<usize> {
    index * head_dim..(index + 1) * head_dim
}

#[cfg(test)]
mod tests;
