//! A linear of weights in groups of inputs, multiplied with codes of activations.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use super::{Output, PreparedMatmul, QuantizedActivations, Reference, check_depth, check_operands};
use crate::{CoreError, Par, QuantizedMatrix};

/// A linear whose weights are levels of at most 4 bits with a scale and a whole zero level for every group of inputs:
/// `weight[i, j] = scale[i, g] · (level[i, j] − zero[i, g])`, `g` the group of `j`.
///
/// With activations of 8 bits this is W4A8: products are summed exactly within a group, and [`finish_groups`] makes a number of the sums.
///
/// ```
/// use quant_core::ndarray::{Array2, array};
/// use quant_core::operators::{DynamicNumerics, DynamicQuant, GroupedLinear, GroupedMatmul, Reference};
/// use quant_core::{Bits, Groups, Par, QuantizedMatrix};
///
/// let (levels, scales, zeros) = (array![[9, 7, 8, 12]], array![[0.5, 0.25]], array![[8.0, 8.0]]);
/// let weight = QuantizedMatrix::new(Bits::new(4)?, levels, scales, zeros, Groups::Size(2))?;
/// let linear = GroupedLinear::new(weight, Some(array![1.0]))?;
/// let numerics = DynamicNumerics::Ascend { bits: Bits::new(8)? };
/// let x = Reference.quantize(&numerics, array![[1.0_f32, -1.0, 0.5, 1.0]].view(), Par::Seq)?;
/// let mut y = Array2::<f32>::zeros((1, 1));
/// Reference.prepare_groups(&linear, Par::Seq)?.forward(&x, y.view_mut().into(), Par::Seq)?;
/// // 0.5 (1 + 1) + 0.25 (0 + 4) + 1
/// assert!((y[(0, 0)] - 3.0).abs() < 0.01);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedLinear {
    matrix: QuantizedMatrix,
    bias: Option<Array1<f32>>,
}

impl GroupedLinear {
    /// From a weight `[out, in]` of at most 4 bits with whole zero levels, in groups of any kind, and a bias `[out]`, which is added behind the scales.
    ///
    /// # Errors
    /// [`CoreError::Shape`] naming the part that does not fit, or more inputs than sums of 32 bits hold.
    pub fn new(matrix: QuantizedMatrix, bias: Option<Array1<f32>>) -> Result<Self, CoreError> {
        let (outputs, inputs) = matrix.dim();
        check_depth(inputs)?;
        let shape = |what, expected: &str, found: String| {
            Err(CoreError::Shape { what, expected: expected.to_owned(), found })
        };
        let bits = matrix.bits().get();
        if bits > 4 {
            let what =
                "bits of a weight for integer products in groups (round it to 4, or with one group per row)";
            return shape(what, "at most 4", bits.to_string());
        }
        if !matrix.has_integer_zeros() {
            let what = "zero levels of a weight for integer products (round it with a grid of whole zeros)";
            return shape(what, "whole numbers", "others".to_owned());
        }
        match &bias {
            Some(bias) if bias.len() != outputs => {
                shape("bias of an integer linear", &format!("{outputs} (outputs)"), bias.len().to_string())
            }
            _ => Ok(Self { matrix, bias }),
        }
    }

    /// Levels, scales and zeros.
    #[must_use]
    pub fn matrix(&self) -> &QuantizedMatrix {
        &self.matrix
    }

    /// What is added to an output; −0, which adds nothing, without a bias.
    ///
    /// # Panics
    /// If there is no such output.
    #[must_use]
    #[inline]
    pub fn float(&self, output: usize) -> f32 {
        self.bias.as_ref().map_or(-0.0, |bias| bias[output])
    }

    /// `level − zero` of a weight.
    ///
    /// # Panics
    /// If there is no such weight.
    #[must_use]
    #[inline]
    pub fn code(&self, output: usize, input: usize) -> i32 {
        let zero = self.matrix.zeros()[(output, self.matrix.groups().of(input))];
        i32::from(self.matrix.levels()[(output, input)]) - zero as i32
    }

    /// `Σ_j (level[i, j] − zero[i, g])` over the inputs of a group, `[out, groups]`: what a zero code of 1 takes from the sums.
    #[must_use]
    pub fn group_sums(&self) -> Array2<i32> {
        let mut sums = Array2::zeros(self.matrix.scales().dim());
        let (outputs, inputs) = self.matrix.dim();
        for output in 0..outputs {
            for input in 0..inputs {
                sums[(output, self.matrix.groups().of(input))] += self.code(output, input);
            }
        }
        sums
    }
}

