//! Whether two answers are equal.

use super::expression::Expression;
use super::finite;
use super::numeric::{self, Approximate, Place};
use super::rational::Rational;
use super::token::Relation;
use super::value::Value;

/// Larger collections are compared in their order.
const LARGEST_UNORDERED: usize = 100;
/// Points at which functions are compared, and at how many of them both must have a value.
const POINTS: u64 = 8;
const NEEDED: usize = 3;

/// Whether `b` is the right answer `a`. Reflexive, and symmetric but for equations: `m + n = 3` gives 3, and 3 gives no line
/// `x + y = 3`.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    if a == b {
        return true;
    }
    match (a, b) {
        (Value::Chain(..), Value::Chain(..)) => return chains(a, b),
        (Value::Chain(parts, relations), _) => {
            if let Some(value) = unwrapped(parts, relations, false) {
                return equal(&Value::Expression(value), b);
            }
            return interval(parts, relations).is_some_and(|range| equal(&range, b));
        }
        (_, Value::Chain(parts, relations)) => {
            if let Some(value) = unwrapped(parts, relations, true) {
                return equal(a, &Value::Expression(value));
            }
            return interval(parts, relations).is_some_and(|range| equal(a, &range));
        }
        _ => {}
    }
    let (a, b) = (signs_apart(a), signs_apart(b));
    match (&a, &b) {
        (Value::Expression(a), Value::Expression(b)) => expressions(a, b),
        (Value::Matrix(a), Value::Matrix(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| expressions(a, b)))
        }
        // One element is as good as the set of it.
        (Value::Set(items) | Value::List(items), Value::Expression(_)) => {
            matches!(items.as_slice(), [one] if equal(one, &b))
        }
        (Value::Expression(_), Value::Set(items) | Value::List(items)) => {
            matches!(items.as_slice(), [one] if equal(&a, one))
        }
        (Value::Set(a) | Value::List(a), Value::Set(b) | Value::List(b))
        | (Value::Union(a), Value::Union(b)) => unordered(a, b),
        (Value::Tuple(a), Value::Tuple(b) | Value::List(b)) | (Value::List(a), Value::Tuple(b)) => {
            ordered(a, b)
        }
        (
            Value::Interval { low, high, low_closed, high_closed },
            Value::Interval {
                low: low_b,
                high: high_b,
                low_closed: low_closed_b,
                high_closed: high_closed_b,
            },
        ) => {
            (low_closed, high_closed) == (low_closed_b, high_closed_b)
                && expressions(low, low_b)
                && expressions(high, high_b)
        }
        (Value::Interval { low, high, low_closed: false, high_closed: false }, Value::Tuple(ends))
        | (Value::Tuple(ends), Value::Interval { low, high, low_closed: false, high_closed: false }) => {
            match ends.as_slice() {
                [Value::Expression(from), Value::Expression(to)] => {
                    expressions(low, from) && expressions(high, to)
                }
                _ => false,
            }
        }
        _ => false,
    }
}

fn ordered(a: &[Value], b: &[Value]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
}

fn unordered(a: &[Value], b: &[Value]) -> bool {
    if a.len() != b.len() || ordered(a, b) {
        return a.len() == b.len();
    }
    if a.len() > LARGEST_UNORDERED {
        return false;
    }
    let mut left: Vec<&Value> = b.iter().collect();
    a.iter().all(|item| {
        let found = left.iter().position(|other| equal(item, other));
        found.map(|at| left.swap_remove(at)).is_some()
    })
}

/// `a ± b` as the list of both.
fn signs_apart(value: &Value) -> Value {
    let both = |expression: &Expression| -> Vec<Value> {
        if expression.has(&|part| matches!(part, Expression::Sign { .. })) {
            [1, -1].map(|sign| Value::Expression(with_sign(expression, sign))).into()
        } else {
            vec![Value::Expression(expression.clone())]
        }
    };
    match value {
        Value::Expression(expression) => {
            let mut both = both(expression);
            if both.len() == 1 { both.remove(0) } else { Value::List(both) }
        }
        Value::List(items) => Value::List(apart(items, both)),
        Value::Set(items) => Value::Set(apart(items, both)),
        other => other.clone(),
    }
}

