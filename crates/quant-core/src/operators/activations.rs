//! Activations as codes, and the arithmetic that makes codes.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use crate::range::{all_finite, range_with_zero};
use crate::{ActRule, Bits, ClipRatio, CoreError, FloatType, QParams};

/// Activations `[tokens, features]` as signed codes: a value is `scale · (code − zero)`. By default there are no tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedActivations {
    /// Codes, `[tokens, features]`.
    pub codes: Array2<i8>,
    /// A scale for each token, or one for all. NaN where a token holds a number that is not finite: no code stands for it, and
    /// the results of the token become NaN.
    pub scales: Array1<f32>,
    /// Zero codes, as many as scales, each in `-128..=127`; absent where all are 0.
    pub zeros: Option<Array1<i32>>,
}

impl QuantizedActivations {
    /// Scale and zero of a token.
    ///
    /// # Panics
    /// If there is no such token.
    #[must_use]
    #[inline]
    pub fn params(&self, token: usize) -> (f32, i32) {
        let at = if self.scales.len() == 1 { 0 } else { token };
        (self.scales[at], self.zeros.as_ref().map_or(0, |zeros| zeros[at]))
    }

    /// Whether the parts fit each other.
    ///
    /// # Errors
    /// [`CoreError::Shape`] naming the part.
    pub fn check(&self) -> Result<(), CoreError> {
        let tokens = self.codes.nrows();
        let zeros = self.zeros.as_ref().map_or(self.scales.len(), Array1::len);
        for (what, found) in
            [("scales of activations", self.scales.len()), ("zero codes of activations", zeros)]
        {
            if found != self.scales.len() || (found != tokens && found != 1) {
                return Err(CoreError::Shape {
                    what,
                    expected: format!("1 or {tokens}"),
                    found: found.to_string(),
                });
            }
        }
        match self.zeros.iter().flatten().find(|zero| !(-128..=127).contains(*zero)) {
            Some(zero) => Err(CoreError::Shape {
                what: "a zero code of activations",
                expected: "-128 to 127".to_owned(),
                found: zero.to_string(),
            }),
            None => Ok(()),
        }
    }

    /// The numbers that the codes stand for.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        Array2::from_shape_fn(self.codes.dim(), |(token, j)| {
            let (scale, zero) = self.params(token);
            scale * (i32::from(self.codes[(token, j)]) - zero) as f32
        })
    }
}

/// The arithmetic by which a token gets its scale and codes: one value for each way that a client of a folder computes.
///
/// Simulation and execution of a folder take the same value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum DynamicNumerics {
    /// Ascend's dynamic quantisation as vLLM-Ascend calls it: with `T = 2^(b−1) − 1` and `A` the largest magnitude, codes are
    /// `round(x · (T / A))` and the scale is `A · (1/T)`. A token of zeros has the scale 0.
    Ascend {
        /// Bit width of the codes.
        bits: Bits,
    },
    /// compressed-tensors: the scale is `A / ((2^b − 1)/2)`, 1 for a token of zeros, and `x / scale` is clipped before it is rounded.
    CompressedTensors {
        /// Bit width of the codes.
        bits: Bits,
    },
    /// What a folder of dequantised weights is evaluated with: parameters by a rule of this crate, `x / scale` rounded, the zero
    /// added, then clipped ([`ActRule::params`], [`QParams::level`]).
    Divided {
        /// Bit width of the codes.
        bits: Bits,
        /// How the range becomes parameters.
        rule: ActRule,
        /// What the ends of the range are multiplied by.
        clip_ratio: ClipRatio,
    },
}

/// Parameters of one token, and how a number becomes a code under them: `clip(round(x · factor) + zero)` or
/// `clip(round(x / scale) + zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenParams {
    /// Scale of the token; NaN if it holds a number that is not finite.
    pub scale: f32,
    /// Zero code.
    pub zero: i32,
    divide: bool,
    factor: f32,
    low: f32,
    high: f32,
}

impl TokenParams {
    /// The code of a number of the token.
    #[must_use]
    #[inline(always)]
    pub fn code(&self, x: f32) -> i8 {
        let quotient = if self.divide { x / self.factor } else { x * self.factor };
        // Clipping a rounded number to whole ends is rounding a clipped one.
        code_within(quotient.round_ties_even() + self.zero as f32, self.low, self.high)
    }
}

/// A whole number held between whole ends, as a code. A NaN becomes the lower end: its token's scale tells of it.
#[inline(always)]
fn code_within(level: f32, low: f32, high: f32) -> i8 {
    let level = if level > low { level } else { low };
    let level = if level < high { level } else { high };
    // The integer stands in the low bits of the mantissa; a saturating cast would keep a loop scalar.
    (level + 12_582_912.0).to_bits() as i8
}

