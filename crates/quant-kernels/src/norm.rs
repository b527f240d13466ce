//! Root-mean-square normalisation.

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::element::Element;
use crate::rows::{lane_sum, with_row};
use crate::vectorized;

/// `y[t, j] = x[t, j] / sqrt(mean_j(x[t, j]^2) + eps) * weight[j]` for `x` `[tokens, features]` and `weight`
/// `[features]` (Zhang and Sennrich 2019), in a new row-major array.
///
/// The mean is accumulated in the element type in 16 fixed lanes. The factor `1 / sqrt(..)` is formed once per row,
/// as the reference implementations do with `rsqrt`.
///
/// # Panics
/// If `weight` does not have one element per feature.
#[must_use]
pub fn rms_norm<T: Element>(x: ArrayView2<'_, T>, weight: ArrayView1<'_, T>, eps: T) -> Array2<T> {
    assert_eq!(weight.len(), x.ncols(), "the norm weight must have one element per feature of x");
    let mut y = Array2::zeros(x.dim());
    if y.is_empty() {
        return y;
    }
    let weight: Vec<T> = weight.iter().copied().collect();
    let count = T::from_f64(weight.len() as f64);
    let mut scratch = Vec::new();
    vectorized(
        #[inline(always)]
        || {
            for (row, mut out) in x.rows().into_iter().zip(y.rows_mut()) {
                let Some(out) = out.as_slice_mut() else { continue };
                with_row(row, &mut scratch, |row| {
                    let mean = lane_sum(row, |v| v * v) / count;
                    let factor = (mean + eps).sqrt().recip();
                    for ((out, &v), &w) in out.iter_mut().zip(row).zip(&weight) {
                        *out = v * factor * w;
                    }
                });
            }
        },
    );
    y
}
