//! What a loss of accuracy is called, and when it cannot be called anything.

use super::bootstrap::Interval;
use serde::Serialize;
use std::fmt;

/// The classes of a loss in points of average accuracy (Quantized Reasoning Models, arXiv 2504.04823, section 3.2).
///
/// ```
/// use quant_eval::statistics::LossClass;
///
/// assert_eq!([-0.5, 1.0, 2.9, 3.0].map(LossClass::of).map(|c| c.to_string()), ["lossless", "lossless", "fair", "risky"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossClass {
    /// At most 1 point, or a gain.
    Lossless,
    /// More than 1 and less than 3 points.
    Fair,
    /// 3 points or more.
    Risky,
}

impl LossClass {
    /// Of a loss in points: 100 times the float accuracy less the quantised one. What a difference of such numbers is off by for
    /// their rounding (1e-9) moves no loss across a border.
    #[must_use]
    pub fn of(points: f64) -> Self {
        const ROUNDING: f64 = 1e-9;
        if points <= 1.0 + ROUNDING {
            Self::Lossless
        } else if points < 3.0 - ROUNDING {
            Self::Fair
        } else {
            // Also what is no number: nothing speaks for it.
            Self::Risky
        }
    }
}

impl fmt::Display for LossClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lossless => "lossless",
            Self::Fair => "fair",
            Self::Risky => "risky",
        })
    }
}

/// What can be said of a loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum LossVerdict {
    /// It is of this class, with everything that the interval holds possible.
    Class {
        /// The class.
        class: LossClass,
    },
    /// More items are needed to say.
    NotDistinguishable {
        /// The class of the estimate itself.
        estimate: LossClass,
        /// Why it is not to be relied on.
        reason: NotDistinguishable,
    },
}

/// Why a loss has no class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum NotDistinguishable {
    /// The ends of the interval are of different classes.
    Interval {
        /// Lower end in points.
        low: f64,
        /// Upper end in points.
        high: f64,
        /// Class of the lower end.
        low_class: LossClass,
        /// Class of the upper end.
        high_class: LossClass,
    },
    /// The test does not tell the models apart, although the interval says that something was lost.
    Test {
        /// The p-value, corrected for the number of cells.
        p: f64,
        /// What it must be below.
        alpha: f64,
    },
}

impl fmt::Display for NotDistinguishable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not distinguishable with this many items: ")?;
        match self {
            Self::Interval { low, high, low_class, high_class } => write!(
                f,
                "the loss is between {low:.2} and {high:.2} points, from {low_class} to {high_class}"
            ),
            Self::Test { p, alpha } => {
                write!(f, "the paired test gives p = {p:.3}, corrected, where less than {alpha} is needed")
            }
        }
    }
}

impl fmt::Display for LossVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class { class } => class.fmt(f),
            Self::NotDistinguishable { reason, .. } => reason.fmt(f),
        }
    }
}

/// The class of a loss whose interval, in points, lies within one class. A loss that is fair or risky must also be told from none by
/// the paired test, whose p-value comes corrected for the number of cells ([`holm`](super::holm)); none where there was no test.
///
/// ```
/// use quant_eval::statistics::{Interval, LossClass, LossVerdict, judge_loss};
///
/// let loss = |low, estimate, high| Interval { estimate, low, high, level: 0.95, resamples: 10_000 };
/// let judged = judge_loss(&loss(-0.4, 0.2, 0.9), Some(0.6), 0.05);
/// assert_eq!(judged, LossVerdict::Class { class: LossClass::Lossless });
/// let judged = judge_loss(&loss(0.5, 2.0, 3.5), Some(0.01), 0.05);
/// assert_eq!(
///     judged.to_string(),
///     "not distinguishable with this many items: the loss is between 0.50 and 3.50 points, from lossless to risky"
/// );
/// ```
#[must_use]
pub fn judge_loss(points: &Interval, corrected_p: Option<f64>, alpha: f64) -> LossVerdict {
    let estimate = LossClass::of(points.estimate);
    let [low_class, high_class] = [points.low, points.high].map(LossClass::of);
    if low_class != high_class || estimate != low_class {
        let reason =
            NotDistinguishable::Interval { low: points.low, high: points.high, low_class, high_class };
        return LossVerdict::NotDistinguishable { estimate, reason };
    }
    match corrected_p {
        // A p-value that is no number tells nothing apart.
        Some(p) if estimate != LossClass::Lossless && (p.is_nan() || p >= alpha) => {
            LossVerdict::NotDistinguishable { estimate, reason: NotDistinguishable::Test { p, alpha } }
        }
        _ => LossVerdict::Class { class: estimate },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(low: f64, estimate: f64, high: f64) -> Interval {
        Interval { estimate, low, high, level: 0.95, resamples: 10 }
    }

    #[test]
    fn borders_belong_where_they_are_said_to() {
        let cases = [
            (f64::NEG_INFINITY, LossClass::Lossless),
            (1.0, LossClass::Lossless),
            // 100 · (0.85 − 0.84) is a little more than 1, 100 · (0.33 − 0.30) a little more or less than 3.
            (100.0 * (0.85 - 0.84), LossClass::Lossless),
            (1.001, LossClass::Fair),
            (2.999, LossClass::Fair),
            (100.0 * (0.33 - 0.30), LossClass::Risky),
            (100.0 * (0.53 - 0.50), LossClass::Risky),
            (3.0, LossClass::Risky),
            (f64::NAN, LossClass::Risky),
        ];
        for (points, class) in cases {
            assert_eq!(LossClass::of(points), class, "{points}");
        }
    }

    #[test]
    fn a_class_needs_interval_and_test() {
        let class = |class| LossVerdict::Class { class };
        assert_eq!(judge_loss(&loss(3.0, 5.0, 7.0), Some(0.001), 0.05), class(LossClass::Risky));
        assert_eq!(judge_loss(&loss(1.2, 2.0, 2.8), None, 0.05), class(LossClass::Fair));
        assert_eq!(judge_loss(&loss(-9.0, -5.0, -1.0), Some(0.001), 0.05), class(LossClass::Lossless));
        for p in [0.05, 0.4, f64::NAN] {
            let judged = judge_loss(&loss(3.0, 5.0, 7.0), Some(p), 0.05);
            assert!(judged.to_string().contains("the paired test gives p"), "{judged}");
        }
        let judged = judge_loss(&loss(0.9, 2.0, 2.9), Some(0.01), 0.05);
        assert!(judged.to_string().contains("from lossless to fair"), "{judged}");
        assert!(
            matches!(judged, LossVerdict::NotDistinguishable { estimate: LossClass::Fair, .. }),
            "{judged:?}"
        );
    }

    #[test]
    fn verdicts_are_tagged_in_json() {
        let json = |verdict| serde_json::to_string(&verdict).unwrap();
        let judged = json(judge_loss(&loss(0.0, 0.5, 1.0), None, 0.05));
        assert_eq!(judged, r#"{"verdict":"class","class":"lossless"}"#);
        let judged = json(judge_loss(&loss(3.0, 4.0, 5.0), Some(0.5), 0.05));
        assert_eq!(
            judged,
            r#"{"verdict":"not_distinguishable","estimate":"risky","reason":{"reason":"test","p":0.5,"alpha":0.05}}"#
        );
    }
}
