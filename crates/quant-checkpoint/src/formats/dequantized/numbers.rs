//! Numbers of `ptq_scheme.json`.
//!
//! One is written as the f64 it is exactly equal to: a reader whose last digit is off still rounds to the same f32.

use quant_core::ClipRatio;
use quant_graph::Clipping;

use super::ID;
use crate::error::{CheckpointError, Result};

/// Name of the file.
pub(super) const FILE: &str = "ptq_scheme.json";

/// Ratios of the upper and the lower end of a range.
pub(super) type Ends = [f64; 2];

pub(super) fn ends(ratio: ClipRatio) -> Ends {
    [ratio.upper.into(), ratio.lower.into()]
}

/// Learned ratios, in (0, 1].
pub(super) fn learned(what: &str, [upper, lower]: Ends) -> Result<ClipRatio> {
    let ratio = ClipRatio { upper: number(what, upper, true)?, lower: number(what, lower, true)? };
    if Clipping::Learned.admits(ratio) {
        return Ok(ratio);
    }
    Err(bad(format!("{FILE}: {what}"), "clip ratios in (0, 1]", format!("{upper} and {lower}")))
}

/// Whether a key is left out, which says what was always so.
pub(super) fn is_false(flag: &bool) -> bool {
    !flag
}
pub(super) fn one<T: From<u8>>() -> T {
    T::from(1)
}
pub(super) fn is_one<T: From<u8> + PartialEq>(value: &T) -> bool {
    *value == one()
}

pub(super) fn bad(
    subject: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::bad_format(ID, subject, expected, found)
}

/// A number of the file as f32, which must be finite and, for a scale, positive.
pub(super) fn number(what: &str, value: f64, scale: bool) -> Result<f32> {
    let narrow = value as f32;
    if narrow.is_finite() && (!scale || narrow > 0.0) {
        return Ok(narrow);
    }
    let expected = if scale { "a positive number" } else { "a finite number" };
    Err(bad(format!("{FILE}: {what}"), expected, value.to_string()))
}
