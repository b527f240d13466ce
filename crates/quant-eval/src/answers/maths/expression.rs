//! What is left of an answer when it was read: numbers, symbols, and what is done with them.

use super::rational::Rational;
use std::collections::BTreeSet;

/// Functions of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Exp,
    Ln,
    Abs,
    Floor,
    Ceil,
}

impl Function {
    pub(super) fn is_trigonometric(self) -> bool {
        matches!(self, Self::Sin | Self::Cos | Self::Tan | Self::Cot | Self::Sec | Self::Csc)
    }

    pub(super) fn inverse(self) -> Option<Self> {
        match self {
            Self::Sin => Some(Self::Arcsin),
            Self::Cos => Some(Self::Arccos),
            Self::Tan => Some(Self::Arctan),
            _ => None,
        }
    }
}

/// An expression. Its depth is bounded by the parser, so that functions over it may recur.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expression {
    /// A number that 128 bits hold, and whether it was written with a decimal point.
    Number {
        value: Rational,
        decimal: bool,
    },
    /// `digits · 10^-scale` with more digits.
    Long {
        digits: String,
        scale: u32,
    },
    Symbol(String),
    Pi,
    Euler,
    Imaginary,
    Infinity,
    /// `±1`, or `∓1`.
    Sign {
        upper: bool,
    },
    Sum(Vec<Self>),
    Product(Vec<Self>),
    Quotient(Box<Self>, Box<Self>),
    Power(Box<Self>, Box<Self>),
    /// Radicand and degree.
    Root(Box<Self>, Box<Self>),
    Factorial(Box<Self>),
    Binomial(Box<Self>, Box<Self>),
    Apply(Function, Box<Self>),
    /// Base and argument.
    Logarithm(Box<Self>, Box<Self>),
}

impl Expression {
    pub(super) fn integer(value: i128) -> Self {
        Self::Number { value: Rational::integer(value), decimal: false }
    }

    pub(super) fn negative(self) -> Self {
        match self {
            Self::Number { value, decimal } if value.negative().is_some() => {
                Self::Number { value: value.negative().unwrap_or(value), decimal }
            }
            other => Self::Product(vec![Self::integer(-1), other]),
        }
    }

    /// `self / 100`.
    pub(super) fn percent(self) -> Self {
        if let Self::Number { value, decimal } = self
            && let Some(value) = value.over(Rational::integer(100))
        {
            return Self::Number { value, decimal };
        }
        Self::Quotient(Box::new(self), Box::new(Self::integer(100)))
    }

    /// Whether it is one number with a decimal point.
    pub(super) fn is_decimal(&self) -> bool {
        matches!(self, Self::Number { decimal: true, .. } | Self::Long { scale: 1.., .. })
    }

    fn parts(&self) -> Vec<&Self> {
        match self {
            Self::Sum(parts) | Self::Product(parts) => parts.iter().collect(),
            Self::Quotient(a, b)
            | Self::Power(a, b)
            | Self::Root(a, b)
            | Self::Binomial(a, b)
            | Self::Logarithm(a, b) => vec![a, b],
            Self::Factorial(a) | Self::Apply(_, a) => vec![a],
            _ => Vec::new(),
        }
    }

    pub(super) fn has(&self, wanted: &dyn Fn(&Self) -> bool) -> bool {
        wanted(self) || self.parts().into_iter().any(|part| part.has(wanted))
    }

    pub(super) fn symbols(&self) -> BTreeSet<&str> {
        match self {
            Self::Symbol(name) => BTreeSet::from([name.as_str()]),
            other => other.parts().into_iter().flat_map(Self::symbols).collect(),
        }
    }

    /// Whether it is a symbol or a product of symbols: what stands on the left of an assignment, `f(x)` included.
    pub(super) fn only_symbols(&self) -> bool {
        match self {
            Self::Symbol(_) | Self::Euler | Self::Imaginary => true,
            Self::Product(parts) => parts.iter().all(Self::only_symbols),
            _ => false,
        }
    }

