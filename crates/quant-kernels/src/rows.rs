//! Sums and maxima over one row with a fixed number of lanes, so that results do not depend on the register width
//! of the machine, and access to rows of any stride as slices.

use ndarray::{ArrayView1, ArrayViewMut1};

use crate::element::Element;

/// Partial results kept side by side: one AVX-512 register of f32, and exactly divisible by every narrower one.
pub(crate) const LANES: usize = 16;

/// `sum_j term(row[j])`, perhaps in a wider type than the row's: element `j` goes to lane `j mod 16`, and the lanes are added as a
/// balanced tree.
#[inline(always)]
pub(crate) fn lane_sum<X: Copy, T: Element>(row: &[X], term: impl Fn(X) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    add_to_lanes(&mut lanes, row, term);
    tree_sum(lanes)
}

/// Adds terms to the lanes of a [`lane_sum`] that is taken piece by piece: all pieces but the last are whole blocks of lanes.
#[inline(always)]
pub(crate) fn add_to_lanes<X: Copy, T: Element>(lanes: &mut [T; LANES], piece: &[X], term: impl Fn(X) -> T) {
    let (blocks, tail) = piece.as_chunks::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            lanes[l] += term(block[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane += term(x);
    }
}

/// `sum_j term(a[j], b[j])` over the shorter of two rows, in the lanes of [`lane_sum`].
#[inline(always)]
pub(crate) fn lane_sum_of<T: Element>(a: &[T], b: &[T], term: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let length = a.len().min(b.len());
    let ((a, a_tail), (b, b_tail)) = (a[..length].as_chunks::<LANES>(), b[..length].as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] += term(a[l], b[l]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane += term(a, b);
    }
    tree_sum(lanes)
}

/// The sum of the lanes as a balanced tree.
#[inline(always)]
pub(crate) fn tree_sum<T: Element>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            let other = lanes[l + width];
            lanes[l] += other;
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest element, ignoring NaN; negative infinity for an empty row.
#[inline(always)]
pub(crate) fn lane_max<T: Element>(row: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [T::neg_infinity(); LANES];
    let (blocks, tail) = row.as_chunks::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            lanes[l] = larger(lanes[l], block[l]);
        }
    }
    let mut best = T::neg_infinity();
    for &x in lanes.iter().chain(tail) {
        best = larger(best, x);
    }
    best
}

/// Hands a row to `f` as a slice, through `scratch` where its elements are not adjacent.
#[inline(always)]
pub(crate) fn with_row<T: Element, R>(
    row: ArrayView1<'_, T>,
    scratch: &mut Vec<T>,
    f: impl FnOnce(&[T]) -> R,
) -> R {
    if let Some(slice) = row.to_slice() {
        f(slice)
    } else {
        scratch.clear();
        scratch.extend(row.iter().copied());
        f(scratch)
    }
}

/// Like [`with_row`], for a row that `f` changes.
#[inline(always)]
pub(crate) fn with_row_mut<T: Element, R>(
    mut row: ArrayViewMut1<'_, T>,
    scratch: &mut Vec<T>,
    f: impl FnOnce(&mut [T]) -> R,
) -> R {
    if let Some(slice) = row.as_slice_mut() {
        f(slice)
    } else {
        scratch.clear();
        scratch.extend(row.iter().copied());
        let result = f(scratch);
        row.iter_mut().zip(scratch.iter()).for_each(|(x, &new)| *x = new);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_maxima_of_every_length() {
        for n in 0..70u16 {
            let row: Vec<f64> = (0..n).map(|i| f64::from((i * 37) % 11) - 3.0).collect();
            assert_eq!(lane_sum(&row, |x| x), row.iter().sum::<f64>());
            let squares = row.iter().map(|x| x * x).sum::<f64>();
            assert_eq!(lane_sum_of(&row, &row, |a, b| a * b), squares);
            assert_eq!(lane_max(&row), row.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
    }
}
