//! Hadamard rotations of any supported size, applied without their matrix.

mod core;
#[cfg(test)]
mod tests;

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_core::{AxisTransform, OnlineTransform};
use quant_kernels::{Element, Par, mix_blocks_in_place, tasks, walsh_hadamard_rows};

pub use self::core::hadamard_core;
use crate::runs::in_runs;
use crate::{KeyedRandom, RotateError};

/// Elements that are mixed by the core while a second-level cache has them from the stages before.
const PIECE: usize = 64 << 10;

/// An orthogonal Hadamard matrix `H = (C kron S)^T / sqrt(n)` of size `n = K * 2^m`: `S` is Sylvester's matrix of order `2^m`
/// and `C` a Hadamard matrix of order `K`, the core.
///
/// Rows of activations or weights are multiplied from the right, `x <- x H`: a run of `n` columns is seen as `[K, 2^m]`, its
/// rows transformed by the fast Walsh-Hadamard transform and mixed by the core. Where `x` has more columns than `n`, every run
/// of `n` adjacent ones is rotated alike: a block-diagonal rotation, or one per head.
///
/// # Which core
/// [`Hadamard::new`] takes the smallest: `K = 1` where `n` is a power of two, else `4 k`, `8 k`, ... with `k` the odd part of `n`,
/// the first of them that divides `n` and that [`hadamard_core`] constructs. Any Hadamard matrix makes a rotation, but the same
/// one must be used for weights and activations; published code takes the first of 172, 156, 140, 108, 60, 52, 36, 28, 40, 20,
/// 12 that divides `n`, from printed tables: [`Hadamard::with_core`] takes such a table.
///
/// ```
/// use quant_rotate::ndarray::array;
/// use quant_rotate::{Hadamard, Par};
///
/// let mut x = array![[1.0_f32, 0.0, 0.0, 0.0]];
/// let h = Hadamard::new(4)?;
/// h.apply(x.view_mut(), Par::Seq);
/// assert_eq!(x, array![[0.5, 0.5, 0.5, 0.5]]);
/// h.apply_transposed(x.view_mut(), Par::Seq);
/// assert_eq!(x, array![[1.0, 0.0, 0.0, 0.0]]);
/// assert_eq!(Hadamard::new(14_336)?.order(), 28);
/// assert!(Hadamard::new(18).is_err());
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hadamard {
    size: usize,
    core: Option<Array2<i8>>,
}

impl Hadamard {
    /// The matrix of this size with a constructed core.
    ///
    /// # Errors
    /// [`RotateError::NoHadamard`] where there is none.
    pub fn new(size: usize) -> Result<Self, RotateError> {
        if size.is_power_of_two() {
            return Ok(Self { size, core: None });
        }
        let core = Self::order_of(size).and_then(hadamard_core);
        let Some(core) = core else { return Err(RotateError::NoHadamard { size, orders: core::orders() }) };
        Ok(Self { size, core: Some(core) })
    }

    /// The order of the core that [`Hadamard::new`] takes for a size, none where it has none. Builds no matrix: for plans.
    #[must_use]
    pub fn order_of(size: usize) -> Option<usize> {
        if size == 0 {
            return None;
        }
        let twos = size.trailing_zeros();
        let odd = size >> twos;
        if odd == 1 {
            return Some(1);
        }
        (2..=twos).map(|exponent| odd << exponent).find(|&order| core::is_constructed(order))
    }

    /// The matrix of this size with a core of the caller's, `[K, K]` of 1 and -1.
    ///
    /// # Errors
    /// [`RotateError::NotHadamard`] unless `C C^T = K I`, [`RotateError::Shape`] unless the core is square and the size `K` times
    /// a power of two.
    pub fn with_core(size: usize, core: ArrayView2<'_, i8>) -> Result<Self, RotateError> {
        check_core(core)?;
        let order = core.nrows();
        if order == 0 || !size.is_multiple_of(order) || !(size / order).is_power_of_two() {
            return Err(RotateError::Shape {
                what: "size of a Hadamard matrix",
                expected: format!("{order}, the order of the core, times a power of two"),
                found: size.to_string(),
            });
        }
        Ok(Self { size, core: (order > 1 || core[(0, 0)] < 0).then(|| core.to_owned()) })
    }

