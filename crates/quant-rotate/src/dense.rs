//! Small square matrices in f64: inverse, orthogonal factor, singular values.

use ndarray::{Array2, ArrayView2, Axis, Slice};
use quant_kernels::{Compute, Element, Par, matmul_nn, vectorized};

use crate::RotateError;

/// Sums kept side by side, so that dot products vectorise without their order depending on the machine.
const LANES: usize = 8;

/// `a b`.
pub(crate) fn product(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    matmul_nn(out.view_mut(), false, 1.0, a, b, Compute::F32, Par::Seq);
    out
}

pub(crate) fn widen<T: Element>(x: ArrayView2<'_, T>) -> Array2<f64> {
    x.mapv(|v| v.to_f64_exact())
}

pub(crate) fn narrow<T: Element>(x: &Array2<f64>) -> Array2<T> {
    x.mapv(T::from_f64)
}

/// Refuses NaN and infinity.
pub(crate) fn finite<'a, T: Element>(
    what: &'static str,
    values: impl IntoIterator<Item = &'a T>,
) -> Result<(), RotateError> {
    match values.into_iter().enumerate().find(|(_, v)| !v.is_finite()) {
        Some((index, value)) => Err(RotateError::NotFinite { what, index, value: value.to_f64_exact() }),
        None => Ok(()),
    }
}

/// Refuses a matrix that is not square.
pub(crate) fn square<T>(what: &'static str, a: ArrayView2<'_, T>) -> Result<usize, RotateError> {
    if a.nrows() == a.ncols() {
        Ok(a.nrows())
    } else {
        Err(RotateError::shape(what, (a.nrows(), a.nrows()), a.dim()))
    }
}

/// An inverse, and the sign of the determinant.
pub(crate) struct Inverse {
    pub(crate) matrix: Array2<f64>,
    pub(crate) determinant_sign: i8,
}

/// The inverse of a square matrix by Gauss-Jordan elimination with row pivots.
pub(crate) fn inverse(what: &'static str, a: ArrayView2<'_, f64>) -> Result<Inverse, RotateError> {
    let n = square(what, a)?;
    // The matrix beside the identity.
    let entry = |(i, j)| if j < n { a[(i, j)] } else { f64::from(u8::from(j == n + i)) };
    let mut rows = Array2::from_shape_fn((n, 2 * n), entry);
    let mut sign = 1;
    for k in 0..n {
        let largest =
            (k..n).fold(k, |best, i| if rows[(i, k)].abs() > rows[(best, k)].abs() { i } else { best });
        let pivot = rows[(largest, k)];
        if pivot == 0.0 || !pivot.is_finite() {
            return Err(RotateError::Singular { what, side: n, column: k });
        }
        if largest != k {
            sign = -sign;
            let (mut upper, mut lower) = rows.view_mut().split_at(Axis(0), largest);
            upper.row_mut(k).iter_mut().zip(lower.row_mut(0)).for_each(|(a, b)| std::mem::swap(a, b));
        }
        if pivot < 0.0 {
            sign = -sign;
        }
        // Columns left of k are those of the identity by now.
        let row: Vec<f64> = rows.row(k).iter().skip(k).map(|value| value / pivot).collect();
        vectorized(
            #[inline(always)]
            || {
                for (i, mut other) in rows.rows_mut().into_iter().enumerate() {
                    let Some(other) = other.as_slice_mut() else { continue };
                    let factor = other[k];
                    if i == k {
                        other[k..].copy_from_slice(&row);
                    } else if factor != 0.0 {
                        for (a, &b) in other[k..].iter_mut().zip(&row) {
                            *a -= factor * b;
                        }
                    }
                }
            },
        );
    }
    let matrix = rows.slice_axis(Axis(1), Slice::from(n..)).to_owned();
    match matrix.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(RotateError::Singular { what, side: n, column: at % n }),
        None => Ok(Inverse { matrix, determinant_sign: sign }),
    }
}

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] += a[l] * b[l];
        }
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

/// The orthogonal factor `Q` of `A = Q R` with a positive diagonal of `R` (Householder 1958); `columns[j]` is column `j` of `A`.
/// The result has the columns of `Q` as rows. `4/3 n^3` multiply-adds on one thread.
pub(crate) fn orthogonal_factor(mut columns: Array2<f64>) -> Array2<f64> {
    let n = columns.nrows();
    let mut q = Array2::eye(n);
    let mut diagonal = vec![1.0; n];
    vectorized(
        #[inline(always)]
        || {
            let reflect = |v: &[f64], target: &mut [f64]| {
                let factor = 2.0 * dot(v, target);
                for (t, &v) in target.iter_mut().zip(v) {
                    *t -= factor * v;
                }
            };
            for k in 0..n {
                let (mut done, mut rest) = columns.view_mut().split_at(Axis(0), k + 1);
                let mut column = done.row_mut(k);
                let Some(v) = column.as_slice_mut() else { continue };
                let v = &mut v[k..];
                let norm = dot(v, v).sqrt();
                // Away from the entry's own sign: no cancellation.
                diagonal[k] = if v[0] > 0.0 { -1.0 } else { 1.0 };
                v[0] -= diagonal[k] * norm;
                let length = dot(v, v).sqrt();
                if length > 0.0 {
                    v.iter_mut().for_each(|x| *x /= length);
                }
                for mut other in rest.rows_mut() {
                    if let Some(other) = other.as_slice_mut() {
                        reflect(v, &mut other[k..]);
                    }
                }
            }
            for k in (0..n).rev() {
                let v = columns.row(k);
                let Some(v) = v.to_slice() else { continue };
                for mut row in q.rows_mut().into_iter().skip(k) {
                    if let Some(row) = row.as_slice_mut() {
                        reflect(&v[k..], &mut row[k..]);
                    }
                }
            }
            for (mut row, &sign) in q.rows_mut().into_iter().zip(&diagonal) {
                row.iter_mut().for_each(|x| *x *= sign);
            }
        },
    );
    q
}

