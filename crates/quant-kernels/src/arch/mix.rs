//! One left operand against many small right ones, in place.

use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};

use super::buffer::{Buffer, LINE};
use super::dispatch::{Dispatch, Visitor};
use super::kernel::{Kernel, LeftWord, MAX_TILE, Panel, RightWord};
use super::level::Level;
use super::pack::{Source, pack_panels};
use crate::scalar::Scalar;
use crate::{Compute, Par, tasks, vectorized};

/// `X_t <- alpha * A X_t` for every row `X_t` `[k, m]` of `x`. Shapes were checked by the caller.
pub(crate) fn mix_blocks<T: Scalar + Dispatch>(
    level: Level,
    x: ArrayViewMut2<'_, T>,
    alpha: T,
    a: ArrayView2<'_, T>,
    par: Par,
) {
    if x.is_empty() {
        return;
    }
    tasks::for_rows(x, par, |_, mut x| {
        let with = |mut x: ArrayViewMut2<'_, T>| {
            if !in_registers(level, x.view_mut(), alpha, a) {
                T::dispatch(level, Compute::F32, Mix { x, alpha, a });
            }
        };
        if x.is_standard_layout() {
            with(x);
        } else {
            let mut rows = x.as_standard_layout().into_owned();
            with(rows.view_mut());
            x.assign(&rows);
        }
    });
}

/// Matrices of f32 that a level mixes rows by where they lie; false, with nothing done, for others.
fn in_registers<T: Scalar>(level: Level, x: ArrayViewMut2<'_, T>, alpha: T, a: ArrayView2<'_, T>) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(x) = T::as_f32_mut(x)
        && let Some(a) = T::as_f32(a)
    {
        let m = x.ncols() / a.nrows();
        // A number that is an f32 stays what it is.
        let alpha = alpha.to_f32_lossy();
        return x.into_slice().is_some_and(|x| super::x86::mix_in_place(level, x, m, alpha, a));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (level, x, alpha, a);
    false
}

/// `x` in standard layout, not empty.
struct Mix<'a, 'x, T> {
    x: ArrayViewMut2<'x, T>,
    alpha: T,
    a: ArrayView2<'a, T>,
}

impl<T: Scalar + Dispatch> Visitor<T> for Mix<'_, '_, T> {
    type Output = ();

    fn visit<K: Kernel<In = T, Out = T, Alpha = T>>(mut self, kernel: K) {
        const { assert!(K::MR * K::NR <= MAX_TILE && K::HEAD == 0) };
        assert!(!K::KEEPS, "tiles that write whole results");
        let _session = kernel.session();
        let k = self.a.nrows();
        let (tokens, columns) = self.x.dim();
        let (m, words) = (columns / k, k.div_ceil(K::PAIR).next_multiple_of(K::WORDS));
        let (rows, panel_words) = (k.div_ceil(K::MR), K::NR * words);
        let mut left = Buffer::new::<LeftWord<K>>(rows * K::MR * words);
        let left = left.as_mut_ptr::<LeftWord<K>>();
        // SAFETY: the buffer has room for all panels over the whole depth, and `a` is borrowed.
        unsafe { pack_panels::<K::Left>(&Source::new(&self.a), 0, K::MR, 0..rows, 0, k, words, 0, left) };
        let together = (GROUP_BYTES / (panel_words * size_of::<RightWord<K>>())).clamp(1, m.div_ceil(K::NR));
        let mut right = Buffer::new::<RightWord<K>>(together * panel_words);
        let right = right.as_mut_ptr::<RightWord<K>>();
        let (x, edge) = (self.x.as_mut_ptr(), [T::zero(); MAX_TILE]);
        let mut work = Work { kernel, alpha: self.alpha, x, left, right, together, k, m, words, edge };
        vectorized(
            #[inline(always)]
            || {
                // SAFETY: `x` is in standard layout and borrowed, the tokens lie in it, and the buffers were made for them.
                unsafe {
                    if m < K::NR {
                        let several = K::NR / m;
                        for token in (0..tokens).step_by(several) {
                            work.narrow(token, several.min(tokens - token));
                        }
                    } else {
                        (0..tokens).for_each(|token| work.wide(token));
                    }
                }
            },
        );
    }
}

