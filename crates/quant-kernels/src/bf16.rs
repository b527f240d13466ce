//! Rounding to bfloat16: nearest, ties to even.

/// Bits of `x` rounded to bfloat16, in the low half. A NaN keeps its sign and becomes quiet.
#[inline(always)]
pub(crate) fn bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }
}

/// `x` rounded to bfloat16.
#[inline(always)]
pub(crate) fn round_f32(x: f32) -> f32 {
    f32::from_bits(bits(x) << 16)
}

/// `x` rounded to bfloat16 in one step: going through f32 would round twice, and the conversion of the `half` crate
/// looks at the upper half of the f64 only, so it takes values just above a tie for ties.
#[inline(always)]
pub(crate) fn round_f64(x: f64) -> f64 {
    // The least normal bf16, and the number whose last place is the least subnormal one, 2^-133.
    const LEAST_NORMAL: f64 = f64::from_bits((1023 - 126) << 52);
    const SUBNORMAL: f64 = 1.5 * f64::from_bits((1023 + 52 - 133) << 52);
    const OVERFLOW: f64 = f64::from_bits((1023 + 128) << 52);
    // bf16 keeps 7 of the 52 mantissa bits.
    const DROPPED: u32 = 45;
    if x.is_nan() {
        return x;
    }
    if x.abs() < LEAST_NORMAL {
        return ((x + SUBNORMAL) - SUBNORMAL).copysign(x);
    }
    let bits = x.to_bits();
    let half = (1_u64 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1);
    let rounded = f64::from_bits((bits.wrapping_add(half) >> DROPPED) << DROPPED);
    if rounded.abs() >= OVERFLOW { f64::INFINITY.copysign(x) } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_agrees_with_the_half_crate() {
        for pattern in (0..=u32::MAX).step_by(9_973) {
            let x = f32::from_bits(pattern);
            let want = half::bf16::from_f32(x);
            assert!(bits(x) == u32::from(want.to_bits()) || (x.is_nan() && want.is_nan()), "{x}");
            assert_eq!(round_f32(x).is_nan(), x.is_nan());
        }
    }

    #[test]
    fn f64_agrees_with_f32_where_both_are_exact() {
        for pattern in (0..=u32::MAX).step_by(9_973) {
            let x = f32::from_bits(pattern);
            let (wide, narrow) = (round_f64(f64::from(x)), f64::from(round_f32(x)));
            assert!(wide.to_bits() == narrow.to_bits() || (wide.is_nan() && narrow.is_nan()), "{x}");
        }
    }

    #[test]
    fn f64_rounds_once() {
        // 1 + 2^-8 is the tie between 1 and the next bf16; through f32 the tiny excess would be lost.
        let tie = 1.0 + 0.5_f64.powi(8);
        assert_eq!(round_f64(tie), 1.0);
        assert_eq!(round_f64(tie + 1e-12), 1.0 + 0.5_f64.powi(7));
        assert_eq!(round_f64(-tie - 1e-12), -1.0 - 0.5_f64.powi(7));
        assert_eq!(round_f64(1e300), f64::INFINITY);
        assert_eq!(round_f64(-3.4e38), f64::NEG_INFINITY);
        assert_eq!(round_f64(3.39e38), f64::from(half::bf16::MAX));
        let least = 0.5_f64.powi(133);
        assert_eq!(round_f64(0.5 * least), 0.0);
        assert_eq!(round_f64(1.5 * least), 2.0 * least);
        assert!(round_f64(-1e-60).is_sign_negative());
    }
}
