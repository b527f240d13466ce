//! Values in f64, with how far they may be off: for what has roots, logarithms and the like in it.
//!
//! Complex numbers with principal branches, so that an identity that holds for some signs of a variable only is none.

use super::expression::{Expression, Function};
use std::f64::consts::{E, PI};

/// A complex number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

/// A value and a bound of its rounding errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Approximate {
    pub(super) value: Complex,
    pub(super) error: f64,
}

/// Where variables are evaluated: beside the sign of `±`, which of a few values each has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) trial: u64,
    pub(super) sign: f64,
    /// Whether variables are whole numbers, as factorials need them.
    pub(super) whole: bool,
}

impl Complex {
    const ONE: Self = Self { re: 1.0, im: 0.0 };

    fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    pub(super) fn size(self) -> f64 {
        self.re.hypot(self.im)
    }

    pub(super) fn is_finite(self) -> bool {
        self.re.is_finite() && self.im.is_finite()
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }

    fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    fn over(self, other: Self) -> Self {
        let square = other.re * other.re + other.im * other.im;
        let above = self.times(Self { re: other.re, im: -other.im });
        Self { re: above.re / square, im: above.im / square }
    }

    fn scaled(self, factor: f64) -> Self {
        Self { re: self.re * factor, im: self.im * factor }
    }

    fn ln(self) -> Self {
        Self { re: self.size().ln(), im: self.im.atan2(self.re) }
    }

    fn exp(self) -> Self {
        let size = self.re.exp();
        // The sine of zero is zero, but `∞ · 0` is not.
        if self.im == 0.0 {
            Self::real(size)
        } else {
            Self { re: size * self.im.cos(), im: size * self.im.sin() }
        }
    }

    fn sqrt(self) -> Self {
        if self.im == 0.0 {
            let root = self.re.abs().sqrt();
            return if self.re < 0.0 { Self { re: 0.0, im: root } } else { Self::real(root) };
        }
        self.ln().scaled(0.5).exp()
    }

    /// `sin` and `cos`.
    fn sine(self) -> (Self, Self) {
        let (sin, cos) = self.re.sin_cos();
        if self.im == 0.0 {
            return (Self::real(sin), Self::real(cos));
        }
        let (sinh, cosh) = (self.im.sinh(), self.im.cosh());
        (Self { re: sin * cosh, im: cos * sinh }, Self { re: cos * cosh, im: -sin * sinh })
    }
}

/// The value at a place; none where it has none, or is too large.
pub(super) fn value(expression: &Expression, place: Place) -> Option<Approximate> {
    let of = |part: &Expression| value(part, place);
    let exactly = |re: f64| Approximate { value: Complex::real(re), error: re.abs() * f64::EPSILON };
    let found = match expression {
        Expression::Number { value, .. } => exactly(value.value()),
        Expression::Long { digits, scale } => exactly(format!("{digits}e-{scale}").parse().ok()?),
        Expression::Symbol(name) => exactly(point(name, place)),
        Expression::Pi => exactly(PI),
        Expression::Euler => exactly(E),
        Expression::Imaginary => Approximate { value: Complex { re: 0.0, im: 1.0 }, error: f64::EPSILON },
        Expression::Infinity => return None,
        Expression::Sign { upper } => exactly(if *upper { place.sign } else { -place.sign }),
        Expression::Sum(parts) => parts.iter().try_fold(exactly(0.0), |sum, part| {
            let part = of(part)?;
            let total = sum.value.plus(part.value);
            Some(Approximate { value: total, error: sum.error + part.error + total.size() * f64::EPSILON })
        })?,
        Expression::Product(parts) => {
            parts.iter().try_fold(exactly(1.0), |product, part| Some(times(product, of(part)?)))?
        }
        Expression::Quotient(a, b) => over(of(a)?, of(b)?)?,
        Expression::Power(base, exponent) => power(of(base)?, of(exponent)?)?,
        Expression::Root(radicand, degree) => {
            let (radicand, degree) = (of(radicand)?, of(degree)?);
            let odd = degree.value.im == 0.0 && degree.value.re.rem_euclid(2.0) == 1.0;
            if degree.value == Complex::real(2.0) {
                sqrt(radicand)
            } else if odd && radicand.value.im == 0.0 && radicand.value.re < 0.0 {
                // The real root.
                let size = Approximate { value: radicand.value.scaled(-1.0), ..radicand };
                let root = power(size, over(exactly(1.0), degree)?)?;
                Approximate { value: root.value.scaled(-1.0), ..root }
            } else {
                power(radicand, over(exactly(1.0), degree)?)?
            }
        }
        Expression::Factorial(n) => {
            let n = whole(of(n)?)?;
            let value = (1..=n).map(f64::from).product::<f64>();
            Approximate { value: Complex::real(value), error: value * f64::from(n) * f64::EPSILON }
        }
        Expression::Binomial(n, k) => {
            let (n, k) = (f64::from(whole(of(n)?)?), whole(of(k)?)?);
            let factor = |i: u32| (n - f64::from(i)) / (f64::from(i) + 1.0);
            let value = (0..k).map(factor).product::<f64>();
            Approximate {
                value: Complex::real(value),
                error: value.abs() * 2.0 * f64::from(k) * f64::EPSILON,
            }
        }
        Expression::Apply(function, argument) => apply(*function, of(argument)?)?,
        Expression::Logarithm(base, argument) => {
            over(apply(Function::Ln, of(argument)?)?, apply(Function::Ln, of(base)?)?)?
        }
    };
    found.value.is_finite().then_some(found)
}