fn apart(items: &[Value], both: impl Fn(&Expression) -> Vec<Value>) -> Vec<Value> {
    let each = |item: &Value| match item {
        Value::Expression(expression) => both(expression),
        other => vec![other.clone()],
    };
    items.iter().flat_map(each).collect()
}

fn with_sign(expression: &Expression, sign: i128) -> Expression {
    let of = |part: &Expression| with_sign(part, sign);
    let boxed = |part: &Expression| Box::new(with_sign(part, sign));
    match expression {
        Expression::Sign { upper } => Expression::integer(if *upper { sign } else { -sign }),
        Expression::Sum(parts) => Expression::Sum(parts.iter().map(of).collect()),
        Expression::Product(parts) => Expression::Product(parts.iter().map(of).collect()),
        Expression::Quotient(a, b) => Expression::Quotient(boxed(a), boxed(b)),
        Expression::Power(a, b) => Expression::Power(boxed(a), boxed(b)),
        Expression::Root(a, b) => Expression::Root(boxed(a), boxed(b)),
        Expression::Binomial(a, b) => Expression::Binomial(boxed(a), boxed(b)),
        Expression::Logarithm(a, b) => Expression::Logarithm(boxed(a), boxed(b)),
        Expression::Factorial(a) => Expression::Factorial(boxed(a)),
        Expression::Apply(function, a) => Expression::Apply(*function, boxed(a)),
        other => other.clone(),
    }
}

/// What an equation says something is: the last side of `x = … = 3`, of sides that are all equal and, of a given answer, also the
/// number on the right of `m + n = 3`.
fn unwrapped(parts: &[Expression], relations: &[Relation], given: bool) -> Option<Expression> {
    let equation = relations.iter().all(|relation| *relation == Relation::Equal);
    let (first, last) = (parts.first()?, parts.last()?);
    let value = || given && !first.symbols().is_empty() && last.symbols().is_empty();
    let consistent = || parts.iter().all(|part| expressions(part, last));
    (equation && (first.only_symbols() || value() || consistent())).then(|| last.clone())
}

