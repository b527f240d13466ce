//! The unit upper-triangular feedback matrix of GPTQ, packed by column panels.

use ndarray::{ArrayView2, Axis, Slice};
use std::ops::Range;

use quant_kernels::{Compute, Element, Par, matmul_nn, tasks, views};

/// Columns of a panel. Wide enough that a product with it reads the other operand rarely, narrow enough that the part
/// below the diagonal, which is stored as zeros, stays small.
pub(crate) const PANEL: usize = 512;

/// `Ũ = R diag(R)⁻¹` for the upper-triangular `R` with `R Rᵀ = H_d`, and the diagonal of `R`.
///
/// Panel `p` holds rows `0..end` of the columns `[512 p, end)`, contiguous and row-major: the strictly lower half of the
/// square is not stored (half the memory), and the product `D[:, :k] · Ũ[:k, block]` of the solver reads consecutive
/// addresses.
#[derive(Clone, Debug)]
pub(crate) struct Panels<T> {
    n: usize,
    panels: Vec<Vec<T>>,
    /// `R_kk`, the reciprocals of GPTQ's `U_kk`.
    diagonal: Vec<T>,
}

impl<T: Element> Panels<T> {
    /// From the Cholesky factor `L` `[n, n]` (row-major, lower) of the index-reversed matrix: `R_jk = L[n−1−j, n−1−k]`.
    pub(crate) fn from_reversed_lower<S: Element>(lower: &[S], n: usize, par: Par) -> Self {
        let diagonal: Vec<f64> = (0..n).map(|k| lower[(n - 1 - k) * (n + 1)].to_f64_exact()).collect();
        let mut panels = vec![Vec::new(); n.div_ceil(PANEL)];
        tasks::for_each(panels.iter_mut().enumerate(), par, |(p, panel)| {
            let start = p * PANEL;
            let end = (start + PANEL).min(n);
            let scale: Vec<f64> = diagonal[start..end].iter().map(|d| d.recip()).collect();
            panel.reserve_exact(end * (end - start));
            for j in 0..end {
                let row = &lower[(n - 1 - j) * n..][..n];
                // The part below the diagonal is outside the factor: what lies there is not read by anyone, 0 is tidy.
                let first = j.max(start);
                panel.resize(panel.len() + (first - start), T::zero());
                let values = row[n - end..n - first].iter().rev();
                panel.extend(
                    values
                        .zip(&scale[first - start..])
                        .map(|(&value, scale)| T::from_f64(value.to_f64_exact() * scale)),
                );
            }
        });
        Self { n, panels, diagonal: diagonal.into_iter().map(T::from_f64).collect() }
    }

    /// Side of the matrix.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// `R_kk`.
    pub(crate) fn diagonal(&self) -> &[T] {
        &self.diagonal
    }

    /// `Ũ_jk` for `j <= k`.
    #[inline(always)]
    pub(crate) fn at(&self, j: usize, k: usize) -> T {
        let (p, column) = (k / PANEL, k % PANEL);
        self.panels[p][j * self.width(p) + column]
    }

    #[inline(always)]
    fn width(&self, panel: usize) -> usize {
        PANEL.min(self.n - panel * PANEL)
    }

    /// Calls `f(first_column, Ũ[rows, first_column..])` for every panel's share of a column range, left to right.
    pub(crate) fn for_columns(
        &self,
        columns: Range<usize>,
        rows: Range<usize>,
        mut f: impl FnMut(usize, ArrayView2<'_, T>),
    ) {
        let mut at = columns.start;
        while at < columns.end {
            let p = at / PANEL;
            let end = ((p + 1) * PANEL).min(columns.end);
            let width = self.width(p);
            let part = &self.panels[p][rows.start * width..rows.end * width];
            let mut view = views::matrix(part, rows.len(), width);
            let first = at - p * PANEL;
            view.slice_axis_inplace(Axis(1), Slice::from(first..first + (end - at)));
            f(at, view);
            at = end;
        }
    }

    /// `target_k += sign · Σ_j sources_j Ũ_jk` for the positions k of `target` and j of `from`, on tiles of `L` rows.
    pub(crate) fn feed_back<const L: usize>(
        &self,
        target: &mut [[T; L]],
        to: Range<usize>,
        sign: T,
        sources: &[[T; L]],
        from: Range<usize>,
    ) {
        if from.is_empty() {
            return;
        }
        let sources = views::matrix(sources.as_flattened(), from.len(), L);
        let first = to.start;
        self.for_columns(to, from, |column, panel| {
            let width = panel.ncols();
            let part = target[column - first..][..width].as_flattened_mut();
            let part = views::matrix_mut(part, width, L);
            matmul_nn(part, true, sign, panel.reversed_axes(), sources, Compute::F32, Par::Seq);
        });
    }

    /// Bytes held for side `n`.
    pub(crate) fn bytes_for(n: usize) -> usize {
        let panel = |start: usize| (start + PANEL).min(n) * PANEL.min(n - start);
        ((0..n).step_by(PANEL).map(panel).sum::<usize>() + n) * size_of::<T>()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        (self.panels.iter().map(Vec::len).sum::<usize>() + self.n) * size_of::<T>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_hold_the_reversed_and_normalised_factor() {
        for n in [1, 5, 300, 511, 512, 513, 1100] {
            let lower: Vec<f64> = (0..n * n).map(|i| 1.0 + (i * 37 % 101) as f64).collect();
            let r = |j: usize, k: usize| lower[(n - 1 - j) * n + (n - 1 - k)];
            for par in [Par::Seq, Par::new(2)] {
                let panels = Panels::<f64>::from_reversed_lower(&lower, n, par);
                for j in 0..n {
                    assert_eq!(panels.diagonal()[j], r(j, j));
                    for k in j..n {
                        assert!((panels.at(j, k) - r(j, k) / r(k, k)).abs() < 1e-12, "{n} {j} {k}");
                    }
                }
                assert_eq!(panels.bytes(), Panels::<f64>::bytes_for(n));
                assert!(n < 1100 || panels.bytes() < n * n * 8 * 8 / 10);
                if n == 1100 {
                    let mut seen = 0;
                    panels.for_columns(400..1090, 20..90, |first, part| {
                        for ((i, c), &v) in part.indexed_iter() {
                            assert_eq!(v, panels.at(20 + i, first + c));
                            seen += 1;
                        }
                    });
                    assert_eq!(seen, 690 * 70);
                }
            }
        }
    }
}
