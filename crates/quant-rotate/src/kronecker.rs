//! Kronecker transforms of rows.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_core::{AxisTransform, OnlineTransform};
use quant_kernels::{Element, Par, tasks};

use crate::dense::square;
use crate::heads::per_head_into;
use crate::{RotateError, across_heads, across_heads_gradient, per_head_gradient};

/// Bytes of the rows of a chunk.
const CHUNK_BYTES: usize = 512 << 10;

/// The two sides `(L, R)` of the Kronecker pair of `size` features: the factors `L R = size` of one parity that are closest to each
/// other, `L <= R` (FlatQuant's `get_decompose_dim`).
///
/// ```
/// use quant_rotate::kronecker_sides;
///
/// assert_eq!(kronecker_sides(18_944)?, (128, 148));
/// assert!(kronecker_sides(18).is_err());
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
///
/// # Errors
/// [`RotateError::NoKronecker`] for 0 and for sizes that are 2 modulo 4, which are no difference of two squares.
pub fn kronecker_sides(size: usize) -> Result<(usize, usize), RotateError> {
    quant_core::kronecker_sides(size).ok_or(RotateError::NoKronecker { size })
}

/// The transform `y = x (L kron R)` of rows of `L.side * R.side` features: with a row as `X` `[L, R]` in row-major order, `L^T X R`
/// (FlatQuant, arXiv 2410.09426).
///
/// Activations are transformed with the matrices `P_L`, `P_R`, the rows of the weights that read them with the inverse transposes
/// `P_L^-T`, `P_R^-T`, by this same routine: `x (P_L kron P_R) (W (P_L kron P_R)^-T)^T = x W^T`.
///
/// ```
/// use quant_rotate::ndarray::array;
/// use quant_rotate::{Kronecker, Par};
///
/// let (left, right) = (array![[0.0_f32, 1.0], [1.0, 0.0]], array![[2.0]]);
/// let transform = Kronecker::new(left.view(), right.view())?;
/// assert_eq!(transform.apply(array![[1.0, 3.0]].view(), Par::Seq), array![[6.0, 2.0]]);
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Kronecker<'a, T> {
    left: ArrayView2<'a, T>,
    right: ArrayView2<'a, T>,
}

/// Gradients of a [`Kronecker`] transform.
#[derive(Clone, Debug, PartialEq)]
pub struct KroneckerGradient<T> {
    /// Of its input, `[rows, features]`.
    pub input: Array2<T>,
    /// Of the left matrix, `[L, L]`.
    pub left: Array2<T>,
    /// Of the right matrix, `[R, R]`.
    pub right: Array2<T>,
}

impl<'a, T: Element> Kronecker<'a, T> {
    /// The transform by two square matrices.
    ///
    /// # Errors
    /// [`RotateError::Shape`] for a matrix that is not square or empty.
    pub fn new(left: ArrayView2<'a, T>, right: ArrayView2<'a, T>) -> Result<Self, RotateError> {
        for (what, side) in [("left matrix", left), ("right matrix", right)] {
            if square(what, side)? == 0 {
                return Err(RotateError::shape(what, (1, 1), side.dim()));
            }
        }
        Ok(Self { left, right })
    }

    /// The transform as data for a model that applies it while it runs, with matrices in f32.
    ///
    /// # Errors
    /// [`RotateError::Core`] for numbers that are not finite.
    pub fn online(&self) -> Result<OnlineTransform, RotateError> {
        let axis = |matrix: ArrayView2<'_, T>| AxisTransform::Dense(matrix.mapv(|v| v.to_f32_lossy()));
        Ok(OnlineTransform::kronecker(vec![axis(self.left), axis(self.right)])?)
    }

    /// The number of features, `L * R`.
    #[must_use]
    pub fn features(&self) -> usize {
        self.left.nrows() * self.right.nrows()
    }

    /// `y = x (L kron R)` for `x` `[rows, features]`: `L + R` multiply-adds an element.
    ///
    /// # Panics
    /// If `x` has another number of features.
    #[must_use]
    pub fn apply(&self, x: ArrayView2<'_, T>, par: Par) -> Array2<T> {
        let mut y = Array2::zeros(x.dim());
        self.apply_into(x, y.view_mut(), par);
        y
    }

    /// [`Kronecker::apply`] into an array of the shape of `x`, whose old content is not read: a fresh array of some megabytes costs about
    /// as much as the transform.
    ///
    /// # Panics
    /// If `x` has another number of features, or `y` another shape than `x`.
    pub fn apply_into(&self, x: ArrayView2<'_, T>, mut y: ArrayViewMut2<'_, T>, par: Par) {
        assert!(
            x.ncols() == self.features() && x.dim() == y.dim(),
            "inputs {:?} and results {:?} of a Kronecker transform of {} features",
            x.dim(),
            y.dim(),
            self.features()
        );
        let rows = self.chunk_rows();
        let chunks = y.axis_chunks_iter_mut(Axis(0), rows).zip(x.axis_chunks_iter(Axis(0), rows));
        tasks::for_each(chunks, par, |(mut y, x)| {
            per_head_into(x, self.right, y.view_mut(), Par::Seq);
            across_heads(y, self.left, Par::Seq);
        });
    }

