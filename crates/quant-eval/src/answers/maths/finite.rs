//! Whether two rational expressions are identical, whatever the size of their numbers: both are computed in finite fields, at points
//! that are drawn for their symbols (Schwartz 1980, Zippel 1979).
//!
//! Two that differ agree at a point of one field with a chance of their degree divided by 2^60 or less; three are tried. π and e are
//! symbols here, as no rational expression in them is zero that anybody writes; i is a root of −1, which the fields have.

use super::expression::Expression;

/// Primes `p ≡ 1 (mod 4)` below 2^61, and an element whose square is `−1`.
const FIELDS: [(u64, u64); 3] = [
    (2_305_843_009_213_693_921, 583_529_827_753_931_384),
    (2_305_843_009_213_693_693, 966_685_122_347_009_555),
    (2_305_843_009_213_693_669, 1_290_453_122_423_660_404),
];
/// Factorials are multiplied out up to here.
const LARGEST_FACTORIAL: i128 = 5_000;

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// It is no rational expression.
    Unsupported,
    /// A denominator is zero at this point.
    Pole,
}

/// Whether `a` and `b` are the same function; none where one is no rational expression, or has no value anywhere.
pub(super) fn identical(a: &Expression, b: &Expression, sign: i128) -> Option<bool> {
    let mut compared = false;
    for (trial, &(prime, root)) in FIELDS.iter().enumerate() {
        let field = Field { prime, root, trial: trial as u64, sign };
        match (field.of(a), field.of(b)) {
            (Err(Failed::Unsupported), _) | (_, Err(Failed::Unsupported)) => return None,
            (Ok(a), Ok(b)) if a == b => compared = true,
            (Ok(_), Ok(_)) => return Some(false),
            // A pole of one alone: another function, or one that divides by zero everywhere.
            (Err(Failed::Pole), Err(Failed::Pole)) => {}
            (Err(Failed::Pole), Ok(_)) | (Ok(_), Err(Failed::Pole)) => return Some(false),
        }
    }
    compared.then_some(true)
}

/// `a / b` where it is the same at all points; none where it is not, or one is no rational expression.
pub(super) fn proportional(a: &Expression, b: &Expression) -> Option<bool> {
    let (prime, root) = FIELDS[0];
    let mut first = None;
    for trial in 0..3 {
        let field = Field { prime, root, trial, sign: 1 };
        let (a, b) = (field.of(a).ok()?, field.of(b).ok()?);
        if a == 0 || b == 0 {
            return Some(a == b);
        }
        let ratio = field.times(a, field.inverse(b).ok()?);
        if *first.get_or_insert(ratio) != ratio {
            return Some(false);
        }
    }
    Some(true)
}

struct Field {
    prime: u64,
    root: u64,
    trial: u64,
    sign: i128,
}

