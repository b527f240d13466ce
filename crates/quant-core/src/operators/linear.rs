//! A linear as codes, and what is done with the sums of its products.

use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayViewMut2, Axis};

use super::check_depth;
use crate::{CoreError, QuantizedMatrix};

/// What is added to the outputs of a linear.
#[derive(Clone, Debug, PartialEq)]
pub enum Bias {
    /// Nothing.
    None,
    /// Added to the sum of products, before scales: `[out]`. A sum with its bias must fit into 32 bits.
    Integer(Array1<i32>),
    /// Added behind the scales: `[out]`.
    Float(Array1<f32>),
}

/// A linear whose weights are codes: `weight[i, j] = scale[i] · code[i, j]`.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegerLinear {
    codes: Array2<i8>,
    scales: Array1<f32>,
    bias: Bias,
}

impl IntegerLinear {
    /// From codes `[out, in]`, a scale for each output and a bias.
    ///
    /// # Errors
    /// [`CoreError::Shape`] naming the part that does not fit, or more inputs than sums of 32 bits hold.
    pub fn new(codes: Array2<i8>, scales: Array1<f32>, bias: Bias) -> Result<Self, CoreError> {
        let (outputs, inputs) = codes.dim();
        check_depth(inputs)?;
        let biases = match &bias {
            Bias::None => outputs,
            Bias::Integer(bias) => bias.len(),
            Bias::Float(bias) => bias.len(),
        };
        for (what, found) in
            [("scales of an integer linear", scales.len()), ("bias of an integer linear", biases)]
        {
            if found != outputs {
                return Err(CoreError::Shape {
                    what,
                    expected: format!("{outputs} (outputs)"),
                    found: found.to_string(),
                });
            }
        }
        Ok(Self { codes, scales, bias })
    }

    /// From a weight with one scale for each output and the zero level in the middle: codes are `level − zero`.
    ///
    /// # Errors
    /// [`CoreError::Shape`] for groups of columns, or a zero level that leaves a code outside of 8 bits.
    pub fn from_matrix(matrix: &QuantizedMatrix, bias: Bias) -> Result<Self, CoreError> {
        if matrix.scales().ncols() != 1 {
            return Err(CoreError::Shape {
                what: "scales of a weight for integer products (round it with Groups::Channel)",
                expected: "1 for each output".to_owned(),
                found: matrix.scales().ncols().to_string(),
            });
        }
        let zeros = matrix.zeros().column(0);
        let code = |(i, j): (usize, usize)| f32::from(matrix.levels()[(i, j)]) - zeros[i];
        let (rows, columns) = matrix.levels().dim();
        let mut codes = Array2::zeros((rows, columns));
        for (at, into) in codes.indexed_iter_mut() {
            let code = code(at);
            if !(-128.0..=127.0).contains(&code) || code.fract() != 0.0 {
                return Err(CoreError::Shape {
                    what: "codes of a weight for integer products (round it with a symmetric grid)",
                    expected: "whole numbers in -128..=127".to_owned(),
                    found: format!("{code} at row {}, column {}", at.0, at.1),
                });
            }
            *into = code as i8;
        }
        Self::new(codes, matrix.scales().column(0).to_owned(), bias)
    }

    /// The same with scales cut to what the fix-pipe of Ascend multiplies f16 outputs with ([`fp19`]).
    #[must_use]
    pub fn with_fp19_scales(mut self) -> Self {
        self.scales.mapv_inplace(fp19);
        self
    }

    /// Codes, `[out, in]`.
    #[must_use]
    pub fn codes(&self) -> &Array2<i8> {
        &self.codes
    }

    /// Scales, `[out]`.
    #[must_use]
    pub fn scales(&self) -> &Array1<f32> {
        &self.scales
    }

    /// What is added to the outputs.
    #[must_use]
    pub fn bias(&self) -> &Bias {
        &self.bias
    }

    /// What is added to the sums of products of tokens whose zero code is `zero`, beside an integer bias: `−zero · Σ_j code[i, j]`,
    /// for `zero = 1`, `[out]`.
    #[must_use]
    pub fn row_sums(&self) -> Array1<i32> {
        self.codes.map_axis(Axis(1), |row| row.iter().map(|&code| i32::from(code)).sum())
    }

    /// Scale, integer bias and float bias of an output.
    ///
    /// # Panics
    /// If there is no such output.
    #[must_use]
    #[inline(always)]
    pub fn channel(&self, output: usize) -> (f32, i32, f32) {
        let (integer, float) = match &self.bias {
            Bias::None => (0, -0.0),
            Bias::Integer(bias) => (bias[output], -0.0),
            Bias::Float(bias) => (0, bias[output]),
        };
        (self.scales[output], integer, float)
    }
}

