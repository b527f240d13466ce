//! Copying operands into panels.

use std::ops::Range;

use ndarray::ArrayView2;

use super::kernel::{Kernel, STEP};

/// An operand as lanes (the index that survives the product) by depth (the index that is summed).
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<T> {
    ptr: *const T,
    lanes: usize,
    depth: usize,
    lane_stride: isize,
    depth_stride: isize,
}

// SAFETY: a `Source` only reads, from a view that outlives it (it never leaves the call that borrowed the view), and
// its elements are plain numbers.
unsafe impl<T: Sync> Send for Source<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Source<T> {}

impl<T: Copy> Source<T> {
    /// A view `[lanes, depth]`.
    pub(super) fn new(view: &ArrayView2<'_, T>) -> Self {
        Self {
            ptr: view.as_ptr(),
            lanes: view.nrows(),
            depth: view.ncols(),
            lane_stride: view.strides()[0],
            depth_stride: view.strides()[1],
        }
    }

    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// # Safety
    /// `lane < lanes`, `depth < self.depth`, and the view is still borrowed.
    #[inline(always)]
    unsafe fn at(&self, lane: usize, depth: usize) -> *const T {
        debug_assert!(lane < self.lanes && depth < self.depth);
        // SAFETY: the element exists in the view, so its offset stays inside the allocation.
        unsafe { self.ptr.offset(lane as isize * self.lane_stride + depth as isize * self.depth_stride) }
    }
}

/// Packs a range of panels of `width` lanes, counted from lane `lane0`, and `depth` elements from `first` on, in the
/// layout of [`Kernel`]. Lanes beyond the end of the source and the odd half of a last word become zero.
///
/// Always inlined, so that `width` is a constant of each call.
///
/// # Safety
/// `first + depth <= src.depth()`; every panel of the range starts below `src.lanes()`; the view behind `src` is
/// still borrowed; `dst` is the place of panel 0, and the panels of the range are valid for writes of
/// `depth.div_ceil(PAIR) * width` words each.
#[inline(always)]
pub(super) unsafe fn pack_panels<K: Kernel>(
    src: &Source<K::Elem>,
    lane0: usize,
    width: usize,
    panels: Range<usize>,
    first: usize,
    depth: usize,
    dst: *mut K::Word,
) {
    let words = depth.div_ceil(K::PAIR);
    // SAFETY: forwarded from the caller, panel by panel.
    unsafe {
        if src.lane_stride == 1 && src.depth_stride != 1 {
            pack_adjacent_lanes::<K>(src, lane0, width, panels, first, depth, dst);
            return;
        }
        for panel in panels {
            let (lane, dst) = (lane0 + panel * width, dst.add(panel * width * words));
            if src.depth_stride == 1 {
                pack_adjacent_depth::<K>(src, lane, width, first, depth, dst);
            } else {
                pack_strided::<K>(src, lane, width, first, depth, dst);
            }
        }
    }
}

/// Lanes side by side in memory (`X^T` of a Gram matrix, B of `A B`): several panels advance together, so that each
/// row of the source is read in long pieces.
///
/// # Safety
/// As [`pack_panels`], with a lane stride of 1.
#[inline(always)]
unsafe fn pack_adjacent_lanes<K: Kernel>(
    src: &Source<K::Elem>,
    lane0: usize,
    width: usize,
    panels: Range<usize>,
    first: usize,
    depth: usize,
    dst: *mut K::Word,
) {
    const PIECE: usize = 256;
    let words = depth.div_ceil(K::PAIR);
    let zero = <K::Elem as num_traits::Zero>::zero();
    let mut piece = [K::ZERO; PIECE];
    for start in panels.clone().step_by(PIECE / width) {
        let end = panels.end.min(start + PIECE / width);
        let lane = lane0 + start * width;
        let lanes = (end - start) * width;
        let filled = lanes.min(src.lanes - lane);
        piece[filled..lanes].fill(K::ZERO);
        for w in 0..words {
            let d = w * K::PAIR;
            // SAFETY: `filled` adjacent elements at one or two depths of the view.
            let low = unsafe { std::slice::from_raw_parts(src.at(lane, first + d), filled) };
            if K::PAIR == 2 && d + 1 < depth {
                // SAFETY: as above, one step deeper.
                let high = unsafe { std::slice::from_raw_parts(src.at(lane, first + d + 1), filled) };
                for ((word, &low), &high) in piece.iter_mut().zip(low).zip(high) {
                    *word = K::word(low, high);
                }
            } else {
                for (word, &low) in piece.iter_mut().zip(low) {
                    *word = K::word(low, zero);
                }
            }
            for panel in start..end {
                // SAFETY: `width` words of the piece, and one row of a panel of the range.
                unsafe {
                    let from = piece.as_ptr().add((panel - start) * width);
                    std::ptr::copy_nonoverlapping(from, dst.add((panel * words + w) * width), width);
                }
            }
        }
    }
}

