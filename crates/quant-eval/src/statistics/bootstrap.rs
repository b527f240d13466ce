//! Confidence intervals.

use super::outcomes::Outcomes;
use crate::EvalError;
use quant_kernels::{Par, tasks};
use serde::Serialize;

/// Resamples of a default [`Bootstrap`].
pub const RESAMPLES: usize = 10_000;

/// The percentile bootstrap (Efron 1979): items are drawn with replacement, each with all its seeds.
///
/// The draws of both models are the same items, so that what is resampled of a difference is the difference of an item. All draws
/// are fixed by `seed`: the same interval on any number of threads.
///
/// Where every item of every benchmark says the same, no resample says anything else. The interval then reaches as far as such items
/// allow: a share `x` of exceptions goes unseen in `n` items with probability `(1 - x)^n <= exp(-n x)`, so that at 95 % `3.7 / n` is not
/// excluded at either end (the "rule of three", Hanley and Lippman-Hand 1983, for two ends).
///
/// ```
/// use quant_eval::statistics::{Bootstrap, Outcomes};
/// use quant_kernels::Par;
///
/// let outcomes = Outcomes::new(1, (0..100).map(|item| item % 4 != 0).collect())?;
/// let interval = Bootstrap::default().accuracy(&outcomes, Par::Seq)?;
/// assert_eq!(interval.estimate, 0.75);
/// // The normal approximation: 0.75 ± 1.96 · sqrt(0.75 · 0.25 / 100).
/// assert!((interval.low - 0.665).abs() < 0.02 && (interval.high - 0.835).abs() < 0.02);
///
/// // 100 items without a difference do not exclude one of 3 points.
/// let loss = Bootstrap::default().loss(&outcomes, &outcomes, Par::Seq)?.times(100.0);
/// assert!(loss.estimate == 0.0 && loss.low < -3.0 && loss.high > 3.0);
/// # Ok::<(), quant_eval::EvalError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// Key of all draws.
    pub seed: u64,
    /// How often the items are resampled.
    pub resamples: usize,
    /// The share of resamples inside the interval, in (0, 1).
    pub level: f64,
}

impl Default for Bootstrap {
    /// 10,000 resamples, 95 %.
    fn default() -> Self {
        Self { seed: 0, resamples: RESAMPLES, level: 0.95 }
    }
}

/// An estimate and how far it may be off, in the unit of what was estimated: accuracies and their differences from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Of the items as they are.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The share of resamples inside.
    pub level: f64,
    /// How many resamples there were.
    pub resamples: usize,
}

impl Interval {
    /// The same in other units.
    ///
    /// ```
    /// # use quant_eval::statistics::Interval;
    /// let loss = Interval { estimate: 0.02, low: 0.01, high: 0.04, level: 0.95, resamples: 10_000 };
    /// assert_eq!(loss.times(100.0).high, 4.0);
    /// ```
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        let [a, b] = [self.low, self.high].map(|end| end * factor);
        Self { estimate: self.estimate * factor, low: a.min(b), high: a.max(b), ..self }
    }
}

/// One benchmark of several whose weighted sum is estimated; each is resampled by itself.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// What its accuracy is multiplied by: `1 / n` of each of `n` makes the mean.
    pub weight: f64,
    /// The float model, or the only one.
    pub float: &'a Outcomes,
    /// The quantised model on the same items and seeds; none to estimate an accuracy alone.
    pub quantised: Option<&'a Outcomes>,
}

impl Bootstrap {
    /// The accuracy of one model on one benchmark.
    ///
    /// # Errors
    /// As [`Self::weighted`].
    pub fn accuracy(&self, outcomes: &Outcomes, par: Par) -> Result<Interval, EvalError> {
        self.weighted(&[Part { weight: 1.0, float: outcomes, quantised: None }], par)
    }

    /// The paired difference of accuracies on one benchmark, float less quantised: above zero where something was lost.
    ///
    /// # Errors
    /// As [`Self::weighted`].
    pub fn loss(&self, float: &Outcomes, quantised: &Outcomes, par: Par) -> Result<Interval, EvalError> {
        self.weighted(&[Part { weight: 1.0, float, quantised: Some(quantised) }], par)
    }