impl DynamicNumerics {
    /// The bit width of the codes.
    #[must_use]
    pub fn bits(self) -> Bits {
        match self {
            Self::Ascend { bits } | Self::CompressedTensors { bits } | Self::Divided { bits, .. } => bits,
        }
    }

    /// Parameters of a token.
    #[must_use]
    #[inline(always)]
    pub fn params(self, token: &[f32]) -> TokenParams {
        if self.is_asymmetric() {
            let (min, max) = if all_finite(token) { range_with_zero(token) } else { (f32::NAN, f32::NAN) };
            self.of_range(min, max)
        } else {
            // Magnitudes compare like integers, infinity and NaN above all numbers.
            let largest = token.iter().fold(0, |largest, x| x.abs().to_bits().max(largest));
            let largest = f32::from_bits(largest);
            self.of_range(-largest, largest)
        }
    }

    /// Parameters of a token whose least and largest numbers, zero included, are these; NaN where it holds one.
    #[must_use]
    #[inline(always)]
    pub fn of_range(self, min: f32, max: f32) -> TokenParams {
        let bits = self.bits();
        let middle = bits.mid_level();
        let (low, high) = (-middle, bits.max_level() - middle);
        let largest = if max > -min { max } else { -min };
        // Infinities and NaN: ∞ · 0.
        let poison = min * 0.0 + max * 0.0;
        let found = match self {
            Self::Ascend { .. } => {
                // At one bit there is no positive code but 0; the scale of its lower end serves.
                let top = high.max(1.0);
                // The reciprocal of a subnormal overflows; zeros have codes of 0 under any finite factor.
                let factor = if largest > 0.0 { (top / largest).min(f32::MAX) } else { 0.0 };
                TokenParams { scale: largest * (1.0 / top), zero: 0, divide: false, factor, low, high }
            }
            Self::CompressedTensors { bits } => {
                let scale = if largest == 0.0 { 1.0 } else { largest / (bits.max_level() / 2.0) };
                let scale = if scale > 0.0 { scale } else { f32::MIN_POSITIVE };
                TokenParams { scale, zero: 0, divide: true, factor: scale, low, high }
            }
            Self::Divided { bits, rule, clip_ratio } => {
                let QParams { scale, zero } = rule.params(bits, clip_ratio, &[min, max]);
                TokenParams { scale, zero: (zero - middle) as i32, divide: true, factor: scale, low, high }
            }
        };
        TokenParams { scale: found.scale + poison, ..found }
    }

    /// The specification: codes, scale and zero of one token.
    ///
    /// # Panics
    /// If there are not as many codes as numbers.
    #[inline(always)]
    pub fn token(self, token: &[f32], codes: &mut [i8]) -> TokenParams {
        assert_eq!(token.len(), codes.len(), "a code for every number of a token");
        let params = self.params(token);
        for (code, &x) in codes.iter_mut().zip(token) {
            *code = params.code(x);
        }
        params
    }

    /// Whether zeros other than 0 occur.
    #[must_use]
    pub fn is_asymmetric(self) -> bool {
        matches!(self, Self::Divided { rule: ActRule::Asymmetric, .. })
    }

    /// Bundles codes and parameters of tokens.
    #[must_use]
    pub fn collect(self, codes: Array2<i8>, params: Vec<TokenParams>) -> QuantizedActivations {
        let zeros = self.is_asymmetric().then(|| params.iter().map(|p| p.zero).collect());
        QuantizedActivations { codes, scales: params.into_iter().map(|p| p.scale).collect(), zeros }
    }
}

/// The arithmetic by which activations get codes under one scale and zero for the whole tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StaticNumerics {
    /// vLLM-Ascend: `round(x · f + zero)` with `f = 1/scale` formed in the type the model's parameters have.
    Ascend {
        /// The type of the model.
        model: FloatType,
    },
    /// `round(x / scale + zero)`, as in a simulation.
    Divided,
}

