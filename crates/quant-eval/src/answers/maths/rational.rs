//! Exact fractions, as far as 128 bits reach.

/// `numerator / denominator` in lowest terms, the denominator above zero. Arithmetic that would overflow gives none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rational {
    numerator: i128,
    denominator: i128,
}

impl Rational {
    pub(super) const ONE: Self = Self { numerator: 1, denominator: 1 };

    pub(super) fn integer(value: i128) -> Self {
        Self { numerator: value, denominator: 1 }
    }

    pub(super) fn new(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        let common = gcd(numerator.unsigned_abs(), denominator.unsigned_abs());
        let common = i128::try_from(common).ok()?;
        let (numerator, denominator) = (numerator / common, denominator / common);
        if denominator > 0 {
            return Some(Self { numerator, denominator });
        }
        Some(Self { numerator: numerator.checked_neg()?, denominator: denominator.checked_neg()? })
    }

    /// `digits · 10^-scale`.
    pub(super) fn decimal(digits: &str, scale: u32) -> Option<Self> {
        Self::new(digits.parse().ok()?, 10_i128.checked_pow(scale)?)
    }

    pub(super) fn numerator(self) -> i128 {
        self.numerator
    }

    pub(super) fn denominator(self) -> i128 {
        self.denominator
    }

    pub(super) fn as_integer(self) -> Option<i128> {
        (self.denominator == 1).then_some(self.numerator)
    }

    pub(super) fn is_negative(self) -> bool {
        self.numerator < 0
    }

    pub(super) fn value(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    pub(super) fn negative(self) -> Option<Self> {
        Some(Self { numerator: self.numerator.checked_neg()?, ..self })
    }

    pub(super) fn plus(self, other: Self) -> Option<Self> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Self::new(left.checked_add(right)?, self.denominator.checked_mul(other.denominator)?)
    }

    pub(super) fn times(self, other: Self) -> Option<Self> {
        Self::new(
            self.numerator.checked_mul(other.numerator)?,
            self.denominator.checked_mul(other.denominator)?,
        )
    }

    pub(super) fn over(self, other: Self) -> Option<Self> {
        self.times(Self::new(other.denominator, other.numerator)?)
    }

    pub(super) fn power(self, exponent: i128) -> Option<Self> {
        if exponent == 0 {
            return Some(Self::ONE);
        }
        let size = u32::try_from(exponent.unsigned_abs()).ok()?;
        let raised = Self::new(self.numerator.checked_pow(size)?, self.denominator.checked_pow(size)?)?;
        if exponent > 0 { Some(raised) } else { Self::ONE.over(raised) }
    }

    /// The exact root where there is one; of a negative number where the degree is odd.
    pub(super) fn root(self, degree: u32) -> Option<Self> {
        if degree == 0 || self.is_negative() && degree.is_multiple_of(2) {
            return None;
        }
        let of = |value: i128| -> Option<i128> {
            let size = value.unsigned_abs();
            let mut guess = (size as f64).powf(1.0 / f64::from(degree)).round() as i128;
            // f64 has not all digits of a large root: Newton's method has them.
            for _ in 0..3 {
                let below = guess.checked_pow(degree - 1).filter(|below| *below > 0);
                let Some(quotient) = below.and_then(|below| i128::try_from(size / below.unsigned_abs()).ok())
                else {
                    break;
                };
                guess =
                    guess.checked_mul(i128::from(degree) - 1)?.checked_add(quotient)? / i128::from(degree);
            }
            let exact =
                |root: &i128| u128::try_from(*root).ok().and_then(|r| r.checked_pow(degree)) == Some(size);
            let root = [guess, guess - 1, guess + 1].into_iter().find(exact)?;
            Some(if value < 0 { -root } else { root })
        };
        Self::new(of(self.numerator)?, of(self.denominator)?)
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_exact_or_none() {
        let half = Rational::new(-3, -6).unwrap();
        assert_eq!((half.numerator(), half.denominator()), (1, 2));
        assert_eq!(half.plus(Rational::new(1, 3).unwrap()), Rational::new(5, 6));
        assert_eq!(half.power(-3), Some(Rational::integer(8)));
        assert_eq!(Rational::integer(10).power(38).map(|r| r.numerator()), Some(10_i128.pow(38)));
        assert_eq!(Rational::integer(10).power(39), None);
        assert_eq!(Rational::integer(i128::MAX).plus(Rational::ONE), None);
        assert_eq!(Rational::integer(i128::MIN).negative(), None);
        assert_eq!(Rational::new(1, 0), None);
        assert_eq!(Rational::new(i128::MIN, -1), None);
        assert_eq!(Rational::integer(0).power(-1), None);
        assert_eq!(Rational::decimal("125", 3), Rational::new(1, 8));
    }

    #[test]
    fn roots_are_exact_or_none() {
        assert_eq!(Rational::new(9, 16).unwrap().root(2), Rational::new(3, 4));
        assert_eq!(Rational::integer(-27).root(3), Some(Rational::integer(-3)));
        assert_eq!(Rational::integer(2).root(2), None);
        assert_eq!(Rational::integer(-4).root(2), None);
        let large = 10_i128.pow(18) + 9;
        assert_eq!(Rational::integer(large * large).root(2), Some(Rational::integer(large)));
        assert_eq!(Rational::integer(large * large + 1).root(2), None);
    }
}
