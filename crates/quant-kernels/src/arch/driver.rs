//! Cache blocking and threads, written once over the [`Kernel`] contract.
//!
//! The loops follow Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), but for the order of two of
//! them: a group of rows of A and a group of columns of B are packed over many blocks of the summed index (shared, third-level cache
//! or beyond), then a grid of tasks, each a block of rows times a block of columns, runs the tiles of all those blocks, one after the
//! other (second-level cache). Threads meet after packing and at the end, not at every block.
//!
//! Each output element is produced by tiles whose sums run over the same blocks of the summed index in the same
//! order, so no choice made in [`pieces`](super::pieces) can change a bit of it.

use std::ops::Range;

use crate::tasks::for_indices;
use crate::{Par, vectorized};

use super::block::Block;
use super::buffer::Buffer;
use super::kept::Sums;
use super::kernel::{Kernel, LeftWord, RightWord};
use super::operand::{
    Columns, Shared, block_words, lane_words, pack_left, pack_right, panel_offset, span_words,
};
use super::pack::Source;
use super::pieces::{Pieces, Task};
use super::sink::Sink;

/// Multiply-adds below which starting other threads costs more than it gives.
const SEQUENTIAL_WORK: usize = 1 << 18;

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
    let depth = k.min(plan.depth_group);
    let shared_columns = if plan.shared_columns { plan.column_group } else { 0 };
    let mut a_buffer = Buffer::new::<LeftWord<K>>(plan.row_group * span_words::<K>(depth));
    let mut b_buffer = Buffer::new::<RightWord<K>>(shared_columns * lane_words::<K>(depth));
    let a_packed = Shared(a_buffer.as_mut_ptr::<LeftWord<K>>());
    let b_packed = Shared(b_buffer.as_mut_ptr::<RightWord<K>>());

    for (rows, depth) in pairs(m, plan.row_group, k, plan.depth_group) {
        for columns in groups(0..sink.reach(rows.end), plan.column_group) {
            let group = Group::<K> { rows: rows.clone(), columns, depth: depth.clone(), a_packed, b_packed };
            // SAFETY: the buffers have room for every group, and the rest is forwarded from the caller. Rows are packed once, on the
            // first pass over the columns.
            unsafe {
                group.pack(&plan, a, b, par);
                let tasks = plan.tasks::<K>(&group.rows, &group.columns, |rows| sink.reach(rows));
                for_indices(par, tasks.len(), |i| {
                    group.multiply(kernel, sink, b, plan.shared_columns, &tasks[i]);
                });
            }
        }
    }
}

/// The parts of a range, each of a length but the last.
fn groups(range: Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(length).map(move |start| start..(start + length).min(end))
}

/// All pieces of a plane, row after row.
fn pairs(
    rows: usize,
    row: usize,
    cols: usize,
    col: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    groups(0..rows, row).flat_map(move |i| groups(0..cols, col).map(move |j| (i.clone(), j)))
}

/// A group of rows, a group of columns and several blocks of the summed index, with the places of their panels.
struct Group<K: Kernel> {
    rows: Range<usize>,
    columns: Range<usize>,
    depth: Range<usize>,
    a_packed: Shared<LeftWord<K>>,
    b_packed: Shared<RightWord<K>>,
}