impl StaticNumerics {
    /// Codes of `x` `[tokens, features]` under the unsigned parameters of a static quantiser of 8 bits or fewer.
    ///
    /// # Panics
    /// If `codes` has not the shape of `x`.
    #[inline(always)]
    pub fn codes(
        self,
        bits: Bits,
        params: QParams,
        x: ArrayView2<'_, f32>,
        mut codes: ArrayViewMut2<'_, i8>,
    ) {
        assert_eq!(x.dim(), codes.dim(), "a code for every activation");
        let coder = self.coder(bits, params);
        for (x, mut codes) in x.rows().into_iter().zip(codes.rows_mut()) {
            match (x.to_slice(), codes.as_slice_mut()) {
                // Neighbours in memory go through registers together.
                (Some(x), Some(codes)) => coder.row(x, codes),
                _ => codes.iter_mut().zip(x).for_each(|(code, &x)| *code = coder.code(x)),
            }
        }
    }

    /// How a number becomes a code under these parameters.
    #[inline(always)]
    pub(super) fn coder(self, bits: Bits, params: QParams) -> StaticCoder {
        let middle = bits.mid_level();
        StaticCoder {
            scale: params.scale,
            zero: params.zero - middle,
            divide: self == Self::Divided,
            factor: match self {
                Self::Ascend { model } => model.round(1.0 / params.scale),
                Self::Divided => params.scale,
            },
            low: -middle,
            high: bits.max_level() - middle,
        }
    }

    /// Activations as codes with the one scale and zero of all.
    ///
    /// A number that is not finite makes every result NaN: no code stands for it.
    #[must_use]
    pub fn quantize(self, bits: Bits, params: QParams, x: ArrayView2<'_, f32>) -> QuantizedActivations {
        let mut codes = Array2::zeros(x.dim());
        self.codes(bits, params, x, codes.view_mut());
        let poison = if x.iter().all(|x| x.is_finite()) { 0.0 } else { f32::NAN };
        let zero = (params.zero - bits.mid_level()) as i32;
        QuantizedActivations {
            codes,
            scales: ndarray::arr1(&[params.scale + poison]),
            zeros: (zero != 0).then(|| ndarray::arr1(&[zero])),
        }
    }
}

/// A static quantiser of one scale and one signed zero, ready for numbers.
#[derive(Clone, Copy)]
pub(super) struct StaticCoder {
    pub(super) scale: f32,
    pub(super) zero: f32,
    divide: bool,
    factor: f32,
    low: f32,
    high: f32,
}

