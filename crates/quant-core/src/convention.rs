//! Bit widths, the four published quantiser conventions, and the grid they define.

use crate::CoreError;
use serde::{Deserialize, Serialize};

/// A bit width from 1 to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Bits(u8);

impl Bits {
    /// One bit.
    pub const ONE: Self = Self(1);
    /// Eight bits, the most there are.
    pub const EIGHT: Self = Self(8);
    /// # Errors
    /// [`CoreError::Bits`] outside 1..=8.
    pub fn new(bits: u32) -> Result<Self, CoreError> {
        match u8::try_from(bits) {
            Ok(b @ 1..=8) => Ok(Self(b)),
            _ => Err(CoreError::Bits(bits)),
        }
    }
    /// The width as a number.
    #[must_use]
    #[inline(always)]
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }
    /// The largest unsigned level, `2^b − 1`.
    #[must_use]
    #[inline(always)]
    pub fn max_level(self) -> f32 {
        ((1_u32 << self.0) - 1) as f32
    }
    /// The level of zero in a symmetric format, `2^(b−1)`.
    #[must_use]
    #[inline(always)]
    pub fn mid_level(self) -> f32 {
        (1_u32 << (self.0 - 1)) as f32
    }
}

impl TryFrom<u32> for Bits {
    type Error = CoreError;
    fn try_from(bits: u32) -> Result<Self, CoreError> {
        Self::new(bits)
    }
}
impl From<Bits> for u32 {
    fn from(bits: Bits) -> Self {
        bits.get()
    }
}

/// How scale and zero point follow from the range of a group (the "four conventions").
///
/// With `mx = max(max w, 0)`, `mn = min(min w, 0)`, `A = max(|mn|, mx)`:
///
/// | convention | scale | zero level |
/// |---|---|---|
/// | `q-asym` | `(mx − mn)/(2^b − 1)` | `round(−mn/s)` |
/// | `q-sym` | `A/(2^(b−1) − 1)` | `2^(b−1)` |
/// | `q-sym-gptq` | `2A/(2^b − 1)` | `2^(b−1)` |
/// | `q-awq` | `(max w − min w)/(2^b − 1)`, zero not forced into the range | `clip(round(−min w/s), 0, 2^b − 1)` |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convention {
    /// Asymmetric, zero always inside the range (GPTQ and QuaRot code bases).
    QAsym,
    /// Symmetric, `absmax / (2^(b−1) − 1)` (QuaRot code base, SmoothQuant).
    QSym,
    /// Symmetric over all `2^b` levels (GPTQ code base; close to compressed-tensors).
    QSymGptq,
    /// Asymmetric, range not forced through zero (AWQ).
    QAwq,
}

impl Convention {
    /// All conventions, in recipe order.
    pub const ALL: [Self; 4] = [Self::QAsym, Self::QSym, Self::QSymGptq, Self::QAwq];

    /// The name used in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QAsym => "q-asym",
            Self::QSym => "q-sym",
            Self::QSymGptq => "q-sym-gptq",
            Self::QAwq => "q-awq",
        }
    }
    /// Whether the zero level is the constant `2^(b−1)`.
    #[must_use]
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::QSym | Self::QSymGptq)
    }
}

/// Whether an operator is the mathematics of its paper or the official code with its quirks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The mathematics; no quirk of a particular repository.
    #[default]
    Exact,
    /// The published code bit for bit where floating point allows: goldens and parity tables run this.
    ///
    /// For the grids: `q-sym` and `q-asym` clamp the range at 1e-5 (QuaRot-derived code), `q-sym-gptq` clips the upper half
    /// of a row without negative entries (GPTQ repository), and 1 bit uses the integer formulas instead of the binary rule.
    ///
    /// The GPTQ repository has `q-asym` too, without a lower bound: that is `exact`. Only at 1 bit is there no grid equal to
    /// its code, and only for groups whose range is below 1e-5.
    Official,
}

/// The float type a scale is stored in by the format it is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// IEEE binary32.
    #[default]
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Rounds to the nearest value of this type (ties to even).
    #[must_use]
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
        }
    }
    /// As [`Self::round`], but a positive number never becomes zero: a scale must stay a divisor.
    #[must_use]
    #[inline(always)]
    pub fn round_scale(self, x: f32) -> f32 {
        let rounded = self.round(x);
        if rounded > 0.0 || rounded.is_nan() { rounded } else { self.smallest() }
    }
    /// The type in which vLLM and vLLM-Ascend run a model of this type, and hold the scales of a quantised one: float32 models in bfloat16.
    /// A scale that is exact there is exact in float32 as well.
    #[must_use]
    pub fn served(self) -> Self {
        match self {
            Self::F32 => Self::Bf16,
            half => half,
        }
    }
    /// Bytes per value.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
    /// The name used in messages: `f32`, `f16`, `bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
    fn smallest(self) -> f32 {
        match self {
            Self::F32 => f32::from_bits(1),
            Self::F16 => half::f16::MIN_POSITIVE_SUBNORMAL.to_f32(),
            Self::Bf16 => half::bf16::MIN_POSITIVE_SUBNORMAL.to_f32(),
        }
    }
}