    /// The gradients for an input `x` and the gradient `g` of the result, both `[rows, features]`: with `X` and `G` of a row,
    /// `L G R^T` for the input and, summed over rows, `X R G^T` and `X^T L G` for the matrices.
    ///
    /// # Panics
    /// If `x` or `g` has another number of features, or another number of rows than the other.
    #[must_use]
    pub fn backward(&self, x: ArrayView2<'_, T>, g: ArrayView2<'_, T>, par: Par) -> KroneckerGradient<T> {
        let mut input = Array2::zeros(x.dim());
        let (left, right) = self.backward_into(x, g, input.view_mut(), par);
        KroneckerGradient { input, left, right }
    }

    /// [`Kronecker::backward`] with the gradient of the input in an array of its shape, whose old content is not read; gives those of the
    /// left and the right matrix.
    ///
    /// # Panics
    /// As there, and if `input` has another shape than `x`.
    #[must_use]
    pub fn backward_into(
        &self,
        x: ArrayView2<'_, T>,
        g: ArrayView2<'_, T>,
        mut input: ArrayViewMut2<'_, T>,
        par: Par,
    ) -> (Array2<T>, Array2<T>) {
        let (heads, width) = (self.left.nrows(), self.right.nrows());
        assert!(
            x.ncols() == self.features() && x.dim() == g.dim() && x.dim() == input.dim(),
            "inputs {:?} and gradients {:?} of a Kronecker transform of {} features",
            x.dim(),
            g.dim(),
            self.features()
        );
        let rows = self.chunk_rows();
        let chunks = input.axis_chunks_iter_mut(Axis(0), rows);
        let chunks = chunks.zip(x.axis_chunks_iter(Axis(0), rows)).zip(g.axis_chunks_iter(Axis(0), rows));
        let parts = tasks::map(chunks, par, |((mut input, x), g)| {
            // G R^T serves the input and the left matrix: X R G^T = X (G R^T)^T.
            per_head_into(g, self.right.t(), input.view_mut(), Par::Seq);
            let left = across_heads_gradient(x, input.view(), heads, Par::Seq);
            across_heads(input, self.left.t(), Par::Seq);
            let mut mixed = g.as_standard_layout().into_owned();
            across_heads(mixed.view_mut(), self.left.t(), Par::Seq);
            (left, per_head_gradient(x, mixed.view(), width, Par::Seq))
        });
        // In the order of the rows: chunks do not depend on the threads, so neither does the sum.
        let (mut left, mut right) = (Array2::zeros((heads, heads)), Array2::zeros((width, width)));
        for (of_left, of_right) in parts {
            left += &of_left;
            right += &of_right;
        }
        (left, right)
    }

    /// Rows that go all the way at a time: what they are made of stays in a second-level cache.
    fn chunk_rows(&self) -> usize {
        (CHUNK_BYTES / size_of::<T>() / self.features()).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;
    use quant_testkit::{Golden, Numbers};

    /// The definition of the sides: the smallest `a >= sqrt(n)` such that `a^2 - n` is a square.
    fn by_definition(n: usize) -> (usize, usize) {
        let square = |v: usize| v.isqrt() * v.isqrt() == v;
        let a = (n.isqrt()..).find(|a| a * a >= n && square(a * a - n)).unwrap();
        let b = (a * a - n).isqrt();
        (a - b, a + b)
    }

    #[test]
    fn sides_are_those_of_the_definition() {
        for size in (1..3000).chain([11_008, 18_944, 27_648, 28_672]) {
            match kronecker_sides(size) {
                Ok(sides) => assert_eq!(sides, by_definition(size), "{size}"),
                Err(error) => assert!(size % 4 == 2 && error.to_string().contains(&size.to_string())),
            }
        }
        assert!(kronecker_sides(0).is_err());
    }

    /// `L kron R`, entry by entry.
    fn dense(left: &Array2<f64>, right: &Array2<f64>) -> Array2<f64> {
        let (l, r) = (left.nrows(), right.nrows());
        Array2::from_shape_fn((l * r, l * r), |(i, j)| left[(i / r, j / r)] * right[(i % r, j % r)])
    }

    fn random(numbers: &mut Numbers, rows: usize, columns: usize) -> Array2<f64> {
        numbers.matrix(rows, columns, 1.0).mapv(f64::from)
    }

    fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        assert_eq!(a.dim(), b.dim());
        (a - b).iter().fold(0.0, |largest: f64, d| largest.max(d.abs()))
    }

