//! Orthogonal matrices by the Cayley transform.

use ndarray::{Array2, ArrayView2};

use crate::RotateError;
use crate::dense::{inverse, product};

/// `Q = (I - A/2)^-1 (I + A/2)` with the skew matrix `A = tril(Z) - tril(Z)^T` of a free matrix `Z`, what PyTorch's
/// `orthogonal(map="cayley", use_trivialization=False)` computes. It is orthogonal for every `Z`, and the upper triangle and
/// diagonal of `Z` have no part in it.
#[derive(Clone, Debug)]
pub(super) struct Cayley {
    /// `(I - A/2)^-1`.
    inverse: Array2<f64>,
}

impl Cayley {
    /// Of a square matrix. `I - A/2` has no eigenvalue below 1 in size, so only numbers that are not finite fail.
    pub(super) fn new(z: ArrayView2<'_, f64>) -> Result<Self, RotateError> {
        let half = Array2::from_shape_fn(z.dim(), |(i, j)| match i.cmp(&j) {
            std::cmp::Ordering::Greater => -z[(i, j)] / 2.0,
            std::cmp::Ordering::Less => z[(j, i)] / 2.0,
            std::cmp::Ordering::Equal => 1.0,
        });
        Ok(Self { inverse: inverse("Cayley transform", half.view())?.matrix })
    }

    /// `Q`. As `I + A/2 = 2 I - (I - A/2)`, it is `2 (I - A/2)^-1 - I`.
    pub(super) fn orthogonal(&self) -> Array2<f64> {
        let mut q = &self.inverse * 2.0;
        q.diag_mut().mapv_inplace(|v| v - 1.0);
        q
    }

    /// The gradient of `Z` for that of `Q`: `G_A = 1/2 (I - A/2)^-T G_Q (I + Q)^T`, where `I + Q` is twice the inverse, then the
    /// strict lower triangle of `G_A - G_A^T`.
    pub(super) fn backward(&self, g: ArrayView2<'_, f64>) -> Array2<f64> {
        let g = product(product(self.inverse.t(), g).view(), self.inverse.t());
        Array2::from_shape_fn(g.dim(), |(i, j)| if i > j { g[(i, j)] - g[(j, i)] } else { 0.0 })
    }
}