    /// The size `n`.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The order `K` of the core, 1 for a power of two.
    #[must_use]
    pub fn order(&self) -> usize {
        self.core.as_ref().map_or(1, Array2::nrows)
    }

    /// `x <- x H` for `x` `[rows, columns]`, in place, for every run of `n` columns.
    ///
    /// # Panics
    /// If `n` does not divide the number of columns.
    pub fn apply<T: Element>(&self, x: ArrayViewMut2<'_, T>, par: Par) {
        self.rotate(x, false, par);
    }

    /// `x <- x H^T`, the inverse of [`Hadamard::apply`].
    ///
    /// # Panics
    /// If `n` does not divide the number of columns.
    pub fn apply_transposed<T: Element>(&self, x: ArrayViewMut2<'_, T>, par: Par) {
        self.rotate(x, true, par);
    }

    fn rotate<T: Element>(&self, x: ArrayViewMut2<'_, T>, transposed: bool, par: Par) {
        let scale = T::from_f64(1.0 / (self.size as f64).sqrt());
        in_runs(x, self.size, |runs| {
            let Some(core) = &self.core else { return walsh_hadamard_rows(runs, self.size, scale, par) };
            let order = core.nrows();
            let core = core.mapv(|sign| T::from_f32(f32::from(sign)));
            let core = if transposed { core.t() } else { core.view() };
            // The core is prepared for every piece, which has to be worth it.
            let elements = PIECE.max(4 * order * order);
            tasks::for_rows(runs, par, |_, mut runs| {
                for mut piece in runs.axis_chunks_iter_mut(Axis(0), elements.div_ceil(self.size)) {
                    walsh_hadamard_rows(piece.view_mut(), self.size / order, scale, Par::Seq);
                    mix_blocks_in_place(piece, T::one(), core, Par::Seq);
                }
            });
        });
    }

    /// The axes of the rotation as an online transform: the core, in f32, and Sylvester's matrix.
    #[must_use]
    pub fn axes(&self) -> Vec<AxisTransform> {
        let mut axes = Vec::new();
        if let Some(core) = &self.core {
            let scale = 1.0 / (self.order() as f64).sqrt();
            // A row is multiplied from the right, so the transpose of the core.
            axes.push(AxisTransform::Dense(core.t().mapv(|sign| (f64::from(sign) * scale) as f32)));
        }
        axes.push(AxisTransform::Walsh(self.size / self.order()));
        axes
    }

    /// The transform of every run of `n` in a row of `width`, as data for a model that applies it while it runs. The core is in f32.
    ///
    /// # Errors
    /// [`RotateError::Shape`] if the width is no multiple of the size, [`RotateError::Core`] if it is 0 or wider than online transforms are.
    pub fn online(&self, width: usize) -> Result<OnlineTransform, RotateError> {
        let mut axes = vec![AxisTransform::Identity(width / self.size)];
        axes.extend(self.axes());
        let transform = OnlineTransform::kronecker(axes)?;
        if transform.width() == width {
            Ok(transform)
        } else {
            Err(RotateError::Shape {
                what: "width of an online Hadamard transform",
                expected: format!("a multiple of its size {}", self.size),
                found: width.to_string(),
            })
        }
    }

    /// `H` itself, `[n, n]` in f64, from its definition.
    #[must_use]
    pub fn matrix(&self) -> Array2<f64> {
        let (scale, length) = (1.0 / (self.size as f64).sqrt(), self.size / self.order());
        Array2::from_shape_fn((self.size, self.size), |(i, j)| {
            let sylvester = if ((i % length) & (j % length)).count_ones() % 2 == 0 { scale } else { -scale };
            // The transpose of the core: column j of H belongs to row j of the core.
            self.core.as_ref().map_or(sylvester, |core| f64::from(core[(j / length, i / length)]) * sylvester)
        })
    }
}

/// `Q = diag(s) H` with random signs `s`, the random Hadamard rotation of QuaRot (arXiv 2404.00456): orthogonal, and different for
/// every seed and name. With more signs than the size of `H` it is block-diagonal.
///
/// ```
/// use quant_rotate::ndarray::Array2;
/// use quant_rotate::{Hadamard, Par, RandomHadamard};
///
/// let rotation = RandomHadamard::new(Hadamard::new(12)?, 24, 0, "residual")?;
/// let mut x = Array2::<f64>::eye(24);
/// rotation.apply(x.view_mut(), Par::Seq);
/// rotation.apply_transposed(x.view_mut(), Par::Seq);
/// assert!((x - Array2::<f64>::eye(24)).iter().all(|d| d.abs() < 1e-15));
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RandomHadamard {
    signs: Vec<i8>,
    hadamard: Hadamard,
}

