//! From tokens to an expression.
//!
//! Products and quotients are taken from left to right, written or not: `1/2x` is `x/2`. `2\frac13` and `2 1/3` are mixed numbers. Words
//! behind a number are its unit and dropped.

use super::brackets::DEEPEST;
use super::expression::{Expression, Function};
use super::leaves::{mixed, number, subscript_text, word};
use super::token::{Bracket, Token};

/// Reads all of `tokens[from..to]` as one expression.
pub(super) fn expression(tokens: &[Token], other: &[usize], from: usize, to: usize) -> Option<Expression> {
    let mut parser = Parser { tokens, other, at: from, to, depth: 0, in_angle: false };
    let found = parser.sum()?;
    (parser.at == to).then_some(found)
}

struct Parser<'a> {
    tokens: &'a [Token],
    other: &'a [usize],
    at: usize,
    to: usize,
    depth: usize,
    /// Whether degrees are an angle, the argument of a function.
    in_angle: bool,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens[..self.to].get(self.at)
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    /// What is between the bracket here and its end.
    fn inside(&mut self) -> Option<Expression> {
        let end = *self.other.get(self.at).filter(|end| **end < self.to)?;
        self.within(end)
    }

    /// What is between here and a token at `end`.
    fn within(&mut self, end: usize) -> Option<Expression> {
        if self.depth >= 2 * DEEPEST {
            return None;
        }
        let mut inner = Parser {
            at: self.at + 1,
            to: end,
            depth: self.depth + 1,
            in_angle: self.in_angle,
            tokens: self.tokens,
            other: self.other,
        };
        let found = inner.sum()?;
        let all = inner.at == end;
        self.at = end + 1;
        all.then_some(found)
    }

    fn sum(&mut self) -> Option<Expression> {
        let mut parts = Vec::new();
        loop {
            let mut negative = false;
            let mut sign = None;
            let mut signs = 0;
            loop {
                match self.peek() {
                    Some(Token::Plus) => {}
                    Some(Token::Minus) => negative = !negative,
                    Some(Token::PlusMinus) => sign = Some(Expression::Sign { upper: true }),
                    Some(Token::MinusPlus) => sign = Some(Expression::Sign { upper: false }),
                    _ => break,
                }
                signs += 1;
                self.at += 1;
            }
            if signs == 0 && !parts.is_empty() || signs > 3 {
                break;
            }
            let mut term = self.term()?;
            if negative {
                term = negated(term);
            }
            if let Some(sign) = sign {
                term = Expression::Product(vec![sign, term]);
            }
            parts.push(term);
        }
        if parts.len() == 1 { parts.pop() } else { Some(Expression::Sum(parts)) }
    }

    fn term(&mut self) -> Option<Expression> {
        let mut factors = vec![self.factor()?];
        let mut quotients = 0;
        loop {
            match self.peek() {
                Some(Token::Times) => {
                    self.at += 1;
                    factors.push(self.signed_factor()?);
                }
                Some(Token::Divide) => {
                    self.at += 1;
                    quotients += 1;
                    if quotients > DEEPEST {
                        return None;
                    }
                    let by = self.signed_factor()?;
                    let product = product(factors);
                    factors = vec![Expression::Quotient(Box::new(product), Box::new(by))];
                }
                Some(Token::Text(_)) => {
                    self.unit(&factors)?;
                    // What goes on behind words is a sentence: `3 more than x`, `5 ft 3 in`.
                    if self.peek().is_some_and(starts_factor) {
                        return None;
                    }
                }
                Some(token) if starts_factor(token) => {
                    let next = self.implicit(&mut factors)?;
                    factors.extend(next);
                }
                _ => break,
            }
        }
        Some(product(factors))
    }

    /// A factor that stands beside the last one.
    fn implicit(&mut self, factors: &mut Vec<Expression>) -> Option<Option<Expression>> {
        let previous = self.tokens.get(self.at.checked_sub(1)?)?;
        let after_number = matches!(previous, Token::Number { .. }) && factors.len() == 1;
        let whole = match factors.last() {
            Some(Expression::Number { value, decimal: false }) => value.as_integer().filter(|n| *n >= 0),
            _ => None,
        };
        // Two numbers side by side are a mixed number or nothing.
        if matches!(self.peek(), Some(Token::Number { .. })) && matches!(previous, Token::Number { .. }) {
            let (above, below) =
                match (self.number_at(self.at), self.tokens.get(self.at + 1), self.number_at(self.at + 2)) {
                    (Some(above), Some(Token::Divide), Some(below)) if self.at + 3 <= self.to => {
                        (above, below)
                    }
                    _ => return None,
                };
            let mixed = mixed(whole.filter(|_| after_number)?, above, below)?;
            self.at += 3;
            *factors = vec![self.behind(mixed)?];
            return Some(None);
        }
        let fraction = self.peek() == Some(&Token::Frac);
        let next = self.primary()?;
        if fraction
            && after_number
            && let (Some(whole), Expression::Quotient(above, below)) = (whole, &next)
            && let (Expression::Number { value: above, .. }, Expression::Number { value: below, .. }) =
                (&**above, &**below)
            && let Some(mixed) = mixed(whole, above.as_integer()?, below.as_integer()?)
        {
            *factors = vec![self.behind(mixed)?];
            return Some(None);
        }
        self.behind(next).map(Some)
    }

    fn number_at(&self, at: usize) -> Option<i128> {
        match self.tokens[..self.to].get(at)? {
            Token::Number { digits, scale: None } => digits.parse().ok(),
            _ => None,
        }
    }

    /// Drops words behind a number, with their powers and what they are divided by.
    fn unit(&mut self, factors: &[Expression]) -> Option<()> {
        if factors.iter().any(|factor| !factor.symbols().is_empty()) {
            return None;
        }
        loop {
            match self.peek() {
                Some(Token::Text(_)) => self.at += 1,
                Some(Token::Power) => {
                    self.at += 1;
                    self.take(&Token::Minus);
                    self.primary()?;
                }
                Some(Token::Divide | Token::Times)
                    if matches!(
                        self.tokens[..self.to].get(self.at + 1),
                        Some(Token::Text(_) | Token::Symbol(_))
                    ) =>
                {
                    self.at += 2;
                }
                _ => return Some(()),
            }
        }
    }

    fn signed_factor(&mut self) -> Option<Expression> {
        let mut negative = false;
        while let Some(Token::Minus | Token::Plus) = self.peek() {
            negative ^= self.take(&Token::Minus) || !self.take(&Token::Plus);
        }
        let factor = self.factor()?;
        Some(if negative { negated(factor) } else { factor })
    }

    /// A primary with what stands behind it.
    fn factor(&mut self) -> Option<Expression> {
        let found = self.primary()?;
        self.behind(found)
    }

    /// With its exponents, factorials, percents, degrees and subscripts.
    fn behind(&mut self, mut found: Expression) -> Option<Expression> {
        // Each makes the expression one level deeper.
        for _ in 0..DEEPEST {
            match self.peek() {
                Some(Token::Power) => {
                    self.at += 1;
                    let exponent = self.exponent()?;
                    found = Expression::Power(Box::new(found), Box::new(exponent));
                }
                Some(Token::Factorial) => {
                    self.at += 1;
                    found = Expression::Factorial(Box::new(found));
                }
                Some(Token::Percent) => {
                    self.at += 1;
                    found = found.percent();
                }
                Some(Token::Degree) => {
                    self.at += 1;
                    // `°C` and `°F` are units.
                    if let Some(Token::Symbol(name)) = self.peek()
                        && matches!(name.as_str(), "C" | "F")
                    {
                        self.at += 1;
                    }
                    if self.in_angle {
                        let degree = Expression::Quotient(
                            Box::new(Expression::Pi),
                            Box::new(Expression::integer(180)),
                        );
                        found = Expression::Product(vec![found, degree]);
                    }
                }
                Some(Token::Under) => {
                    self.at += 1;
                    let below = self.subscript()?;
                    found = match found {
                        Expression::Symbol(name) => Expression::Symbol(format!("{name}_{below}")),
                        Expression::Number { value, decimal: false } => {
                            // Digits in another base are what they are.
                            Expression::Symbol(format!("{}_{below}", value.as_integer()?))
                        }
                        _ => return None,
                    };
                }
                Some(Token::Prime) => {
                    self.at += 1;
                    let Expression::Symbol(name) = found else { return None };
                    found = Expression::Symbol(format!("{name}'"));
                }
                _ => return Some(found),
            }
        }
        None
    }

    fn exponent(&mut self) -> Option<Expression> {
        if self.depth >= 2 * DEEPEST {
            return None;
        }
        self.depth += 1;
        let negative = self.take(&Token::Minus);
        let base = self.primary()?;
        // Powers of powers are taken from the right.
        let found = if self.take(&Token::Power) {
            Expression::Power(Box::new(base), Box::new(self.exponent()?))
        } else {
            base
        };
        self.depth -= 1;
        Some(if negative { negated(found) } else { found })
    }

    fn subscript(&mut self) -> Option<String> {
        let (from, to) = match self.peek()? {
            Token::Open(Bracket::Group) => (self.at + 1, *self.other.get(self.at)?),
            _ => (self.at, self.at + 1),
        };
        let name = self.tokens.get(from..to)?.iter().map(subscript_text).collect::<Option<String>>()?;
        self.at = if from > self.at { to + 1 } else { to };
        (self.at <= self.to).then_some(name)
    }

    fn argument(&mut self) -> Option<Expression> {
        match self.peek()? {
            Token::Open(Bracket::Group) => self.inside(),
            _ => self.primary(),
        }
    }

    fn primary(&mut self) -> Option<Expression> {
        let token = self.peek()?.clone();
        if let Token::Open(bracket) = token {
            let found = match bracket {
                Bracket::Floor => Expression::Apply(Function::Floor, Box::new(self.inside()?)),
                Bracket::Ceil => Expression::Apply(Function::Ceil, Box::new(self.inside()?)),
                Bracket::Brace | Bracket::Angle => return None,
                _ => self.inside()?,
            };
            return Some(found);
        }
        self.at += 1;
        Some(match token {
            Token::Number { digits, scale } => number(digits, scale),
            Token::Fraction(value) => Expression::Number { value, decimal: false },
            Token::Symbol(name) => Expression::Symbol(name),
            Token::Text(words) => Expression::Symbol(word(&words)),
            Token::Pi => Expression::Pi,
            Token::Euler => Expression::Euler,
            Token::Imaginary => Expression::Imaginary,
            Token::Infinity => Expression::Infinity,
            Token::Frac => {
                let (above, below) = (self.nested()?, self.nested()?);
                Expression::Quotient(Box::new(above), Box::new(below))
            }
            Token::Binom => {
                let (above, below) = (self.nested()?, self.nested()?);
                Expression::Binomial(Box::new(above), Box::new(below))
            }
            Token::Sqrt => {
                let degree = if self.peek() == Some(&Token::Open(Bracket::Square)) {
                    self.inside()?
                } else {
                    Expression::integer(2)
                };
                Expression::Root(Box::new(self.nested()?), Box::new(degree))
            }
            Token::Function(function) => self.function(function)?,
            Token::Log => {
                let base = if self.take(&Token::Under) { self.nested()? } else { Expression::integer(10) };
                let argument = self.function_argument()?;
                Expression::Logarithm(Box::new(base), Box::new(argument))
            }
            Token::LogOf(base) => {
                let argument = self.function_argument()?;
                Expression::Logarithm(Box::new(Expression::integer(i128::from(base))), Box::new(argument))
            }
            Token::Bar => {
                let end = (self.at..self.to).find(|&at| self.tokens[at] == Token::Bar)?;
                self.at -= 1;
                Expression::Apply(Function::Abs, Box::new(self.within(end)?))
            }
            _ => return None,
        })
    }

    /// An argument that may have no braces, one level deeper.
    fn nested(&mut self) -> Option<Expression> {
        if self.depth >= 2 * DEEPEST {
            return None;
        }
        self.depth += 1;
        let found = self.argument();
        self.depth -= 1;
        found
    }

    fn function(&mut self, function: Function) -> Option<Expression> {
        let power = if self.take(&Token::Power) { Some(self.exponent()?) } else { None };
        let angle = self.in_angle;
        self.in_angle = function.is_trigonometric();
        let argument = self.function_argument();
        self.in_angle = angle;
        let argument = Box::new(argument?);
        let minus_one = Some(Expression::integer(-1));
        if power == minus_one
            && let Some(inverse) = function.inverse()
        {
            return Some(Expression::Apply(inverse, argument));
        }
        let applied = Expression::Apply(function, argument);
        Some(match power {
            Some(power) => Expression::Power(Box::new(applied), Box::new(power)),
            None => applied,
        })
    }

    /// In brackets, or all factors up to a sign or another function: `\sin 2x`.
    fn function_argument(&mut self) -> Option<Expression> {
        if self.depth >= 2 * DEEPEST {
            return None;
        }
        self.depth += 1;
        let found = if matches!(self.peek()?, Token::Open(_) | Token::Bar) {
            self.primary()?
        } else {
            let mut factors = vec![self.signed_factor()?];
            while let Some(token) = self.peek() {
                let function =
                    matches!(token, Token::Function(_) | Token::Log | Token::LogOf(_) | Token::Open(_));
                if function || !starts_factor(token) {
                    break;
                }
                factors.push(self.factor()?);
            }
            product(factors)
        };
        self.depth -= 1;
        Some(found)
    }
}

fn product(mut factors: Vec<Expression>) -> Expression {
    match factors.pop() {
        Some(last) if factors.is_empty() => last,
        Some(last) => {
            factors.push(last);
            Expression::Product(factors)
        }
        None => Expression::integer(1),
    }
}

/// `−a`, where the sign of a product goes to its first factor: `−2x` is `(−2)x`.
fn negated(expression: Expression) -> Expression {
    match expression {
        Expression::Product(mut factors) if matches!(factors.first(), Some(Expression::Number { .. })) => {
            let first = factors.remove(0).negative();
            factors.insert(0, first);
            Expression::Product(factors)
        }
        other => other.negative(),
    }
}

fn starts_factor(token: &Token) -> bool {
    matches!(
        token,
        Token::Number { .. }
            | Token::Fraction(_)
            | Token::Symbol(_)
            | Token::Pi
            | Token::Euler
            | Token::Imaginary
            | Token::Infinity
            | Token::Open(Bracket::Round | Bracket::Square | Bracket::Group | Bracket::Floor | Bracket::Ceil)
            | Token::Frac
            | Token::Binom
            | Token::Sqrt
            | Token::Function(_)
            | Token::Log
            | Token::LogOf(_)
    )
}