/// What an inequality of one variable says where that lies.
fn interval(parts: &[Expression], relations: &[Relation]) -> Option<Value> {
    let is_name = |part: &Expression| matches!(part, Expression::Symbol(_));
    let infinite = || Box::new(Expression::Infinity);
    let minus_infinite = || Box::new(Expression::Infinity.negative());
    let range = |low, high, low_closed, high_closed| Value::Interval { low, high, low_closed, high_closed };
    let boxed = |part: &Expression| Box::new(part.clone());
    match (parts, relations) {
        ([left, right], [relation]) => {
            let (end, relation) = if is_name(left) {
                (right, *relation)
            } else if is_name(right) {
                (left, turned(*relation))
            } else {
                return None;
            };
            let found = match relation {
                Relation::Less => range(minus_infinite(), boxed(end), false, false),
                Relation::LessEqual => range(minus_infinite(), boxed(end), false, true),
                Relation::Greater => range(boxed(end), infinite(), false, false),
                Relation::GreaterEqual => range(boxed(end), infinite(), true, false),
                Relation::NotEqual => Value::Union(vec![
                    range(minus_infinite(), boxed(end), false, false),
                    range(boxed(end), infinite(), false, false),
                ]),
                Relation::Equal | Relation::About => return None,
            };
            Some(found)
        }
        ([low, name, high], [first, second]) if is_name(name) => {
            use Relation::{Greater, GreaterEqual, Less, LessEqual};
            match (first, second) {
                (Less | LessEqual, Less | LessEqual) => {
                    Some(range(boxed(low), boxed(high), *first == LessEqual, *second == LessEqual))
                }
                (Greater | GreaterEqual, Greater | GreaterEqual) => {
                    Some(range(boxed(high), boxed(low), *second == GreaterEqual, *first == GreaterEqual))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The relation with its sides changed.
fn turned(relation: Relation) -> Relation {
    match relation {
        Relation::Less => Relation::Greater,
        Relation::LessEqual => Relation::GreaterEqual,
        Relation::Greater => Relation::Less,
        Relation::GreaterEqual => Relation::LessEqual,
        other => other,
    }
}

/// Two equations or inequalities.
fn chains(a: &Value, b: &Value) -> bool {
    let (Value::Chain(parts_a, relations_a), Value::Chain(parts_b, relations_b)) = (a, b) else {
        return false;
    };
    // `x = 1 + 2 = 3` says `x = 3`.
    let ends = |parts: &[Expression], relations: &[Relation]| -> Option<(Expression, Expression)> {
        let assignment = relations.iter().all(|r| *r == Relation::Equal) && parts.first()?.only_symbols();
        assignment.then(|| Some((parts.first()?.clone(), parts.last()?.clone())))?
    };
    if let (Some((name_a, value_a)), Some((name_b, value_b))) =
        (ends(parts_a, relations_a), ends(parts_b, relations_b))
        && expressions(&name_a, &name_b)
    {
        return expressions(&value_a, &value_b);
    }
    let pairs = |parts: &[Expression], relations: &[Relation]| -> Vec<(Expression, Relation, Expression)> {
        (0..relations.len()).map(|i| (parts[i].clone(), relations[i], parts[i + 1].clone())).collect()
    };
    let (pairs_a, mut pairs_b) = (pairs(parts_a, relations_a), pairs(parts_b, relations_b));
    let all = |pairs_b: &[(Expression, Relation, Expression)]| {
        pairs_a.len() == pairs_b.len() && pairs_a.iter().zip(pairs_b).all(|(a, b)| relation(a, b))
    };
    all(&pairs_b) || {
        pairs_b.reverse();
        all(&pairs_b)
    }
}

/// `a − b R 0` is the same as `c − d S 0`.
fn relation(a: &(Expression, Relation, Expression), b: &(Expression, Relation, Expression)) -> bool {
    let difference =
        |left: &Expression, right: &Expression| Expression::Sum(vec![left.clone(), right.clone().negative()]);
    let upward = |(left, relation, right): &(Expression, Relation, Expression)| match relation {
        Relation::Less | Relation::LessEqual => (difference(right, left), turned(*relation)),
        other => (difference(left, right), *other),
    };
    let ((a, relation_a), (b, relation_b)) = (upward(a), upward(b));
    if relation_a != relation_b {
        return false;
    }
    let directed = matches!(relation_a, Relation::Greater | Relation::GreaterEqual);
    let ratio = |trial| {
        let place = Place { trial, sign: 1.0, whole: false };
        let (a, b) = (numeric::value(&a, place)?, numeric::value(&b, place)?);
        let real = a.value.im == 0.0 && b.value.im == 0.0 && b.value.size() > b.error;
        real.then(|| a.value.re / b.value.re).filter(|ratio| !directed || *ratio > 0.0)
    };
    match finite::proportional(&a, &b) {
        Some(false) => false,
        Some(true) => !directed || (0..POINTS).find_map(ratio).is_some(),
        None => {
            let ratios: Vec<f64> = (0..POINTS).filter_map(ratio).collect();
            let near = |ratio: &f64| (ratio - ratios[0]).abs() <= 1e-10 * ratios[0].abs();
            ratios.len() >= NEEDED && ratios.iter().all(near)
        }
    }
}

/// Letters of a symbol or a product of symbols, in order; whether it is one word.
fn letters(expression: &Expression) -> Option<(String, bool)> {
    let letter = |part: &Expression| match part {
        Expression::Symbol(name) => Some(name.clone()),
        Expression::Euler => Some("e".to_owned()),
        Expression::Imaginary => Some("i".to_owned()),
        _ => None,
    };
    match expression {
        Expression::Product(parts) => Some((parts.iter().map(letter).collect::<Option<String>>()?, false)),
        other => letter(other).map(|name| (name, true)),
    }
}

fn expressions(a: &Expression, b: &Expression) -> bool {
    if a == b {
        return true;
    }
    if a.infinite().is_some() || b.infinite().is_some() {
        return a.infinite() == b.infinite();
    }
    if let (Some((word_a, whole_a)), Some((word_b, whole_b))) = (letters(a), letters(b)) {
        // A word beside its letters as a product, or two spellings of a word that is too long for a product.
        let alike = word_a.to_lowercase() == word_b.to_lowercase();
        let count = word_a.chars().count();
        if alike && count > 1 && (whole_a || whole_b || count >= 4) {
            return true;
        }
    }
    let exact = (a.exact(1), b.exact(1));
    if a.is_decimal() || b.is_decimal() {
        return rounded(a, b, exact);
    }
    if let (Some(a), Some(b)) = exact {
        return a == b;
    }
    if let Some(same) = finite::identical(a, b, 1) {
        return same;
    }
    at_points(a, b)
}

/// Equal when rounded to five decimals, and within 1 % of each other.
fn rounded(a: &Expression, b: &Expression, exact: (Option<Rational>, Option<Rational>)) -> bool {
    if !a.symbols().is_empty() || !b.symbols().is_empty() {
        return false;
    }
    if let (Some(a), Some(b)) = exact {
        if a == b {
            return true;
        }
        if let (Some(a_units), Some(b_units)) = (units(a), units(b)) {
            return a_units == b_units && near(a.value(), b.value());
        }
    }
    let long = [a, b].iter().any(|number| matches!(number, Expression::Long { .. }));
    if long && finite::identical(a, b, 1) == Some(true) {
        return true;
    }
    let place = Place { trial: 0, sign: 1.0, whole: false };
    match (numeric::value(a, place), numeric::value(b, place)) {
        (Some(a), Some(b)) => {
            let units = |x: f64| (x * 1e5).round_ties_even();
            units(a.value.re) == units(b.value.re)
                && units(a.value.im) == units(b.value.im)
                // Above this f64 has no five decimals, and the numbers were not identical.
                && a.value.size() < 1e10
                && near(a.value.re, b.value.re)
        }
        _ => false,
    }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.01 * a.abs().max(b.abs())
}

/// `value · 10^5`, rounded half to even.
fn units(value: Rational) -> Option<i128> {
    let scaled = value.times(Rational::integer(100_000))?;
    let (n, d) = (scaled.numerator(), scaled.denominator());
    let (below, rest) = (n.div_euclid(d), n.rem_euclid(d));
    let up = match rest.cmp(&(d - rest)) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => below % 2 != 0,
        std::cmp::Ordering::Greater => true,
    };
    Some(below + i128::from(up))
}

/// Equal within rounding wherever both have a value, and at the same points; with factorials of variables, at whole ones.
fn at_points(a: &Expression, b: &Expression) -> bool {
    let constant = a.symbols().is_empty() && b.symbols().is_empty();
    let (trials, needed) = if constant { (1, 1) } else { (POINTS, NEEDED) };
    let counts = |part: &Expression| matches!(part, Expression::Factorial(_) | Expression::Binomial(..));
    let whole = !constant && (a.has(&counts) || b.has(&counts));
    let mut compared = 0;
    for trial in 0..trials {
        let place = Place { trial, sign: 1.0, whole };
        match (numeric::value(a, place), numeric::value(b, place)) {
            (Some(a), Some(b)) if within_errors(a, b) => compared += 1,
            (None, None) => {}
            // `(n − k)!` has no value at every pair.
            (None, _) | (_, None) if whole => {}
            _ => return false,
        }
    }
    compared >= needed
}

fn within_errors(a: Approximate, b: Approximate) -> bool {
    let size = a.value.size().max(b.value.size());
    let error = 8.0 * (a.error + b.error);
    // What rounding may have eaten up says nothing.
    error <= 1e-6 * size.max(1.0) && a.value.minus(b.value).size() <= error
}
