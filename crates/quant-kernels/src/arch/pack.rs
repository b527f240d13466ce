//! Copying operands into panels.

use std::ops::Range;

use ndarray::ArrayView2;

use super::buffer::LINE;
use super::kernel::{Lane, MAX_PAIR, Panel, STEP};

/// An operand as lanes (the index that survives the product) by depth (the index that is summed).
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<T> {
    ptr: *const T,
    lanes: usize,
    depth: usize,
    lane_stride: isize,
    depth_stride: isize,
    /// Which part of its elements is packed: what so many roundings to bf16 leave of them.
    roundings: u8,
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
            roundings: 0,
        }
    }

    /// The same elements, of which what so many roundings leave is packed.
    pub(super) fn after(self, roundings: u8) -> Self {
        Self { roundings, ..self }
    }

    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether lanes lie side by side, and the summed index does not.
    pub(super) fn has_adjacent_lanes(&self) -> bool {
        self.lane_stride == 1 && self.depth_stride != 1
    }

    /// Asks for the cache lines of adjacent lanes; the elements need not exist.
    #[inline(always)]
    fn fetch<P: Panel<In = T>>(&self, lane: usize, lanes: usize, depth: usize) {
        let offset = (lane as isize).wrapping_add((depth as isize).wrapping_mul(self.depth_stride));
        let first = self.ptr.wrapping_offset(offset);
        for lane in (0..lanes).step_by(LINE / size_of::<T>()) {
            P::prefetch(first.wrapping_add(lane));
        }
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
/// layout of [`Panel`], `words` words of each lane, each panel behind room for `head` words of every lane. Lanes beyond the end of the source and
/// what the words have beyond the depth become zero.
///
/// Always inlined, so that `width` is a constant of each call.
///
/// # Safety
/// `first + depth <= src.depth()`; every panel of the range starts below `src.lanes()`; the view behind `src` is
/// still borrowed; `dst` is the place of panel 0, and the panels of the range are valid for writes of
/// `words * width` words each; `words` are a multiple of `RUN` that holds the depth.
#[inline(always)]
pub(super) unsafe fn pack_panels<P: Panel>(
    src: &Source<P::In>,
    lane0: usize,
    width: usize,
    panels: Range<usize>,
    first: usize,
    depth: usize,
    words: usize,
    head: usize,
    dst: *mut P::Word,
) {
    // SAFETY: forwarded from the caller.
    unsafe {
        match src.roundings {
            0 => pack_part::<P, 0>(src, lane0, width, panels, first, depth, words, head, dst),
            1 if P::ROUNDS => pack_part::<P, 1>(src, lane0, width, panels, first, depth, words, head, dst),
            2 if P::ROUNDS => pack_part::<P, 2>(src, lane0, width, panels, first, depth, words, head, dst),
            _ => unreachable!("a part that the panels do not have"),
        }
    }
}

/// [`pack_panels`] of what `PART` roundings leave of the elements.
///
/// # Safety
/// As [`pack_panels`].
#[inline(always)]
unsafe fn pack_part<P: Panel, const PART: u8>(
    src: &Source<P::In>,
    lane0: usize,
    width: usize,
    panels: Range<usize>,
    first: usize,
    depth: usize,
    words: usize,
    head: usize,
    dst: *mut P::Word,
) {
    debug_assert!(words * P::PAIR >= depth && words.is_multiple_of(P::RUN));
    let stride = (head + words) * width;
    // SAFETY: forwarded from the caller, panel by panel.
    unsafe {
        let dst = dst.add(head * width);
        if src.has_adjacent_lanes() {
            pack_adjacent_lanes::<P, PART>(src, lane0, width, panels, first, depth, words, stride, dst);
            return;
        }
        for panel in panels {
            let (lane, dst) = (lane0 + panel * width, dst.add(panel * stride));
            if src.depth_stride == 1 {
                pack_adjacent_depth::<P, PART>(src, lane, width, first, depth, words, dst);
            } else {
                pack_strided::<P, PART>(src, lane, width, first, depth, words, dst);
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
unsafe fn pack_adjacent_lanes<P: Panel, const PART: u8>(
    src: &Source<P::In>,
    lane0: usize,
    width: usize,
    panels: Range<usize>,
    first: usize,
    depth: usize,
    words: usize,
    stride: usize,
    dst: *mut P::Word,
) {
    const PIECE: usize = 256;
    /// Words: rows of the source are far apart, where hardware prefetchers do not follow.
    const ROWS_AHEAD: usize = 4;
    let zeros = [<P::In as num_traits::Zero>::zero(); PIECE];
    let mut piece = [P::ZERO; PIECE];
    // Words that lie side by side in a lane are turned a run at a time.
    let mut runs = [[[P::ZERO; STEP]; STEP]; PIECE / STEP];
    for start in panels.clone().step_by(PIECE / width) {
        let end = panels.end.min(start + PIECE / width);
        let lane = lane0 + start * width;
        let lanes = (end - start) * width;
        let filled = lanes.min(src.lanes - lane);
        piece[filled..lanes].fill(P::ZERO);
        for w in 0..words {
            let d = w * P::PAIR;
            for p in 0..P::PAIR {
                src.fetch::<P>(lane, filled, first + d + p + ROWS_AHEAD * P::PAIR);
            }
            let mut rows = [&zeros[..filled]; MAX_PAIR];
            for (p, row) in rows.iter_mut().enumerate().take(P::PAIR.min(depth.saturating_sub(d))) {
                // SAFETY: `filled` adjacent elements at a depth of the view.
                *row = unsafe { std::slice::from_raw_parts(src.at(lane, first + d + p), filled) };
            }
            // Without an index the first two are loops over vectors.
            let filling = piece.iter_mut();
            match P::PAIR {
                1 => filling.zip(rows[0]).for_each(|(word, &x)| *word = P::word(|_| x.rest(PART))),
                2 => {
                    let pairs = rows[0].iter().zip(rows[1]);
                    filling.zip(pairs).for_each(|(word, (&x, &y))| *word = P::word(|p| [x, y][p].rest(PART)));
                }
                _ => {
                    filling
                        .take(filled)
                        .enumerate()
                        .for_each(|(l, word)| *word = P::word(|p| rows[p][l].rest(PART)));
                }
            }
            if P::RUN == 1 {
                for panel in start..end {
                    // SAFETY: `width` words of the piece, and one row of a panel of the range.
                    unsafe {
                        let from = piece.as_ptr().add((panel - start) * width);
                        std::ptr::copy_nonoverlapping(from, dst.add(panel * stride + w * width), width);
                    }
                }
                continue;
            }
            let (groups, _) = piece[..lanes].as_chunks::<STEP>();
            for (run, group) in runs.iter_mut().zip(groups) {
                run[w % STEP] = *group;
            }
            if (w + 1).is_multiple_of(STEP) {
                for (run, lane) in runs.iter().zip((0..lanes).step_by(STEP)) {
                    let place =
                        (start + lane / width) * stride + (w + 1 - STEP) * width + lane % width * STEP;
                    // SAFETY: the run of `STEP` words of as many lanes of a panel of the range.
                    unsafe { P::transpose(run, STEP, STEP, dst.add(place), STEP) };
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
unsafe fn pack_adjacent_depth<P: Panel, const PART: u8>(
    src: &Source<P::In>,
    lane: usize,
    width: usize,
    first: usize,
    depth: usize,
    words: usize,
    dst: *mut P::Word,
) {
    let lanes = width.min(src.lanes - lane);
    // One cache line of 16 lanes at a time: both the block and the words written stay in the first-level cache.
    let mut block = [[P::ZERO; STEP]; STEP];
    for group in (0..width).step_by(STEP) {
        let columns = STEP.min(width - group);
        let filled = columns.min(lanes.saturating_sub(group));
        for lane in &mut block[filled..columns] {
            lane.fill(P::ZERO);
        }
        for w in (0..words).step_by(STEP) {
            let start = w * P::PAIR;
            let length = (STEP * P::PAIR).min(depth - start);
            for l in 0..filled {
                // SAFETY: adjacent elements of one lane of the view, in range by the contract. The prefetch may name
                // any address.
                let row = unsafe {
                    let row = src.at(lane + group + l, first + start);
                    P::prefetch(row.wrapping_add(PREFETCH * P::PAIR));
                    std::slice::from_raw_parts(row, length)
                };
                convert::<P, PART>(row, &mut block[l]);
            }
            if P::RUN == 1 {
                // SAFETY: `columns` words at `group` in the rows of the panel that are left.
                unsafe {
                    P::transpose(&block, columns, STEP.min(words - w), dst.add(w * width + group), width);
                }
            } else {
                // SAFETY: the runs of `columns` lanes, which are as long as a block.
                unsafe {
                    let place = dst.add(w * width + group * STEP);
                    std::ptr::copy_nonoverlapping(block.as_ptr().cast(), place, columns * STEP);
                }
            }
        }
    }
}

/// Neither index side by side.
///
/// # Safety
/// As [`pack_panels`] for one panel at `dst` that starts with `lane`.
#[inline(always)]
unsafe fn pack_strided<P: Panel, const PART: u8>(
    src: &Source<P::In>,
    lane: usize,
    width: usize,
    first: usize,
    depth: usize,
    words: usize,
    dst: *mut P::Word,
) {
    let lanes = width.min(src.lanes - lane);
    let zero = <P::In as num_traits::Zero>::zero();
    for w in 0..words {
        let d = w * P::PAIR;
        for l in 0..width {
            let place = (w / P::RUN * width + l) * P::RUN + w % P::RUN;
            // SAFETY: elements of the view and a word of the panel, in range by the contract.
            unsafe {
                let at = |d: usize| if l < lanes && d < depth { *src.at(lane + l, first + d) } else { zero };
                *dst.add(place) = P::word(|p| at(d + p).rest(PART));
            }
        }
    }
}

/// How many words ahead of the block being transposed its lanes are fetched: 16 lanes at once are more streams than
/// hardware prefetchers follow.
const PREFETCH: usize = 8 * STEP;

/// Up to `STEP` words of one lane, whose elements are adjacent.
#[inline(always)]
fn convert<P: Panel, const PART: u8>(row: &[P::In], words: &mut [P::Word; STEP]) {
    if row.len() == STEP * P::PAIR {
        for t in 0..STEP {
            words[t] = P::word(|p| row[t * P::PAIR + p].rest(PART));
        }
    } else {
        let zero = <P::In as num_traits::Zero>::zero();
        let mut elements = row.chunks(P::PAIR);
        for word in words {
            let elements = elements.next().unwrap_or_default();
            *word = P::word(|p| elements.get(p).copied().unwrap_or(zero).rest(PART));
        }
    }
}
