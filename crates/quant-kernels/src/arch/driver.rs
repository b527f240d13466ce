//! Cache blocking and threads, written once over the [`Kernel`] contract.
//!
//! The loops follow Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008): a block of
//! the summed index and a group of columns of B are packed together (shared, third-level cache), then a grid of
//! tasks, each a block of rows times a block of columns (second-level cache), runs the tiles.
//!
//! Each output element is produced by tiles whose sums run over the same blocks of the summed index in the same
//! order, so no choice made here (block of rows, group of columns, number of threads) can change a bit of it.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array2, Axis, Slice};

use crate::tasks::on_workers;
use crate::{Par, vectorized};

use super::buffer::Buffer;
use super::kernel::{Kernel, LeftWord, RightWord};
use super::pack::{Source, pack_panels};
use super::sink::{Block, Sink};

/// Rows packed at a time, and their bytes over several blocks of the summed index: they are read as one stream per
/// group of columns, so main memory will do.
const ROW_GROUP: usize = 4096;
const ROW_GROUP_BYTES: usize = 16 << 20;
/// Packed columns of one block of the summed index: well inside a third-level cache, together with the part of the
/// destination they are for, which is updated once per block.
const COLUMN_GROUP_BYTES: usize = 1536 << 10;
/// The same, per thread, for a product of few rows: panels are used once and must not leave the second-level cache.
const FEW_ROWS_COLUMN_GROUP_BYTES: usize = 512 << 10;
/// Packed rows and columns of one task: the columns stay in the second-level cache while the rows stream by.
const TASK_ROW_BYTES: usize = 256 << 10;
const TASK_COLUMN_BYTES: usize = 384 << 10;
/// Packed panels copied by one task.
const PACK_TASK_BYTES: usize = 128 << 10;
/// Multiply-adds below which starting other threads costs more than it gives.
const SEQUENTIAL_WORK: usize = 1 << 18;

/// Writes the lanes of a panel from this one on, over a range of the summed index, in the layout of a
/// [`Panel`](super::kernel::Panel) whose words are elements.
pub(super) type FillPanel<'a, T> = dyn Fn(usize, Range<usize>, *mut T) + Sync + 'a;

/// The right operand: columns of B as lanes.
pub(super) enum Columns<'a, T> {
    /// Packed group by group during the product.
    Source(Source<T>),
    /// Made group by group during the product, by a function, for kernels whose words are elements and have no head.
    Made(&'a FillPanel<'a, T>),
    /// Packed before, see [`pack_all`].
    Packed(&'a Packed),
}

/// All panels of an operand `[lanes, depth]`: block after block of the summed index, panel after panel of `NR` lanes.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    buffer: Buffer,
    pub(super) lanes: usize,
    pub(super) depth: usize,
}