/// The number behind a sum of products, in the one association that everything here uses:
///
/// `((sum + integer) as f32 · channel) · token + float`
///
/// with `integer` the integer bias minus `zero · Σ code` of the channel. The conversion rounds to nearest even, each operation
/// once; none is fused. (Template A of Ascend's `QuantMatmul`; its other template multiplies the scales first, and may differ in the
/// last bit of an output.) Without a bias `float` is −0, which adds nothing.
#[must_use]
#[inline(always)]
pub fn finish(sum: i32, integer: i32, channel: f32, token: f32, float: f32) -> f32 {
    // A sum that fits into 32 bits does so whatever wraps on the way to it.
    sum.wrapping_add(integer) as f32 * channel * token + float
}

/// A scale with the last 13 bits of its mantissa cleared: what is left of it on its way to an f16 or i8 output of Ascend.
///
/// ```
/// assert_eq!(quant_core::operators::fp19(0.0123).to_bits(), 0x3C49_8000);
/// assert_eq!(quant_core::operators::fp19(1.0), 1.0);
/// ```
#[must_use]
#[inline(always)]
pub fn fp19(scale: f32) -> f32 {
    f32::from_bits(scale.to_bits() & !0x1fff)
}

/// A result as a code of the next linear: rounded half to even, held in −256..=255 (9 bits), the offset added, held in −128..=127. NaN
/// gives the code of 0, as the cast of the hardware does.
#[must_use]
#[inline(always)]
pub fn requantize(value: f32, offset: i32) -> i8 {
    let nine = value.round_ties_even().clamp(-256.0, 255.0);
    (nine as i32 + offset).clamp(-128, 127) as i8
}

/// Where results go, `[tokens, out]`, and in which type: they are rounded to it once, half to even.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output<'a> {
    /// As they are computed.
    F32(ArrayViewMut2<'a, f32>),
    /// bfloat16.
    Bf16(ArrayViewMut2<'a, bf16>),
    /// IEEE half precision; infinite from 65520 on.
    F16(ArrayViewMut2<'a, f16>),
    /// Codes of the next linear ([`requantize`]): the scales of the linear include the reciprocal of its step.
    Codes {
        /// The codes.
        codes: ArrayViewMut2<'a, i8>,
        /// Added to every code, in −256..=255.
        offset: i32,
    },
}

impl Output<'_> {
    /// Tokens and output features.
    #[must_use]
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::F32(out) => out.dim(),
            Self::Bf16(out) => out.dim(),
            Self::F16(out) => out.dim(),
            Self::Codes { codes, .. } => codes.dim(),
        }
    }

    /// Fills it with the values at `(token, output)`, each rounded once to the type of the output.
    pub(super) fn fill_with(self, value: impl Fn((usize, usize)) -> f32) {
        match self {
            Self::F32(mut out) => out.indexed_iter_mut().for_each(|(at, out)| *out = value(at)),
            Self::Bf16(mut out) => {
                out.indexed_iter_mut().for_each(|(at, out)| *out = bf16::from_f32(value(at)));
            }
            Self::F16(mut out) => {
                out.indexed_iter_mut().for_each(|(at, out)| *out = f16::from_f32(value(at)));
            }
            Self::Codes { mut codes, offset } => {
                codes.indexed_iter_mut().for_each(|(at, out)| *out = requantize(value(at), offset));
            }
        }
    }
}

