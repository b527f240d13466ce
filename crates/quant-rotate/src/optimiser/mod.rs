//! AdamW and its schedule, on bare arrays.

mod schedule;

use quant_core::codec::{Bytes, Codec};
use quant_core::{CoreError, codec_of_fields};
use quant_kernels::{Element, vectorized};
use serde::{Deserialize, Serialize};

pub use self::schedule::CosineSchedule;
use crate::RotateError;

/// Settings of [`AdamW`]; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    /// What is kept of the mean gradient at each step.
    pub beta1: f64,
    /// What is kept of the mean squared gradient at each step.
    pub beta2: f64,
    /// Added to the root of the mean squared gradient.
    pub epsilon: f64,
    /// Part of a parameter taken off at each step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

/// One array of parameters with its gradient and the learning rate of its group.
#[derive(Debug)]
pub struct Update<'a, T> {
    /// Changed by the step.
    pub parameters: &'a mut [T],
    /// The gradient of every parameter.
    pub gradient: &'a [T],
    /// The learning rate.
    pub learning_rate: f64,
}

/// AdamW (Loshchilov and Hutter 2019): weight decay beside the gradient, `p <- p (1 - lr * decay)`, then
/// `p <- p - lr / (1 - beta1^k) m / (sqrt(v) / sqrt(1 - beta2^k) + epsilon)` with the running means `m` of gradients and `v` of their
/// squares, in PyTorch's order of operations.
///
/// The value is the whole state: what was stored by its [`Codec`] goes on where it was, to the same bits.
///
/// ```
/// use quant_rotate::{AdamW, AdamWSettings, Update};
///
/// let mut optimiser = AdamW::new(AdamWSettings { weight_decay: 0.0, ..AdamWSettings::default() })?;
/// let mut parameters = [1.0_f32, -2.0];
/// // The first step is the learning rate against the sign of the gradient.
/// optimiser.step([Update { parameters: &mut parameters, gradient: &[0.3, -40.0], learning_rate: 0.1 }])?;
/// assert!((parameters[0] - 0.9).abs() < 1e-6 && (parameters[1] + 1.9).abs() < 1e-6);
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW<T> {
    settings: AdamWSettings,
    steps: u64,
    /// By array, in the order of the updates of a step.
    moments: Vec<Moments<T>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Moments<T> {
    mean: Vec<T>,
    square: Vec<T>,
}

codec_of_fields!(AdamWSettings { beta1, beta2, epsilon, weight_decay });
codec_of_fields!(Moments<f32> { mean, square });

impl Codec for AdamW<f32> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.settings.encode(out);
        self.steps.encode(out);
        self.moments.encode(out);
    }

    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let wrong = |expected, found| CoreError::Encoded { expected, found };
        let empty = Self::new(Codec::decode(from)?).map_err(|e| wrong("settings of AdamW", e.to_string()))?;
        let optimiser = Self { steps: Codec::decode(from)?, moments: Codec::decode(from)?, ..empty };
        match optimiser.moments.iter().find(|m| m.mean.len() != m.square.len()) {
            Some(m) => {
                let found = format!("{} and {}", m.square.len(), m.mean.len());
                Err(wrong("as many means of squares as of gradients", found))
            }
            None => Ok(optimiser),
        }
    }
}

impl<T: Element> AdamW<T> {
    /// An optimiser that has taken no step.
    ///
    /// # Errors
    /// [`RotateError::Setting`] for a beta outside `0..1`, or an epsilon or decay below zero or not finite.
    pub fn new(settings: AdamWSettings) -> Result<Self, RotateError> {
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = settings;
        for (name, value, fits, expected) in [
            ("beta1", beta1, (0.0..1.0).contains(&beta1), "a number from 0, below 1"),
            ("beta2", beta2, (0.0..1.0).contains(&beta2), "a number from 0, below 1"),
            ("epsilon", epsilon, epsilon.is_finite() && epsilon >= 0.0, "a number from 0"),
            (
                "weight_decay",
                weight_decay,
                weight_decay.is_finite() && weight_decay >= 0.0,
                "a number from 0",
            ),
        ] {
            if !fits {
                return Err(RotateError::Setting { name, value: value.to_string(), expected });
            }
        }
        Ok(Self { settings, steps: 0, moments: Vec::new() })
    }

