//! Streaming accumulation of `D = (2/N) Σ (X_f − X)ᵀ X`.

use ndarray::{Array2, ArrayView2, Axis, Slice, Zip};
use quant_kernels::{Compute, Par, cross_gram_lower, matmul_nn, tasks};

use crate::HessianError;
use crate::moments::Moments;
use crate::triangle::triangle_bytes;

/// Tokens whose differences are formed at a time: whole blocks of the products' summed index, so that the bits are those of
/// one product over all tokens of a call.
const TOKENS: usize = 1536;
/// Rows of one task of the subtraction.
const ROWS: usize = 64;

/// `D = (2/N) Σ_sequences (X_f − X)ᵀ X` of one linear input, accumulated sequence by sequence: `X` is the input in the partly
/// quantised model, `X_f` that of the same tokens in the float model (`gptaq.md` section 2).
///
/// The row index comes from the difference, the column index from `X`. `D` is not symmetric; transposing it turns the
/// correction into an error. As in [`Hessian`](crate::Hessian), the plain sum is kept, `2/N` is applied when it is read, and
/// N counts **sequences**. The differences are formed in f32 before any rounding of operands.
///
/// Without act-order, only entries above the diagonal enter [`Correction`](crate::Correction), so only those are summed
/// (with the diagonal, which shows NaN): half the operations and half the memory, with the same bits.
///
/// ```
/// use ndarray::array;
/// use quant_hessian::{Compute, CrossGram, Par};
///
/// let x = array![[1.0, 2.0], [0.0, 1.0]];
/// let float = array![[1.5, 2.0], [0.0, 2.0]];
/// let mut cross = CrossGram::new(2, true);
/// cross.add(float.view(), x.view(), 1, Compute::F32, Par::Seq)?;
/// assert_eq!(cross.finish()?, array![[1.0, 2.0], [0.0, 2.0]]);
/// # Ok::<(), quant_hessian::HessianError>(())
/// ```
#[derive(Clone, Debug)]
pub struct CrossGram {
    /// `Σ Xᵀ (X_f − X)`, the **transpose** of the sum: what is needed is its lower triangle, which the kernels write.
    moments: Moments,
    /// Whether what lies above the diagonal of the sum was summed too.
    all: bool,
}

impl CrossGram {
    /// An empty accumulator for `n` input channels; `all` also sums the entries below the diagonal of `D`, which only
    /// act-order needs.
    #[must_use]
    pub fn new(n: usize, all: bool) -> Self {
        Self { moments: Moments::new(n), all }
    }

    /// A matrix computed elsewhere: the finished, whole `d` `[n, n]` of that many sequences, row index from the difference.
    ///
    /// # Errors
    /// [`HessianError::Shape`] if `d` is not square, [`HessianError::Empty`] if `sequences` is 0.
    pub fn from_matrix(d: Array2<f32>, sequences: usize) -> Result<Self, HessianError> {
        let moments = Moments::of_finished("cross product of activations", d.reversed_axes(), sequences)?;
        Ok(Self { moments, all: true })
    }