/// A small whole number.
fn whole(n: Approximate) -> Option<u32> {
    let re = n.value.re;
    (n.value.im == 0.0 && re.fract() == 0.0 && (0.0..=1000.0).contains(&re)).then_some(re as u32)
}

fn times(a: Approximate, b: Approximate) -> Approximate {
    let value = a.value.times(b.value);
    let (size_a, size_b) = (a.value.size(), b.value.size());
    let error = size_a * b.error + size_b * a.error + a.error * b.error + size_a * size_b * f64::EPSILON;
    Approximate { value, error }
}

fn over(a: Approximate, b: Approximate) -> Option<Approximate> {
    let size = b.value.size();
    // What may be zero for all that is known is nothing to divide by.
    if size <= b.error {
        return None;
    }
    let value = a.value.over(b.value);
    let error = (a.error + value.size() * b.error) / size + value.size() * 2.0 * f64::EPSILON;
    Some(Approximate { value, error })
}

fn sqrt(a: Approximate) -> Approximate {
    let value = a.value.sqrt();
    let error = if a.error < a.value.size() { a.error / value.size() } else { a.error.sqrt() };
    Approximate { value, error: error + value.size() * f64::EPSILON }
}

fn power(base: Approximate, exponent: Approximate) -> Option<Approximate> {
    if exponent.value == Complex::real(0.0) {
        return Some(Approximate { value: Complex::ONE, error: 0.0 });
    }
    if exponent.value == Complex::real(0.5) {
        return Some(sqrt(base));
    }
    let size = base.value.size();
    if size <= base.error {
        // Zero to a positive power is zero.
        let positive = size == 0.0 && exponent.value.re > 0.0;
        return positive.then_some(Approximate { value: base.value, error: 0.0 });
    }
    let re = exponent.value.re;
    if exponent.value.im == 0.0 && re.fract() == 0.0 && re.abs() <= 1e6 && base.value.im == 0.0 {
        let value = Complex::real(base.value.re.powi(re as i32));
        // A whole number that was written is exact.
        let written = exponent.error <= re.abs() * f64::EPSILON;
        let inexact = if written { 0.0 } else { exponent.error * base.value.ln().size() };
        let relative = re.abs() * (base.error / size + f64::EPSILON) + inexact;
        return Some(Approximate { value, error: value.size() * relative });
    }
    let value = base.value.ln().times(exponent.value).exp();
    let relative = exponent.value.size() * base.error / size
        + exponent.error * base.value.ln().size()
        + (1.0 + exponent.value.size() * base.value.ln().size()) * 4.0 * f64::EPSILON;
    Some(Approximate { value, error: value.size() * relative })
}