/// Makes products of codes with weights in groups.
pub trait GroupedMatmul: Send + Sync {
    /// A linear in whatever form its products want. What it computes is [`finish_groups`] of exact sums; its
    /// [`PreparedMatmul::sums`] are `Σ code · (level − zero)` over all groups.
    ///
    /// # Errors
    /// What the implementation cannot run, and why.
    fn prepare_groups(&self, linear: &GroupedLinear, par: Par) -> Result<Box<dyn PreparedMatmul>, CoreError>;
}

/// The number behind the sums of the groups of an output, in the one order that everything here uses:
///
/// `(((s_0 as f32 · c_0) + s_1 as f32 · c_1) + …) · token + float`
///
/// with `s_g = Σ_j (code[j] − zero) · (level[j] − zero_g)` over the inputs of group `g`, exact, and `c_g` its scale. Groups come in
/// increasing order, each operation rounds once, none is fused; one group gives [`finish`](super::finish).
#[must_use]
#[inline(always)]
pub fn finish_groups(sums: impl IntoIterator<Item = (i32, f32)>, token: f32, float: f32) -> f32 {
    let terms = sums.into_iter().map(|(sum, channel)| sum as f32 * channel);
    terms.reduce(|total, term| total + term).unwrap_or(0.0) * token + float
}

impl GroupedMatmul for Reference {
    fn prepare_groups(
        &self,
        linear: &GroupedLinear,
        _par: Par,
    ) -> Result<Box<dyn PreparedMatmul>, CoreError> {
        Ok(Box::new(Plain(linear.clone())))
    }
}

#[derive(Debug)]
struct Plain(GroupedLinear);

impl Plain {
    /// Sums of an output by group, of codes minus a zero code.
    fn sums_of(&self, codes: ArrayView2<'_, i8>, token: usize, output: usize, zero: i32) -> Vec<i32> {
        let matrix = self.0.matrix();
        let mut sums = vec![0; matrix.scales().ncols()];
        for (input, &code) in codes.row(token).iter().enumerate() {
            sums[matrix.groups().of(input)] += (i32::from(code) - zero) * self.0.code(output, input);
        }
        sums
    }
}

impl PreparedMatmul for Plain {
    fn shape(&self) -> (usize, usize) {
        self.0.matrix().dim()
    }

    fn forward(&self, x: &QuantizedActivations, out: Output<'_>, _par: Par) -> Result<(), CoreError> {
        x.check()?;
        check_operands(self.shape(), x.codes.dim(), out.dim())?;
        let value = |(token, output): (usize, usize)| {
            let (scale, zero) = x.params(token);
            let sums = self.sums_of(x.codes.view(), token, output, zero);
            let channels = self.0.matrix().scales().row(output);
            finish_groups(sums.into_iter().zip(channels.iter().copied()), scale, self.0.float(output))
        };
        out.fill_with(value);
        Ok(())
    }

