//! Copying operands into panels.

use ndarray::ArrayView2;

use super::kernel::Kernel;

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

/// Words written side by side while transposing: with 4-byte words one cache line of each source lane.
const STEP: usize = 16;

/// Packs `width` lanes from `lane` on and `depth` elements from `first` on into `dst`, in the layout of [`Kernel`].
/// Lanes beyond the end of the source and the odd half of a last word become zero.
///
/// # Safety
/// `first + depth <= src.depth()`, `lane < src.lanes()`, the view behind `src` is still borrowed, and `dst` is valid
/// for writes of `depth.div_ceil(PAIR) * width` words.
#[inline(always)]
pub(super) unsafe fn pack_panel<K: Kernel>(
    src: &Source<K::Elem>,
    lane: usize,
    width: usize,
    first: usize,
    depth: usize,
    dst: *mut K::Word,
) {
    let lanes = width.min(src.lanes - lane);
    let words = depth.div_ceil(K::PAIR);
    // SAFETY: the caller vouches for the destination.
    let dst = unsafe { std::slice::from_raw_parts_mut(dst.cast::<std::mem::MaybeUninit<K::Word>>(), words * width) };
    if lanes < width {
        for row in dst.chunks_exact_mut(width) {
            row[lanes..].fill(std::mem::MaybeUninit::new(K::ZERO));
        }
    }
    let zero = <K::Elem as num_traits::Zero>::zero();
    if src.depth_stride == 1 {
        for l in 0..lanes {
            // SAFETY: adjacent elements of one lane of the view, in range by the contract.
            let row = unsafe { std::slice::from_raw_parts(src.at(lane + l, first), depth) };
            transpose_lane::<K>(row, dst, width, l);
        }
    } else if src.lane_stride == 1 {
        for (w, out) in dst.chunks_exact_mut(width).enumerate() {
            let d = w * K::PAIR;
            // SAFETY: `lanes` adjacent elements at one depth of the view, in range by the contract.
            let low = unsafe { std::slice::from_raw_parts(src.at(lane, first + d), lanes) };
            if K::PAIR == 2 && d + 1 < depth {
                // SAFETY: as above, one step deeper.
                let high = unsafe { std::slice::from_raw_parts(src.at(lane, first + d + 1), lanes) };
                for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
                    out.write(K::word(low, high));
                }
            } else {
                for (out, &low) in out.iter_mut().zip(low) {
                    out.write(K::word(low, zero));
                }
            }
        }
    } else {
        for (w, out) in dst.chunks_exact_mut(width).enumerate() {
            let d = w * K::PAIR;
            for (l, out) in out.iter_mut().enumerate().take(lanes) {
                // SAFETY: elements of the view, in range by the contract.
                let (low, high) = unsafe {
                    let low = *src.at(lane + l, first + d);
                    let odd = K::PAIR == 2 && d + 1 < depth;
                    (low, if odd { *src.at(lane + l, first + d + 1) } else { zero })
                };
                out.write(K::word(low, high));
            }
        }
    }
}

/// Writes one lane, whose elements are adjacent, into its column of the panel.
#[inline(always)]
fn transpose_lane<K: Kernel>(
    row: &[K::Elem],
    dst: &mut [std::mem::MaybeUninit<K::Word>],
    width: usize,
    lane: usize,
) {
    let block = STEP * K::PAIR;
    let mut words = [K::ZERO; STEP];
    let mut blocks = row.chunks_exact(block);
    let mut outs = dst.chunks_mut(STEP * width);
    for (row, out) in blocks.by_ref().zip(outs.by_ref()) {
        // Converting apart from scattering lets the conversion vectorise.
        for t in 0..STEP {
            words[t] = K::word(row[t * K::PAIR], row[t * K::PAIR + K::PAIR - 1]);
        }
        for t in 0..STEP {
            out[t * width + lane].write(words[t]);
        }
    }
    let zero = <K::Elem as num_traits::Zero>::zero();
    if let Some(out) = outs.next() {
        for (t, pair) in blocks.remainder().chunks(K::PAIR).enumerate() {
            let high = if pair.len() == 2 { pair[1] } else { zero };
            out[t * width + lane].write(K::word(pair[0], high));
        }
    }
}
