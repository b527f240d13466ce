//! Learning rates over the steps of a training.

use quant_core::CoreError;
use quant_core::codec::{Bytes, Codec};
use quant_core::elementary::cos;

use crate::RotateError;

/// Steps of a warm-up, and the factor with which it begins.
const WARMUP_STEPS: u64 = 16;
const WARMUP_START: f64 = 0.01;

/// Learning rates that fall along a cosine, one for every group of parameters: PyTorch's `CosineAnnealingLR`, with a `LinearLR` from a
/// hundredth over 16 steps before it in a chain if asked.
///
/// Rates follow from those of the step before, `lr <- (1 + cos(pi k / T)) / (1 + cos(pi (k - 1) / T)) (lr - floor) + floor`, so with
/// a warm-up they are not the product of both. The value is the whole state: what was stored by its [`Codec`] goes
/// on where it was.
///
/// ```
/// use quant_rotate::CosineSchedule;
///
/// let mut schedule = CosineSchedule::new(&[1.0, 10.0], 1e-3, 100, false)?;
/// assert_eq!(schedule.rates(), [1.0, 10.0]);
/// for _ in 0..50 {
///     schedule.advance();
/// }
/// assert!((schedule.rates()[0] - 0.5005).abs() < 1e-12);
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CosineSchedule {
    base: Vec<f64>,
    rates: Vec<f64>,
    floor: f64,
    steps: u64,
    done: u64,
    warmup: bool,
}

impl CosineSchedule {
    /// A schedule of `steps` steps that begins with these rates and ends at `floor`, the same for all groups.
    ///
    /// # Errors
    /// [`RotateError::Setting`] for rates or a floor below zero or not finite, or no steps.
    pub fn new(rates: &[f64], floor: f64, steps: u64, warmup: bool) -> Result<Self, RotateError> {
        let wrong = |name, value: String, expected| Err(RotateError::Setting { name, value, expected });
        if let Some(rate) = rates.iter().find(|rate| !(rate.is_finite() && **rate >= 0.0)) {
            return wrong("learning_rate", rate.to_string(), "a number from 0");
        }
        if !(floor.is_finite() && floor >= 0.0) {
            return wrong("floor", floor.to_string(), "a number from 0");
        }
        if steps == 0 {
            return wrong("steps", "0".into(), "at least 1");
        }
        let start = if warmup { WARMUP_START } else { 1.0 };
        let first = rates.iter().map(|rate| rate * start).collect();
        Ok(Self { base: rates.to_vec(), rates: first, floor, steps, done: 0, warmup })
    }

    /// The rates of the next step.
    #[must_use]
    pub fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// Steps that were taken.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Goes on to the rates of the step after.
    pub fn advance(&mut self) {
        self.done += 1;
        let (k, total) = (self.done, self.steps);
        let angle = |k: u64| std::f64::consts::PI * k as f64 / total as f64;
        // Behind the last step rates rise again, from a place where the ratio of two cosines has no value.
        let turn = k > total && (k - 1 - total).is_multiple_of(2 * total);
        for (rate, &base) in self.rates.iter_mut().zip(&self.base) {
            if self.warmup && k <= WARMUP_STEPS {
                let slope = 1.0 - WARMUP_START;
                *rate *= 1.0 + slope / (WARMUP_STEPS as f64 * WARMUP_START + (k - 1) as f64 * slope);
            }
            *rate = if turn {
                *rate + (base - self.floor) * (1.0 - cos(angle(1))) / 2.0
            } else {
                (1.0 + cos(angle(k))) / (1.0 + cos(angle(k - 1))) * (*rate - self.floor) + self.floor
            };
        }
    }
}

