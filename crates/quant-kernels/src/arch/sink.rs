//! Where the tiles of a product go: into a matrix as they are, or tile by tile to whoever finishes them.

use std::ops::Range;

use num_traits::Zero;

use super::block::{Block, Lines, Tile};
use super::kept::Sums;
use super::kernel::{Factor, Kernel, LeftWord, MAX_TILE, RightWord};
use crate::vectorized;

/// Which part of a destination a product writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// Every element.
    Full,
    /// Elements `(i, j)` with `i >= j`.
    Lower,
}

/// What becomes of a product.
pub(super) trait Sink<K: Kernel>: Sync {
    /// Rows and columns of the product.
    fn dim(&self) -> (usize, usize);

    /// Columns that the rows before `rows` reach, of all columns.
    fn reach(&self, rows: usize) -> usize {
        let _ = rows;
        self.dim().1
    }

    /// Takes the product over an empty sum.
    ///
    /// # Safety
    /// What the sink writes to is nobody else's.
    unsafe fn empty(&self, kernel: K);

    /// Takes all tiles of a block.
    ///
    /// # Safety
    /// `a`, `b` point to the packed panels of the first row and the first column of the block, and what the sink writes to
    /// for it is nobody else's during the call. `sums` are those of the task, and if the block does not begin them, the blocks before it
    /// have been here.
    unsafe fn block(
        &self,
        kernel: K,
        block: &Block,
        sums: &mut Sums<K::Out>,
        a: *const LeftWord<K>,
        b: *const RightWord<K>,
    );
}

/// A row-major destination: adjacent columns, any row stride.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<T> {
    pub(super) ptr: *mut T,
    pub(super) stride: isize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

// SAFETY: tasks write disjoint tiles of it, and its elements are plain numbers.
unsafe impl<T: Send> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<T> {}

impl<T> Target<T> {
    /// The first element of a row.
    pub(super) fn row(&self, row: usize) -> *mut T {
        self.ptr.wrapping_offset(row as isize * self.stride)
    }

    /// Some columns of a row.
    ///
    /// # Safety
    /// They are in the destination, and nobody else accesses them while the slice lives.
    #[inline(always)]
    pub(super) unsafe fn slice<'a>(self, row: usize, columns: Range<usize>) -> &'a mut [T] {
        // SAFETY: forwarded from the caller.
        unsafe { std::slice::from_raw_parts_mut(self.row(row).add(columns.start), columns.len()) }
    }

    /// Where its elements lie.
    pub(super) fn lines(&self) -> Lines {
        let element = size_of::<T>();
        Lines { first: self.ptr.addr(), stride: self.stride * element as isize, element }
    }
}

/// `dst (=|+=) alpha * sum` on a region.
///
/// Who makes one for a [`driver`](super::driver) vouches that `dst` describes writable elements that nothing else accesses.
pub(super) struct Store<T, A> {
    pub(super) dst: Target<T>,
    pub(super) region: Region,
    pub(super) accumulate: bool,
    pub(super) alpha: A,
}

impl<K: Kernel> Sink<K> for Store<K::Out, K::Alpha> {
    fn dim(&self) -> (usize, usize) {
        (self.dst.rows, self.dst.cols)
    }

    fn reach(&self, rows: usize) -> usize {
        if self.region == Region::Lower { self.dst.cols.min(rows) } else { self.dst.cols }
    }

    unsafe fn empty(&self, _kernel: K) {
        if self.accumulate {
            return;
        }
        for i in 0..self.dst.rows {
            for j in 0..Sink::<K>::reach(self, i + 1) {
                // SAFETY: (i, j) is in the destination.
                unsafe { *self.dst.ptr.offset(i as isize * self.dst.stride + j as isize) = K::Out::zero() };
            }
        }
    }