impl Packed {
    fn unfilled<K: Kernel>(lanes: usize, depth: usize) -> Self {
        let words = span_words::<K>(depth) + depth.div_ceil(K::KC) * K::HEAD;
        let words = words * lanes.next_multiple_of(K::NR);
        Self { buffer: Buffer::kept::<RightWord<K>>(words), lanes, depth }
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// First word of a panel in the block of the summed index that starts at `first`.
    fn panel<K: Kernel>(&self, first: usize, panel: usize) -> *const RightWord<K> {
        let offset = panel_offset::<K>(self.lanes, self.depth, first, panel);
        // SAFETY: `pack_all` reserved `NR` words per panel and word of depth.
        unsafe { self.buffer.as_ptr::<RightWord<K>>().add(offset) }
    }
}

/// Where a panel of a packed operand starts, in words: all blocks before `first` are whole.
fn panel_offset<K: Kernel>(lanes: usize, depth: usize, first: usize, panel: usize) -> usize {
    let panels = lanes.div_ceil(K::NR);
    let before = first / K::PAIR + first / K::KC * K::HEAD;
    (before * panels + panel * (K::HEAD + block_words::<K>(depth - first))) * K::NR
}

/// Words of the next block of the summed index when `left` elements are left.
fn block_words<K: Kernel>(left: usize) -> usize {
    left.min(K::KC).div_ceil(K::PAIR).next_multiple_of(K::WORDS)
}

/// Words of a lane in all blocks of the summed index, heads aside.
fn span_words<K: Kernel>(depth: usize) -> usize {
    const { assert!(K::KC.is_multiple_of(K::PAIR * K::WORDS), "blocks of whole steps") };
    depth / K::KC * (K::KC / K::PAIR) + block_words::<K>(depth % K::KC)
}

/// Packs a whole right operand.
///
/// # Safety
/// The view behind `src` is still borrowed.
pub(super) unsafe fn pack_all<K: Kernel>(src: &Source<K::In>, par: Par) -> Packed {
    let mut packed = Packed::unfilled::<K>(src.lanes(), src.depth());
    let start = Shared(packed.buffer.as_mut_ptr::<RightWord<K>>());
    for_panels::<K>(&packed, par, |panels| {
        // SAFETY: the panels of different tasks do not overlap, and `src` has their lanes.
        unsafe { pack_depth::<K>(src, panels.clone(), &packed, panels, start) };
    });
    packed
}

/// Packs a right operand `[lanes, depth]` whose rows `fill` writes one at a time, or what `roundings` leave of it: the operand never
/// exists as a matrix.
pub(super) fn pack_rows<K: Kernel>(
    lanes: usize,
    depth: usize,
    roundings: u8,
    par: Par,
    fill: &(dyn Fn(usize, &mut [K::In]) + Sync),
) -> Packed {
    let mut packed = Packed::unfilled::<K>(lanes, depth);
    let start = Shared(packed.buffer.as_mut_ptr::<RightWord<K>>());
    for_panels::<K>(&packed, par, |panels| {
        let mut rows = Array2::<K::In>::default((K::NR.min(lanes), depth));
        for panel in panels {
            let first = panel * K::NR;
            let count = K::NR.min(lanes - first);
            for (i, mut row) in rows.rows_mut().into_iter().take(count).enumerate() {
                if let Some(row) = row.as_slice_mut() {
                    fill(first + i, row);
                }
            }
            let source = Source::new(&rows.slice_axis(Axis(0), Slice::from(..count))).after(roundings);
            // SAFETY: the panels of different tasks do not overlap, and `rows` holds the lanes of this one.
            unsafe { pack_depth::<K>(&source, 0..1, &packed, panel..panel + 1, start) };
        }
    });
    packed
}

/// Calls `task` with ranges of panels that together are all of them.
fn for_panels<K: Kernel>(packed: &Packed, par: Par, task: impl Fn(Range<usize>) + Sync) {
    // Several ranges a thread, so that a slow one delays nobody; long ones, so that buffers are used often.
    const RANGES_A_THREAD: usize = 4;
    let panels = packed.lanes.div_ceil(K::NR);
    let ranges = if par == Par::Seq { 1 } else { RANGES_A_THREAD * par.threads() };
    let each = panels.div_ceil(ranges).max(1);
    parallel_for(par, panels.div_ceil(each), |i| task(i * each..((i + 1) * each).min(panels)));
}

/// Packs panels `from` of a source as panels `to` of an operand, over the whole summed index.
///
/// # Safety
/// The view behind `src` is still borrowed and has the lanes of `from`; `to` is as long and inside the operand;
/// `start` is the operand's buffer, and nothing else accesses these panels.
unsafe fn pack_depth<K: Kernel>(
    src: &Source<K::In>,
    from: Range<usize>,
    operand: &Packed,
    to: Range<usize>,
    start: Shared<RightWord<K>>,
) {
    vectorized(
        #[inline(always)]
        || {
            for first in (0..operand.depth).step_by(K::KC) {
                let depth = K::KC.min(operand.depth - first);
                let offset = panel_offset::<K>(operand.lanes, operand.depth, first, to.start);
                // `pack_panels` counts from the place of panel 0.
                let panel_words = K::NR * (K::HEAD + block_words::<K>(depth));
                let dst = start.offset(offset).back(from.start * panel_words).get();
                // SAFETY: forwarded from the caller; the panels lie in the buffer, and the ranges are in `src`.
                unsafe { pack_right::<K>(src, 0, from.clone(), first, depth, dst) };
            }
        },
    );
}

/// Packs panels of A; the arguments are those of [`pack_panels`].
///
/// # Safety
/// As [`pack_panels`].
#[inline(always)]
unsafe fn pack_left<K: Kernel>(
    src: &Source<K::In>,
    lane0: usize,
    panels: Range<usize>,
    first: usize,
    depth: usize,
    dst: *mut LeftWord<K>,
) {
    let words = block_words::<K>(depth);
    // SAFETY: forwarded from the caller.
    unsafe { pack_panels::<K::Left>(src, lane0, K::MR, panels, first, depth, words, 0, dst) };
}

/// Packs panels of B with their heads; the arguments are those of [`pack_panels`].
///
/// # Safety
/// As [`pack_panels`].
#[inline(always)]
unsafe fn pack_right<K: Kernel>(
    src: &Source<K::In>,
    lane0: usize,
    panels: Range<usize>,
    first: usize,
    depth: usize,
    dst: *mut RightWord<K>,
) {
    let words = block_words::<K>(depth);
    // SAFETY: forwarded from the caller; every panel begins with its head.
    unsafe {
        pack_panels::<K::Right>(src, lane0, K::NR, panels.clone(), first, depth, words, K::HEAD, dst);
        if K::HEAD > 0 {
            for panel in panels {
                K::head(dst.add(panel * K::NR * (K::HEAD + words)), words);
            }
        }
    }
}

/// Gives `A B` to a sink, with the rows of A and the columns of B as lanes.
///
/// # Safety
/// What the sink writes to is nobody else's during the call; the views behind `a` and `b` are still borrowed; `a` has as many
/// lanes as the sink has rows, `b` as it has columns, both one depth; a packed `b` was packed by `K`, a function fills panels of `K`,
/// whose words are its elements.
pub(super) unsafe fn gemm<K: Kernel>(
    kernel: K,
    sink: &impl Sink<K>,
    a: &Source<K::In>,
    b: &Columns<'_, K::In>,
    par: Par,
) {
    let ((m, n), k) = (sink.dim(), a.depth());
    let plain = K::PAIR == 1 && K::HEAD == 0 && K::WORDS == 1;
    assert!(!matches!(b, Columns::Made(_)) || plain, "words that are elements");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        // SAFETY: forwarded from the caller.
        unsafe { sink.empty(kernel) };
        return;
    }
    let par = if m.saturating_mul(n).saturating_mul(k) < SEQUENTIAL_WORK { Par::Seq } else { par };

