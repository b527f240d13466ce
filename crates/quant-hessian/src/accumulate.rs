//! Streaming accumulation of `H = (2/N) Σ XᵀX`.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use quant_kernels::{Compute, Par, gram_lower, mirror_lower};

use crate::HessianError;
use crate::moments::Moments;
use crate::triangle::triangle_bytes;

/// `H = (2/N) Σ_sequences XᵀX` of one linear input, accumulated sequence by sequence (`gptq.md` section 2).
///
/// The published code rescales a running mean by `N/(N + B)` at every batch; here the plain sum is kept and the factor
/// `2/N` is applied when `H` is read, which is the same number with fewer roundings and independent of the batch split.
/// N counts **sequences**, not tokens: a positive constant that cancels from the codes and scales reported losses.
///
/// Only the lower triangle is stored into; the upper half of the square buffer is never touched until a full matrix is
/// asked for, so the operating system does not back it with memory.
///
/// ```
/// use ndarray::array;
/// use quant_hessian::Hessian;
/// use quant_kernels::{Compute, Par};
///
/// let mut hessian = Hessian::new(2);
/// hessian.add(array![[1.0, 2.0], [0.0, 1.0]].view(), 1, Compute::F32, Par::Seq)?;
/// assert_eq!(hessian.finish()?, array![[2.0, 4.0], [4.0, 10.0]]);
/// # Ok::<(), quant_hessian::HessianError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Lower triangle of `Σ XᵀX`.
    moments: Moments,
}

impl Hessian {
    /// An empty accumulator for `n` input channels.
    #[must_use]
    pub fn new(n: usize) -> Self {
        Self { moments: Moments::new(n) }
    }

    /// A Hessian computed elsewhere: the lower triangle of the finished `h` `[n, n]` of that many sequences.
    ///
    /// # Errors
    /// [`HessianError::Shape`] if `h` is not square, [`HessianError::Empty`] if `sequences` is 0.
    pub fn from_matrix(h: Array2<f32>, sequences: usize) -> Result<Self, HessianError> {
        Ok(Self { moments: Moments::of_finished("Hessian", h, sequences)? })
    }

    /// Adds the activations `x` `[tokens, n]` of `sequences` whole sequences (all their tokens, nothing masked).
    ///
    /// # Errors
    /// [`HessianError::Shape`] if `x` has another width.
    pub fn add(
        &mut self,
        x: ArrayView2<'_, f32>,
        sequences: usize,
        compute: Compute,
        par: Par,
    ) -> Result<(), HessianError> {
        self.moments.check_width(x)?;
        let begun = self.moments.begun();
        gram_lower(self.moments.sum.view_mut(), begun, 1.0, x, compute, par);
        self.moments.count(sequences, x.nrows());
        Ok(())
    }

    /// Number of input channels.
    #[must_use]
    pub fn n(&self) -> usize {
        self.moments.n()
    }
    /// Sequences seen.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.moments.sequences()
    }
    /// Tokens seen (0 for [`Self::from_matrix`]).
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.moments.tokens()
    }
    /// Bytes held, as [`Self::bytes_for`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        Self::bytes_for(self.n())
    }
    /// Bytes held for `n` input channels, what a plan reserves: the pages that the lower triangle touches.
    #[must_use]
    pub fn bytes_for(n: usize) -> usize {
        triangle_bytes(n, size_of::<f32>(), 1)
    }

    /// With another diagonal of `H`, entry by entry.
    ///
    /// # Errors
    /// [`HessianError::Empty`].
    pub(crate) fn map_diagonal(mut self, entry: impl Fn(f64) -> f64) -> Result<Self, HessianError> {
        let scale = self.scale()?;
        self.moments.sum.diag_mut().mapv_inplace(|sum| (entry(f64::from(sum) * scale) / scale) as f32);
        Ok(self)
    }

    /// The plain sum `Σ XᵀX`, `[n, n]`; what lies above the diagonal means nothing.
    #[must_use]
    pub fn moments(&self) -> ArrayView2<'_, f32> {
        self.moments.sum.view()
    }

    /// The moments of activations whose channels are divided by `factors` `[n]`.
    ///
    /// # Panics
    /// If there is another number of factors.
    pub fn divide(&mut self, factors: ArrayView1<'_, f32>) {
        assert_eq!(factors.len(), self.n(), "factors and channels");
        for (i, mut row) in self.moments.sum.rows_mut().into_iter().enumerate() {
            for (value, &c) in row.iter_mut().zip(factors).take(i + 1) {
                *value /= c * factors[i];
            }
        }
    }

    /// The factor `2/N` from the stored sum to `H`.
    pub(crate) fn scale(&self) -> Result<f64, HessianError> {
        self.moments.scale()
    }
    /// The stored sum, row-major; only its lower triangle means anything.
    #[expect(
        clippy::expect_used,
        reason = "both constructors make a row-major matrix and nothing replaces it"
    )]
    pub(crate) fn lower_sum(&self) -> &[f32] {
        self.moments.sum.as_slice().expect("a row-major matrix")
    }

    /// The diagonal of `H`, `[n]`.
    ///
    /// # Errors
    /// [`HessianError::Empty`], or [`HessianError::NotFiniteHessian`]: a NaN or an infinity in an activation column always
    /// reaches the diagonal entry of that column, so this check covers the whole matrix.
    pub fn diagonal(&self) -> Result<Array1<f32>, HessianError> {
        let scale = self.scale()? as f32;
        let diagonal = self.moments.sum.diag().mapv(|x| x * scale);
        match diagonal.iter().position(|x| !x.is_finite()) {
            Some(column) => Err(HessianError::NotFiniteHessian { column, value: diagonal[column] }),
            None => Ok(diagonal),
        }
    }

    /// The full symmetric `H` `[n, n]`.
    ///
    /// # Errors
    /// As [`Self::diagonal`].
    pub fn finish(self) -> Result<Array2<f32>, HessianError> {
        self.diagonal()?;
        let scale = self.scale()? as f32;
        let mut h = self.moments.sum;
        h.mapv_inplace(|x| x * scale);
        mirror_lower(h.view_mut());
        Ok(h)
    }
}
