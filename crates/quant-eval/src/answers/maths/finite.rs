//! Whether two rational expressions are identical, whatever the size of their numbers: both are computed in finite fields, at points
//! that are drawn for their symbols (Schwartz 1980, Zippel 1979).
//!
//! Two that differ agree at a point of one field with a chance of their degree divided by 2^60 or less; three are tried. π and e are
//! symbols here, as no rational expression in them is zero that anybody writes; i is a root of −1, which the fields have. A square root
//! of a rational number is the product of roots of its primes, where the field has them.

use super::expression::Expression;
use super::rational::Rational;

/// Primes below 2^61 that are 1 modulo 8 and every odd prime up to 43, so that all of those have square roots (by quadratic
/// reciprocity); and an element whose square is `−1`.
const FIELDS: [(u64, u64); 3] = [
    (2_302_565_994_373_925_281, 128_045_008_038_375_491),
    (1_465_269_269_147_043_361, 254_591_773_147_021_232),
    (1_308_276_133_167_003_001, 649_020_814_047_652_247),
];
/// Factorials are multiplied out up to here.
const LARGEST_FACTORIAL: i128 = 5_000;

/// Numbers under a root are taken apart by factors up to here.
const LARGEST_FACTOR: u128 = 2_000;

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
            (Ok(a), Ok(b)) if a == b => compared = true,
            (Ok(_), Ok(_)) => return Some(false),
            // Another field may have the roots, another point the values.
            (Err(Failed::Unsupported), _) | (_, Err(Failed::Unsupported)) | (Err(_), Err(_)) => {}
            // A pole of one alone: another function, or one that divides by zero everywhere.
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
                let exponent = exponent.exact(self.sign).ok_or(Failed::Unsupported)?;
                if exponent.denominator() == 2 {
                    let root = self.root_of(base.exact(self.sign).ok_or(Failed::Unsupported)?)?;
                    let raised = self.raise(root, exponent.numerator().unsigned_abs());
                    return if exponent.is_negative() { self.inverse(raised) } else { Ok(raised) };
                }
                let exponent = exponent.as_integer().ok_or(Failed::Unsupported)?;
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
            Expression::Root(radicand, degree) if degree.exact(self.sign) == Some(Rational::integer(2)) => {
                self.root_of(radicand.exact(self.sign).ok_or(Failed::Unsupported)?)?
            }
            Expression::Root(..) | Expression::Binomial(..) | Expression::Apply(..) => {
                let value = expression.exact(self.sign).ok_or(Failed::Unsupported)?;
                self.of(&Expression::Number { value, decimal: false })?
            }
            Expression::Infinity | Expression::Logarithm(..) => return Err(Failed::Unsupported),
        })
    }

    /// The square root of a rational number: `√(n / d) = √(n d) / d`, `√−n = i √n`.
    fn root_of(&self, value: Rational) -> Result<u64, Failed> {
        let product = value.numerator().checked_mul(value.denominator()).ok_or(Failed::Unsupported)?;
        let mut left = product.unsigned_abs();
        let mut root = if product < 0 { self.root } else { 1 };
        if left == 0 {
            return Ok(0);
        }
        let mut prime = 2;
        while prime < LARGEST_FACTOR && prime * prime <= left {
            while left.is_multiple_of(prime * prime) {
                left /= prime * prime;
                root = self.times(root, self.integer(prime as i128));
            }
            if left.is_multiple_of(prime) {
                left /= prime;
                root = self.times(root, self.prime_root(prime)?);
            }
            prime += 1;
        }
        if left > 1 {
            // What has no small factor is a prime only below the square of the next one.
            if prime >= LARGEST_FACTOR && left >= LARGEST_FACTOR * LARGEST_FACTOR {
                return Err(Failed::Unsupported);
            }
            root = self.times(root, self.prime_root(left)?);
        }
        Ok(self.times(root, self.inverse(self.integer(value.denominator()))?))
    }

    /// One of the square roots of a prime, always the same (Tonelli 1891, Shanks 1973).
    fn prime_root(&self, of: u128) -> Result<u64, Failed> {
        let n = (of % u128::from(self.prime)) as u64;
        let order = self.prime - 1;
        if n == 0 || self.raise(n, u128::from(order / 2)) != 1 {
            return Err(Failed::Unsupported);
        }
        let twos = order.trailing_zeros();
        let odd = u128::from(order >> twos);
        let is_other = |z: &u64| self.raise(*z, u128::from(order / 2)) == order;
        let other = (2..1000).find(is_other).ok_or(Failed::Unsupported)?;
        let (mut generator, mut rest) = (self.raise(other, odd), self.raise(n, odd));
        let (mut found, mut height) = (self.raise(n, odd.div_ceil(2)), twos);
        while rest != 1 {
            let mut power = rest;
            let mut least = 0;
            while power != 1 && least < height {
                power = self.times(power, power);
                least += 1;
            }
            if least == 0 || least >= height {
                return Err(Failed::Unsupported);
            }
            let step = self.raise(generator, 1_u128 << (height - least - 1));
            (generator, height) = (self.times(step, step), least);
            (found, rest) = (self.times(found, step), self.times(rest, generator));
        }
        Ok(found)
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
    use super::*;

    #[test]
    fn fields_are_fields() {
        for (prime, root) in FIELDS {
            let field = Field { prime, root, trial: 0, sign: 1 };
            assert_eq!(field.times(root, root), prime - 1);
            for prime in [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43] {
                let root = field.prime_root(prime).unwrap();
                assert_eq!(u128::from(field.times(root, root)), prime);
            }
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
        let root = |n| Expression::Power(Box::new(Expression::integer(n)), Box::new(half.clone()));
        let product = Expression::Product(vec![root(2), root(3)]);
        assert_eq!(identical(&product, &root(6), 1), Some(true));
        assert_eq!(identical(&product, &root(7), 1), Some(false));
        // f64 cannot tell these apart.
        let large = Expression::Sum(vec![power(10, 30), root(2)]);
        assert_eq!(identical(&large, &power(10, 30), 1), Some(false));
        let nested = Expression::Power(Box::new(large.clone()), Box::new(half));
        assert_eq!(identical(&nested, &nested, 1), None);
    }
}