    fn sums(
        &self,
        codes: ArrayView2<'_, i8>,
        mut out: ArrayViewMut2<'_, i32>,
        _par: Par,
    ) -> Result<(), CoreError> {
        check_operands(self.shape(), codes.dim(), out.dim())?;
        for ((token, output), sum) in out.indexed_iter_mut() {
            *sum = self.sums_of(codes, token, output, 0).into_iter().sum();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::{Bias, IntegerLinear, MAX_DEPTH, QuantMatmul, finish};
    use crate::{Bits, Groups};
    use ndarray::{arr1, arr2};

    fn matrix(groups: Groups, zero: f32) -> QuantizedMatrix {
        let levels = Array2::from_shape_fn((3, 12), |(i, j)| ((i * 5 + j * 7) % 16) as u8);
        let count = groups.count(12);
        let scales = Array2::from_shape_fn((3, count), |(i, g)| 0.013 + (i + 2 * g) as f32 * 0.0071);
        QuantizedMatrix::new(
            Bits::new(4).unwrap(),
            levels,
            scales,
            Array2::from_elem((3, count), zero),
            groups,
        )
        .unwrap()
    }

    fn activations(zeros: Option<Array1<i32>>) -> QuantizedActivations {
        let codes = Array2::from_shape_fn((2, 12), |(i, j)| [-128, 127, -3, 50, 0][(i * 2 + j) % 5]);
        QuantizedActivations { codes, scales: arr1(&[0.02, 0.5]), zeros }
    }

    fn run(prepared: &dyn PreparedMatmul, x: &QuantizedActivations) -> Array2<f32> {
        let mut out = Array2::from_elem((2, 3), f32::NAN);
        prepared.forward(x, out.view_mut().into(), Par::Seq).unwrap();
        out
    }

    #[test]
    fn sums_are_those_of_the_numbers() {
        let of_column = (0..12).map(|c| (c * 5 % 3) as u32).collect();
        for groups in
            [Groups::Channel, Groups::Size(4), Groups::Size(5), Groups::Index { size: 4, of_column }]
        {
            for zeros in [None, Some(arr1(&[-7, 127]))] {
                let (matrix, x) = (matrix(groups.clone(), 8.0), activations(zeros));
                let bias = arr1(&[0.5, -1.0, 3.0]);
                let linear = GroupedLinear::new(matrix.clone(), Some(bias.clone())).unwrap();
                let got = run(&*Reference.prepare_groups(&linear, Par::Seq).unwrap(), &x);
                let want = x.dequantize().mapv(f64::from).dot(&matrix.dequantize().mapv(f64::from).t());
                for ((at, got), want) in got.indexed_iter().zip(&want) {
                    let want = want + f64::from(bias[at.1]);
                    assert!(
                        (f64::from(*got) - want).abs() <= 1e-5 * (1.0 + want.abs()),
                        "{groups:?} {got} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_group_is_an_integer_linear() {
        for zeros in [None, Some(arr1(&[-7, 127]))] {
            let (matrix, x) = (matrix(Groups::Channel, 8.0), activations(zeros));
            let bias = arr1(&[0.5, -1.0, 3.0]);
            let grouped = GroupedLinear::new(matrix.clone(), Some(bias.clone())).unwrap();
            let plain = IntegerLinear::from_matrix(&matrix, Bias::Float(bias)).unwrap();
            let (grouped, plain) = (
                Reference.prepare_groups(&grouped, Par::Seq).unwrap(),
                Reference.prepare(&plain, Par::Seq).unwrap(),
            );
            assert_eq!(run(&*grouped, &x), run(&*plain, &x));
            let (mut a, mut b) = (Array2::zeros((2, 3)), Array2::zeros((2, 3)));
            grouped.sums(x.codes.view(), a.view_mut(), Par::Seq).unwrap();
            plain.sums(x.codes.view(), b.view_mut(), Par::Seq).unwrap();
            assert_eq!(a, b);
        }
    }

    #[test]
    fn the_order_is_that_of_the_groups() {
        // A half vanishes beside the first term, not beside the sum of the first two.
        let terms = [(1 << 24, 1.0), (-(1 << 24), 1.0), (1, 0.5)];
        assert_eq!(finish_groups(terms, 2.0, 1.0), 2.0);
        assert_eq!(finish_groups([terms[0], terms[2], terms[1]], 2.0, 1.0), 1.0);
        assert_eq!(finish_groups([(3, 0.1)], 0.7, -0.0), finish(3, 0, 0.1, 0.7, -0.0));
        assert_eq!(finish_groups([], 0.7, 0.5), 0.5);
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let refused =
            |matrix: QuantizedMatrix, bias| GroupedLinear::new(matrix, bias).unwrap_err().to_string();
        let error = refused(matrix(Groups::Size(4), 7.5), None);
        assert!(error.contains("whole numbers"), "{error}");
        let error = refused(matrix(Groups::Size(4), 8.0), Some(Array1::zeros(2)));
        assert!(error.contains("bias") && error.contains('3') && error.contains('2'), "{error}");
        let wide = QuantizedMatrix::new(
            Bits::new(5).unwrap(),
            arr2(&[[31]]),
            arr2(&[[1.0]]),
            arr2(&[[16.0]]),
            Groups::Channel,
        );
        let error = refused(wide.unwrap(), None);
        assert!(error.contains("at most 4") && error.contains('5'), "{error}");
        let long = QuantizedMatrix::unfilled(Bits::new(4).unwrap(), (1, MAX_DEPTH + 1), Some(128));
        assert!(refused(long, None).contains("65536"));
    }
}