/// Scale and zero level of one group: `x̂ = scale · (level − zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QParams {
    /// Step between two levels; positive.
    pub scale: f32,
    /// The level that stands for 0, integer-valued except under the binary (1-bit) rule.
    pub zero: f32,
}

impl QParams {
    /// `clip(round(x/s) + z, 0, max_level)`, rounding half to even; divide first, then round, then add.
    #[must_use]
    #[inline(always)]
    pub fn level(self, x: f32, max_level: f32) -> f32 {
        ((x / self.scale).round_ties_even() + self.zero).max(0.0).min(max_level)
    }
    /// `s · (level − z)`.
    #[must_use]
    #[inline(always)]
    pub fn value(self, level: f32) -> f32 {
        self.scale * (level - self.zero)
    }
    /// Quantises and dequantises one value.
    #[must_use]
    #[inline(always)]
    pub fn fake(self, x: f32, max_level: f32) -> f32 {
        self.value(self.level(x, max_level))
    }
}

/// A level, an integer from 0 to 255, as a byte. Added to 2^23 it stands in the low bits of the mantissa; a saturating cast
/// would keep a loop scalar.
#[must_use]
#[inline(always)]
pub fn level_byte(level: f32) -> u8 {
    (level + 8_388_608.0).to_bits() as u8
}

/// Everything that fixes how a weight group gets its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Grid {
    /// The convention.
    pub convention: Convention,
    /// The bit width.
    pub bits: Bits,
    /// Mathematics or official code.
    pub variant: Variant,
    /// What the loader will hold scales in; they are rounded to it before any level is computed.
    pub scale_type: FloatType,
}

/// The lower bound QuaRot-derived code puts on a weight range.
const OFFICIAL_RANGE_FLOOR: f32 = 1e-5;

impl Grid {
    /// # Errors
    /// [`CoreError::NoGrid`] for `q-sym` at 1 bit in the official variant (its scale divides by `2^0 − 1 = 0`).
    pub fn new(
        convention: Convention,
        bits: Bits,
        variant: Variant,
        scale_type: FloatType,
    ) -> Result<Self, CoreError> {
        if convention == Convention::QSym && bits.get() == 1 && variant == Variant::Official {
            return Err(CoreError::NoGrid {
                convention: convention.name(),
                bits: 1,
                reason: "its scale is absmax / 0; use variant exact (the binary rule), q-asym or 2 bits",
            });
        }
        Ok(Self { convention, bits, variant, scale_type })
    }
    /// 4 bits between the extremes of a group, the usual grid of weights in groups: [`Convention::QAsym`], exact, scales in f32.
    ///
    /// ```
    /// use quant_core::{Bits, Convention, FloatType, Grid, Variant};
    ///
    /// let grid = Grid::new(Convention::QAsym, Bits::new(4)?, Variant::Exact, FloatType::F32)?;
    /// assert_eq!(Grid::int4_asym(), grid);
    /// assert_eq!(Grid::int4_asym().with_scale_type(FloatType::Bf16).scale_type, FloatType::Bf16);
    /// # Ok::<(), quant_core::CoreError>(())
    /// ```
    #[must_use]
    pub const fn int4_asym() -> Self {
        Self::exact(Convention::QAsym, Bits(4))
    }
    /// 4 bits around zero: [`Convention::QSym`], exact, scales in f32.
    #[must_use]
    pub const fn int4_sym() -> Self {
        Self::exact(Convention::QSym, Bits(4))
    }
    /// 8 bits around zero, the usual grid of weights per output channel: [`Convention::QSym`], exact, scales in f32.
    #[must_use]
    pub const fn int8_sym() -> Self {
        Self::exact(Convention::QSym, Bits(8))
    }
    const fn exact(convention: Convention, bits: Bits) -> Self {
        Self { convention, bits, variant: Variant::Exact, scale_type: FloatType::F32 }
    }
    /// The same with scales rounded to another type.
    #[must_use]
    pub const fn with_scale_type(self, scale_type: FloatType) -> Self {
        Self { scale_type, ..self }
    }

    /// Whether groups use the binary rule `x̂ = μ ± mean|w − μ|` instead of a range: 1 bit, variant exact.
    ///
    /// At one bit the range rules are useless (`q-asym` has the levels `{0, s}`); `μ = mean(w)`, `a = mean|w − μ|` is the
    /// L2-optimal binary code for that `μ` and equals BiLLM's first-order block.
    #[must_use]
    #[inline(always)]
    pub fn is_binary(&self) -> bool {
        self.bits.get() == 1 && self.variant == Variant::Exact
    }

    /// Parameters of a group from its minimum and maximum, without clip search.
    #[must_use]
    #[inline(always)]
    pub fn from_range(&self, min: f32, max: f32) -> QParams {
        self.shrunk(self.range(min, max), 1.0, true)
    }