    /// `+1` or `−1` where it is infinite as a whole.
    pub(super) fn infinite(&self) -> Option<bool> {
        match self {
            Self::Infinity => Some(true),
            Self::Product(parts) => match parts.as_slice() {
                [Self::Number { value, .. }, Self::Infinity] => Some(!value.is_negative()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Its value with `sign` for `±1`, where it is rational and every step fits 128 bits.
    pub(super) fn exact(&self, sign: i128) -> Option<Rational> {
        let of = |part: &Self| part.exact(sign);
        match self {
            Self::Number { value, .. } => Some(*value),
            Self::Sign { upper } => Some(Rational::integer(if *upper { sign } else { -sign })),
            Self::Sum(parts) => parts.iter().try_fold(Rational::integer(0), |sum, part| sum.plus(of(part)?)),
            Self::Product(parts) => {
                parts.iter().try_fold(Rational::ONE, |product, part| product.times(of(part)?))
            }
            Self::Quotient(a, b) => of(a)?.over(of(b)?),
            Self::Power(base, exponent) => {
                let exponent = of(exponent)?;
                let degree = u32::try_from(exponent.denominator()).ok()?;
                let base = of(base)?;
                // A root of a negative number is the real one only where it is written as a root.
                if degree > 1 && base.is_negative() {
                    return None;
                }
                base.root(degree)?.power(exponent.numerator())
            }
            Self::Root(radicand, degree) => {
                of(radicand)?.root(u32::try_from(of(degree)?.as_integer()?).ok()?)
            }
            Self::Factorial(n) => {
                let n = of(n)?.as_integer().filter(|n| (0..=34).contains(n))?;
                (1..=n).try_fold(1_i128, i128::checked_mul).map(Rational::integer)
            }
            Self::Binomial(n, k) => {
                binomial(of(n)?.as_integer()?, of(k)?.as_integer()?).map(Rational::integer)
            }
            Self::Apply(function, of_what) => {
                let value = of(of_what)?;
                match function {
                    Function::Abs if value.is_negative() => value.negative(),
                    Function::Abs => Some(value),
                    Function::Floor => {
                        Some(Rational::integer(value.numerator().div_euclid(value.denominator())))
                    }
                    Function::Ceil => {
                        let below = value.negative()?;
                        Rational::integer(below.numerator().div_euclid(below.denominator())).negative()
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

fn binomial(n: i128, k: i128) -> Option<i128> {
    if !(0..=100_000).contains(&n) || !(0..=n).contains(&k) {
        return None;
    }
    (0..k.min(n - k)).try_fold(1_i128, |value, i| Some(value.checked_mul(n - i)? / (i + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: i128, d: i128) -> Expression {
        Expression::Number { value: Rational::new(n, d).unwrap(), decimal: false }
    }

    #[test]
    fn exact_values() {
        let boxed = |e| Box::new(e);
        let cases = [
            (Expression::Sum(vec![number(1, 2), number(1, 3)]), Rational::new(5, 6)),
            (Expression::Power(boxed(number(9, 4)), boxed(number(-3, 2))), Rational::new(8, 27)),
            (Expression::Power(boxed(number(-8, 1)), boxed(number(1, 3))), None),
            (Expression::Root(boxed(number(-8, 1)), boxed(number(3, 1))), Rational::new(-2, 1)),
            (Expression::Factorial(boxed(number(5, 1))), Rational::new(120, 1)),
            (Expression::Factorial(boxed(number(35, 1))), None),
            (Expression::Binomial(boxed(number(10, 1)), boxed(number(3, 1))), Rational::new(120, 1)),
            (Expression::Apply(Function::Floor, boxed(number(-7, 2))), Rational::new(-4, 1)),
            (Expression::Apply(Function::Ceil, boxed(number(-7, 2))), Rational::new(-3, 1)),
            (Expression::Pi, None),
        ];
        for (expression, value) in cases {
            assert_eq!(expression.exact(1), value, "{expression:?}");
        }
        assert_eq!(Expression::Sign { upper: false }.exact(1), Rational::new(-1, 1));
        assert_eq!(Expression::Infinity.negative().infinite(), Some(false));
    }
}