impl<K: Kernel> Group<K> {
    /// The blocks of the summed index.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<K> {
        groups(self.depth.clone(), K::KC)
    }

    /// Where the rows of a block begin.
    fn left(&self, block: &Range<usize>) -> Shared<LeftWord<K>> {
        let padded = self.rows.len().next_multiple_of(K::MR);
        self.a_packed.offset((block.start - self.depth.start) / K::PAIR * padded)
    }

    /// Where the columns of a block begin, if they are shared.
    fn right(&self, block: &Range<usize>) -> Shared<RightWord<K>> {
        let before = block.start - self.depth.start;
        self.b_packed.offset(panel_offset::<K>(self.columns.len(), self.depth.len(), before, 0))
    }

    /// Packs the columns, where tasks share them, and before the first columns the rows.
    ///
    /// # Safety
    /// As [`gemm`]; the places have room for the group.
    unsafe fn pack(&self, plan: &Pieces, a: &Source<K::In>, b: &Columns<'_, K::In>, par: Par) {
        let a_panels = if self.columns.start == 0 { self.rows.len().div_ceil(K::MR) } else { 0 };
        let b_panels = if plan.shared_columns { self.columns.len().div_ceil(K::NR) } else { 0 };
        let (a_tasks, b_tasks) = (a_panels.div_ceil(plan.pack_panels), b_panels.div_ceil(plan.pack_panels));
        let blocks: Vec<Range<usize>> = self.blocks().collect();
        // One after the other what lies together.
        let of = |index: usize, tasks: usize, across: bool| {
            let (task, block) = if across {
                (index % tasks, index / tasks)
            } else {
                (index / blocks.len(), index % blocks.len())
            };
            (task, &blocks[block])
        };
        let a_count = blocks.len() * a_tasks;
        for_indices(par, a_count + blocks.len() * b_tasks, |index| {
            // SAFETY: the panels of different tasks do not overlap, and every panel index is below the count that the places have room
            // for.
            unsafe {
                if index < a_count {
                    let (task, block) = of(index, a_tasks, a.has_adjacent_lanes());
                    let (panels, dst) = (plan.panels(task, a_panels), self.left(block).get());
                    vectorized(
                        #[inline(always)]
                        || pack_left::<K>(a, self.rows.start, panels, block.start, block.len(), dst),
                    );
                } else {
                    let across = matches!(b, Columns::Source(b) if b.has_adjacent_lanes());
                    let (task, block) = of(index - a_count, b_tasks, across);
                    let (panels, dst) = (plan.panels(task, b_panels), self.right(block).get());
                    make_columns::<K>(b, self.columns.start, panels, block, dst);
                }
            }
        });
    }

    /// Runs the tiles of a task over all blocks of the summed index.
    ///
    /// # Safety
    /// As [`gemm`]; the group is packed, and no other task has this part of what the sink writes to.
    unsafe fn multiply(
        &self,
        kernel: K,
        sink: &impl Sink<K>,
        b: &Columns<'_, K::In>,
        shared_columns: bool,
        task: &Task,
    ) {
        let panels = task.columns.len().div_ceil(K::NR);
        // Columns that no other task needs are made where they are used.
        let own = !shared_columns && !matches!(b, Columns::Packed(_));
        let words = block_words::<K>(self.depth.len());
        let mut buffer =
            Buffer::new::<RightWord<K>>(if own { panels * K::NR * (K::HEAD + words) } else { 0 });
        let mut sums = Sums::new::<K>(&task.rows, &task.columns, self.depth.len());
        for depth in self.blocks() {
            let words = block_words::<K>(depth.len());
            let block = Block {
                rows: task.rows.clone(),
                cols: task.columns.clone(),
                words,
                again: depth.start >= K::SUM,
                begins: depth.start.is_multiple_of(K::SUM),
                ends: depth.end.is_multiple_of(K::SUM) || depth.end == self.depth.end,
            };
            // SAFETY: the panels of the block were packed or are made here, in places that have room for them.
            unsafe {
                let left = self.left(&depth).get().add((task.rows.start - self.rows.start) * words);
                let right = match b {
                    Columns::Packed(packed) => packed.panel::<K>(depth.start, task.columns.start / K::NR),
                    Columns::Source(_) | Columns::Made(_) if own => {
                        let place = buffer.as_mut_ptr::<RightWord<K>>();
                        make_columns::<K>(b, task.columns.start, 0..panels, &depth, place);
                        place.cast_const()
                    }
                    Columns::Source(_) | Columns::Made(_) => {
                        let before = task.columns.start - self.columns.start;
                        self.right(&depth).get().add(before * (K::HEAD + words)).cast_const()
                    }
                };
                sink.block(kernel, &block, &mut sums, left, right);
            }
        }
    }
}

/// Packs or makes panels of columns, counted from `column`, in a block of the summed index.
///
/// # Safety
/// As [`gemm`]; `dst` is the place of panel 0, and the panels of the range are valid for writes.
unsafe fn make_columns<K: Kernel>(
    b: &Columns<'_, K::In>,
    column: usize,
    panels: Range<usize>,
    block: &Range<usize>,
    dst: *mut RightWord<K>,
) {
    match b {
        Columns::Source(b) => vectorized(
            #[inline(always)]
            // SAFETY: forwarded from the caller.
            || unsafe { pack_right::<K>(b, column, panels, block.start, block.len(), dst) },
        ),
        Columns::Made(fill) => {
            for panel in panels {
                // SAFETY: the panel is valid for writes; such kernels have no heads, and their words are elements.
                let place = unsafe { dst.add(panel * K::NR * block.len()) };
                fill(column + panel * K::NR, block.clone(), place.cast());
            }
        }
        Columns::Packed(_) => unreachable!("packed columns are not packed again"),
    }
}