/// Packed panels of a token that are made at a time: rows of it are read in long pieces, and the panels stay in the second-level
/// cache while the left operand passes by.
const GROUP_BYTES: usize = 128 << 10;

/// What all panels share. `x` points to tokens `[k, m]` that are adjacent and nobody else's, `left` to the packed rows of a `[k, k]`
/// matrix, `right` to room for `together` panels.
struct Work<K: Kernel> {
    kernel: K,
    alpha: K::Alpha,
    x: *mut K::Out,
    left: *const LeftWord<K>,
    right: *mut RightWord<K>,
    together: usize,
    k: usize,
    m: usize,
    words: usize,
    edge: [K::Out; MAX_TILE],
}

impl<T: Scalar, K: Kernel<In = T, Out = T, Alpha = T>> Work<K> {
    /// A token of at least as many columns as a panel.
    ///
    /// # Safety
    /// The pointers are as the fields say, and the token exists.
    #[inline(always)]
    unsafe fn wide(&mut self, token: usize) {
        let (k, m) = (self.k, self.m);
        // SAFETY: the elements of one token.
        let x = unsafe { self.x.add(token * k * m) };
        let panels = m.div_ceil(K::NR);
        // Packing only moves numbers and tiles only multiply them: the next token is fetched while this one is multiplied.
        let line = LINE / size_of::<K::Out>();
        let each_tile = (k * m).div_ceil(panels * k.div_ceil(K::MR)).next_multiple_of(line);
        let mut fetched = k * m;
        for first in (0..panels).step_by(self.together) {
            let group = first..(first + self.together).min(panels);
            // SAFETY: the view is of the token, columns as lanes, and ends with the call; the buffer has room for the group.
            unsafe {
                let lanes = ArrayView2::from_shape_ptr((m, k).strides((1, m)), x.cast_const());
                let place = self.right.wrapping_sub(first * K::NR * self.words);
                pack_panels::<K::Right>(
                    &Source::new(&lanes),
                    0,
                    K::NR,
                    group.clone(),
                    0,
                    k,
                    self.words,
                    0,
                    place,
                );
            }
            // What the group needs of the token is copied, so its place can be written.
            for row in (0..k).step_by(K::MR) {
                for panel in group.clone() {
                    for ahead in (fetched..fetched + each_tile).step_by(line) {
                        K::Right::prefetch(x.wrapping_add(ahead));
                    }
                    fetched += each_tile;
                    let column = panel * K::NR;
                    let width = K::NR.min(m - column);
                    // SAFETY: a panel of the group; its columns of the token, from `row` on.
                    unsafe {
                        let out = x.add(row * m + column);
                        let right = self.right.add((panel - first) * K::NR * self.words);
                        if width == K::NR {
                            self.tile(row, right, out, m.cast_signed());
                        } else {
                            self.tile_aside(row, right);
                            self.scatter(row, 0, width, out);
                        }
                    }
                }
            }
        }
    }

    /// Several tokens of fewer columns than a panel, side by side in one.
    ///
    /// # Safety
    /// As [`Work::wide`], for `count` tokens that fit into a panel.
    #[inline(always)]
    unsafe fn narrow(&mut self, token: usize, count: usize) {
        let (k, m) = (self.k, self.m);
        // SAFETY: elements of the tokens and words of one panel.
        unsafe {
            let x = self.x.add(token * k * m);
            for word in 0..self.words {
                let row = word * K::PAIR;
                let lanes = self.right.add(word * K::NR);
                for lane in count * m..K::NR {
                    *lanes.add(lane) = K::Right::ZERO;
                }
                for i in 0..count {
                    for j in 0..m {
                        let at = |p: usize| {
                            if row + p < k { *x.add((i * k + row + p) * m + j) } else { T::zero() }
                        };
                        *lanes.add(i * m + j) = K::Right::word(at);
                    }
                }
            }
            for row in (0..k).step_by(K::MR) {
                self.tile_aside(row, self.right);
                for i in 0..count {
                    self.scatter(row, i * m, m, x.add((i * k + row) * m));
                }
            }
        }
    }