impl StaticCoder {
    /// The code of a number.
    #[inline(always)]
    pub(super) fn code(&self, x: f32) -> i8 {
        self.of_quotient(if self.divide { x / self.factor } else { x * self.factor })
    }
    #[inline(always)]
    fn of_quotient(&self, quotient: f32) -> i8 {
        code_within((quotient + self.zero).round_ties_even(), self.low, self.high)
    }
    /// The codes of neighbours: loops without a choice in them, which are the caller's own, with its instructions.
    #[inline(always)]
    fn row(&self, x: &[f32], codes: &mut [i8]) {
        if self.divide {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = self.of_quotient(x / self.factor);
            }
        } else {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = self.of_quotient(x * self.factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eight() -> Bits {
        Bits::new(8).unwrap()
    }
    fn profiles() -> Vec<DynamicNumerics> {
        let divided = |rule, clip_ratio: f32| DynamicNumerics::Divided {
            bits: Bits::new(8).unwrap(),
            rule,
            clip_ratio: clip_ratio.into(),
        };
        vec![
            DynamicNumerics::Ascend { bits: eight() },
            DynamicNumerics::Ascend { bits: Bits::new(4).unwrap() },
            DynamicNumerics::CompressedTensors { bits: eight() },
            divided(ActRule::Symmetric, 1.0),
            divided(ActRule::Asymmetric, 0.9),
        ]
    }

    /// Numbers from `spec/ascend.md` 5.3 and formulas written out: multiplication and division part ways.
    #[test]
    fn profiles_compute_as_their_clients() {
        let token = [0.1_f32, -0.37, 0.25, 0.3699];
        let mut codes = [0; 4];
        let ascend = DynamicNumerics::Ascend { bits: eight() }.token(&token, &mut codes);
        let factor = 127.0_f32 / 0.37;
        assert_eq!(codes, [0.1_f32, -0.37, 0.25, 0.3699].map(|x| (x * factor).round_ties_even() as i8));
        assert_eq!((ascend.scale, ascend.zero), (0.37 * (1.0 / 127.0_f32), 0));
        let tensors = DynamicNumerics::CompressedTensors { bits: eight() }.token(&token, &mut codes);
        assert_eq!((tensors.scale, codes[1], codes[3]), (0.37 / 127.5, -128, 127));
        // Half to even, and the ends of four bits.
        DynamicNumerics::Ascend { bits: Bits::new(4).unwrap() }.token(&[7.0, 2.5, -3.5, -7.0], &mut codes);
        assert_eq!(codes, [7, 2, -4, -7]);
    }

    /// Codes and parameters give what the simulation of such a folder gives, to the bit.
    #[test]
    fn divided_codes_are_those_of_the_simulation() {
        use crate::ActQuant;
        let x = Array2::from_shape_fn((5, 37), |(i, j)| ((i * 97 + j * 41) % 83) as f32 * 0.013 - 0.31);
        for rule in [ActRule::Symmetric, ActRule::SymmetricFull, ActRule::Asymmetric] {
            for (bits, clip_ratio) in [(8, 1.0), (4, 0.9)] {
                let bits = Bits::new(bits).unwrap();
                let mut want = x.clone();
                ActQuant::Dynamic { bits, rule, clip_ratio: clip_ratio.into(), shards: 1 }
                    .fake_quantize(want.view_mut());
                let numerics = DynamicNumerics::Divided { bits, rule, clip_ratio: clip_ratio.into() };
                let (mut codes, mut params) = (Array2::zeros(x.dim()), Vec::new());
                for (token, mut row) in x.rows().into_iter().zip(codes.rows_mut()) {
                    params.push(numerics.token(token.as_slice().unwrap(), row.as_slice_mut().unwrap()));
                }
                let got = numerics.collect(codes, params);
                got.check().unwrap();
                assert_eq!(got.dequantize(), want, "{rule:?} {bits:?}");
            }
        }
    }

    #[test]
    fn zeros_tiny_and_non_finite_tokens() {
        for numerics in profiles() {
            let mut codes = [1; 4];
            let zeros = numerics.token(&[0.0; 4], &mut codes);
            assert!(
                zeros.scale.is_finite() && codes.iter().all(|&code| i32::from(code) == zeros.zero),
                "{numerics:?}"
            );
            let tiny = numerics.token(&[1e-45, 0.0, -1e-45, 1e-40], &mut codes);
            assert!(tiny.scale.is_finite(), "{numerics:?}");
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(
                    numerics.token(&[1.0, bad, 0.0, 2.0], &mut codes).scale.is_nan(),
                    "{numerics:?} {bad}"
                );
            }
            assert!(numerics.token(&[], &mut []).scale.is_finite());
        }
    }

    #[test]
    fn errors_are_within_half_a_step() {
        let token: Vec<f32> = (0..97).map(|i| ((i * 53) % 97) as f32 * 0.021 - 0.8).collect();
        for numerics in profiles() {
            let mut codes = vec![0; token.len()];
            let params = numerics.token(&token, &mut codes);
            let unclipped = !matches!(numerics, DynamicNumerics::Divided { clip_ratio, .. } if clip_ratio != ClipRatio::NONE);
            for (&x, &code) in token.iter().zip(&codes) {
                let error = (params.scale * (i32::from(code) - params.zero) as f32 - x).abs();
                assert!(!unclipped || error <= 0.501 * params.scale, "{numerics:?} {x} {error}");
            }
        }
    }

    /// The reciprocal is rounded to the model's type first: bf16 makes 1/0.3 into 3.328125.
    #[test]
    fn static_codes_multiply_or_divide() {
        let x = ndarray::array![[0.15_f32, 1.0, -40.0, 40.0]];
        let params = QParams { scale: 0.3, zero: 123.0 };
        let codes = |numerics: StaticNumerics| numerics.quantize(eight(), params, x.view());
        let ascend = codes(StaticNumerics::Ascend { model: FloatType::Bf16 });
        assert_eq!(ascend.codes, ndarray::array![[-5, -2, -128, 127]]);
        assert_eq!((ascend.zeros, ascend.scales), (Some(ndarray::array![-5]), ndarray::array![0.3]));
        // 0.15 / 0.3 - 5 is a tie to -4.
        assert_eq!(codes(StaticNumerics::Divided).codes, ndarray::array![[-4, -2, -128, 127]]);
        let bad = StaticNumerics::Divided.quantize(eight(), params, ndarray::array![[0.0, f32::NAN]].view());
        assert!(bad.scales[0].is_nan());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let good =
            QuantizedActivations { codes: Array2::zeros((3, 2)), scales: Array1::ones(3), zeros: None };
        good.check().unwrap();
        let short = QuantizedActivations { scales: Array1::ones(2), ..good.clone() };
        assert!(short.check().unwrap_err().to_string().contains("1 or 3"));
        let far = QuantizedActivations { zeros: Some(Array1::from_elem(3, 128)), ..good };
        assert!(far.check().unwrap_err().to_string().contains("128"));
    }
}