    unsafe fn block(
        &self,
        kernel: K,
        block: &Block,
        sums: &mut Sums<K::Out>,
        a: *const LeftWord<K>,
        b: *const RightWord<K>,
    ) {
        const { assert!(K::MR * K::NR <= MAX_TILE) };
        let (dst, alpha) = (self.dst, self.alpha);
        let accumulate = self.accumulate || block.again;
        if K::KEEPS {
            let write = |tile: Tile<'_, K::Out>| {
                // SAFETY: the rows of the tile up to the end of the region, which nobody else writes.
                unsafe { self.write::<K>(&tile, accumulate) };
            };
            let reach = |rows| Sink::<K>::reach(self, rows);
            // SAFETY: forwarded from the caller.
            return unsafe { sums.block((kernel, alpha), block, a, b, reach, &dst.lines(), write) };
        }
        let mut edge = Buffer([K::Out::zero(); MAX_TILE]);
        let edge = &mut edge.0;
        let _session = kernel.session();
        for i in block.rows.clone().step_by(K::MR) {
            let rows = K::MR.min(block.rows.end - i);
            for j in block.cols.clone().step_by(K::NR) {
                let cols = K::NR.min(block.cols.end - j);
                let lower = self.region == Region::Lower;
                if lower && j > i + rows - 1 {
                    break;
                }
                // SAFETY: whole panels before this one.
                let (a, b) = unsafe { block.panels::<K>(a, b, i, j) };
                // SAFETY: (i, j) is in the destination.
                let out = unsafe { dst.ptr.offset(i as isize * dst.stride + j as isize) };
                if cols == K::NR && !(lower && j + K::NR - 1 > i) {
                    // SAFETY: a whole tile of the destination.
                    unsafe { kernel.tile(rows, block.words, a, b, alpha, accumulate, out, dst.stride) };
                    continue;
                }
                // SAFETY: the buffer holds a whole tile.
                unsafe {
                    kernel.tile(rows, block.words, a, b, alpha, false, edge.as_mut_ptr(), K::NR as isize);
                }
                for r in 0..rows {
                    let end = if lower { cols.min((i + r + 1).saturating_sub(j)) } else { cols };
                    for c in 0..end {
                        // SAFETY: (i + r, j + c) is in the region of the destination.
                        unsafe {
                            let out = out.offset(r as isize * dst.stride).add(c);
                            let product = edge[r * K::NR + c];
                            *out = if accumulate { *out + product } else { product };
                        }
                    }
                }
            }
        }
    }
}

impl<T: Copy + Zero + Send + Sync, A: Factor<T>> Store<T, A> {
    /// Writes whole sums to the result.
    ///
    /// # Safety
    /// The part of the tile that is in the region is in the destination, and nobody else writes there during the call.
    unsafe fn write<K: Kernel<Out = T, Alpha = A>>(&self, tile: &Tile<'_, T>, accumulate: bool) {
        let alpha = self.alpha;
        vectorized(
            #[inline(always)]
            || {
                for (row, sums) in tile.rows() {
                    let columns = tile.columns();
                    let end = columns.end.min(Sink::<K>::reach(self, row + 1)).max(columns.start);
                    // SAFETY: elements of a row in the region.
                    let out = unsafe { self.dst.slice(row, columns.start..end) };
                    if accumulate {
                        out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = *out + alpha.times(sum));
                    } else {
                        out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = alpha.times(sum));
                    }
                }
            },
        );
    }
}

/// Hands whole sums to a function while they are in a cache of the core. No element is handed over twice.
///
/// Only for products no deeper than a sum of the kernel. The function runs within a session of the kernel: it multiplies nothing.
pub(super) struct Through<'a, T> {
    pub(super) dim: (usize, usize),
    /// Where the function writes, which is asked for ahead.
    pub(super) lines: Lines,
    pub(super) finish: &'a (dyn Fn(Tile<'_, T>) + Sync),
}

impl<K: Kernel<Alpha = ()>> Sink<K> for Through<'_, K::Out> {
    fn dim(&self) -> (usize, usize) {
        self.dim
    }

    unsafe fn empty(&self, _kernel: K) {
        let sums = [K::Out::zero(); MAX_TILE];
        let (rows, columns) = self.dim;
        for row in 0..rows {
            for column in (0..columns).step_by(MAX_TILE) {
                let columns = MAX_TILE.min(columns - column);
                (self.finish)(Tile::of_row(row, column..column + columns, &sums));
            }
        }
    }

    unsafe fn block(
        &self,
        kernel: K,
        block: &Block,
        sums: &mut Sums<K::Out>,
        a: *const LeftWord<K>,
        b: *const RightWord<K>,
    ) {
        const { assert!(K::MR * K::NR <= MAX_TILE) };
        assert!(!block.again, "a product deeper than a sum of its kernel");
        if K::KEEPS {
            let columns = self.dim.1;
            // SAFETY: forwarded from the caller.
            return unsafe { sums.block((kernel, ()), block, a, b, |_| columns, &self.lines, self.finish) };
        }
        let mut sums = Buffer([K::Out::zero(); MAX_TILE]);
        let sums = &mut sums.0;
        let _session = kernel.session();
        for row in block.rows.clone().step_by(K::MR) {
            let rows = K::MR.min(block.rows.end - row);
            for column in block.cols.clone().step_by(K::NR) {
                let columns = K::NR.min(block.cols.end - column);
                // SAFETY: whole panels before this one; the buffer holds a whole tile.
                unsafe {
                    let (a, b) = block.panels::<K>(a, b, row, column);
                    kernel.tile(rows, block.words, a, b, (), false, sums.as_mut_ptr(), K::NR as isize);
                }
                // SAFETY: the tile that was written.
                (self.finish)(unsafe {
                    Tile::new(row..row + rows, column..column + columns, sums.as_ptr(), K::NR)
                });
            }
        }
    }
}

/// A tile on whole cache lines, which instructions store a row at a time.
#[repr(align(64))]
struct Buffer<T>([T; MAX_TILE]);
