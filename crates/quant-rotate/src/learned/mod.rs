//! Learned invertible matrices: a few free parameters, the matrix they stand for and its inverse, and gradients back to them.

mod cayley;
mod condition;
#[cfg(test)]
mod tests;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use quant_core::CoreError;
use quant_core::codec::{Bytes, Codec, bad_tag};
use quant_kernels::Element;
use serde::{Deserialize, Serialize};

use self::cayley::Cayley;
pub use self::condition::Conditioning;
use crate::dense::{finite, inverse, narrow, product, square, widen};
use crate::{RotateError, haar};

/// How the parameters of a learned transform stand for its matrix (FlatQuant, arXiv 2410.09426).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parametrisation {
    /// The matrix itself is free, its inverse computed in f64. Nothing keeps it invertible.
    Inverse,
    /// `P = U diag(t) V^T` with `U` and `V` orthogonal by the Cayley transform of free matrices, so that `P^-T = U diag(1/t) V^T`.
    /// Nothing keeps an entry of `t` from passing zero.
    Svd,
}

/// The parameters of a learned matrix `P` `[n, n]`, or gradients or moments of them: in the same shapes.
///
/// `f32` for training, `f64` for checks; whatever is inverted is inverted in f64.
///
/// ```
/// use quant_rotate::{Learned, Parametrisation};
///
/// let parameters = Learned::<f32>::initial(8, Parametrisation::Svd, 0, "blocks.0.kcache");
/// let realised = parameters.realise()?;
/// // Activations are multiplied by P, what reads them by P^-T.
/// let product = realised.matrix().dot(&realised.inverse_transpose().t());
/// assert!(product.indexed_iter().all(|((i, j), v)| (v - f32::from(u8::from(i == j))).abs() < 1e-6));
/// // Some gradients of both matrices, and what they are for the parameters.
/// let gradient = realised.backward(realised.matrix(), realised.inverse_transpose())?;
/// let shapes: Vec<_> = gradient.tensors().iter().map(|(name, values)| (*name, values.len())).collect();
/// assert_eq!(shapes, [("u", 64), ("v", 64), ("t", 8)]);
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Learned<T> {
    form: Form<T>,
}

/// Arrays in standard layout.
#[derive(Clone, Debug, PartialEq)]
enum Form<T> {
    Free { matrix: Array2<T> },
    Svd { u: Array2<T>, v: Array2<T>, t: Array1<T> },
}

/// A learned matrix `P` and its inverse transpose, with what the gradients need.
#[derive(Clone, Debug)]
pub struct Realised<T> {
    matrix: Array2<T>,
    inverse_transpose: Array2<T>,
    kept: Kept,
}

/// In f64, as computed.
#[derive(Clone, Debug)]
enum Kept {
    Free { inverse_transpose: Array2<f64> },
    Svd { u: Cayley, v: Cayley, t: Array1<f64> },
}

impl<T: Element> Learned<T> {
    /// The parameters with which training begins, from the stream of `seed` and `name`.
    ///
    /// [`Parametrisation::Inverse`] begins with a Haar-random orthogonal matrix. So does `Z` of each Cayley transform of
    /// [`Parametrisation::Svd`], as in the official code, but the transform of `Z` is another matrix: a moderate rotation, of a mean
    /// diagonal near 0.65. `t` begins with ones.
    #[must_use]
    pub fn initial(side: usize, parametrisation: Parametrisation, seed: u64, name: &str) -> Self {
        let draw = |part: &str| narrow(&haar(side, seed, &format!("{name}{part}")));
        let form = match parametrisation {
            Parametrisation::Inverse => Form::Free { matrix: draw("") },
            Parametrisation::Svd => Form::Svd { u: draw(".u"), v: draw(".v"), t: Array1::ones(side) },
        };
        Self { form }
    }

    /// Parameters of [`Parametrisation::Inverse`].
    ///
    /// # Errors
    /// [`RotateError::Shape`] for a matrix that is not square, [`RotateError::NotFinite`] for a NaN or an infinity.
    pub fn free(matrix: ArrayView2<'_, T>) -> Result<Self, RotateError> {
        square("learned matrix", matrix)?;
        finite("learned matrix", matrix.iter())?;
        Ok(Self { form: Form::Free { matrix: standard(matrix) } })
    }