    /// Adds `sequences` whole sequences (all their tokens, nothing masked): `float` and `x`, both `[tokens, n]`, are the inputs
    /// of the linear for the same tokens in the float and in the partly quantised model.
    ///
    /// # Errors
    /// [`HessianError::Shape`] if one of them has another width or they differ in tokens.
    pub fn add(
        &mut self,
        float: ArrayView2<'_, f32>,
        x: ArrayView2<'_, f32>,
        sequences: usize,
        compute: Compute,
        par: Par,
    ) -> Result<(), HessianError> {
        self.moments.check_width(x)?;
        if float.dim() != x.dim() {
            return Err(HessianError::Shape {
                what: "calibration activations of the float model",
                expected: format!("{:?}, those of the quantised model", x.dim()),
                found: format!("{:?}", float.dim()),
            });
        }
        let mut buffer = Array2::zeros((TOKENS.min(x.nrows()), self.n()));
        let mut begun = self.moments.begun();
        for (float, x) in float.axis_chunks_iter(Axis(0), TOKENS).zip(x.axis_chunks_iter(Axis(0), TOKENS)) {
            let mut difference = buffer.slice_axis_mut(Axis(0), Slice::from(..x.nrows()));
            let parts = difference
                .axis_chunks_iter_mut(Axis(0), ROWS)
                .zip(float.axis_chunks_iter(Axis(0), ROWS))
                .zip(x.axis_chunks_iter(Axis(0), ROWS));
            tasks::for_each(parts, par, |((target, float), x)| {
                Zip::from(target).and(float).and(x).for_each(|d, &float, &x| *d = float - x);
            });
            let (sum, difference) = (self.moments.sum.view_mut(), difference.view());
            if self.all {
                matmul_nn(sum, begun, 1.0, x.reversed_axes(), difference, compute, par);
            } else {
                cross_gram_lower(sum, begun, 1.0, x, difference, compute, par);
            }
            begun = true;
        }
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
    /// Whether the entries below the diagonal of `D` were summed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.all
    }
    /// Bytes held, as [`Self::bytes_for`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        Self::bytes_for(self.n(), self.all)
    }
    /// Bytes held for `n` input channels; what a plan reserves. Without `all`, the pages that the summed half touches.
    #[must_use]
    pub fn bytes_for(n: usize, all: bool) -> usize {
        if all { n * n * size_of::<f32>() } else { triangle_bytes(n, size_of::<f32>(), 1) }
    }

    /// `D` `[n, n]`; where only the entries on and above the diagonal were summed, the others are 0.
    ///
    /// # Errors
    /// [`HessianError::Empty`], or [`HessianError::NotFiniteCross`] for the first entry, by column, that is NaN or infinite.
    pub fn finish(mut self) -> Result<Array2<f32>, HessianError> {
        let scale = self.scale()? as f32;
        self.moments.sum.mapv_inplace(|x| x * scale);
        match self.moments.sum.indexed_iter().find(|(_, x)| !x.is_finite()) {
            Some(((column, row), &value)) => Err(HessianError::NotFiniteCross { row, column, value }),
            None => Ok(self.moments.sum.reversed_axes()),
        }
    }

    /// Whether it is of the channels of a factor.
    pub(crate) fn check_channels(&self, n: usize) -> Result<(), HessianError> {
        if self.n() == n {
            return Ok(());
        }
        Err(HessianError::Shape {
            what: "cross product of activations",
            expected: format!("[{n}, {n}], as the factor"),
            found: format!("[{0}, {0}]", self.n()),
        })
    }
    /// The factor `2/N` from the stored sum to `D`.
    pub(crate) fn scale(&self) -> Result<f64, HessianError> {
        self.moments.scale()
    }
    /// The transposed sum, row-major, `sum[k n + j] = N/2 · d_jk`; without [`Self::is_whole`], only for `j <= k`.
    ///
    /// # Errors
    /// [`HessianError::NotFiniteCross`].
    pub(crate) fn into_finite_transposed_sum(self, par: Par) -> Result<Vec<f32>, HessianError> {
        let (n, all) = (self.n(), self.all);
        let sum = self.moments.sum.into_raw_vec_and_offset().0;
        let check = |(k, row): (usize, &[f32])| {
            let read = if all { row } else { &row[..=k] };
            match read.iter().position(|x| !x.is_finite()) {
                Some(j) => Err(HessianError::NotFiniteCross { row: j, column: k, value: row[j] }),
                None => Ok(()),
            }
        };
        tasks::try_for_each(sum.chunks(n.max(1)).enumerate(), par, check)?;
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_testkit::Numbers;

    fn streams(tokens: usize, n: usize, seed: u64) -> (Array2<f32>, Array2<f32>) {
        let mut noise = Numbers::new(seed);
        let x = noise.activations(tokens, n);
        (&x + &(noise.normals(tokens, n) * 0.2), x)
    }

    #[test]
    fn the_sum_is_that_of_the_definition_on_any_threads() {
        // More tokens than one chunk of differences.
        for (tokens, n) in [(7, 5), (70, 33), (2000, 40)] {
            let (float, x) = streams(tokens, n, n as u64);
            let exact = (&float.mapv(f64::from) - &x.mapv(f64::from)).t().dot(&x.mapv(f64::from));
            let size = exact.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            for compute in [Compute::F32, Compute::Bf16] {
                let sum = |all, par| {
                    let mut cross = CrossGram::new(n, all);
                    cross.add(float.view(), x.view(), 2, compute, par).unwrap();
                    assert_eq!((cross.n(), cross.sequences(), cross.tokens()), (n, 2, tokens));
                    cross.finish().unwrap()
                };
                let whole = sum(true, Par::Seq);
                let tolerance = if compute == Compute::F32 { 1e-5 } else { 1e-2 };
                for (got, want) in whole.iter().zip(&exact) {
                    assert!((f64::from(*got) - want).abs() <= tolerance * size, "{got} {want}");
                }
                let mut product = Array2::zeros((n, n));
                let difference = &float - &x;
                matmul_nn(product.view_mut(), true, 1.0, x.t(), difference.view(), compute, Par::Seq);
                assert_eq!(whole, product.t(), "chunks of tokens must not show");
                for par in [Par::Seq, Par::new(2), Par::new(3)] {
                    assert_eq!(sum(true, par), whole);
                    let half = sum(false, par);
                    for ((i, j), &d) in half.indexed_iter() {
                        assert_eq!(d, if i <= j { whole[(i, j)] } else { 0.0 });
                    }
                }
            }
        }
    }

    /// `gptaq.md` section 7, property 7.
    #[test]
    fn the_order_of_the_sequences_is_invisible() {
        let (length, n) = (48, 60);
        let (float, x) = streams(6 * length, n, 3);
        let sum = |order: [usize; 6]| {
            let mut cross = CrossGram::new(n, true);
            for b in order {
                let rows = Slice::from(b * length..(b + 1) * length);
                let (float, x) = (float.slice_axis(Axis(0), rows), x.slice_axis(Axis(0), rows));
                cross.add(float, x, 1, Compute::F32, Par::Seq).unwrap();
            }
            assert_eq!(cross.sequences(), 6);
            cross.finish().unwrap()
        };
        let (a, b) = (sum([0, 1, 2, 3, 4, 5]), sum([4, 2, 5, 0, 1, 3]));
        let norm = |d: &Array2<f32>| d.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        assert!(norm(&(&a - &b)) <= 1e-5 * norm(&a));
        assert!(a != b, "the sums ran in another order");
    }

    #[test]
    fn a_finished_matrix_comes_back() {
        let d = Numbers::new(5).normals(7, 7);
        for sequences in [1, 2, 8] {
            let cross = CrossGram::from_matrix(d.clone(), sequences).unwrap();
            assert!(cross.is_whole() && cross.bytes() == 7 * 7 * 4);
            assert_eq!(cross.finish().unwrap(), d);
            let columns = CrossGram::from_matrix(d.t().to_owned().reversed_axes(), sequences).unwrap();
            assert_eq!(columns.finish().unwrap(), d, "column-major");
        }
        assert!(CrossGram::bytes_for(8192, false) * 100 < CrossGram::bytes_for(8192, true) * 57);
        assert!(CrossGram::bytes_for(8192, false) * 2 > CrossGram::bytes_for(8192, true));
    }

    #[test]
    fn bad_input_is_named() {
        let (float, x) = streams(9, 4, 1);
        let (float, x) = (float.view(), x.view());
        let mut cross = CrossGram::new(4, false);
        assert_eq!(cross.clone().finish(), Err(HessianError::Empty { columns: 4 }));
        let mut add = |float: ArrayView2<'_, f32>, x: ArrayView2<'_, f32>| {
            cross.add(float, x, 1, Compute::F32, Par::Seq).unwrap_err().to_string()
        };
        let wide = add(float.split_at(Axis(1), 3).0, x.split_at(Axis(1), 3).0);
        assert_eq!(wide, "calibration activations: expected [tokens, 4], found (9, 3)");
        let short = add(float.split_at(Axis(0), 8).0, x);
        let says = "calibration activations of the float model: expected (9, 4), those of the quantised model, found (8, 4)";
        assert_eq!(short, says);
        assert_eq!((cross.sequences(), cross.tokens()), (0, 0));
        assert!(matches!(CrossGram::from_matrix(Array2::zeros((3, 4)), 1), Err(HessianError::Shape { .. })));
        assert!(matches!(CrossGram::from_matrix(Array2::zeros((3, 3)), 0), Err(HessianError::Empty { .. })));
        for channel in 0..4 {
            let mut bad = float.to_owned();
            bad[(5, channel)] = f32::NAN;
            let mut cross = CrossGram::new(4, false);
            cross.add(bad.view(), x, 1, Compute::F32, Par::Seq).unwrap();
            let error = cross.finish().unwrap_err();
            assert!(matches!(error, HessianError::NotFiniteCross { row, .. } if row == channel), "{error}");
        }
    }
}