    /// `Σ weight · accuracy`, or that of the differences float less quantised.
    ///
    /// ```
    /// use quant_eval::statistics::{Bootstrap, Outcomes, Part};
    /// use quant_kernels::Par;
    ///
    /// let aime_90 = Outcomes::new(1, (0..90).map(|item| item % 2 == 0).collect())?;
    /// let aime_2025 = Outcomes::new(1, (0..30).map(|item| item % 3 == 0).collect())?;
    /// let parts = [(0.75, &aime_90), (0.25, &aime_2025)].map(|(weight, float)| Part { weight, float, quantised: None });
    /// let interval = Bootstrap::default().weighted(&parts, Par::Seq)?;
    /// assert!((interval.estimate - (45.0 + 10.0) / 120.0).abs() < 1e-12);
    /// assert!(interval.low < interval.estimate && interval.estimate < interval.high);
    /// # Ok::<(), quant_eval::EvalError>(())
    /// ```
    ///
    /// # Errors
    /// If there is no part, no resample, a level that is none, a weight that is not finite, or if the models of a part differ in
    /// items or seeds.
    pub fn weighted(&self, parts: &[Part<'_>], par: Par) -> Result<Interval, EvalError> {
        let refuse = |what, value, expected| Err(EvalError::Bootstrap { what, value, expected });
        if parts.is_empty() {
            return refuse("the number of benchmarks", 0.0, "at least 1");
        }
        if self.resamples == 0 {
            return refuse("the number of resamples", 0.0, "at least 1");
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            return refuse(
                "the level of an interval",
                self.level,
                "a share between 0 and 1, for example 0.95",
            );
        }
        if let Some(part) = parts.iter().find(|part| !part.weight.is_finite()) {
            return refuse("the weight of a benchmark", part.weight, "a finite number");
        }
        let items = parts.iter().map(right_answers).collect::<Result<Vec<_>, _>>()?;
        // Whole numbers of answers are summed, so that the estimate is the same number however items are ordered.
        let scale = |part: usize| parts[part].weight / (items[part].len() * parts[part].float.seeds()) as f64;
        let of = |sums: &dyn Fn(usize) -> i64| -> f64 {
            (0..parts.len()).map(|part| scale(part) * sums(part) as f64).sum()
        };
        let estimate = of(&|part| items[part].iter().sum());
        let mut resampled = tasks::map(0..self.resamples, par, |resample| {
            of(&|part| {
                let key = [self.seed, part as u64, resample as u64].into_iter().fold(STEP, mix);
                let own = &items[part];
                (0..own.len() as u64).map(|draw| own[below(mix(key, draw), own.len())]).sum()
            })
        });
        resampled.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        // As many resamples lie outside at both ends.
        let outside = ((self.resamples as f64 * tail).floor() as usize).min((self.resamples - 1) / 2);
        let mut interval = Interval {
            estimate,
            low: resampled[outside],
            high: resampled[self.resamples - 1 - outside],
            level: self.level,
            resamples: self.resamples,
        };
        if items.iter().all(|own| own.iter().all(|item| *item == own[0])) {
            let [falls, rises] = unseen(parts, &items, tail);
            interval.low = estimate - falls;
            interval.high = estimate + rises;
        }
        Ok(interval)
    }
}

/// How far the truth may lie below and above the estimate where all items of each part agree: the largest `Σ |weight| x` whose
/// exceptions, a share `x` of each part, stay unseen in all parts with probability `tail`, `Σ n x <= -ln tail`; the part that weighs
/// most for its items has it all. An accuracy that is whole cannot rise, and one of none cannot fall.
fn unseen(parts: &[Part<'_>], items: &[Vec<i64>], tail: f64) -> [f64; 2] {
    let mut ends = [0.0_f64; 2];
    for (part, own) in parts.iter().zip(items) {
        let reach = part.weight.abs() * (-tail.ln() / own.len() as f64).min(1.0);
        let (one_way, most) = (part.quantised.is_none(), part.float.seeds() as i64);
        let [mut falls, mut rises] = [!one_way || own[0] > 0, !one_way || own[0] < most];
        if part.weight < 0.0 {
            std::mem::swap(&mut falls, &mut rises);
        }
        for (end, moves) in ends.iter_mut().zip([falls, rises]) {
            if moves {
                *end = end.max(reach);
            }
        }
    }
    ends
}

/// Right answers of every item, or how many more the float model has.
fn right_answers(part: &Part<'_>) -> Result<Vec<i64>, EvalError> {
    let counts = |outcomes: &Outcomes| outcomes.counts().map(|count| count as i64).collect::<Vec<_>>();
    let mut own = counts(part.float);
    if let Some(quantised) = part.quantised {
        part.float.check_paired(quantised)?;
        own.iter_mut().zip(counts(quantised)).for_each(|(float, quantised)| *float -= quantised);
    }
    Ok(own)
}

/// The increment of SplitMix64.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// One key more (the finaliser of SplitMix64, Steele et al. 2014).
fn mix(state: u64, key: u64) -> u64 {
    let mut z = (state ^ key).wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// An index below `count`, each as likely within `count / 2^64`.
fn below(random: u64, count: usize) -> usize {
    ((u128::from(random) * count as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One in `every` wrong, of 3 seeds that agree or do not.
    fn outcomes(items: usize, wrong: impl Fn(usize, usize) -> bool) -> Outcomes {
        let right = (0..items * 3).map(|i| !wrong(i / 3, i % 3)).collect();
        Outcomes::new(3, right).unwrap()
    }

    #[test]
    fn threads_change_no_bit() {
        let (float, quantised) =
            (outcomes(97, |i, s| (i + s) % 3 == 0), outcomes(97, |i, s| (i * 7 + s) % 5 < 2));
        let [one, four] =
            [Par::Seq, Par::new(4)].map(|par| Bootstrap::default().loss(&float, &quantised, par).unwrap());
        assert_eq!(one, four);
        assert!(one.low < one.estimate && one.estimate < one.high, "{one:?}");
        let other = Bootstrap { seed: 1, ..Bootstrap::default() }.loss(&float, &quantised, Par::Seq).unwrap();
        assert_eq!(one.estimate, other.estimate);
        assert!(
            (one.low - other.low).abs() < 0.02 && (one.high - other.high).abs() < 0.02,
            "{one:?} {other:?}"
        );
        let few =
            |seed| Bootstrap { seed, resamples: 7, level: 0.5 }.loss(&float, &quantised, Par::Seq).unwrap();
        assert_ne!(few(0), few(1));
    }

    #[test]
    fn seeds_of_an_item_are_no_independent_answers() {
        // Three seeds that always agree know no more than one; three that have nothing to do with each other do.
        let random = |i: usize, s: usize| below(mix(5, (i * 3 + s) as u64), 2) == 0;
        let width = |outcomes: &Outcomes| {
            let interval = Bootstrap::default().accuracy(outcomes, Par::Seq).unwrap();
            interval.high - interval.low
        };
        let alike = width(&outcomes(200, |i, _| random(i, 0)));
        let single = width(&Outcomes::new(1, (0..200).map(|i| !random(i, 0)).collect()).unwrap());
        let apart = width(&outcomes(200, random));
        assert!((alike - single).abs() < 1e-12, "{alike} {single}");
        assert!((alike / apart - 3.0_f64.sqrt()).abs() < 0.2, "{alike} {apart}");
    }

    /// 1,000 experiments whose truth is known: the interval covers it about as often as it says.
    #[test]
    fn intervals_cover_what_they_estimate() {
        let bootstrap = Bootstrap { resamples: 400, ..Bootstrap::default() };
        let covered = (0..1000_u64)
            .filter(|&experiment| {
                let right = |i: u64| mix(mix(77, experiment), i) >> 54 < 717;
                let drawn = Outcomes::new(1, (0..120).map(right).collect()).unwrap();
                let interval = bootstrap.accuracy(&drawn, Par::Seq).unwrap();
                interval.low <= 717.0 / 1024.0 && 717.0 / 1024.0 <= interval.high
            })
            .count();
        // 950 are expected of an exact interval; the percentile one is a little narrow, and 1,000 have a deviation of 7.
        assert!((915..=970).contains(&covered), "{covered}");
    }

    #[test]
    fn pairs_are_kept() {
        // The models differ in 2 of 100 items: unpaired, the interval would be as wide as 0.2.
        let float = outcomes(100, |i, _| i % 2 == 0);
        let quantised = outcomes(100, |i, _| i % 2 == 0 || i < 4);
        let loss = Bootstrap::default().loss(&float, &quantised, Par::Seq).unwrap().times(100.0);
        assert!(loss.estimate == 2.0 && loss.low >= 0.0 && loss.high <= 6.0, "{loss:?}");
        let gain = loss.times(-1.0);
        assert_eq!((gain.low, gain.high), (-loss.high, -loss.low));
    }

    #[test]
    fn what_cannot_be_resampled_is_refused() {
        let own = outcomes(4, |_, _| false);
        let part = Part { weight: 1.0, float: &own, quantised: None };
        let fails = |bootstrap: Bootstrap, parts: &[Part<'_>]| {
            bootstrap.weighted(parts, Par::Seq).unwrap_err().to_string()
        };
        let usual = Bootstrap::default();
        assert!(fails(usual, &[]).contains("number of benchmarks"));
        assert!(fails(Bootstrap { resamples: 0, ..usual }, &[part]).contains("number of resamples"));
        for level in [0.0, 1.0, f64::NAN] {
            assert!(fails(Bootstrap { level, ..usual }, &[part]).contains("level of an interval"));
        }
        assert!(fails(usual, &[Part { weight: f64::NAN, ..part }]).contains("weight"));
        let fewer = outcomes(3, |_, _| false);
        assert!(fails(usual, &[Part { quantised: Some(&fewer), ..part }]).contains("same items"));
        // A single resample is its own interval.
        let mixed = outcomes(4, |i, _| i == 0);
        let part = Part { float: &mixed, ..part };
        let one = Bootstrap { resamples: 1, ..usual }.weighted(&[part], Par::Seq).unwrap();
        assert_eq!(one.low, one.high);
    }

    #[test]
    fn items_that_all_agree_exclude_no_more_than_their_number_allows() {
        let close =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        let reach = |n: f64| -(0.025_f64.ln()) / n;
        let usual = Bootstrap::default();
        let [right, wrong] = [false, true].map(|wrong| outcomes(60, |_, _| wrong));
        // What is whole can only fall, and what is nothing can only rise.
        let all = usual.accuracy(&right, Par::Seq).unwrap();
        close(all.low, 1.0 - reach(60.0));
        assert_eq!((all.estimate, all.high), (1.0, 1.0));
        let none = usual.accuracy(&wrong, Par::Seq).unwrap();
        assert_eq!((none.low, none.estimate), (0.0, 0.0));
        close(none.high, reach(60.0));
        // A difference goes both ways, whatever the answers were: six equal parts are as sure as all their items.
        let mixed = outcomes(30, |i, s| (i + s) % 2 == 0);
        let parts = [Part { weight: 1.0 / 6.0, float: &mixed, quantised: Some(&mixed) }; 6];
        let loss = usual.weighted(&parts, Par::Seq).unwrap();
        close(loss.low, -reach(180.0));
        close(loss.high, reach(180.0));
        // The chance that 180 items show none of a share at the end of the interval is that of a tail.
        assert!((1.0 - loss.high).powi(180) < 0.025 && (1.0 - 0.98 * loss.high).powi(180) > 0.025);
        // One item that differs is a difference seen, and resampled.
        let other = outcomes(30, |i, s| if i == 0 { s == 0 } else { (i + s) % 2 == 0 });
        let one = usual.loss(&mixed, &other, Par::Seq).unwrap();
        assert!(one.low < 0.0 && one.high <= 0.0 && one.estimate < 0.0, "{one:?}");
        // A weight below zero turns it round.
        let part = Part { weight: -1.0, float: &right, quantised: None };
        let turned = usual.weighted(&[part], Par::Seq).unwrap();
        assert_eq!((turned.low, turned.estimate), (-1.0, -1.0));
        close(turned.high, reach(60.0) - 1.0);
    }
}
