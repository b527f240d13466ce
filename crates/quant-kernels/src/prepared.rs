//! A weight prepared once and used for many chunks of tokens.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2};

use crate::element::Element;
use crate::{Compute, Level, Par, arch, product};

/// A weight `[out, in]` in the layout the products want, converted once.
#[derive(Clone, Debug)]
pub struct PreparedWeight<T> {
    packed: arch::PackedOperand<T>,
}

impl<T: Element> PreparedWeight<T> {
    /// Prepares `w`, `[out, in]` with any strides.
    #[must_use]
    pub fn new(w: ArrayView2<'_, T>, compute: Compute, par: Par) -> Self {
        Self { packed: T::pack_operand(Level::detect(), w.reversed_axes(), compute, par) }
    }

    /// Prepares the weight `(out, in)` whose row `i` is what `fill(i, row)` writes into `row` `[in]`, which holds old
    /// numbers before: a quantised weight becomes operands without ever existing as a float matrix. Rows are asked for
    /// once each for every part of the arithmetic, in any order, from several threads. Bit-identical to [`PreparedWeight::new`] of the matrix.
    #[must_use]
    pub fn from_rows(
        (outputs, inputs): (usize, usize),
        compute: Compute,
        par: Par,
        fill: impl Fn(usize, &mut [T]) + Sync,
    ) -> Self {
        Self { packed: T::pack_columns(Level::detect(), (inputs, outputs), compute, par, &fill) }
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

    /// The arithmetic the weight was prepared for.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.packed.compute()
    }

    /// Bytes of memory the prepared weight holds: about those of the weight in `f32`, half for every part in `bf16` on a machine
    /// that multiplies bf16 pairs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// Bytes of one weight, prepared on this machine: what a plan counts before there is a weight.
    #[must_use]
    pub fn element_bytes(compute: Compute) -> usize {
        T::packed_element_bytes(Level::detect(), compute)
    }

    /// `y = x W^T + bias` for `x` `[tokens, in]`, in a new `[tokens, out]` array.
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    #[must_use]
    pub fn forward(&self, x: ArrayView2<'_, T>, bias: Option<ArrayView1<'_, T>>, par: Par) -> Array2<T> {
        let mut y = Array2::zeros((x.nrows(), self.out_features()));
        self.forward_into(x, bias, y.view_mut(), par);
        y
    }

    /// `dst = x W^T + bias` for `x` `[tokens, in]` and `dst` `[tokens, out]`, whose old content is not read.
    /// Bit-identical to [`linear`](crate::linear) with the same [`Compute`].
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    pub fn forward_into(
        &self,
        x: ArrayView2<'_, T>,
        bias: Option<ArrayView1<'_, T>>,
        mut dst: ArrayViewMut2<'_, T>,
        par: Par,
    ) {
        product::check_shapes(dst.dim(), x.dim(), (self.in_features(), self.out_features()));
        let accumulate = product::fill_with_bias(&mut dst, bias);
        T::product_packed(dst, accumulate, T::one(), x, &self.packed, par);
    }

    /// `dst[m, n] = alpha * x[m, in] * W[..n]^T`, or `+=` with `accumulate`: the product with the first `n` rows of the
    /// weight, as many as `dst` has columns. Bit-identical to [`matmul_nt`](crate::matmul_nt) of these rows; without
    /// `accumulate` the old content of `dst` is not read.
    ///
    /// ```
    /// use quant_kernels::ndarray::{Array2, array};
    /// use quant_kernels::{Compute, Par, PreparedWeight};
    ///
    /// let w = array![[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
    /// let w = PreparedWeight::new(w.view(), Compute::F32, Par::Seq);
    /// let mut y = Array2::zeros((1, 2));
    /// w.product_into(y.view_mut(), false, 10.0, array![[1.0, 1.0]].view(), Par::Seq);
    /// assert_eq!(y, array![[30.0, 70.0]]);
    /// ```
    ///
    /// # Panics
    /// If the shapes do not fit each other, or `dst` has more columns than the weight rows.
    pub fn product_into(
        &self,
        dst: ArrayViewMut2<'_, T>,
        accumulate: bool,
        alpha: T,
        x: ArrayView2<'_, T>,
        par: Par,
    ) {
        let columns = dst.ncols();
        assert!(columns <= self.out_features(), "{columns} columns of {} rows", self.out_features());
        product::check_shapes(dst.dim(), x.dim(), (self.in_features(), columns));
        // Every row has its own lane of a panel, so that those behind the first ones touch nothing of theirs.
        T::product_packed(dst, accumulate, alpha, x, &self.packed, par);
    }
}
