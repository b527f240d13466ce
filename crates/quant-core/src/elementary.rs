//! Elementary functions with the same bits on every system.
//!
//! Those of the standard library are the C library's, which rounds differently from one system and version to the next.
//! Whatever can reach an output is computed with these instead: one implementation, in Rust, from additions,
//! multiplications and square roots. (`exp` in f32 is `quant_kernels::exp_f32`, for the same reason and because it vectorises.)

/// `e^x`, within 1 ulp.
#[must_use]
#[inline]
pub fn exp(x: f64) -> f64 {
    libm::exp(x)
}

/// The natural logarithm, within 1 ulp.
#[must_use]
#[inline]
pub fn ln(x: f64) -> f64 {
    libm::log(x)
}

/// The cosine of `x` radians, within 1 ulp.
#[must_use]
#[inline]
pub fn cos(x: f64) -> f64 {
    libm::cos(x)
}

/// The sine of `x` radians, within 1 ulp.
#[must_use]
#[inline]
pub fn sin(x: f64) -> f64 {
    libm::sin(x)
}

/// The f32 nearest to `base^exponent`: a power in f64, rounded once (to the wrong neighbour only where the true value lies
/// within 1e-8 ulp of the middle).
#[must_use]
#[inline]
pub fn pow_f32(base: f32, exponent: f32) -> f32 {
    libm::pow(f64::from(base), f64::from(exponent)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits, not values within a tolerance: another implementation fails here.
    #[test]
    fn bits_are_fixed() {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut take = |bits: u64| hash = (hash ^ bits).wrapping_mul(0x0100_0000_01b3);
        for i in 1..4000_u32 {
            let x = f64::from(i) * 0.37 + 1.0 / f64::from(i);
            for value in [exp(x / 8.0 - 90.0), ln(x), cos(x), sin(x), cos(x * 1e5), sin(x * 1e5)] {
                take(value.to_bits());
            }
            for exponent in [0.5, 0.15, 0.85, -1.25] {
                take(u64::from(pow_f32(x as f32, exponent).to_bits()));
            }
        }
        assert_eq!(hash, 0xc6be_cb1f_ef6a_029c, "{hash:#x}");
    }

    #[test]
    fn values_are_those_of_mathematics() {
        let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 3e-16, "{got} {want}");
        near(exp(1.0), std::f64::consts::E);
        near(ln(10.0), std::f64::consts::LN_10);
        near(cos(std::f64::consts::FRAC_PI_4), std::f64::consts::FRAC_1_SQRT_2);
        near(sin(std::f64::consts::FRAC_PI_4), std::f64::consts::FRAC_1_SQRT_2);
        assert_eq!(pow_f32(2.0, 0.5), std::f32::consts::SQRT_2);
        assert_eq!((pow_f32(9.0, 0.5), pow_f32(0.0, 0.5), pow_f32(7.0, 0.0)), (3.0, 0.0, 1.0));
        assert!(exp(f64::NAN).is_nan() && ln(-1.0).is_nan() && exp(f64::NEG_INFINITY) == 0.0);
    }
}