    let plan = Pieces::new::<K>(m, n, k, b, par);
    let mut a_buffer = Buffer::new::<LeftWord<K>>(plan.row_group * span_words::<K>(k.min(plan.depth_group)));
    let mut b_buffer = Buffer::new::<RightWord<K>>(plan.packed_columns * (K::HEAD + block_words::<K>(k)));
    let a_packed = Shared(a_buffer.as_mut_ptr::<LeftWord<K>>());
    let b_packed = Shared(b_buffer.as_mut_ptr::<RightWord<K>>());

    for (row0, depth0) in pairs(m, plan.row_group, k, plan.depth_group) {
        let row1 = (row0 + plan.row_group).min(m);
        let depth1 = (depth0 + plan.depth_group).min(k);
        let padded = (row1 - row0).next_multiple_of(K::MR);
        let a_block = |first: usize| a_packed.offset((first - depth0) / K::PAIR * padded);
        let columns = sink.reach(row1);
        for col0 in (0..columns).step_by(plan.column_group) {
            let col1 = (col0 + plan.column_group).min(columns);
            for first in (depth0..depth1).step_by(K::KC) {
                let depth = K::KC.min(depth1 - first);
                let words = block_words::<K>(depth);

                // Rows are packed once, on the first pass over the columns.
                let a_panels = if col0 == 0 { padded / K::MR } else { 0 };
                let a_tasks = a_panels.div_ceil(plan.pack_panels);
                let b_panels = if plan.packed_columns > 0 { (col1 - col0).div_ceil(K::NR) } else { 0 };
                let b_tasks = b_panels.div_ceil(plan.pack_panels);
                parallel_for(par, a_tasks + b_tasks, |task| {
                    // SAFETY: the panels of different tasks do not overlap, and every panel index is below the count
                    // the buffers were made for.
                    unsafe {
                        if task < a_tasks {
                            let panels = plan.panels(task, a_panels);
                            let dst = a_block(first).get();
                            vectorized(
                                #[inline(always)]
                                || pack_left::<K>(a, row0, panels, first, depth, dst),
                            );
                        } else if let Columns::Source(b) = b {
                            let panels = plan.panels(task - a_tasks, b_panels);
                            let dst = b_packed.get();
                            vectorized(
                                #[inline(always)]
                                || pack_right::<K>(b, col0, panels, first, depth, dst),
                            );
                        } else if let Columns::Made(fill) = b {
                            for panel in plan.panels(task - a_tasks, b_panels) {
                                let dst = b_packed.get().add(panel * K::NR * words);
                                fill(col0 + panel * K::NR, first..first + depth, dst.cast());
                            }
                        }
                    }
                });

                let row_tasks = (row1 - row0).div_ceil(plan.task_rows);
                let col_tasks = (col1 - col0).div_ceil(plan.task_cols);
                parallel_for(par, row_tasks * col_tasks, |task| {
                    let i0 = row0 + task % row_tasks * plan.task_rows;
                    let j0 = col0 + task / row_tasks * plan.task_cols;
                    let block = Block {
                        rows: i0..(i0 + plan.task_rows).min(row1),
                        cols: j0..(j0 + plan.task_cols).min(col1),
                        words,
                        begins: first == 0,
                    };
                    // SAFETY: panels of the block are packed, and no other task has this block of the destination.
                    unsafe {
                        let a = a_block(first).get().add((i0 - row0) * words);
                        let mut own;
                        let b = match b {
                            // No other task needs these panels: they are made where they are used.
                            Columns::Made(fill) if plan.packed_columns == 0 => {
                                own = Buffer::new::<RightWord<K>>(
                                    block.cols.len().next_multiple_of(K::NR) * words,
                                );
                                let panels: *mut RightWord<K> = own.as_mut_ptr();
                                for (i, column) in block.cols.clone().step_by(K::NR).enumerate() {
                                    let depth = first..first + depth;
                                    fill(column, depth, panels.add(i * K::NR * words).cast());
                                }
                                panels.cast_const()
                            }
                            Columns::Source(_) | Columns::Made(_) => {
                                b_packed.get().add((j0 - col0) * (K::HEAD + words)).cast_const()
                            }
                            Columns::Packed(packed) => packed.panel::<K>(first, j0 / K::NR),
                        };
                        sink.block(kernel, &block, a, b);
                    }
                });
            }
        }
    }
}

