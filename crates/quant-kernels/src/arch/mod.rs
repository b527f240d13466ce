//! Instruction-set specific code.
use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, MatMut, MatRef};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::element::{Element, Region};
use crate::{Compute, Par};

pub(crate) fn faer_product<T: Element + faer::traits::RealField>(
    mut dst: ArrayViewMut2<'_, T>,
    region: Region,
    accumulate: bool,
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    compute: Compute,
    par: Par,
) {
    let (m, n, k) = (dst.nrows(), dst.ncols(), a.ncols());
    if m == 0 || n == 0 {
        return;
    }
    let prepare = |view: ArrayView2<'_, T>| -> ndarray::Array2<T> {
        let mut owned = view.as_standard_layout().into_owned();
        if compute == Compute::Bf16 {
            owned.mapv_inplace(|x| x.round_to_bf16());
        }
        owned
    };
    let (a, b) = (prepare(a), prepare(b));
    let mut out = dst.as_standard_layout().into_owned();
    if let (Some(a), Some(b), Some(out)) = (a.as_slice(), b.as_slice(), out.as_slice_mut()) {
        let accum = if accumulate { Accum::Add } else { Accum::Replace };
        let lhs = MatRef::from_row_major_slice(a, m, k);
        let rhs = MatRef::from_row_major_slice(b, k, n);
        let out = MatMut::from_row_major_slice_mut(out, m, n);
        match region {
            Region::Full => matmul(out, accum, lhs, rhs, alpha, par.faer()),
            Region::Lower => triangular::matmul(
                out,
                triangular::BlockStructure::TriangularLower,
                accum,
                lhs,
                triangular::BlockStructure::Rectangular,
                rhs,
                triangular::BlockStructure::Rectangular,
                alpha,
                par.faer(),
            ),
        }
    }
    dst.assign(&out);
}
