//! Rounding to IEEE half precision: nearest, ties to even.

/// The least normal f16.
const LEAST_NORMAL: f32 = 6.103_515_6e-5;
/// From here on a number is nearer to the 2^16 that f16 does not have than to its largest, 65504.
const OVERFLOW: f32 = 65_520.0;

/// `x` rounded to f16, without branches, so that loops over it vectorise.
#[inline(always)]
pub(crate) fn round_f32(x: f32) -> f32 {
    // f16 keeps 10 of the 23 mantissa bits; the last place of its subnormals is 2^-24.
    const DROPPED: u32 = 13;
    const SUBNORMAL: f32 = 0.75;
    let bits = x.to_bits();
    let half = (1_u32 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1);
    let normal = f32::from_bits((bits.wrapping_add(half) >> DROPPED) << DROPPED);
    let small = ((x.abs() + SUBNORMAL) - SUBNORMAL).copysign(x);
    let finite = if x.abs() < LEAST_NORMAL { small } else { normal };
    let limited = if x.abs() >= OVERFLOW { f32::INFINITY.copysign(x) } else { finite };
    if x.is_nan() { x } else { limited }
}

/// Bits of `x` rounded to f16. A NaN keeps its sign and becomes quiet.
#[inline(always)]
pub(crate) fn bits(x: f32) -> u16 {
    let rounded = round_f32(x);
    let (bits, sign) = (rounded.to_bits(), (rounded.to_bits() >> 16) as u16 & 0x8000);
    // Normal numbers: the exponents differ by 112. Subnormals are multiples of 2^-24, which stand in the low bits of 0.5 and more.
    let normal = (bits >> 13).wrapping_sub(112 << 10) as u16 & 0x7fff;
    let small = (rounded.abs() + 0.5).to_bits() as u16;
    let finite = if rounded.abs() < LEAST_NORMAL { small } else { normal };
    let limited = if rounded.is_infinite() { 0x7c00 } else { finite };
    sign | if rounded.is_nan() { 0x7e00 } else { limited }
}

/// `x` rounded to f16 in one step.
#[inline(always)]
pub(crate) fn round_f64(x: f64) -> f64 {
    const DROPPED: u32 = 42;
    const SUBNORMAL: f64 = 1.5 * f64::from_bits((1023 + 52 - 24) << 52);
    let bits = x.to_bits();
    let half = (1_u64 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1);
    let normal = f64::from_bits((bits.wrapping_add(half) >> DROPPED) << DROPPED);
    let small = ((x.abs() + SUBNORMAL) - SUBNORMAL).copysign(x);
    let finite = if x.abs() < f64::from(LEAST_NORMAL) { small } else { normal };
    let limited = if x.abs() >= f64::from(OVERFLOW) { f64::INFINITY.copysign(x) } else { finite };
    if x.is_nan() { x } else { limited }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_types_agree_with_the_half_crate() {
        for pattern in (0..=u32::MAX).step_by(9_973) {
            let x = f32::from_bits(pattern);
            let want = half::f16::from_f32_const(x).to_f32();
            let (narrow, wide) = (round_f32(x), round_f64(f64::from(x)));
            let half = half::f16::from_f32_const(x);
            assert!(
                bits(x) == half.to_bits() || (x.is_nan() && half::f16::from_bits(bits(x)).is_nan()),
                "{x}"
            );
            assert!(narrow.to_bits() == want.to_bits() || (x.is_nan() && narrow.is_nan()), "{x}: {narrow}");
            assert!(
                wide.to_bits() == f64::from(want).to_bits() || (x.is_nan() && wide.is_nan()),
                "{x}: {wide}"
            );
        }
    }

    #[test]
    fn borders() {
        assert_eq!(round_f32(65_519.996), 65_504.0);
        assert_eq!(round_f32(-65_520.0), f32::NEG_INFINITY);
        let least = 0.5_f32.powi(24);
        assert_eq!((round_f32(0.5 * least), round_f32(1.5 * least)), (0.0, 2.0 * least));
        // Through f32 the excess over the tie would be lost.
        assert_eq!(round_f64(1.0 + 0.5_f64.powi(11) + 1e-12), 1.0 + 0.5_f64.powi(10));
        assert_eq!(round_f64(1.0 + 0.5_f64.powi(11)), 1.0);
        assert!(round_f64(-1e-60).is_sign_negative());
    }
}