    /// Steps that were taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &AdamWSettings {
        &self.settings
    }

    /// Takes one step of all arrays. The first step says which arrays there are; every further one has them again, in the same
    /// order.
    ///
    /// # Errors
    /// [`RotateError::Shape`] if a gradient is not as long as its parameters, or the arrays are not those of the step before.
    /// Nothing is changed then.
    pub fn step<'a>(&mut self, updates: impl IntoIterator<Item = Update<'a, T>>) -> Result<(), RotateError> {
        let mut updates: Vec<Update<'a, T>> = updates.into_iter().collect();
        self.check(&updates)?;
        if self.steps == 0 {
            let zeros = |update: &Update<'a, T>| vec![T::zero(); update.parameters.len()];
            self.moments = updates.iter().map(|u| Moments { mean: zeros(u), square: zeros(u) }).collect();
        }
        self.steps += 1;
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let correction = |beta: f64| 1.0 - power(beta, self.steps);
        let root = T::from_f64(correction(beta2).sqrt());
        let [new1, keep2, new2, epsilon] = [1.0 - beta1, beta2, 1.0 - beta2, epsilon].map(T::from_f64);
        for (update, moments) in updates.iter_mut().zip(&mut self.moments) {
            let decay = T::from_f64(1.0 - update.learning_rate * weight_decay);
            let size = T::from_f64(update.learning_rate / correction(beta1));
            let arrays = update.parameters.iter_mut().zip(update.gradient);
            let moments = moments.mean.iter_mut().zip(&mut moments.square);
            vectorized(
                #[inline(always)]
                || {
                    for ((p, &g), (mean, square)) in arrays.zip(moments) {
                        *mean += new1 * (g - *mean);
                        *square = *square * keep2 + new2 * g * g;
                        *p = *p * decay - size * (*mean / (square.sqrt() / root + epsilon));
                    }
                },
            );
        }
        Ok(())
    }

    fn check(&self, updates: &[Update<'_, T>]) -> Result<(), RotateError> {
        let wrong = |what, expected: usize, found: usize| {
            Err(RotateError::Shape { what, expected: expected.to_string(), found: found.to_string() })
        };
        if self.steps > 0 && updates.len() != self.moments.len() {
            return wrong("arrays of a step", self.moments.len(), updates.len());
        }
        for update in updates {
            if update.gradient.len() != update.parameters.len() {
                return wrong("values of a gradient", update.parameters.len(), update.gradient.len());
            }
        }
        for (update, moments) in updates.iter().zip(&self.moments) {
            let (expected, found) = (moments.mean.len(), update.parameters.len());
            if found != expected || moments.square.len() != expected {
                return wrong("values of an array in a further step", expected, found);
            }
        }
        Ok(())
    }
}

