//! The strictly upper-triangular matrix of asymmetric calibration, by blocked triangular solves.

use ndarray::{ArrayView2, Axis, Slice};
use quant_core::Variant;
use quant_kernels::{Compute, Element, Par, matmul_nn};

use crate::cholesky::{BLOCK, solve_below};
use crate::factor::triangle_bytes;
use crate::panels::{PANEL, Panels};
use crate::{tasks, views};

/// What a column passes on to later ones beside its rounding error: `M̃_jk = α M_jk / R_kk` or `P_jk`, for `j < k`.
///
/// # Two triangular solves instead of two products with the inverse
/// `M = striu(D Uᵀ) = striu(D R⁻ᵀ)` is the strict upper triangle of the solution of `X Rᵀ = D`. Row by row, from the right:
/// `x_jk R_kk = d_jk − Σ_{m>k} x_jm R_km`, so that above the diagonal only entries of `D` above the diagonal enter. With
/// `z_jm = x_jm R_mm` the sum becomes `Σ_{m>k} z_jm Ũ_km`: a solve with the unit triangle that GPTQ already has,
///
/// `z_jk = d_jk − Σ_{m>k} Ũ_km z_jm`, `M̃_jk = α z_jk / R_kk²`,
///
/// `n³/6` multiply-adds like a Cholesky factorisation. `P = α M U` solves `P R = α M`, again with the unit triangle, from
/// the left: `P_jk = M̃_jk − Σ_{j<m<k} P_jm Ũ_mk`.
///
/// # Layout
/// Transposed, in the lower triangle of a row-major square: column k is consecutive, both as a row of the solves and as what
/// the products of the column loop read. The upper half is not touched outside diagonal blocks of [`PANEL`] columns.
#[derive(Clone, Debug)]
pub(crate) struct Coupling<T> {
    n: usize,
    transposed: Vec<T>,
}

impl<T: Element> Coupling<T> {
    /// From `d[k n + j] = d_jk / scale` in processing order, of which the entries `j < k` are read.
    pub(crate) fn new(d: Vec<T>, scale: f64, panels: &Panels<T>, variant: Variant, par: Par) -> Self {
        let n = panels.n();
        let mut coupling = Self { n, transposed: d };
        coupling.solve_from_the_right(panels, par);
        coupling.normalise(scale, panels, par);
        if variant == Variant::Official {
            coupling.solve_from_the_left(panels, par);
        }
        coupling
    }

    /// `z_k −= Σ_{m>k} Ũ_km z_m` for the rows of the transposed matrix, last row first. What the diagonal blocks hold above
    /// the diagonal is carried along; it reaches only its like.
    fn solve_from_the_right(&mut self, panels: &Panels<T>, par: Par) {
        let n = self.n;
        for start in (0..n).step_by(BLOCK).rev() {
            let end = (start + BLOCK).min(n);
            let width = end - start;
            let (open, solved) = views::matrix_mut(&mut self.transposed, n, n).split_at(Axis(0), end);
            let solved = solved.split_at(Axis(1), end).0;
            let mut open = open.split_at(Axis(0), start).1.split_at(Axis(1), end).0;
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

    /// `z_k → scale z_k / R_kk²`, and zeros over what is not below the diagonal in the diagonal blocks.
    fn normalise(&mut self, scale: f64, panels: &Panels<T>, par: Par) {
        let n = self.n;
        tasks::run(self.transposed.chunks_mut(n.max(1)).enumerate(), par, |(k, row)| {
            let pivot = panels.diagonal()[k].to_f64_exact();
            let factor = T::from_f64(scale / (pivot * pivot));
            let end = ((k / PANEL + 1) * PANEL).min(n);
            row[..k].iter_mut().for_each(|z| *z *= factor);
            row[k..end].fill(T::zero());
        });
    }

    /// `p_k −= Σ_{m<k} Ũ_mk p_m` for the rows of the transposed matrix, first row first.
    fn solve_from_the_left(&mut self, panels: &Panels<T>, par: Par) {
        let n = self.n;
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            let width = end - start;
            let (solved, open) = views::matrix_mut(&mut self.transposed, n, n).split_at(Axis(0), start);
            let mut open = open.split_at(Axis(0), width).0.split_at(Axis(1), end).0;
            for left in (0..start).step_by(PANEL) {
                let columns = Slice::from(left..(left + PANEL).min(start));
                let solved =
                    solved.slice_axis(Axis(0), Slice::from(left..)).slice_axis_move(Axis(1), columns);
                let mut open = open.slice_axis_mut(Axis(1), columns);
                panels.for_columns(start..end, left..start, |first, unit| {
                    let rows = Slice::from(first - start..first - start + unit.ncols());
                    let open = open.slice_axis_mut(Axis(0), rows);
                    matmul_nn(open, true, -T::one(), unit.reversed_axes(), solved, Compute::F32, par);
                });
            }
            let triangle = triangle(width, |a, b| panels.at(start + b, start + a));
            solve_below(open.reversed_axes(), &triangle, width, par);
        }
    }

    /// The entry of columns `j < k`.
    #[inline(always)]
    pub(crate) fn at(&self, j: usize, k: usize) -> T {
        self.transposed[k * self.n + j]
    }

    /// The transpose of the entries from positions `from` to later positions `to`, `[to, from]`.
    pub(crate) fn block(
        &self,
        to: std::ops::Range<usize>,
        from: std::ops::Range<usize>,
    ) -> ArrayView2<'_, T> {
        let rows = &self.transposed[to.start * self.n..to.end * self.n];
        let mut view = views::matrix(rows, to.len(), self.n);
        view.slice_axis_inplace(Axis(1), Slice::from(from));
        view
    }

    /// Bytes held for side `n`: of the square, the pages that are touched.
    pub(crate) fn bytes_for(n: usize) -> usize {
        triangle_bytes(n, size_of::<T>(), PANEL)
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
