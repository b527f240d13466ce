//! The fast Walsh-Hadamard transform.

use ndarray::ArrayViewMut2;

use crate::arch::WIDTH;
use crate::element::Element;
use crate::rows::with_row_mut;
use crate::{Level, Par, tasks, vectorized};

/// Bytes of a part that is transformed before the stages across parts, in a first-level cache: a power of two.
const NEAR: usize = 16 << 10;

/// Bytes of stride from which rows of a pass compete for the same lines of a first-level cache, so that fewer of them are
/// taken at once.
const CROWDED: usize = 4096;

/// Replaces every run of `block` columns of every row of `x` `[tokens, features]` by `scale` times its Walsh-Hadamard
/// transform: `y = scale * x (I kron S)` with Sylvester's matrix `S[i, j] = (-1)^popcount(i & j)` of order `block`.
///
/// With `scale = 1 / sqrt(block)` the transform is orthogonal and its own inverse. Works in place, at `log2(block)` additions
/// an element; four of these stages at a time run in registers. `block = 1` only scales.
///
/// # Panics
/// If `block` is no power of two or does not divide the number of columns.
pub fn walsh_hadamard_rows<T: Element>(x: ArrayViewMut2<'_, T>, block: usize, scale: T, par: Par) {
    assert!(
        block.is_power_of_two() && x.ncols().is_multiple_of(block),
        "a Walsh-Hadamard block of {block} must be a power of two that divides the {} columns",
        x.ncols()
    );
    on_level(Level::detect(), x, block, scale, par);
}

fn on_level<T: Element>(level: Level, x: ArrayViewMut2<'_, T>, block: usize, scale: T, par: Par) {
    tasks::for_rows(x, par, |_, mut rows| {
        let mut scratch = Vec::new();
        vectorized(
            #[inline(always)]
            || {
                for row in rows.rows_mut() {
                    with_row_mut(row, &mut scratch, |row| {
                        for values in row.chunks_exact_mut(block) {
                            transform(level, values, scale);
                        }
                    });
                }
            },
        );
    });
}

#[inline(always)]
fn transform<T: Element>(level: Level, values: &mut [T], scale: T) {
    let (registers, rest) = values.as_chunks_mut::<WIDTH>();
    if registers.is_empty() {
        return short(rest, scale);
    }
    // Stages are done in increasing order of their stride, however they are put together: the bits are the same.
    let near = registers.len().min((NEAR / size_of::<[T; WIDTH]>()).max(1));
    for part in registers.chunks_exact_mut(near) {
        let stride = T::first_stages(level, part, scale);
        remaining(level, part, stride);
    }
    remaining(level, registers, near);
}

/// The stages from this stride on.
#[inline(always)]
fn remaining<T: Element>(level: Level, registers: &mut [[T; WIDTH]], mut stride: usize) {
    while stride < registers.len() {
        let left = registers.len() / stride;
        let crowded = stride * size_of::<[T; WIDTH]>() >= CROWDED;
        let radix = match left {
            2 | 4 | 8 => left,
            // 32 left: a pass of 8 and one of 4 take less than one of 16 and one of 2.
            _ if crowded || left == 32 => 8,
            _ => 16,
        };
        T::pass(level, registers, stride, radix);
        stride *= radix;
    }
}

/// Blocks shorter than a register.
#[inline(always)]
fn short<T: Element>(values: &mut [T], scale: T) {
    for value in values.iter_mut() {
        *value *= scale;
    }
    let mut stride = 1;
    while stride < values.len() {
        for pair in values.chunks_exact_mut(2 * stride) {
            let (low, high) = pair.split_at_mut(stride);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        stride *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    fn every_level<T: Element>() {
        for exponent in 0..14 {
            let columns = 3 << exponent;
            let x = Array2::from_shape_fn((2, columns), |(i, j)| {
                T::from_f64(((i * 7919 + j * 104_729) % 1009) as f64 / 37.0)
            });
            let on = |level: Level| {
                let mut y = x.clone();
                on_level(level, y.view_mut(), 1 << exponent, T::from_f64(0.3), Par::Seq);
                y
            };
            let want = on(Level::SCALAR);
            for level in Level::available() {
                assert_eq!(on(level), want, "{level}, blocks of {}", 1 << exponent);
            }
        }
    }

    #[test]
    fn levels_agree_to_the_bit() {
        every_level::<f32>();
        every_level::<f64>();
    }
}
