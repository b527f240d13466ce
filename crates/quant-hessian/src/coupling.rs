//! The strictly upper-triangular matrix of asymmetric calibration, by blocked triangular solves.

use ndarray::{ArrayView2, Axis, Slice};
use quant_core::Variant;
use quant_kernels::{Element, Par, tasks, views};

use crate::panels::{PANEL, Panels};
use crate::sweeps::{self, Part};
use crate::triangle::triangle_bytes;

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
        sweeps::backward(&mut coupling.transposed, Part::Lower, panels, par);
        coupling.normalise(scale, panels, par);
        if variant == Variant::Official {
            sweeps::forward(&mut coupling.transposed, Part::Lower, panels, par);
        }
        coupling
    }

    /// `z_k → scale z_k / R_kk²`, and zeros over what is not below the diagonal in the diagonal blocks.
    fn normalise(&mut self, scale: f64, panels: &Panels<T>, par: Par) {
        let n = self.n;
        tasks::for_each(self.transposed.chunks_mut(n.max(1)).enumerate(), par, |(k, row)| {
            let pivot = panels.diagonal()[k].to_f64_exact();
            let factor = T::from_f64(scale / (pivot * pivot));
            let end = ((k / PANEL + 1) * PANEL).min(n);
            row[..k].iter_mut().for_each(|z| *z *= factor);
            row[k..end].fill(T::zero());
        });
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
