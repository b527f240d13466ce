//! A vectorisable exponential.

/// The logarithm of 2^-126, rounded towards 0.
const LEAST_NORMAL: f32 = -87.336_54;

/// `e^x` in f32 without branches or table look-ups, so that loops over it vectorise.
///
/// The argument is reduced to `x = n ln 2 + r` with `|r| <= ln(2)/2` (Cody-Waite split of ln 2 in two parts), `e^r`
/// is its Taylor polynomial of degree 7 (remainder below 2^-27), and `2^n` is applied in two exact factors. Relative error below
/// 2 ulp; below the least normal number, whose logarithm is -87.3, the result is 0, since processors take tens of times as
/// long for subnormal ones. `exp(-inf) = 0`, overflow gives infinity, NaN stays NaN.
#[inline(always)]
#[must_use]
pub fn exp_f32(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer (ties to even) held in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // e^105 overflows: beyond, the result does not change. The order of the comparisons lets a NaN through.
    let clamped = if x > 105.0 { 105.0 } else { x };
    let clamped = if clamped < LEAST_NORMAL { LEAST_NORMAL } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    let e = (p * r * r + r) + 1.0;
    // 2^n overflows a single exponent field for n = 151: two halves never do.
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = exponent >> 1;
    let first = f32::from_bits(((half.wrapping_add(127)) << 23) as u32);
    let second = f32::from_bits(((exponent.wrapping_sub(half).wrapping_add(127)) << 23) as u32);
    let result = e * first * second;
    if x < LEAST_NORMAL { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::{LEAST_NORMAL, exp_f32};

    fn ulps(got: f32, want: f64) -> f64 {
        let exact = want as f32;
        let ulp = f64::from(exact.next_up()) - f64::from(exact);
        (f64::from(got) - want).abs() / ulp
    }

    #[test]
    fn below_two_ulps_on_the_whole_range() {
        let mut worst = 0.0_f64;
        for i in 0..4_000_000 {
            let x = LEAST_NORMAL + i as f32 * (175.9 / 4_000_000.0);
            worst = worst.max(ulps(exp_f32(x), f64::from(x).exp()));
        }
        println!("worst error of exp_f32: {worst:.3} ulp");
        assert!(worst < 2.0, "{worst} ulp");
    }

    #[test]
    fn special_values() {
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-1e30), 0.0);
        assert!(exp_f32(LEAST_NORMAL).is_normal());
        assert_eq!(exp_f32(LEAST_NORMAL.next_down()), 0.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(89.0), f32::INFINITY);
        assert_eq!(exp_f32(0.0), 1.0);
        assert!(exp_f32(f32::NAN).is_nan());
    }
}
