//! The two float types the reference arithmetic is written over.

use num_traits::Float;

/// `f32` for work, `f64` for property and gradient checks.
pub trait Real: Float + Default + Send + Sync + std::fmt::Debug + std::iter::Sum + 'static {
    /// Nearest integer, halves to even (`torch.round`, IEEE `roundTiesToEven`).
    #[must_use]
    fn round_half_even(self) -> Self;
    /// Exact for `f32`, widening for `f64`.
    fn from_f32(value: f32) -> Self;
    /// Rounds an `f64` to this type.
    fn from_f64(value: f64) -> Self;
    /// Rounds to `f32`.
    fn to_f32_lossy(self) -> f32;
    /// Widens to `f64`.
    fn to_f64_exact(self) -> f64;
}

impl Real for f32 {
    #[inline(always)]
    fn round_half_even(self) -> Self {
        self.round_ties_even()
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as Self
    }
    #[inline(always)]
    fn to_f32_lossy(self) -> f32 {
        self
    }
    #[inline(always)]
    fn to_f64_exact(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn round_half_even(self) -> Self {
        self.round_ties_even()
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from(value)
    }
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn to_f32_lossy(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn to_f64_exact(self) -> f64 {
        self
    }
}