/// All singular values, largest first, by one-sided Jacobi rotations (Hestenes 1958), within some 1e-15 of the largest. A
/// sweep takes `6 n^3` multiply-adds on one thread; six to ten are usual.
pub(crate) fn singular_values(a: ArrayView2<'_, f64>) -> Vec<f64> {
    /// Sweeps after which what is left is rounding.
    const SWEEPS: usize = 60;
    let n = a.ncols();
    let mut columns = a.t().as_standard_layout().into_owned();
    vectorized(
        #[inline(always)]
        || {
            for _ in 0..SWEEPS {
                let mut turned = false;
                for p in 0..n {
                    for q in p + 1..n {
                        let (mut upper, mut lower) = columns.view_mut().split_at(Axis(0), q);
                        let (mut a, mut b) = (upper.row_mut(p), lower.row_mut(0));
                        let (Some(a), Some(b)) = (a.as_slice_mut(), b.as_slice_mut()) else { continue };
                        turned |= rotate(a, b);
                    }
                }
                if !turned {
                    break;
                }
            }
        },
    );
    let mut values: Vec<f64> =
        columns.rows().into_iter().map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// Makes two columns orthogonal; false if they were.
#[inline(always)]
fn rotate(a: &mut [f64], b: &mut [f64]) -> bool {
    let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
    // Nothing is gained by turning what is not finite.
    if ab.abs() <= 1e-15 * (aa * bb).sqrt() || !ab.is_finite() {
        return false;
    }
    let zeta = (bb - aa) / (2.0 * ab);
    let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = cosine * tangent;
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_testkit::Numbers;

    fn random(n: usize, seed: u64) -> Array2<f64> {
        Numbers::new(seed).normals(n, n).mapv(f64::from)
    }

    fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        (a - b).iter().fold(0.0, |largest: f64, d| largest.max(d.abs()))
    }

    #[test]
    fn inverses_and_signs_of_determinants() {
        for n in [1, 2, 7, 40] {
            let a = random(n, n as u64);
            let found = inverse("a", a.view()).unwrap();
            assert!(distance(&product(a.view(), found.matrix.view()), &Array2::eye(n)) < 1e-10);
            let mut exchanged = a.clone();
            exchanged.row_mut(0).mapv_inplace(|x| -x);
            assert_eq!(inverse("a", exchanged.view()).unwrap().determinant_sign, -found.determinant_sign);
        }
        assert_eq!(
            inverse("a", ndarray::array![[0.0, 1.0], [1.0, 0.0]].view()).unwrap().determinant_sign,
            -1
        );
    }

    #[test]
    fn what_has_no_inverse_is_named() {
        let singular = inverse("P", ndarray::array![[1.0, 2.0], [2.0, 4.0]].view());
        assert_eq!(singular.err(), Some(RotateError::Singular { what: "P", side: 2, column: 1 }));
        let nan = inverse("P", ndarray::array![[1.0, 0.0], [0.0, f64::NAN]].view());
        assert!(nan.err().unwrap().to_string().contains("singular or not finite in column 1"));
        assert!(inverse("P", Array2::zeros((2, 3)).view()).is_err());
    }

    #[test]
    fn the_orthogonal_factor_is_orthogonal_with_a_positive_triangle() {
        for n in [1, 2, 9, 64] {
            let columns = random(n, 5);
            let q = orthogonal_factor(columns.clone());
            assert!(distance(&product(q.view(), q.t()), &Array2::eye(n)) < 1e-13);
            // R = Q^T A, with the columns of both as rows.
            let r = product(q.view(), columns.t());
            for ((i, j), &value) in r.indexed_iter() {
                assert!(
                    if i > j { value.abs() < 1e-12 } else { i < j || value > 0.0 },
                    "({i}, {j}): {value}"
                );
            }
        }
    }

    #[test]
    fn singular_values_of_known_matrices() {
        let (u, v) = (orthogonal_factor(random(24, 1)), orthogonal_factor(random(24, 2)));
        let want: Vec<f64> = (0..24).map(|i| 10.0_f64.powf(3.0 - f64::from(i) / 4.0)).collect();
        let a = product((&u * &Array2::from_shape_fn((1, 24), |(_, j)| want[j])).view(), v.view());
        for (i, (found, want)) in singular_values(a.view()).iter().zip(&want).enumerate() {
            assert!((found - want).abs() <= 1e-11, "{i}: {found} for {want}");
        }
        assert_eq!(singular_values(Array2::<f64>::eye(3).view()), [1.0; 3]);
    }
}