fn apply(function: Function, a: Approximate) -> Option<Approximate> {
    let x = a.value;
    let real = |f: fn(f64) -> f64| (x.im == 0.0).then(|| Complex::real(f(x.re)));
    // The value, and a bound of the derivative's size about it.
    let (value, slope) = match function {
        Function::Sin => (x.sine().0, x.sine().1.size() + a.error),
        Function::Cos => (x.sine().1, x.sine().0.size() + a.error),
        Function::Tan | Function::Cot | Function::Sec | Function::Csc => {
            let (sin, cos) = (apply(Function::Sin, a)?, apply(Function::Cos, a)?);
            let one = Approximate { value: Complex::ONE, error: 0.0 };
            return match function {
                Function::Tan => over(sin, cos),
                Function::Cot => over(cos, sin),
                Function::Sec => over(one, cos),
                _ => over(one, sin),
            };
        }
        Function::Arcsin | Function::Arccos => {
            let value = real(if function == Function::Arcsin { f64::asin } else { f64::acos })?;
            (value, 1.0 / (1.0 - x.re * x.re).abs().sqrt().max(1e-8))
        }
        Function::Arctan => (real(f64::atan)?, 1.0),
        Function::Sinh => (real(f64::sinh)?, x.re.cosh()),
        Function::Cosh => (real(f64::cosh)?, x.re.sinh().abs()),
        Function::Tanh => (real(f64::tanh)?, 1.0),
        Function::Exp => (x.exp(), x.exp().size()),
        Function::Ln => {
            if x.size() <= a.error {
                return None;
            }
            (x.ln(), 1.0 / x.size())
        }
        Function::Abs => (Complex::real(x.size()), 1.0),
        // Whatever is that near a whole number is one.
        Function::Floor => (Complex::real((x.re + a.error * 4.0).floor()), 0.0),
        Function::Ceil => (Complex::real((x.re - a.error * 4.0).ceil()), 0.0),
    };
    let step = matches!(function, Function::Floor | Function::Ceil);
    if step && x.im != 0.0 {
        return None;
    }
    Some(Approximate { value, error: slope * a.error + value.size() * 2.0 * f64::EPSILON })
}

/// Values of variables, of both signs and away from what is special.
fn point(name: &str, Place { trial, whole, .. }: Place) -> f64 {
    let hash = name.bytes().fold(trial.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x51, |hash, byte| {
        let mut z = (hash ^ u64::from(byte)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z ^= z >> 31;
        z.wrapping_mul(0x94D0_49BB_1331_11EB)
    });
    if whole {
        return 3.0 + (hash >> 11).rem_euclid(10) as f64;
    }
    let size = 0.3 + 2.4 * (hash >> 11) as f64 / (1_u64 << 53) as f64;
    // Trials of positive variables alone come first: many a function has no value at others.
    if trial >= 3 && hash & 1 == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(expression: &Expression) -> Approximate {
        value(expression, Place { trial: 0, sign: 1.0, whole: false }).unwrap()
    }

    fn root(n: i128) -> Expression {
        Expression::Root(Box::new(Expression::integer(n)), Box::new(Expression::integer(2)))
    }

    #[test]
    fn errors_bound_what_they_say() {
        // √2 · √3 − √6 = 0; √(5 + 2 √6) − √2 − √3 = 0.
        let zeros = [
            Expression::Sum(vec![Expression::Product(vec![root(2), root(3)]), root(6).negative()]),
            Expression::Sum(vec![
                Expression::Root(
                    Box::new(Expression::Sum(vec![
                        Expression::integer(5),
                        Expression::Product(vec![Expression::integer(2), root(6)]),
                    ])),
                    Box::new(Expression::integer(2)),
                ),
                root(2).negative(),
                root(3).negative(),
            ]),
        ];
        for zero in zeros {
            let found = of(&zero);
            assert!(found.value.size() <= 4.0 * found.error && found.error < 1e-13, "{found:?}");
        }
    }

    #[test]
    fn branches_are_principal() {
        let minus = of(&root(-4));
        assert_eq!(minus.value, Complex { re: 0.0, im: 2.0 });
        let cube = Expression::Root(Box::new(Expression::integer(-8)), Box::new(Expression::integer(3)));
        assert!((of(&cube).value.re + 2.0).abs() < 1e-14 && of(&cube).value.im == 0.0);
        // e^(iπ) = −1
        let euler = Expression::Power(
            Box::new(Expression::Euler),
            Box::new(Expression::Product(vec![Expression::Imaginary, Expression::Pi])),
        );
        assert!(of(&euler).value.minus(Complex::real(-1.0)).size() < 1e-14);
    }
}
