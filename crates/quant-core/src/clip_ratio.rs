//! What the ranges of dynamic quantisers are multiplied by.

/// What the ends of the range of a dynamic quantiser are multiplied by, each in (0, 1]: values beyond are clipped.
///
/// ```
/// use quant_core::ClipRatio;
///
/// assert_eq!(ClipRatio::both(0.9), ClipRatio { upper: 0.9, lower: 0.9 });
/// assert_eq!(ClipRatio::NONE, 1.0.into());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipRatio {
    /// Of the largest value, or zero where all are negative.
    pub upper: f32,
    /// Of the smallest value, or zero where all are positive.
    pub lower: f32,
}

impl ClipRatio {
    /// Nothing is clipped.
    pub const NONE: Self = Self::both(1.0);

    /// One ratio for both ends.
    #[must_use]
    pub const fn both(ratio: f32) -> Self {
        Self { upper: ratio, lower: ratio }
    }
}

impl From<f32> for ClipRatio {
    fn from(ratio: f32) -> Self {
        Self::both(ratio)
    }
}
