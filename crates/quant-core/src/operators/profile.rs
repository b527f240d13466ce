//! Whose arithmetic quantises the inputs of linears: one value that simulation and execution of a folder share.

use ndarray::ArrayViewMut2;

use super::{DynamicNumerics, StaticNumerics};
use crate::activation::for_rows;
use crate::{ActQuant, ActRule, Bits, ClipRatio, FloatType, QParams, Real};

/// Whose arithmetic makes codes of activations.
///
/// Clients of one folder agree in what a scale is and differ in the last bit of it, in whether they divide by it or multiply by its
/// reciprocal, and in what they round first. A format knows its client; a model that is being calibrated has none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// What methods and calibration compute with: a number is divided by its scale, in the arithmetic of its own type
    /// ([`ActQuant::fake_quantize`]).
    #[default]
    Calibration,
    /// vLLM-Ascend: [`DynamicNumerics::Ascend`] and [`StaticNumerics::Ascend`].
    Ascend {
        /// The type of the model's parameters there.
        model: FloatType,
    },
    /// The compressed-tensors library: [`DynamicNumerics::CompressedTensors`], [`StaticNumerics::Divided`].
    CompressedTensors,
}

impl Profile {
    /// In words, for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Calibration => "calibration",
            Self::Ascend { .. } => "vllm-ascend",
            Self::CompressedTensors => "compressed-tensors",
        }
    }

    fn dynamic(self, bits: Bits, rule: ActRule, clip_ratio: ClipRatio) -> DynamicNumerics {
        match (self, rule) {
            // An NPU has one way for codes of both signs, whatever a folder's own client does.
            (Self::Ascend { .. }, ActRule::Symmetric | ActRule::SymmetricFull)
                if clip_ratio == ClipRatio::NONE =>
            {
                DynamicNumerics::Ascend { bits }
            }
            (Self::CompressedTensors, ActRule::SymmetricFull) if clip_ratio == ClipRatio::NONE => {
                DynamicNumerics::CompressedTensors { bits }
            }
            _ => DynamicNumerics::Divided { bits, rule, clip_ratio },
        }
    }

    fn fixed(self) -> StaticNumerics {
        match self {
            Self::Ascend { model } => StaticNumerics::Ascend { model },
            Self::Calibration | Self::CompressedTensors => StaticNumerics::Divided,
        }
    }
}

/// The arithmetic that gives the input of a linear its codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InputNumerics {
    /// Parameters of each token.
    Dynamic(DynamicNumerics),
    /// One scale and zero for all tokens.
    Static {
        /// The arithmetic.
        numerics: StaticNumerics,
        /// Bit width of the codes.
        bits: Bits,
        /// The fixed parameters, with an unsigned zero level.
        params: QParams,
    },
}

/// The quantiser of a linear's input, in the arithmetic of a client.
///
/// ```
/// use quant_core::ndarray::array;
/// use quant_core::operators::{InputQuant, Profile};
/// use quant_core::{ActQuant, ActRule, Bits, ClipRatio, FloatType};
///
/// let (bits, rule) = (Bits::new(8)?, ActRule::Symmetric);
/// let quant = ActQuant::Dynamic { bits, rule, clip_ratio: ClipRatio::NONE, shards: 1 };
/// let profile = Profile::Ascend { model: FloatType::Bf16 };
/// let mut x = array![[0.5_f32, -1.0, 0.25]];
/// InputQuant { quant, profile }.fake_quantize(x.view_mut());
/// // Codes 64, -127 and 32 under the scale 1/127.
/// assert_eq!(x[(0, 0)], 64.0 * (1.0_f32 / 127.0));
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputQuant {
    /// What is done.
    pub quant: ActQuant,
    /// In whose arithmetic.
    pub profile: Profile,
}

impl From<ActQuant> for InputQuant {
    fn from(quant: ActQuant) -> Self {
        Self { quant, profile: Profile::Calibration }
    }
}

impl InputQuant {
    /// The arithmetic of its codes. None where parts of a token have parameters of their own: no integer product takes these.
    #[must_use]
    pub fn numerics(&self) -> Option<InputNumerics> {
        match self.quant {
            ActQuant::Dynamic { bits, rule, clip_ratio, shards: 0 | 1 } => {
                Some(InputNumerics::Dynamic(self.profile.dynamic(bits, rule, clip_ratio)))
            }
            ActQuant::Dynamic { .. } => None,
            ActQuant::Static { bits, params } => {
                Some(InputNumerics::Static { numerics: self.profile.fixed(), bits, params })
            }
        }
    }

