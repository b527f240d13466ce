//! Operands as panels: where the columns of a product come from, what packing a whole operand makes, and where its parts lie.

use std::ops::Range;

use ndarray::{Array2, Axis, Slice};

use crate::tasks::for_indices;
use crate::{Par, vectorized};

use super::buffer::Buffer;
use super::kernel::{Kernel, LeftWord, RightWord};
use super::pack::{Source, pack_panels};

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
        let words = lane_words::<K>(depth) * lanes.next_multiple_of(K::NR);
        Self { buffer: Buffer::kept::<RightWord<K>>(words), lanes, depth }
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// First word of a panel in the block of the summed index that starts at `first`.
    pub(super) fn panel<K: Kernel>(&self, first: usize, panel: usize) -> *const RightWord<K> {
        let offset = panel_offset::<K>(self.lanes, self.depth, first, panel);
        // SAFETY: `pack_all` reserved `NR` words per panel and word of depth.
        unsafe { self.buffer.as_ptr::<RightWord<K>>().add(offset) }
    }
}

/// Where a panel of `lanes` packed lanes starts, in words: all blocks of the summed index before `first` are whole.
pub(super) fn panel_offset<K: Kernel>(lanes: usize, depth: usize, first: usize, panel: usize) -> usize {
    let panels = lanes.div_ceil(K::NR);
    let before = first / K::PAIR + first / K::KC * K::HEAD;
    (before * panels + panel * (K::HEAD + block_words::<K>(depth - first))) * K::NR
}

/// Words of the next block of the summed index when `left` elements are left.
pub(super) fn block_words<K: Kernel>(left: usize) -> usize {
    left.min(K::KC).div_ceil(K::PAIR).next_multiple_of(K::WORDS)
}

/// Words of a lane in all blocks of the summed index, heads aside.
pub(super) fn span_words<K: Kernel>(depth: usize) -> usize {
    const { assert!(K::KC.is_multiple_of(K::PAIR * K::WORDS), "blocks of whole steps") };
    depth / K::KC * (K::KC / K::PAIR) + block_words::<K>(depth % K::KC)
}

/// Words of a column in all blocks of the summed index, heads included.
pub(super) fn lane_words<K: Kernel>(depth: usize) -> usize {
    span_words::<K>(depth) + depth.div_ceil(K::KC) * K::HEAD
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
    for_indices(par, panels.div_ceil(each), |i| task(i * each..((i + 1) * each).min(panels)));
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
pub(super) unsafe fn pack_left<K: Kernel>(
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
pub(super) unsafe fn pack_right<K: Kernel>(
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

/// A pointer to packed panels that tasks share.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub(super) *mut T);

impl<T> Shared<T> {
    pub(super) fn get(self) -> *mut T {
        self.0
    }

    pub(super) fn offset(self, count: usize) -> Self {
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