    /// Parameters of [`Parametrisation::Svd`]: the free matrices behind `U` and `V`, and `t`.
    ///
    /// # Errors
    /// [`RotateError::Shape`] for shapes other than `[n, n]`, `[n, n]` and `[n]`, [`RotateError::NotFinite`] for a NaN or an infinity.
    pub fn svd(
        u: ArrayView2<'_, T>,
        v: ArrayView2<'_, T>,
        t: ArrayView1<'_, T>,
    ) -> Result<Self, RotateError> {
        let side = t.len();
        for (what, matrix) in [("free matrix of U", u), ("free matrix of V", v)] {
            if matrix.dim() != (side, side) {
                return Err(RotateError::shape(what, (side, side), matrix.dim()));
            }
            finite(what, matrix.iter())?;
        }
        finite("diagonal t", t.iter())?;
        Ok(Self { form: Form::Svd { u: standard(u), v: standard(v), t: t.iter().copied().collect() } })
    }

    /// The side `n` of `P`.
    #[must_use]
    pub fn side(&self) -> usize {
        match &self.form {
            Form::Free { matrix } => matrix.nrows(),
            Form::Svd { t, .. } => t.len(),
        }
    }

    /// How the parameters stand for `P`.
    #[must_use]
    pub fn parametrisation(&self) -> Parametrisation {
        match self.form {
            Form::Free { .. } => Parametrisation::Inverse,
            Form::Svd { .. } => Parametrisation::Svd,
        }
    }

    /// The arrays, each under its name and in row-major order: `matrix`, or `u`, `v` and `t`.
    #[must_use]
    pub fn tensors(&self) -> Vec<(&'static str, &[T])> {
        fn slice<T>(x: &Array2<T>) -> &[T] {
            x.as_slice().unwrap_or_default()
        }
        match &self.form {
            Form::Free { matrix } => vec![("matrix", slice(matrix))],
            Form::Svd { u, v, t } => {
                vec![("u", slice(u)), ("v", slice(v)), ("t", t.as_slice().unwrap_or_default())]
            }
        }
    }

    /// [`Learned::tensors`], to be changed by an optimiser.
    #[must_use]
    pub fn tensors_mut(&mut self) -> Vec<(&'static str, &mut [T])> {
        fn slice<T>(x: &mut Array2<T>) -> &mut [T] {
            x.as_slice_mut().unwrap_or_default()
        }
        match &mut self.form {
            Form::Free { matrix } => vec![("matrix", slice(matrix))],
            Form::Svd { u, v, t } => {
                vec![("u", slice(u)), ("v", slice(v)), ("t", t.as_slice_mut().unwrap_or_default())]
            }
        }
    }

    /// `P` and `P^-T`: some `n^3` operations in f64.
    ///
    /// # Errors
    /// [`RotateError::Singular`] for a free matrix without an inverse, [`RotateError::NotFinite`] where parameters or results are not
    /// numbers, as with a zero in `t`.
    pub fn realise(&self) -> Result<Realised<T>, RotateError> {
        let (matrix, inverse_transpose, kept) = match &self.form {
            Form::Free { matrix } => {
                let inverse = inverse("learned matrix", widen(matrix.view()).view())?.matrix;
                let inverse_transpose = standard(inverse.t());
                (matrix.clone(), narrow(&inverse_transpose), Kept::Free { inverse_transpose })
            }
            Form::Svd { u, v, t } => {
                let (u, v) = (Cayley::new(widen(u.view()).view())?, Cayley::new(widen(v.view()).view())?);
                let t = t.mapv(|x| x.to_f64_exact());
                let (left, right) = (u.orthogonal(), v.orthogonal());
                let scaled = |t: &Array1<f64>| narrow(&product((&left * t).view(), right.t()));
                (scaled(&t), scaled(&t.mapv(f64::recip)), Kept::Svd { u, v, t })
            }
        };
        finite("learned matrix", matrix.iter())?;
        finite("inverse of a learned matrix", inverse_transpose.iter())?;
        Ok(Realised { matrix, inverse_transpose, kept })
    }