    /// Every gradient of `sum(C * y)` is linear in each argument, so it is the derivative along any direction.
    fn check(rows: usize, l: usize, r: usize, seed: u64) {
        let mut numbers = Numbers::new(seed);
        let (left, right) = (random(&mut numbers, l, l), random(&mut numbers, r, r));
        let (x, c) = (random(&mut numbers, rows, l * r), random(&mut numbers, rows, l * r));
        let transform = Kronecker::new(left.view(), right.view()).unwrap();
        let y = transform.apply(x.view(), Par::Seq);
        assert!(distance(&y, &x.dot(&dense(&left, &right))) < 1e-12);
        let gradient = transform.backward(x.view(), c.view(), Par::Seq);
        assert!(distance(&gradient.input, &c.dot(&dense(&left, &right).t())) < 1e-12);
        let loss = |x: &Array2<f64>, left: &Array2<f64>, right: &Array2<f64>| {
            (x.dot(&dense(left, right)) * &c).sum()
        };
        for (at, found) in gradient.left.indexed_iter() {
            let mut unit = Array2::zeros((l, l));
            unit[at] = 1.0;
            assert!((loss(&x, &unit, &right) - found).abs() < 1e-11 * (1.0 + found.abs()), "left {at:?}");
        }
        for (at, found) in gradient.right.indexed_iter() {
            let mut unit = Array2::zeros((r, r));
            unit[at] = 1.0;
            assert!((loss(&x, &left, &unit) - found).abs() < 1e-11 * (1.0 + found.abs()), "right {at:?}");
        }
        // Threads and layout change nothing.
        let columns = x.t().as_standard_layout().into_owned();
        assert_eq!(transform.apply(columns.t(), Par::new(3)), y);
        assert_eq!(transform.backward(columns.t(), c.view(), Par::new(3)), gradient);
    }

    #[test]
    fn values_and_gradients_equal_the_dense_product() {
        check(1, 1, 7, 1);
        check(5, 4, 6, 2);
        check(130, 3, 5, 3);
        check(0, 2, 3, 4);
    }

    proptest! {
        #[test]
        fn shapes(rows in 0usize..80, l in 1usize..5, r in 1usize..5, seed: u64) {
            check(rows, l, r, seed);
        }
    }

    /// With the inverse transposes on the weight, the product of both is what it was.
    #[test]
    fn inverse_transposes_undo_the_transform() {
        let (size, (l, r)) = (96, kronecker_sides(96).unwrap());
        let mut numbers = Numbers::new(9);
        let [left, right] = [l, r].map(|n| random(&mut numbers, n, n) + Array2::<f64>::eye(n) * 3.0);
        let inverse = |m: &Array2<f64>| crate::dense::inverse("m", m.view()).unwrap().matrix.reversed_axes();
        let (left_it, right_it) = (inverse(&left), inverse(&right));
        let (x, w) = (random(&mut numbers, 6, size), random(&mut numbers, 10, size));
        let a = Kronecker::new(left.view(), right.view()).unwrap().apply(x.view(), Par::Seq);
        let b = Kronecker::new(left_it.view(), right_it.view()).unwrap().apply(w.view(), Par::Seq);
        assert!(distance(&a.dot(&b.t()), &x.dot(&w.t())) < 1e-12);
    }

    #[test]
    fn what_is_not_square_is_refused() {
        let (one, wide) = (array![[1.0_f32]], array![[1.0_f32, 2.0]]);
        let error = Kronecker::new(one.view(), wide.view()).unwrap_err();
        assert_eq!(error.to_string(), "right matrix: expected [1, 1], found [1, 2]");
        assert!(Kronecker::new(Array2::<f32>::zeros((0, 0)).view(), one.view()).is_err());
    }

    #[test]
    fn the_golden_file() {
        let Some(golden) = Golden::shared("flatquant.safetensors") else { return };
        for name in ["kron.8x12", "kron.10x16", "kron.1x7", "kron.13x13"] {
            let part = |part: &str| golden.matrix(&format!("{name}.{part}"));
            let (left, right) = (part("L"), part("R"));
            let y = Kronecker::new(left.view(), right.view()).unwrap().apply(part("x").view(), Par::Seq);
            let (error, want) = (distance(&y.mapv(f64::from), &part("y").mapv(f64::from)), part("y"));
            assert!(error <= 1e-6 * f64::from(want.fold(0.0_f32, |a, b| a.max(b.abs()))), "{name}: {error}");
        }
        let sides = golden.tensor("decompose.left_right").i64();
        let sizes = golden.tensor("decompose.dims").i64();
        assert_eq!(sizes.len(), 3083);
        for (size, sides) in sizes.into_iter().zip(sides.as_chunks::<2>().0) {
            let (left, right) = kronecker_sides(usize::try_from(size).unwrap()).unwrap();
            assert_eq!([left as i64, right as i64], *sides, "{size}");
        }
    }
}