    /// Rows of a tile that starts with this row.
    #[inline(always)]
    fn rows(&self, row: usize) -> usize {
        K::MR.min(self.k - row)
    }

    /// # Safety
    /// `out` points to the rows of the tile, `stride` apart.
    #[inline(always)]
    unsafe fn tile(&self, row: usize, right: *const RightWord<K>, out: *mut K::Out, stride: isize) {
        // SAFETY: whole panels of the left operand before `row`, and the caller's rows.
        unsafe {
            let left = self.left.add(row * self.words);
            self.kernel.tile(self.rows(row), self.words, left, right, self.alpha, false, out, stride);
        }
    }

    /// A tile into the buffer, from which [`Work::scatter`] takes the lanes that count.
    ///
    /// # Safety
    /// `right` points to a packed panel.
    #[inline(always)]
    unsafe fn tile_aside(&mut self, row: usize, right: *const RightWord<K>) {
        let out = self.edge.as_mut_ptr();
        // SAFETY: the buffer holds a whole tile.
        unsafe { self.tile(row, right, out, K::NR.cast_signed()) };
    }

    /// # Safety
    /// `out` points to `width` elements of the rows of the tile, `m` apart.
    #[inline(always)]
    unsafe fn scatter(&self, row: usize, lane: usize, width: usize, out: *mut K::Out) {
        for r in 0..self.rows(row) {
            for j in 0..width {
                // SAFETY: forwarded from the caller.
                unsafe { *out.add(r * self.m + j) = self.edge[r * K::NR + lane + j] };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    fn fill<T: Scalar>(rows: usize, cols: usize, mut state: u32) -> Array2<T> {
        Array2::from_shape_simple_fn((rows, cols), || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            T::from_f64(f64::from(state >> 8) / 8_388_608.0 - 1.0)
        })
    }

    fn every_level_and_thread_count<T: Scalar + Dispatch>() {
        let shapes = [
            (1, 1, 1),
            (70, 3, 1),
            (45, 12, 4),
            (3, 28, 33),
            (2, 140, 16),
            (50, 20, 32),
            (4, 5, 100),
            // Groups of tokens in a register that are not all whole, tails of rows, one tile and several, more than there are tiles for.
            (67, 28, 8),
            (21, 12, 5),
            (3, 12, 31),
            (3, 8, 72),
            (5, 16, 17),
            (2, 24, 16),
            (3, 36, 24),
            (2, 60, 40),
            (35, 52, 2),
            (1, 264, 20),
        ];
        for (tokens, k, m) in shapes {
            let (x, a) = (fill::<T>(tokens, k * m, 3), fill::<T>(k, k, 4));
            let alpha = T::from_f64(0.75);
            let mut want = x.clone();
            mix_blocks(Level::SCALAR, want.view_mut(), alpha, a.view(), Par::Seq);
            for t in 0..tokens {
                for i in 0..k {
                    for j in 0..m {
                        let mut sum = T::zero();
                        for l in 0..k {
                            sum = a[(i, l)].mul_add(x[(t, l * m + j)], sum);
                        }
                        assert_eq!(
                            want[(t, i * m + j)],
                            alpha * sum,
                            "{tokens} tokens, {k} x {m}: ({t}, {i}, {j})"
                        );
                    }
                }
            }
            for level in Level::available() {
                for par in [Par::Seq, Par::new(3)] {
                    let mut got = x.clone();
                    mix_blocks(level, got.view_mut(), alpha, a.view(), par);
                    assert_eq!(got, want, "{level} {par}");
                    let mut columns = x.t().as_standard_layout().into_owned();
                    mix_blocks(level, columns.view_mut().reversed_axes(), alpha, a.view(), par);
                    assert_eq!(columns.t(), want, "{level} {par}, columns adjacent");
                }
            }
        }
    }

    #[test]
    fn levels_threads_and_layouts_agree_with_the_sums() {
        every_level_and_thread_count::<f32>();
        every_level_and_thread_count::<f64>();
    }
}
