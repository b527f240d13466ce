//! Blocked triangular solves with the factor of a Hessian, on right-hand sides that lie transposed.
//!
//! The right-hand sides are the rows of a matrix `X` `[columns, n]`, stored as `Xᵀ` `[n, columns]` row-major: position k of all
//! of them is consecutive. With `R Rᵀ = H_d` and the unit triangle `Ũ = R diag(R)⁻¹` that GPTQ has, `Y H_d⁻¹ = Y R⁻ᵀ R⁻¹` is
//!
//! `z_k = y_k − Σ_{m>k} Ũ_km z_m` ([`backward`]), `t_k = z_k / R_kk²`, `x_k = t_k − Σ_{m<k} Ũ_mk x_m` ([`forward`]):
//!
//! with `z_m = R_mm (Y R⁻ᵀ)_m` both solves run on the same unit triangle, and all divisions are one pass between them.

use std::ops::Range;

use ndarray::{Axis, Slice};
use quant_kernels::{Compute, Element, Par, matmul_nn, views};

use crate::cholesky::{BLOCK, solve_below};
use crate::panels::{PANEL, Panels};

/// Which part of `Xᵀ` is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it, for that many right-hand sides.
    Whole(usize),
    /// Of a square, position k of the right-hand sides `j <= k`, whose other positions do not count. What diagonal blocks of
    /// [`PANEL`] columns hold beyond is carried along; it reaches only its like.
    Lower,
}

impl Part {
    /// Columns of the stored matrix of side `n`.
    fn columns(self, n: usize) -> usize {
        match self {
            Self::Whole(columns) => columns,
            Self::Lower => n,
        }
    }
    /// The right-hand sides that have positions before `end`.
    fn until(self, end: usize) -> usize {
        match self {
            Self::Whole(columns) => columns,
            Self::Lower => end,
        }
    }
}

/// `x_k −= Σ_{m>k} Ũ_km x_m`, last position first.
pub(crate) fn backward<T: Element>(values: &mut [T], part: Part, panels: &Panels<T>, par: Par) {
    let n = panels.n();
    let columns = part.columns(n);
    for start in (0..n).step_by(BLOCK).rev() {
        let end = (start + BLOCK).min(n);
        let width = end - start;
        let used = Slice::from(..part.until(end));
        let (open, mut solved) = views::matrix_mut(values, n, columns).split_at(Axis(0), end);
        solved.slice_axis_inplace(Axis(1), used);
        let mut open = open.split_at(Axis(0), start).1;
        open.slice_axis_inplace(Axis(1), used);
        panels.for_columns(end..n, start..end, |first, unit| {
            let rows = Slice::from(first - end..first - end + unit.ncols());
            let solved = solved.slice_axis(Axis(0), rows);
            matmul_nn(open.view_mut(), true, -T::one(), unit, solved, Compute::F32, par);
        });
        // With the block's rows reversed it is a lower triangle from the top.
        let triangle = triangle(width, |a, b| panels.at(end - 1 - a, end - 1 - b));
        let mut open = open.reversed_axes();
        open.invert_axis(Axis(1));
        solve_below(open, &triangle, width, par);
    }
}

/// `x_k −= Σ_{m<k} Ũ_mk x_m`, first position first.
pub(crate) fn forward<T: Element>(values: &mut [T], part: Part, panels: &Panels<T>, par: Par) {
    let n = panels.n();
    let columns = part.columns(n);
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let width = end - start;
        let (solved, mut open) = views::matrix_mut(values, n, columns).split_at(Axis(0), start);
        open.slice_axis_inplace(Axis(0), Slice::from(..width));
        open.slice_axis_inplace(Axis(1), Slice::from(..part.until(end)));
        // Right-hand sides, and the first position they have.
        let mut product = |columns: Range<usize>, first: usize| {
            let solved = solved.slice_axis(Axis(0), Slice::from(first..));
            let solved = solved.slice_axis_move(Axis(1), Slice::from(columns.clone()));
            let mut open = open.slice_axis_mut(Axis(1), Slice::from(columns));
            panels.for_columns(start..end, first..start, |column, unit| {
                let rows = Slice::from(column - start..column - start + unit.ncols());
                let open = open.slice_axis_mut(Axis(0), rows);
                matmul_nn(open, true, -T::one(), unit.reversed_axes(), solved, Compute::F32, par);
            });
        };
        match part {
            Part::Whole(columns) if start > 0 => product(0..columns, 0),
            Part::Whole(_) => {}
            Part::Lower => {
                for left in (0..start).step_by(PANEL) {
                    product(left..(left + PANEL).min(start), left);
                }
            }
        }
        let triangle = triangle(width, |a, b| panels.at(start + b, start + a));
        solve_below(open.reversed_axes(), &triangle, width, par);
    }
}

/// A unit lower triangle `[width, width]` from its entries below the diagonal.
fn triangle<T: Element>(width: usize, below: impl Fn(usize, usize) -> T) -> Vec<T> {
    let mut triangle = vec![T::zero(); width * width];
    for a in 0..width {
        for b in 0..a {
            triangle[a * width + b] = below(a, b);
        }
        triangle[a * width + a] = T::one();
    }
    triangle
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use quant_testkit::Numbers;

    /// Both sweeps and the division between them are the inverse of `R Rᵀ`.
    #[test]
    fn two_sweeps_solve_with_the_matrix() {
        for (n, columns) in [(1, 3), (40, 7), (257, 20), (700, 33)] {
            let mut noise = Numbers::new(n as u64);
            let lower = Array2::from_shape_fn((n, n), |(i, j)| match i.cmp(&j) {
                std::cmp::Ordering::Less => 0.0,
                std::cmp::Ordering::Equal => 1.0 + f64::from(noise.uniform()),
                std::cmp::Ordering::Greater => 0.5 / n as f64 * f64::from(noise.uniform()),
            });
            let panels = Panels::<f64>::from_reversed_lower(lower.as_slice().unwrap(), n, Par::Seq);
            let r = Array2::from_shape_fn((n, n), |(j, k)| lower[(n - 1 - j, n - 1 - k)]);
            let x = noise.normals(columns, n).mapv(f64::from);
            let solved = |par| {
                let mut values: Vec<f64> = x.dot(&r).dot(&r.t()).t().iter().copied().collect();
                backward(&mut values, Part::Whole(columns), &panels, par);
                for (row, pivot) in values.chunks_mut(columns).zip(panels.diagonal()) {
                    row.iter_mut().for_each(|z| *z /= pivot * pivot);
                }
                forward(&mut values, Part::Whole(columns), &panels, par);
                values
            };
            let got = solved(Par::Seq);
            assert!(got == solved(Par::new(2)), "threads must not show");
            for (at, value) in got.into_iter().enumerate() {
                let want = x[(at % columns, at / columns)];
                assert!((value - want).abs() < 1e-10, "{n} {at}: {value} {want}");
            }
        }
    }
}
