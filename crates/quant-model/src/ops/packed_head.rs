//! Keys and values of one head as operands of products, packed once for every query that meets them.

use ndarray::ArrayView2;
use quant_kernels::views::rows;
use quant_kernels::{Compute, Element, Par, PreparedWeight};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Keys of one tile of scores, whose packed values stay in the second-level cache with the scores they meet.
pub(crate) const KEY_BLOCK: usize = 512;

/// Keys and values `[past + tokens, head_dim]` of a head that a group of query heads shares. A tile of [`KEY_BLOCK`]
/// positions is packed by the first task that asks for it, while others that need it wait; nothing is packed that
/// nobody asks for.
#[derive(Debug)]
pub(crate) struct PackedHead<'a, T> {
    keys: ArrayView2<'a, T>,
    values: ArrayView2<'a, T>,
    tiles: Vec<PackedTile<T>>,
}

#[derive(Debug)]
struct PackedTile<T> {
    /// As rows of a product's right operand, so that its first columns are the scores of a tile's first keys.
    keys: OnceLock<PreparedWeight<T>>,
    /// Transposed: the summed index is the position.
    values: OnceLock<PreparedWeight<T>>,
}

impl<'a, T: Element> PackedHead<'a, T> {
    pub(crate) fn new(keys: ArrayView2<'a, T>, values: ArrayView2<'a, T>) -> Self {
        let tile = || PackedTile { keys: OnceLock::new(), values: OnceLock::new() };
        let tiles = (0..keys.nrows().div_ceil(KEY_BLOCK)).map(|_| tile()).collect();
        Self { keys, values, tiles }
    }

    /// The positions of tile `index`.
    fn positions(&self, index: usize) -> Range<usize> {
        index * KEY_BLOCK..((index + 1) * KEY_BLOCK).min(self.keys.nrows())
    }

    /// The packed keys of tile `index`.
    pub(crate) fn keys(&self, index: usize) -> &PreparedWeight<T> {
        let pack = || PreparedWeight::new(rows(self.keys, self.positions(index)), Compute::F32, Par::Seq);
        self.tiles[index].keys.get_or_init(pack)
    }

    /// The packed values of tile `index`.
    pub(crate) fn values(&self, index: usize) -> &PreparedWeight<T> {
        self.tiles[index].values.get_or_init(|| self.pack_values(self.positions(index)))
    }

    fn pack_values(&self, positions: Range<usize>) -> PreparedWeight<T> {
        PreparedWeight::new(rows(self.values, positions).reversed_axes(), Compute::F32, Par::Seq)
    }
}

/// What the tasks of one block of queries and one head of keys share: the head, and the values of the tile in which the
/// last positions of the block lie, up to the last one. That sum ends there, so that nothing behind it, not even a NaN,
/// reaches a query; the panels of a shorter sum are others.
#[derive(Debug)]
pub(crate) struct Seen<'a, T> {
    head: Arc<PackedHead<'a, T>>,
    /// The position behind the last one that a query of the block sees.
    end: usize,
    last: OnceLock<PreparedWeight<T>>,
}

impl<'a, T: Element> Seen<'a, T> {
    pub(crate) fn new(head: Arc<PackedHead<'a, T>>, end: usize) -> Self {
        Self { head, end, last: OnceLock::new() }
    }

    /// The position behind the last one that a query of the block sees.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// The packed keys of tile `index`, of which only those before [`Self::end`] are to be multiplied.
    pub(crate) fn keys(&self, index: usize) -> &PreparedWeight<T> {
        self.head.keys(index)
    }

    /// The packed values of tile `index`, those before [`Self::end`].
    pub(crate) fn values(&self, index: usize) -> &PreparedWeight<T> {
        let whole = self.head.positions(index);
        if self.end >= whole.end {
            return self.head.values(index);
        }
        self.last.get_or_init(|| self.head.pack_values(whole.start..self.end))
    }
}
