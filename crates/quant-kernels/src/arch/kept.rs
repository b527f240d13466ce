//! The sums of a task in memory of its own, for kernels whose tiles take less time than their way to the result.
//!
//! Tiles of AMX read their panels as fast as caches give them: a panel of 32 rows stays in the first-level cache only if the block of the
//! summed index is short, and a sum is then interrupted many times. In the result the rows of a tile are many pages apart, so every
//! interruption would cost as much as the block. Here a task's sums lie together in the second-level cache, and go to the result
//! once, in long rows.

use std::marker::PhantomData;
use std::ops::Range;

use super::block::{Block, Lines, Tile};
use super::buffer::{Buffer, LINE};
use super::kernel::{Kernel, LeftWord, RightWord};

/// Sums of the rows and columns of a task, between the blocks of the summed index.
pub(super) struct Sums<T: Copy> {
    buffer: Buffer,
    /// Elements from one row to the next.
    stride: usize,
    /// Whether there is room for all rows, not only for those of a tile: for sums of more than a block.
    whole: bool,
    element: PhantomData<T>,
}

impl<T: Copy> Sums<T> {
    /// Room for a task over so much of the summed index; none for kernels that write every block to the result.
    pub(super) fn new<K: Kernel<Out = T>>(rows: &Range<usize>, columns: &Range<usize>, depth: usize) -> Self {
        // A line more, lest rows that are a power of two apart meet in a few sets of the cache.
        let stride = columns.len().next_multiple_of(K::NR) + LINE / size_of::<T>();
        let whole = depth > K::KC;
        let height = if whole { rows.len().next_multiple_of(K::MR) } else { K::MR };
        let room = if K::KEEPS { height * stride } else { 0 };
        Self { buffer: Buffer::new::<T>(room), stride, whole, element: PhantomData }
    }

    /// Runs the tiles of a block, in every row of them up to the column that `reach` tells of the row after its last, and where the sums
    /// end with the block hands them to `finish`, whose results go to `lines`.
    ///
    /// # Safety
    /// As [`Sink::block`](super::sink::Sink::block); these sums were made for the task by this kernel.
    pub(super) unsafe fn block<K: Kernel<Out = T>>(
        &mut self,
        (kernel, alpha): (K, K::Alpha),
        block: &Block,
        a: *const LeftWord<K>,
        b: *const RightWord<K>,
        reach: impl Fn(usize) -> usize,
        lines: &Lines,
        finish: impl Fn(Tile<'_, T>),
    ) {
        let (first, stride) = (block.cols.start, self.stride);
        let mut sums = self.buffer.as_mut_ptr::<T>();
        let _session = kernel.session();
        for row in block.rows.clone().step_by(K::MR) {
            let rows = row..block.rows.end.min(row + K::MR);
            let end = block.cols.end.min(reach(rows.end));
            for column in (first..end).step_by(K::NR) {
                if block.ends {
                    // The results of a row of tiles are written after the last of them.
                    let columns = column..end.min(column + K::NR);
                    rows.clone().for_each(|row| lines.fetch::<K::Right>(row, columns.clone()));
                }
                // SAFETY: whole panels before this one; there is room for the tile, and unless the sums begin here, blocks before this
                // one have written them.
                unsafe {
                    let (a, b) = block.panels::<K>(a, b, row, column);
                    let (tile, stride) = (sums.add(column - first), stride.cast_signed());
                    kernel.tile(rows.len(), block.words, a, b, alpha, !block.begins, tile, stride);
                }
            }
            if block.ends && end > first {
                // SAFETY: tiles have written these rows and columns.
                finish(unsafe { Tile::new(rows, first..end, sums, stride) });
            }
            if self.whole {
                sums = sums.wrapping_add(K::MR * stride);
            }
        }
    }
}
