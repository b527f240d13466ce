//! What a task takes at a time, and what comes of it: blocks of the summed index, tiles of whole sums.

use std::marker::PhantomData;
use std::ops::Range;

use super::buffer::LINE;
use super::kernel::{Kernel, LeftWord, Panel, RightWord};

/// A task: a range of rows and columns of the destination and one block of the summed index.
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
    /// Words per lane.
    pub(super) words: usize,
    /// Whether sums before those of this block have been written to the result.
    pub(super) again: bool,
    /// Whether sums begin with this block, and whether they end with it.
    pub(super) begins: bool,
    pub(super) ends: bool,
}

impl Block {
    /// The panels of a row and a column of the block.
    ///
    /// # Safety
    /// `a` and `b` point to the panels of its first row and column, and those asked for begin a panel.
    #[inline(always)]
    pub(super) unsafe fn panels<K: Kernel>(
        &self,
        a: *const LeftWord<K>,
        b: *const RightWord<K>,
        row: usize,
        column: usize,
    ) -> (*const LeftWord<K>, *const RightWord<K>) {
        let (above, before) = (row - self.rows.start, column - self.cols.start);
        // SAFETY: forwarded from the caller.
        unsafe { (a.add(above * self.words), b.add(before * (K::HEAD + self.words))) }
    }
}

/// Whole sums of some rows and columns of a product.
#[derive(Debug)]
pub(super) struct Tile<'a, T> {
    rows: Range<usize>,
    columns: Range<usize>,
    first: *const T,
    stride: usize,
    sums: PhantomData<&'a [T]>,
}

impl<'a, T> Tile<'a, T> {
    /// Rows that lie at `first`, `stride` elements apart.
    ///
    /// # Safety
    /// There are as many elements as columns at each row, which nobody changes while the tile lives.
    pub(super) unsafe fn new(
        rows: Range<usize>,
        columns: Range<usize>,
        first: *const T,
        stride: usize,
    ) -> Self {
        Self { rows, columns, first, stride, sums: PhantomData }
    }

    /// One row, whose first sums these are.
    pub(super) fn of_row(row: usize, columns: Range<usize>, sums: &'a [T]) -> Self {
        assert!(columns.len() <= sums.len());
        Self { rows: row..row + 1, columns, first: sums.as_ptr(), stride: 0, sums: PhantomData }
    }

    pub(super) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// The rows with their sums.
    #[inline(always)]
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, &[T])> {
        self.rows.clone().enumerate().map(|(i, row)| {
            // SAFETY: there are the rows and columns that the maker vouched for.
            (row, unsafe { std::slice::from_raw_parts(self.first.add(i * self.stride), self.columns.len()) })
        })
    }
}

/// Addresses of the elements of a row-major matrix, in bytes: to ask for their cache lines, not to read them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines {
    pub(super) first: usize,
    pub(super) stride: isize,
    pub(super) element: usize,
}

impl Lines {
    /// Asks for some columns of a row.
    #[inline(always)]
    pub(super) fn fetch<P: Panel>(&self, row: usize, columns: Range<usize>) {
        let row = self.first.wrapping_add_signed(row as isize * self.stride);
        for byte in (columns.start * self.element..columns.end * self.element).step_by(LINE) {
            P::prefetch(std::ptr::without_provenance(row.wrapping_add(byte)));
        }
    }
}
