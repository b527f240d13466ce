//! A weight of bytes prepared for products with bytes.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use quant_core::CoreError;
use quant_core::operators::check_depth;

use crate::arch::{self, IntegerLevel};
use crate::{Par, product};

/// A weight `[out, in]` of signed bytes in the layout the products of this machine want, a byte for each weight and four for each
/// row and level that needs them.
///
/// Sums are exact on every level: any two bytes, -128 included, and up to [`MAX_DEPTH`](quant_core::operators::MAX_DEPTH) of
/// them. One layout serves a single token, whose product reads each weight once, and thousands.
///
/// ```
/// use quant_kernels::ndarray::array;
/// use quant_kernels::{IntegerWeight, Par};
///
/// let weight = IntegerWeight::new(array![[1, -2, 3], [127, 0, -128]].view(), Par::Seq)?;
/// let sums = weight.sums(array![[-128_i8, 5, 1]].view(), Par::Seq);
/// assert_eq!(sums, array![[-135, -16384]]);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Debug)]
pub struct IntegerWeight {
    packed: arch::PackedInteger,
}

impl IntegerWeight {
    /// Prepares `w` `[out, in]`, with any strides, for the best level of this machine.
    ///
    /// # Errors
    /// [`CoreError::Shape`] for more inputs than 32 bits can sum.
    pub fn new(w: ArrayView2<'_, i8>, par: Par) -> Result<Self, CoreError> {
        Self::for_level(IntegerLevel::detect(), w, par)
    }

    /// Prepares `w` for a level: the sums do not depend on it.
    ///
    /// # Errors
    /// As [`IntegerWeight::new`].
    pub fn for_level(level: IntegerLevel, w: ArrayView2<'_, i8>, par: Par) -> Result<Self, CoreError> {
        check_depth(w.ncols())?;
        Ok(Self { packed: arch::pack_integer(level, w, par) })
    }

    /// Number of output features.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.packed.cols()
    }

    /// Number of input features.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.packed.depth()
    }

    /// The instructions it was prepared for.
    #[must_use]
    pub fn level(&self) -> IntegerLevel {
        self.packed.level()
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// `x W^T` for `x` `[tokens, in]`, in a new `[tokens, out]` array.
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    #[must_use]
    pub fn sums(&self, x: ArrayView2<'_, i8>, par: Par) -> Array2<i32> {
        let mut sums = Array2::zeros((x.nrows(), self.out_features()));
        self.sums_into(x, sums.view_mut(), par);
        sums
    }

    /// `dst = x W^T` for `x` `[tokens, in]` and `dst` `[tokens, out]`, whose old content is not read.
    ///
    /// # Panics
    /// If the shapes do not fit each other, or the columns of `dst` are not adjacent.
    pub fn sums_into(&self, x: ArrayView2<'_, i8>, dst: ArrayViewMut2<'_, i32>, par: Par) {
        product::check_shapes(dst.dim(), x.dim(), (self.in_features(), self.out_features()));
        arch::integer_product(dst, x, &self.packed, par);
    }

    /// Has `finish` make the elements of `dst` `[tokens, out]` out of the sums of `x W^T`, as they come. Shapes were checked by the
    /// caller, and the columns of `dst` are adjacent.
    pub(crate) fn finish_into<T: Copy + Send>(
        &self,
        x: ArrayView2<'_, i8>,
        dst: ArrayViewMut2<'_, T>,
        par: Par,
        finish: impl Fn(usize, usize, &[i32], &mut [T]) + Sync,
    ) {
        arch::integer_through(dst, x, &self.packed, par, finish);
    }
}