/// The starts of all pieces of a plane, row after row.
fn pairs(rows: usize, row: usize, cols: usize, col: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(row).flat_map(move |i| (0..cols).step_by(col).map(move |j| (i, j)))
}

/// How a product is cut into pieces. Nothing here is visible in the result.
struct Pieces {
    /// Rows packed at a time, and the part of the summed index they are packed over: whole blocks of it.
    row_group: usize,
    depth_group: usize,
    /// Columns that share a pass over the summed index.
    column_group: usize,
    /// Columns of the packing buffer: the column group, or none if the operand came packed.
    packed_columns: usize,
    /// Rows and columns of one task.
    task_rows: usize,
    task_cols: usize,
    /// Panels that one packing task copies.
    pack_panels: usize,
}

impl Pieces {
    fn new<K: Kernel>(m: usize, n: usize, k: usize, b: &Columns<'_, K::In>, par: Par) -> Self {
        let lane_words = block_words::<K>(k);
        let left_bytes = lane_words * size_of::<LeftWord<K>>();
        let lane_bytes = lane_words * size_of::<RightWord<K>>();
        let fitting = |bytes: usize, lane: usize, width: usize| (bytes / lane / width).max(1) * width;
        let row_group = balanced(m, ROW_GROUP.min(fitting(ROW_GROUP_BYTES, left_bytes, K::MR)), K::MR);
        let block_bytes = row_group * K::KC / K::PAIR * size_of::<LeftWord<K>>();
        let depth_group = (ROW_GROUP_BYTES / block_bytes).max(1) * K::KC;
        let task_rows = balanced(row_group, fitting(TASK_ROW_BYTES, left_bytes, K::MR), K::MR);
        let few_rows = m <= task_rows;
        let column_bytes =
            if few_rows { FEW_ROWS_COLUMN_GROUP_BYTES * par.threads() } else { COLUMN_GROUP_BYTES };
        // Panels that are made for one task alone need no place of their own.
        let made = matches!(b, Columns::Made(_)) && few_rows;
        let packed = made || matches!(b, Columns::Packed(_));
        let column_group = if packed && few_rows {
            n.next_multiple_of(K::NR)
        } else {
            balanced(n, fitting(column_bytes, lane_bytes, K::NR), K::NR)
        };
        Self {
            row_group,
            depth_group,
            column_group,
            packed_columns: if packed { 0 } else { column_group },
            task_rows,
            task_cols: fitting(if made { PACK_TASK_BYTES } else { TASK_COLUMN_BYTES }, lane_bytes, K::NR),
            pack_panels: fitting(PACK_TASK_BYTES, lane_bytes * K::MR.max(K::NR), 1),
        }
    }

    /// The panels of a packing task.
    fn panels(&self, task: usize, count: usize) -> Range<usize> {
        task * self.pack_panels..((task + 1) * self.pack_panels).min(count)
    }
}

/// A block size of at most `limit` that cuts `total` into equal parts, as a multiple of `width`.
fn balanced(total: usize, limit: usize, width: usize) -> usize {
    let parts = total.div_ceil(limit).max(1);
    total.div_ceil(parts).next_multiple_of(width)
}

/// Runs `task(0)`, ..., `task(count - 1)`, at most `par.threads()` at a time. Tasks are handed out one by one, so a
/// slow thread delays nobody: by a counter, since the tasks of a product are short and many for the lock of a queue.
fn parallel_for(par: Par, count: usize, task: impl Fn(usize) + Sync) {
    let workers = par.threads().min(count);
    if workers <= 1 {
        (0..count).for_each(task);
        return;
    }
    let next = AtomicUsize::new(0);
    on_workers(workers, || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            task(index);
        }
    });
}

/// A pointer to packed panels that tasks share.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

impl<T> Shared<T> {
    fn get(self) -> *mut T {
        self.0
    }

    fn offset(self, count: usize) -> Self {
        Self(self.0.wrapping_add(count))
    }

    fn back(self, count: usize) -> Self {
        Self(self.0.wrapping_sub(count))
    }
}

// SAFETY: tasks write disjoint panels, and read them only after the scope that packed them has ended.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}