/// The summed index side by side in memory (both operands of `A B^T`): blocks are transposed.
///
/// # Safety
/// As [`pack_panels`] for one panel at `dst` that starts with `lane`, with a depth stride of 1.
#[inline(always)]
unsafe fn pack_adjacent_depth<K: Kernel>(
    src: &Source<K::Elem>,
    lane: usize,
    width: usize,
    first: usize,
    depth: usize,
    dst: *mut K::Word,
) {
    let lanes = width.min(src.lanes - lane);
    let words = depth.div_ceil(K::PAIR);
    // One cache line of 16 lanes at a time: both the block and the words written stay in the first-level cache.
    let mut block = [[K::ZERO; STEP]; STEP];
    for group in (0..width).step_by(STEP) {
        let columns = STEP.min(width - group);
        let filled = columns.min(lanes.saturating_sub(group));
        for lane in &mut block[filled..columns] {
            lane.fill(K::ZERO);
        }
        for w in (0..words).step_by(STEP) {
            let start = w * K::PAIR;
            let length = (STEP * K::PAIR).min(depth - start);
            for l in 0..filled {
                // SAFETY: adjacent elements of one lane of the view, in range by the contract. The prefetch may name
                // any address.
                let row = unsafe {
                    let row = src.at(lane + group + l, first + start);
                    K::prefetch(row.wrapping_add(PREFETCH * K::PAIR));
                    std::slice::from_raw_parts(row, length)
                };
                convert::<K>(row, &mut block[l]);
            }
            // SAFETY: `columns` words at `group` in the rows of the panel that are left.
            unsafe { K::transpose(&block, columns, STEP.min(words - w), dst.add(w * width + group), width) };
        }
    }
}

/// Neither index side by side.
///
/// # Safety
/// As [`pack_panels`] for one panel at `dst` that starts with `lane`.
#[inline(always)]
unsafe fn pack_strided<K: Kernel>(
    src: &Source<K::Elem>,
    lane: usize,
    width: usize,
    first: usize,
    depth: usize,
    dst: *mut K::Word,
) {
    let lanes = width.min(src.lanes - lane);
    let zero = <K::Elem as num_traits::Zero>::zero();
    for w in 0..depth.div_ceil(K::PAIR) {
        let d = w * K::PAIR;
        for l in 0..width {
            // SAFETY: elements of the view and a word of the panel, in range by the contract.
            unsafe {
                let at = |d: usize| if l < lanes && d < depth { *src.at(lane + l, first + d) } else { zero };
                *dst.add(w * width + l) = K::word(at(d), at(d + K::PAIR - 1));
            }
        }
    }
}

/// How many words ahead of the block being transposed its lanes are fetched: 16 lanes at once are more streams than
/// hardware prefetchers follow.
const PREFETCH: usize = 8 * STEP;

/// Up to `STEP` words of one lane, whose elements are adjacent.
#[inline(always)]
fn convert<K: Kernel>(row: &[K::Elem], words: &mut [K::Word; STEP]) {
    if row.len() == STEP * K::PAIR {
        for t in 0..STEP {
            words[t] = K::word(row[t * K::PAIR], row[t * K::PAIR + K::PAIR - 1]);
        }
    } else {
        let zero = <K::Elem as num_traits::Zero>::zero();
        for (word, pair) in words.iter_mut().zip(row.chunks(K::PAIR)) {
            *word = K::word(pair[0], if pair.len() == 2 { pair[1] } else { zero });
        }
    }
}
