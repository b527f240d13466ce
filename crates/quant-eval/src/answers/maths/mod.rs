//! Mathematical answers: read, and compared.
//!
//! # What is read
//!
//! Numbers (thousands, decimals, repeating decimals, percents, currencies, units), `+ − · / ^ !` with products that are not written,
//! fractions in every form, mixed numbers, roots, binomials, π, e, i, ∞, absolute values, floors, trigonometric and other elementary
//! functions, symbols with subscripts, `±`, lists, tuples, sets, intervals and their unions, matrices, equations and inequalities,
//! words. Of text that is none of these, its form without spaces and appearance is compared.
//!
//! # When two are equal
//!
//! In the order of the published protocol (LightEval's extractive match): assignments are unwrapped, then equal structure, relations,
//! collections, symbols, numbers, and identity as functions. In detail:
//!
//! * where either is a number with a decimal point, both are rounded to five decimals; beyond the protocol they must also agree within
//!   1 % of each other, so that `0.000003` is not `0.000004`;
//! * rational expressions of any size, with square roots of rational numbers, are compared exactly, in finite fields
//!   (`finite.rs`), others by their values at a few points,
//!   complex and of both signs, or whole where there are factorials, within the rounding errors of f64 (`numeric.rs`): two constants that agree to 14 digits are the same;
//! * `n %` is `n / 100` and nothing else: `20 %` is not 20;
//! * a set in braces is no tuple; a list without brackets may be either; `(a, b)` may be an open interval;
//! * an equation or inequality that is another multiplied by a number (above zero, for an inequality) is the same; an inequality of
//!   one variable is the same as its interval, whichever of them is the right answer;
//! * an equation is unwrapped where its left side is a name (`x = 3`, `f(x) = 3`), where all its sides are equal (`2 + 3 = 5`), and, of
//!   a given answer, where its right side is a number (`m + n = 3`);
//! * units are not compared, and words are without regard to case.

mod brackets;
mod compare;
mod expression;
mod finite;
mod leaves;
mod lex;
mod numeric;
mod parse;
mod rational;
mod token;
mod value;

pub(super) use compare::equal;
pub(super) use value::{Value, read};

/// Whether it is a whole number.
pub(super) fn is_whole(value: &Value) -> bool {
    matches!(value, Value::Expression(number) if number.exact(1).is_some_and(|n| n.as_integer().is_some()))
}

/// A text without spaces, delimiters and what only says how something looks: what is compared where it is no mathematics.
pub(super) fn bare(text: &str) -> String {
    const NOTHING: [&str; 11] =
        ["\\left", "\\right", "\\displaystyle", "\\,", "\\!", "\\;", "\\:", "\\ ", "\\$", "\\(", "\\)"];
    // With their braces.
    const TEXT: [&str; 6] = ["\\textbf{", "\\textrm{", "\\text{", "\\mathrm{", "\\mathbf{", "\\boxed{"];
    let mut left = text.trim().trim_end_matches('.');
    let mut kept = String::new();
    // Of every open brace, whether it was kept.
    let mut braces = Vec::new();
    while let Some(c) = left.chars().next() {
        if let Some(rest) = TEXT.iter().find_map(|text| left.strip_prefix(text)) {
            braces.push(false);
            left = rest;
            continue;
        }
        if let Some(rest) = NOTHING.iter().find_map(|nothing| left.strip_prefix(nothing)) {
            left = rest;
            continue;
        }
        if let Some(rest) = left.strip_prefix("\\dfrac").or_else(|| left.strip_prefix("\\tfrac")) {
            kept.push_str("\\frac");
            left = rest;
            continue;
        }
        let keeps = match c {
            '{' => {
                braces.push(true);
                true
            }
            '}' => braces.pop().unwrap_or(true),
            other => !other.is_whitespace() && !matches!(other, '$' | '"'),
        };
        if keeps {
            kept.push(c);
        }
        left = &left[c.len_utf8()..];
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::bare;

    #[test]
    fn appearance_is_nothing_and_braces_are_something() {
        assert_eq!(bare(r"\left( \text{a b}, \dfrac{1}{2} \right)."), r"(ab,\frac{1}{2})");
        assert_ne!(bare("2^{n+1}"), bare("2^n+1"));
        assert_eq!(bare("} x"), "}x");
    }
}