/// `base^exponent` by squaring: the same bits everywhere.
fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut square, mut result) = (base, 1.0);
    while exponent > 0 {
        if exponent % 2 == 1 {
            result *= square;
        }
        square *= square;
        exponent /= 2;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::codec;
    use quant_testkit::Numbers;

    /// The formulas, one number at a time in f64.
    fn reference(gradients: &[f64], rates: &[f64], mut p: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (k, (g, lr)) in gradients.iter().zip(rates).enumerate() {
            let k = i32::try_from(k + 1).unwrap();
            p *= 1.0 - lr * 0.01;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            p -= lr * (m / (1.0 - 0.9_f64.powi(k))) / ((v / (1.0 - 0.999_f64.powi(k))).sqrt() + 1e-8);
        }
        p
    }

    fn trained<T: Element>(steps: usize) -> (Vec<f64>, Vec<f64>) {
        let mut optimiser = AdamW::new(AdamWSettings::default()).unwrap();
        let mut numbers = Numbers::new(1);
        let mut draw = |n: usize| numbers.vector(n, 0.0, 1.0).mapv(f64::from).to_vec();
        let (start, other) = (draw(37), draw(3));
        let gradients: Vec<(Vec<f64>, Vec<f64>)> = (0..steps).map(|_| (draw(37), draw(3))).collect();
        let rates: Vec<f64> = (0..steps).map(|k| 0.01 / (1.0 + k as f64)).collect();
        let convert = |x: &[f64]| x.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>();
        let (mut a, mut b) = (convert(&start), convert(&other));
        for ((ga, gb), &rate) in gradients.iter().zip(&rates) {
            let (ga, gb) = (convert(ga), convert(gb));
            let updates = [
                Update { parameters: &mut a[..], gradient: &ga[..], learning_rate: rate },
                Update { parameters: &mut b[..], gradient: &gb[..], learning_rate: 10.0 * rate },
            ];
            optimiser.step(updates).unwrap();
        }
        assert_eq!(optimiser.steps(), steps as u64);
        let of = |i: usize| gradients.iter().map(|(ga, _)| ga[i]).collect::<Vec<f64>>();
        let mut want: Vec<f64> = (0..37).map(|i| reference(&of(i), &rates, start[i])).collect();
        let tenfold: Vec<f64> = rates.iter().map(|r| 10.0 * r).collect();
        let of = |i: usize| gradients.iter().map(|(_, gb)| gb[i]).collect::<Vec<f64>>();
        want.extend((0..3).map(|i| reference(&of(i), &tenfold, other[i])));
        (a.iter().chain(&b).map(|v| v.to_f64_exact()).collect(), want)
    }

    #[test]
    fn steps_are_those_of_the_formulas() {
        let far = |(found, want): (Vec<f64>, Vec<f64>)| {
            found.iter().zip(&want).fold(0.0_f64, |largest, (a, b)| largest.max((a - b).abs()))
        };
        assert!(far(trained::<f64>(30)) < 1e-14);
        assert!(far(trained::<f32>(30)) < 2e-6);
    }

    #[test]
    fn a_stored_optimiser_goes_on_to_the_same_bits() {
        let mut numbers = Numbers::new(5);
        let mut parameters = [0.5_f32, -0.25, 1.0];
        let mut optimiser = AdamW::new(AdamWSettings::default()).unwrap();
        let step = |optimiser: &mut AdamW<f32>, parameters: &mut [f32], gradient: &[f32]| {
            optimiser.step([Update { parameters, gradient, learning_rate: 0.01 }]).unwrap();
        };
        let gradients: Vec<Vec<f32>> = (0..6).map(|_| numbers.vector(3, 0.0, 1.0).to_vec()).collect();
        gradients[..3].iter().for_each(|g| step(&mut optimiser, &mut parameters, g));
        let bytes = codec::encoded(&optimiser);
        let mut stored: AdamW<f32> = codec::decoded(&bytes).unwrap();
        let mut copy = parameters;
        for g in &gradients[3..] {
            step(&mut optimiser, &mut parameters, g);
            step(&mut stored, &mut copy, g);
        }
        assert_eq!((stored, copy), (optimiser, parameters));
        // Cut off, or with a beta of another kind.
        assert!(codec::decoded::<AdamW<f32>>(&bytes[..bytes.len() - 1]).is_err());
        let mut wrong = bytes;
        wrong[..8].copy_from_slice(&2.0_f64.to_le_bytes());
        let error = codec::decoded::<AdamW<f32>>(&wrong).unwrap_err().to_string();
        assert!(error.contains("beta1"), "{error}");
    }

    #[test]
    fn arrays_and_settings_are_checked() {
        let mut optimiser = AdamW::new(AdamWSettings::default()).unwrap();
        let mut one = |parameters: &mut [f32], gradient: &[f32]| {
            optimiser.step([Update { parameters, gradient, learning_rate: 0.1 }]).map_err(|e| e.to_string())
        };
        let error = one(&mut [1.0], &[1.0, 2.0]).unwrap_err();
        assert_eq!(error, "values of a gradient: expected 1, found 2");
        one(&mut [1.0], &[1.0]).unwrap();
        let mut kept = [1.0, 2.0];
        let error = one(&mut kept, &[1.0, 2.0]).unwrap_err();
        assert_eq!(
            (error.as_str(), kept),
            ("values of an array in a further step: expected 1, found 2", [1.0, 2.0])
        );
        assert_eq!(optimiser.step([]).unwrap_err().to_string(), "arrays of a step: expected 1, found 0");
        let error = AdamW::<f32>::new(AdamWSettings { beta2: 1.0, ..AdamWSettings::default() }).unwrap_err();
        assert_eq!(error.to_string(), "setting `beta2` is 1: expected a number from 0, below 1");
        assert!(AdamW::<f32>::new(AdamWSettings { epsilon: -1.0, ..AdamWSettings::default() }).is_err());
        assert!(
            AdamW::<f32>::new(AdamWSettings { weight_decay: f64::NAN, ..AdamWSettings::default() }).is_err()
        );
    }
}