impl Codec for CosineSchedule {
    fn encode(&self, out: &mut Vec<u8>) {
        self.base.encode(out);
        self.rates.encode(out);
        self.floor.encode(out);
        self.steps.encode(out);
        self.done.encode(out);
        self.warmup.encode(out);
    }

    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let (base, rates): (Vec<f64>, Vec<f64>) = Codec::decode(from)?;
        let (floor, steps) = Codec::decode(from)?;
        let (done, warmup) = Codec::decode(from)?;
        let wrong = |found| CoreError::Encoded { expected: "a schedule of learning rates", found };
        let begun = Self::new(&base, floor, steps, warmup).map_err(|e| wrong(e.to_string()))?;
        if rates.len() != base.len() || !rates.iter().all(|rate| rate.is_finite()) {
            return Err(wrong(format!("{rates:?} of {} groups", base.len())));
        }
        Ok(Self { rates, done, ..begun })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::codec;
    use quant_testkit::Golden;

    #[test]
    fn a_cosine_without_warm_up() {
        let (steps, floor) = (40, 0.005);
        let mut schedule = CosineSchedule::new(&[0.5], floor, steps, false).unwrap();
        for k in 0..=2 * steps {
            let want =
                floor + (0.5 - floor) * (1.0 + (std::f64::consts::PI * k as f64 / steps as f64).cos()) / 2.0;
            assert!((schedule.rates()[0] - want).abs() < 1e-12, "{k}: {:?} for {want}", schedule.rates());
            assert_eq!(schedule.done(), k);
            schedule.advance();
        }
    }

    #[test]
    fn a_stored_schedule_goes_on() {
        let mut schedule = CosineSchedule::new(&[0.5, 5.0], 1e-3, 30, true).unwrap();
        (0..7).for_each(|_| schedule.advance());
        let bytes = codec::encoded(&schedule);
        let mut stored: CosineSchedule = codec::decoded(&bytes).unwrap();
        (0..9).for_each(|_| (schedule.advance(), stored.advance()).0);
        assert_eq!(stored, schedule);
        assert!(codec::decoded::<CosineSchedule>(&bytes[1..]).is_err());
        // A rate that no step has.
        let mut wrong = bytes;
        wrong[8..16].copy_from_slice(&f64::NAN.to_le_bytes());
        let error = codec::decoded::<CosineSchedule>(&wrong).unwrap_err().to_string();
        assert!(error.contains("learning_rate"), "{error}");
    }

    #[test]
    fn settings_are_checked() {
        let error = |rates: &[f64], floor, steps| {
            CosineSchedule::new(rates, floor, steps, false).unwrap_err().to_string()
        };
        assert_eq!(error(&[1.0, -1.0], 0.0, 1), "setting `learning_rate` is -1: expected a number from 0");
        assert_eq!(error(&[1.0], f64::NAN, 1), "setting `floor` is NaN: expected a number from 0");
        assert_eq!(error(&[1.0], 0.0, 0), "setting `steps` is 0: expected at least 1");
    }

    #[test]
    fn the_golden_file() {
        let Some(golden) = Golden::shared("flatquant.safetensors") else { return };
        let mut cases = 0;
        for (name, case) in golden.cases().iter().filter(|(name, _)| name.starts_with("trace.")) {
            let rate = case["flat_lr"].as_f64().unwrap();
            let warmup = case.get("warmup").is_some_and(|w| w == true);
            let trace = golden.tensor(&format!("{name}.trace_lr"));
            let groups = trace.shape[1];
            let rates = if groups == 4 {
                vec![rate, rate, 10.0 * rate, 10.0 * rate]
            } else {
                vec![rate, 10.0 * rate]
            };
            let mut schedule = CosineSchedule::new(&rates, rate * 1e-3, 20, warmup).unwrap();
            for (step, want) in trace.f64().chunks(groups).enumerate() {
                for (found, want) in schedule.rates().iter().zip(want) {
                    assert!((found - want).abs() <= 1e-12 * want, "{name}, step {step}: {found} for {want}");
                }
                schedule.advance();
            }
            cases += 1;
        }
        assert_eq!(cases, 12);
    }
}