    /// Quantises and dequantises rows of `x` `[tokens, features]` in place: to the numbers that the codes of an execution in this
    /// arithmetic stand for. What is not finite becomes NaN as in [`ActQuant::fake_quantize`], which this is under
    /// [`Profile::Calibration`] and where there are no [numerics](Self::numerics) of codes.
    #[inline(always)]
    pub fn fake_quantize<T: Real>(&self, x: ArrayViewMut2<'_, T>) {
        let Some(numerics) = self.numerics().filter(|_| self.profile != Profile::Calibration) else {
            return self.quant.fake_quantize(x);
        };
        let mut floats: Vec<f32> = Vec::with_capacity(x.ncols());
        for_rows(x, |row| match numerics {
            InputNumerics::Dynamic(numerics) => {
                floats.clear();
                floats.extend(row.iter().map(|x| x.to_f32_lossy()));
                let params = numerics.params(&floats);
                for (x, &float) in row.iter_mut().zip(&floats) {
                    *x = T::from_f32(params.scale * (f32::from(params.code(float)) - params.zero as f32));
                }
            }
            InputNumerics::Static { numerics, bits, params } => {
                let code = numerics.coder(bits, params);
                for x in row {
                    let float = x.to_f32_lossy();
                    // An infinity would be clipped to a code; it becomes NaN (∞ · 0), as a NaN does.
                    *x = T::from_f32(code.scale * (f32::from(code.code(float)) - code.zero) + float * 0.0);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::{DynamicQuant, Reference};
    use crate::{FloatType, Par};
    use ndarray::Array2;

    fn quantisers() -> Vec<ActQuant> {
        let eight = Bits::new(8).unwrap();
        let dynamic = |rule, clip_ratio: f32| ActQuant::Dynamic {
            bits: eight,
            rule,
            clip_ratio: clip_ratio.into(),
            shards: 1,
        };
        vec![
            dynamic(ActRule::Symmetric, 1.0),
            dynamic(ActRule::SymmetricFull, 1.0),
            dynamic(ActRule::Asymmetric, 0.9),
            ActQuant::Static { bits: eight, params: QParams { scale: 0.017, zero: 117.0 } },
        ]
    }

    /// What a simulation multiplies by is what the codes of an execution stand for.
    #[test]
    fn a_simulation_has_the_numbers_of_the_codes() {
        let x = Array2::from_shape_fn((7, 45), |(i, j)| ((i * 131 + j * 57) % 89) as f32 * 0.033 - 1.4);
        for profile in
            [Profile::Ascend { model: FloatType::Bf16 }, Profile::CompressedTensors, Profile::Calibration]
        {
            for quant in quantisers() {
                let input = InputQuant { quant, profile };
                let codes = match input.numerics().unwrap() {
                    InputNumerics::Dynamic(numerics) => {
                        Reference.quantize(&numerics, x.view(), Par::Seq).unwrap()
                    }
                    InputNumerics::Static { numerics, bits, params } => {
                        numerics.quantize(bits, params, x.view())
                    }
                };
                let mut simulated = x.clone();
                input.fake_quantize(simulated.view_mut());
                assert_eq!(simulated, codes.dequantize(), "{profile:?} {quant:?}");
                let mut wide = x.mapv(f64::from);
                input.fake_quantize(wide.view_mut());
                for (wide, narrow) in wide.iter().zip(&simulated) {
                    assert!((wide - f64::from(*narrow)).abs() < 1e-2, "{profile:?} {quant:?}");
                }
            }
        }
    }

    /// compressed-tensors computes what calibration does; Ascend rounds a scale and a factor apart.
    #[test]
    fn profiles_differ_where_their_clients_do() {
        let values = |quant, profile| {
            let mut x =
                Array2::from_shape_fn((50, 7), |(i, j)| (i as f32 + 0.37) * ((j * 31 + i) % 17) as f32);
            InputQuant { quant, profile }.fake_quantize(x.view_mut());
            x
        };
        let [symmetric, full, ..] = quantisers()[..] else { unreachable!() };
        assert_eq!(values(full, Profile::CompressedTensors), values(full, Profile::Calibration));
        let ascend = Profile::Ascend { model: FloatType::Bf16 };
        assert_ne!(values(symmetric, ascend), values(symmetric, Profile::Calibration));
        // An NPU has one way for both rules; a client without the rule of a quantiser computes it as calibration does.
        assert_eq!(values(full, ascend), values(symmetric, ascend));
        assert_eq!(values(symmetric, Profile::CompressedTensors), values(symmetric, Profile::Calibration));
    }

    #[test]
    fn tokens_in_parts_have_no_codes() {
        let sharded = ActQuant::Dynamic {
            bits: Bits::new(8).unwrap(),
            rule: ActRule::Symmetric,
            clip_ratio: ClipRatio::NONE,
            shards: 2,
        };
        assert_eq!(InputQuant { quant: sharded, profile: Profile::CompressedTensors }.numerics(), None);
        assert!(quantisers().into_iter().all(|quant| InputQuant::from(quant).numerics().is_some()));
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for profile in [Profile::Ascend { model: FloatType::F16 }, Profile::CompressedTensors] {
            for quant in quantisers() {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut x = ndarray::array![[1.0, bad, 0.5], [0.1, 0.2, 0.3]];
                    InputQuant { quant, profile }.fake_quantize(x.view_mut());
                    assert!(x[(0, 1)].is_nan(), "{profile:?} {quant:?} {bad}");
                    assert!(x.row(1).iter().all(|x| x.is_finite()));
                }
            }
        }
    }
}
