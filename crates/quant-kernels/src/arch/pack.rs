//! Copying operands into panels.

use std::mem::MaybeUninit;

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
    let dst = unsafe { std::slice::from_raw_parts_mut(dst.cast::<MaybeUninit<K::Word>>(), words * width) };
    if lanes < width {
        for row in dst.chunks_exact_mut(width) {
            row[lanes..].fill(MaybeUninit::new(K::ZERO));
        }
    }
    let zero = <K::Elem as num_traits::Zero>::zero();
    if src.depth_stride == 1 {
        // One cache line of 16 lanes at a time: both the block and the words written stay in the first-level cache.
        let mut block = [[K::ZERO; STEP]; STEP];
        for (step, out) in dst.chunks_mut(STEP * width).enumerate() {
            let start = step * STEP * K::PAIR;
            let length = (STEP * K::PAIR).min(depth - start);
            for group in (0..lanes).step_by(STEP) {
                let columns = STEP.min(lanes - group);
                for l in 0..columns {
                    // SAFETY: adjacent elements of one lane of the view, in range by the contract.
                    let row = unsafe { std::slice::from_raw_parts(src.at(lane + group + l, first + start), length) };
                    convert::<K>(row, &mut block[l]);
                }
                // SAFETY: `columns` words at `group` in every row of `out` are inside the panel.
                unsafe {
                    let out_rows = out.len() / width;
                    K::transpose(&block, columns, out_rows, out.as_mut_ptr().add(group).cast(), width);
                }
            }
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