    /// Condition number and sign of the determinant of `P`, and the smallest `|t|`.
    ///
    /// # Errors
    /// As [`Conditioning::of`].
    pub fn conditioning(&self) -> Result<Conditioning, RotateError> {
        match &self.form {
            Form::Free { matrix } => Conditioning::of(widen(matrix.view()).view()),
            // Rotations have determinant 1 and change no singular value.
            Form::Svd { t, .. } => Conditioning::of_diagonal(t.mapv(|x| x.to_f64_exact()).view()),
        }
    }
}

impl<T: Element> Realised<T> {
    /// `P` `[n, n]`, by which activations are multiplied from the right.
    #[must_use]
    pub fn matrix(&self) -> ArrayView2<'_, T> {
        self.matrix.view()
    }

    /// `P^-T` `[n, n]`, by which rows of weights are multiplied from the right.
    #[must_use]
    pub fn inverse_transpose(&self) -> ArrayView2<'_, T> {
        self.inverse_transpose.view()
    }

    /// The gradients of the parameters for those of `P` and of `M = P^-T`.
    ///
    /// A free matrix has `dP = G_P - M G_M^T M`. Otherwise `dU = G_P V diag(t) + G_M V diag(1/t)`, `dV = G_P^T U diag(t) + G_M^T U
    /// diag(1/t)` and `dt = diag(U^T G_P V) - diag(U^T G_M V) / t^2`, and `dU`, `dV` go back through the Cayley transform.
    ///
    /// # Errors
    /// [`RotateError::Shape`] for gradients that are not `[n, n]`.
    pub fn backward(
        &self,
        matrix: ArrayView2<'_, T>,
        inverse_transpose: ArrayView2<'_, T>,
    ) -> Result<Learned<T>, RotateError> {
        for gradient in [matrix, inverse_transpose] {
            if gradient.dim() != self.matrix.dim() {
                return Err(RotateError::shape(
                    "gradient of a learned matrix",
                    self.matrix.dim(),
                    gradient.dim(),
                ));
            }
        }
        let (g_p, g_m) = (widen(matrix), widen(inverse_transpose));
        let form = match &self.kept {
            Kept::Free { inverse_transpose: m } => {
                let back = product(product(m.view(), g_m.t()).view(), m.view());
                Form::Free { matrix: narrow(&(g_p - back)) }
            }
            Kept::Svd { u: u_cayley, v: v_cayley, t } => {
                let (u, v, inverse) = (u_cayley.orthogonal(), v_cayley.orthogonal(), t.mapv(f64::recip));
                let through_v = [product(g_p.view(), v.view()), product(g_m.view(), v.view())];
                let through_u = [product(g_p.t(), u.view()), product(g_m.t(), u.view())];
                let both = |[p, m]: &[Array2<f64>; 2]| p * t + m * &inverse;
                let diagonal = |g: &Array2<f64>, j: usize| -> f64 { u.column(j).dot(&g.column(j)) };
                let [p, m] = &through_v;
                let entry = |j| T::from_f64(diagonal(p, j) - diagonal(m, j) * inverse[j] * inverse[j]);
                Form::Svd {
                    u: narrow(&u_cayley.backward(both(&through_v).view())),
                    v: narrow(&v_cayley.backward(both(&through_u).view())),
                    t: Array1::from_shape_fn(t.len(), entry),
                }
            }
        };
        Ok(Learned { form })
    }
}

impl Codec for Learned<f32> {
    fn encode(&self, out: &mut Vec<u8>) {
        match &self.form {
            Form::Free { matrix } => {
                out.push(0);
                matrix.encode(out);
            }
            Form::Svd { u, v, t } => {
                out.push(1);
                u.encode(out);
                v.encode(out);
                t.encode(out);
            }
        }
    }

    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let learned = match u8::decode(from)? {
            0 => Self::free(Array2::decode(from)?.view()),
            1 => {
                let (u, v, t) = (Array2::decode(from)?, Array2::decode(from)?, Array1::decode(from)?);
                Self::svd(u.view(), v.view(), t.view())
            }
            tag => return bad_tag("a learned matrix", tag),
        };
        learned.map_err(|e| CoreError::Encoded { expected: "a learned matrix", found: e.to_string() })
    }
}

fn standard<T: Clone>(x: ArrayView2<'_, T>) -> Array2<T> {
    x.as_standard_layout().into_owned()
}