    /// The range the convention works on: both ends after the zero rule.
    #[inline(always)]
    pub(crate) fn range(&self, min: f32, max: f32) -> (f32, f32) {
        if self.convention == Convention::QAwq {
            return (min, max);
        }
        let (mn, mx) = (min.min(0.0), max.max(0.0));
        let absmax = mx.max(-mn);
        match self.convention {
            Convention::QSym => (-absmax, absmax),
            // GPTQ repository: only a row that has a negative entry gets a negative end.
            Convention::QSymGptq if self.variant == Variant::Official && mn == 0.0 && mx > 0.0 => {
                (0.0, absmax)
            }
            Convention::QSymGptq => (-absmax, absmax),
            _ => (mn, mx),
        }
    }

    /// Scale and zero of a range shrunk by `p`; `floor` applies the official lower bound on the range.
    #[inline(always)]
    pub(crate) fn shrunk(&self, (mn, mx): (f32, f32), p: f32, floor: bool) -> QParams {
        let official = self.variant == Variant::Official;
        let levels = self.bits.max_level();
        match self.convention {
            Convention::QSym => {
                // A bound on absmax, not on the candidate: the clip search shrinks the bounded value.
                let absmax = if official { mx.max(OFFICIAL_RANGE_FLOOR) } else { mx };
                let absmax = if absmax == 0.0 { 1.0 } else { absmax };
                let scale = self.scale_type.round_scale(p * absmax / (self.bits.mid_level() - 1.0));
                QParams { scale, zero: self.bits.mid_level() }
            }
            Convention::QSymGptq => {
                let (mn, mx) = if mn == 0.0 && mx == 0.0 { (-1.0, 1.0) } else { (mn, mx) };
                let scale = self.scale_type.round_scale((p * mx - p * mn) / levels);
                QParams { scale, zero: self.bits.mid_level() }
            }
            Convention::QAsym => {
                let (mn, mx) = if mn == 0.0 && mx == 0.0 { (-1.0, 1.0) } else { (mn, mx) };
                let mut range = p * mx - p * mn;
                if official && floor {
                    range = range.max(OFFICIAL_RANGE_FLOOR);
                }
                let scale = self.scale_type.round_scale(range / levels);
                // A scale rounded down by its storage type could ask for a level beyond the top.
                QParams { scale, zero: (-(p * mn) / scale).round_ties_even().min(levels) }
            }
            Convention::QAwq => {
                let range = (p * mx - p * mn).max(OFFICIAL_RANGE_FLOOR);
                let scale = self.scale_type.round_scale(range / levels);
                QParams { scale, zero: (-(p * mn / scale).round_ties_even()).max(0.0).min(levels) }
            }
        }
    }

    pub(crate) fn binary(&self, group: &[f32]) -> QParams {
        let n = group.len().max(1) as f64;
        let mean = group.iter().map(|&w| f64::from(w)).sum::<f64>() / n;
        let spread = group.iter().map(|&w| (f64::from(w) - mean).abs()).sum::<f64>() / n;
        let scale = self.scale_type.round((2.0 * spread) as f32);
        if scale == 0.0 {
            // A constant group: its value is the upper level, whatever the lower one would be.
            let value = self.scale_type.round(mean as f32);
            let scale = if value == 0.0 { 1.0 } else { value.abs() };
            return QParams { scale, zero: 1.0 - value / scale };
        }
        // level 0 is μ − a, level 1 is μ + a; the decision threshold of `level` is then exactly μ.
        QParams { scale, zero: (0.5 - mean / f64::from(scale)) as f32 }
    }

    /// The level of one weight on this grid; the binary rule puts `w = μ` on the upper level.
    #[must_use]
    #[inline(always)]
    pub fn level(&self, x: f32, params: QParams) -> f32 {
        if self.is_binary() {
            let mean = params.scale * (0.5 - params.zero);
            if x >= mean { 1.0 } else { 0.0 }
        } else {
            params.level(x, self.bits.max_level())
        }
    }
}

/// Minimum and maximum of a slice, 0 and 0 when empty; a NaN is passed over unless there is nothing else. -0 is below 0.
///
/// Numbers are compared as integers of the same order, whose extremes compilers vectorise as they stand.
#[must_use]
#[inline(always)]
pub fn min_max(values: &[f32]) -> (f32, f32) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let (lo, hi) = values.iter().fold((i32::MAX, i32::MIN), |(lo, hi), &v| {
        let key = ordered(v.to_bits().cast_signed());
        (lo.min(key), hi.max(key))
    });
    let number = |key: i32| f32::from_bits(ordered(key).cast_unsigned());
    let (min, max) = (number(lo), number(hi));
    if min.is_nan() || max.is_nan() {
        // As integers they lie beyond the infinities.
        return values.iter().fold((f32::NAN, f32::NAN), |(min, max), &v| (min.min(v), max.max(v)));
    }
    (min, max)
}

/// The bits of a float as an integer of the same order, and back.
#[inline(always)]
const fn ordered(bits: i32) -> i32 {
    // All bits of a negative number but its sign are turned.
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}