impl RandomHadamard {
    /// A rotation of `width` columns, in blocks of the size of `hadamard`, with signs drawn from the stream of `seed` and `name`.
    ///
    /// # Errors
    /// [`RotateError::Shape`] if the width is no multiple of the size.
    pub fn new(hadamard: Hadamard, width: usize, seed: u64, name: &str) -> Result<Self, RotateError> {
        let mut random = KeyedRandom::new(seed, name);
        Self::with_signs(hadamard, (0..width).map(|_| random.sign()).collect())
    }

    /// The rotation with these signs, one for every column.
    ///
    /// # Errors
    /// [`RotateError::Shape`] if their number is no multiple of the size, [`RotateError::Setting`] for a sign that is not 1 or -1.
    pub fn with_signs(hadamard: Hadamard, signs: Vec<i8>) -> Result<Self, RotateError> {
        if signs.is_empty() || !signs.len().is_multiple_of(hadamard.size) {
            return Err(RotateError::Shape {
                what: "signs of a random Hadamard rotation",
                expected: format!("a multiple of the size {}", hadamard.size),
                found: signs.len().to_string(),
            });
        }
        if let Some(sign) = signs.iter().find(|sign| sign.abs() != 1) {
            return Err(RotateError::Setting { name: "signs", value: sign.to_string(), expected: "1 or -1" });
        }
        Ok(Self { signs, hadamard })
    }

    /// The number of columns rotated.
    #[must_use]
    pub fn width(&self) -> usize {
        self.signs.len()
    }

    /// The signs `s`.
    #[must_use]
    pub fn signs(&self) -> &[i8] {
        &self.signs
    }

    /// The matrix `H`.
    #[must_use]
    pub fn hadamard(&self) -> &Hadamard {
        &self.hadamard
    }

    /// `x <- x Q` for `x` `[rows, width]`, in place.
    ///
    /// # Panics
    /// If `x` has another number of columns.
    pub fn apply<T: Element>(&self, mut x: ArrayViewMut2<'_, T>, par: Par) {
        self.flip(x.view_mut(), par);
        self.hadamard.apply(x, par);
    }

    /// `x <- x Q^T`, the inverse of [`RandomHadamard::apply`].
    ///
    /// # Panics
    /// If `x` has another number of columns.
    pub fn apply_transposed<T: Element>(&self, mut x: ArrayViewMut2<'_, T>, par: Par) {
        self.hadamard.apply_transposed(x.view_mut(), par);
        self.flip(x, par);
    }

    fn flip<T: Element>(&self, x: ArrayViewMut2<'_, T>, par: Par) {
        assert_eq!(x.ncols(), self.width(), "columns of x and of the random Hadamard rotation");
        let signs: Array1<T> = self.signs.iter().map(|&sign| T::from_f32(f32::from(sign))).collect();
        tasks::for_rows(x, par, |_, mut rows| rows *= &signs);
    }

    /// `Q` itself, `[width, width]` in f64.
    #[must_use]
    pub fn matrix(&self) -> Array2<f64> {
        let (h, size) = (self.hadamard.matrix(), self.hadamard.size);
        Array2::from_shape_fn((self.width(), self.width()), |(i, j)| {
            if i / size == j / size { f64::from(self.signs[i]) * h[(i % size, j % size)] } else { 0.0 }
        })
    }
}

/// Checks that a core has entries 1 and -1 and `C C^T = K I`.
fn check_core(core: ArrayView2<'_, i8>) -> Result<(), RotateError> {
    let order = crate::dense::square("core of a Hadamard matrix", core)?;
    let size = i64::try_from(order).unwrap_or(i64::MAX);
    for row in 0..order {
        for other in 0..=row {
            let signs = core.row(row).iter().all(|entry| entry.abs() == 1);
            let product: i64 =
                core.row(row).iter().zip(core.row(other)).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum();
            let expected = if row == other { size } else { 0 };
            if product != expected || !signs {
                return Err(RotateError::NotHadamard { order, row, other, product, expected });
            }
        }
    }
    Ok(())
}