impl<'a> From<ArrayViewMut2<'a, f32>> for Output<'a> {
    fn from(out: ArrayViewMut2<'a, f32>) -> Self {
        Self::F32(out)
    }
}
impl<'a> From<ArrayViewMut2<'a, bf16>> for Output<'a> {
    fn from(out: ArrayViewMut2<'a, bf16>) -> Self {
        Self::Bf16(out)
    }
}
impl<'a> From<ArrayViewMut2<'a, f16>> for Output<'a> {
    fn from(out: ArrayViewMut2<'a, f16>) -> Self {
        Self::F16(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Par;
    use crate::operators::{QuantMatmul, QuantizedActivations, Reference};
    use ndarray::{arr1, array};

    /// The worked example of `spec/formats.md` 1.4: offset and bias folded into the integer bias.
    #[test]
    fn static_linears_of_vllm_ascend() {
        let (weight, offset) = (array![[1, -2, 3], [127, 0, -128]], -5);
        let bias = Bias::Integer(arr1(&[1260, -12505]));
        let folded = IntegerLinear::new(weight.clone(), arr1(&[2e-4, 8e-5]), bias).unwrap();
        let float = Bias::Float(arr1(&[0.25, -1.0]));
        let apart = IntegerLinear::new(weight, arr1(&[0.01, 0.004]), float).unwrap();
        let codes = array![[-128_i8, 127, 3], [-5, -5, -5]];
        // The scale of the input is in that of the channel, and the zero point in the bias.
        let one = QuantizedActivations { codes: codes.clone(), scales: arr1(&[1.0]), zeros: None };
        let both = QuantizedActivations { codes, scales: arr1(&[0.02]), zeros: Some(arr1(&[offset])) };
        let run = |linear: &IntegerLinear, x: &QuantizedActivations| {
            let mut out = Array2::from_elem((2, 2), f32::NAN);
            let prepared = Reference.prepare(linear, Par::Seq).unwrap();
            prepared.forward(x, out.view_mut().into(), Par::Seq).unwrap();
            out
        };
        let (folded, apart) = (run(&folded, &one), run(&apart, &both));
        assert_eq!(folded[(0, 0)], (-128 - 254 + 9 + 1260) as f32 * 2e-4);
        for (a, b) in folded.iter().zip(&apart) {
            assert!((a - b).abs() < 1e-6, "{folded} {apart}");
        }
        // A token of zeros leaves the bias.
        assert!((folded[(1, 0)] - 0.25).abs() < 1e-6 && (folded[(1, 1)] + 1.0).abs() < 1e-6);
    }

    #[test]
    fn rounded_weights_are_what_they_stand_for() {
        use crate::matrix::round_matrix;
        use crate::{Grid, Groups};
        let weight = Array2::from_shape_fn((5, 24), |(i, j)| ((i * 31 + j * 17) % 29) as f32 * 0.1 - 1.4);
        for grid in [Grid::int8_sym(), Grid::int4_sym()] {
            let rounded = round_matrix(&grid, None, Groups::Channel, weight.view()).unwrap();
            let linear = IntegerLinear::from_matrix(&rounded, Bias::None).unwrap();
            let scales = linear.scales().view().insert_axis(Axis(1));
            assert_eq!(linear.codes().mapv(f32::from) * scales, rounded.dequantize());
        }
        let groups = round_matrix(&Grid::int8_sym(), None, Groups::Size(8), weight.view()).unwrap();
        assert!(IntegerLinear::from_matrix(&groups, Bias::None).unwrap_err().to_string().contains("found 3"));
        let far = weight.mapv(|w| w + 1.4);
        let asymmetric = Grid { bits: crate::Bits::new(8).unwrap(), ..Grid::int4_asym() };
        let asymmetric = round_matrix(&asymmetric, None, Groups::Channel, far.view()).unwrap();
        assert!(
            IntegerLinear::from_matrix(&asymmetric, Bias::None)
                .unwrap_err()
                .to_string()
                .contains("symmetric")
        );
    }

    #[test]
    fn association_and_types() {
        // 2^24 + 1 is no f32: the conversion rounds to even.
        assert_eq!(finish(16_777_217, 0, 1.0, 1.0, -0.0), 16_777_216.0);
        assert_eq!(finish(i32::MAX, 1, 1.0, 1.0, -0.0), -2_147_483_648.0);
        let (channel, token) = (0.1_f32, 0.7_f32);
        assert_eq!(finish(3, 4, channel, token, 0.5), 7.0 * channel * token + 0.5);
        assert!(finish(0, 0, 1.0, 1.0, -0.0).is_sign_positive() && finish(1, 0, 1.0, f32::NAN, 0.0).is_nan());
        assert_eq!([0.5, 1.5, -0.5, 300.0, -300.0].map(|x| requantize(x, 0)), [0, 2, 0, 127, -128]);
        assert_eq!([300.0, -300.0, f32::NAN].map(|x| requantize(x, -200)), [55, -128, -128]);
        assert_eq!(fp19(0.001).to_bits(), 0x3A83_0000);
        assert!(fp19(0.001) < 0.001 && fp19(-0.001) > -0.001);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let codes = Array2::zeros((2, 3));
        let error = IntegerLinear::new(codes.clone(), Array1::ones(3), Bias::None).unwrap_err().to_string();
        assert!(error.contains("scales") && error.contains('2') && error.contains('3'), "{error}");
        let bias = Bias::Integer(Array1::zeros(1));
        assert!(
            IntegerLinear::new(codes.clone(), Array1::ones(2), bias)
                .unwrap_err()
                .to_string()
                .contains("bias")
        );
        let linear = IntegerLinear::new(codes, Array1::ones(2), Bias::None).unwrap();
        let prepared = Reference.prepare(&linear, Par::Seq).unwrap();
        let x = QuantizedActivations { codes: Array2::zeros((1, 4)), scales: Array1::ones(1), zeros: None };
        let mut out = Array2::<f32>::zeros((1, 2));
        let error = prepared.forward(&x, out.view_mut().into(), Par::Seq).unwrap_err().to_string();
        assert!(error.contains("[tokens, 3]") && error.contains("[1, 4]"), "{error}");
    }
}