impl Field {
    fn of(&self, expression: &Expression) -> Result<u64, Failed> {
        Ok(match expression {
            Expression::Number { value, .. } => {
                self.times(self.integer(value.numerator()), self.inverse(self.integer(value.denominator()))?)
            }
            Expression::Long { digits, scale } => {
                let value = digits.bytes().fold(0, |value, digit| {
                    self.plus(self.times(value, 10), u64::from(digit.saturating_sub(b'0')))
                });
                self.times(value, self.inverse(self.raise(10, u128::from(*scale)))?)
            }
            Expression::Symbol(name) => self.point(name),
            Expression::Pi => self.point("\u{3c0}"),
            Expression::Euler => self.point("\u{212f}"),
            Expression::Imaginary => self.root,
            Expression::Sign { upper } => self.integer(if *upper { self.sign } else { -self.sign }),
            Expression::Sum(parts) => {
                parts.iter().try_fold(0, |sum, part| Ok(self.plus(sum, self.of(part)?)))?
            }
            Expression::Product(parts) => {
                parts.iter().try_fold(1, |product, part| Ok(self.times(product, self.of(part)?)))?
            }
            Expression::Quotient(a, b) => self.times(self.of(a)?, self.inverse(self.of(b)?)?),
            Expression::Power(base, exponent) => {
                if let Some(value) = expression.exact(self.sign) {
                    return self.of(&Expression::Number { value, decimal: false });
                }
                let exponent =
                    exponent.exact(self.sign).and_then(|e| e.as_integer()).ok_or(Failed::Unsupported)?;
                let raised = self.raise(self.of(base)?, exponent.unsigned_abs());
                if exponent < 0 { self.inverse(raised)? } else { raised }
            }
            Expression::Factorial(n) => {
                let n = n.exact(self.sign).and_then(|n| n.as_integer()).ok_or(Failed::Unsupported)?;
                if !(0..=LARGEST_FACTORIAL).contains(&n) {
                    return Err(Failed::Unsupported);
                }
                (1..=n).fold(1, |product, factor| self.times(product, self.integer(factor)))
            }
            Expression::Root(..) | Expression::Binomial(..) | Expression::Apply(..) => {
                let value = expression.exact(self.sign).ok_or(Failed::Unsupported)?;
                self.of(&Expression::Number { value, decimal: false })?
            }
            Expression::Infinity | Expression::Logarithm(..) => return Err(Failed::Unsupported),
        })
    }

    fn integer(&self, value: i128) -> u64 {
        // Below the prime, which is below 2^61.
        value.rem_euclid(i128::from(self.prime)) as u64
    }

    fn plus(&self, a: u64, b: u64) -> u64 {
        (a + b) % self.prime
    }

    fn times(&self, a: u64, b: u64) -> u64 {
        (u128::from(a) * u128::from(b) % u128::from(self.prime)) as u64
    }

    fn raise(&self, base: u64, mut exponent: u128) -> u64 {
        let (mut square, mut result) = (base, 1);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = self.times(result, square);
            }
            square = self.times(square, square);
            exponent >>= 1;
        }
        result
    }

    fn inverse(&self, value: u64) -> Result<u64, Failed> {
        if value == 0 { Err(Failed::Pole) } else { Ok(self.raise(value, u128::from(self.prime - 2))) }
    }

    /// The value of a symbol (FNV-1a of its name, mixed with the trial).
    fn point(&self, name: &str) -> u64 {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut mixed =
            (hash ^ self.trial.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^= mixed >> 29;
        mixed.wrapping_mul(0x94D0_49BB_1331_11EB) % self.prime
    }
}

#[cfg(test)]
mod tests {
    use super::super::rational::Rational;
    use super::*;

    #[test]
    fn fields_are_fields() {
        for (prime, root) in FIELDS {
            let field = Field { prime, root, trial: 0, sign: 1 };
            assert_eq!(field.times(root, root), prime - 1);
            // Fermat, for a few bases.
            for base in [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37] {
                assert_eq!(field.raise(base, u128::from(prime - 1)), 1);
            }
            assert_eq!(field.times(field.inverse(12_345).unwrap(), 12_345), 1);
        }
    }

    #[test]
    fn large_numbers_are_told_apart() {
        let power = |base, exponent| {
            Expression::Power(Box::new(Expression::integer(base)), Box::new(Expression::integer(exponent)))
        };
        assert_eq!(identical(&power(2, 2000), &power(4, 1000), 1), Some(true));
        let more = Expression::Sum(vec![power(4, 1000), Expression::integer(1)]);
        assert_eq!(identical(&power(2, 2000), &more, 1), Some(false));
        let long = Expression::Long { digits: format!("1{}", "0".repeat(60)), scale: 10 };
        assert_eq!(identical(&long, &power(10, 50), 1), Some(true));
        let half = Expression::Number { value: Rational::new(1, 2).unwrap(), decimal: false };
        let root = Expression::Power(Box::new(Expression::integer(2)), Box::new(half));
        assert_eq!(identical(&root, &root, 1), None);
    }
}
