//! Whether two values in JSON are equal, as Python compares them.

use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Whether `found` equals `expected`: numbers by value, a truth value as the number 0 or 1, lists in order, objects by key. What is no
/// JSON equals nothing. (Python writes NaN and infinities, which are none.)
pub(crate) fn same_value(found: &str, expected: &str) -> bool {
    let parsed = |text| serde_json::from_str::<&RawValue>(text).ok();
    match (parsed(found), parsed(expected)) {
        (Some(found), Some(expected)) => equal(found, expected, DEEPEST).unwrap_or(false),
        _ => false,
    }
}

/// Lists within lists deeper than this are not looked into and equal nothing; the parser has the same bound.
const DEEPEST: u32 = 128;

/// None where something does not parse.
fn equal(a: &RawValue, b: &RawValue, depth: u32) -> Option<bool> {
    let depth = depth.checked_sub(1)?;
    let (a, b) = (a.get(), b.get());
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return Some(same_number(a, b));
    }
    Some(match (a.as_bytes().first()?, b.as_bytes().first()?) {
        (b'[', b'[') => {
            let (a, b): (Vec<&RawValue>, Vec<&RawValue>) = (parse(a)?, parse(b)?);
            a.len() == b.len() && all(a.into_iter().zip(b), depth)?
        }
        (b'{', b'{') => {
            let (a, b): (BTreeMap<String, &RawValue>, BTreeMap<String, &RawValue>) = (parse(a)?, parse(b)?);
            a.keys().eq(b.keys()) && all(a.into_values().zip(b.into_values()), depth)?
        }
        (b'"', b'"') => parse::<String>(a)? == parse::<String>(b)?,
        (b'n', b'n') => true,
        _ => false,
    })
}

fn all<'a>(pairs: impl Iterator<Item = (&'a RawValue, &'a RawValue)>, depth: u32) -> Option<bool> {
    for (a, b) in pairs {
        if !equal(a, b, depth)? {
            return Some(false);
        }
    }
    Some(true)
}

fn parse<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// The text of a number; that of 0 or 1 for a truth value.
fn number(text: &str) -> Option<&str> {
    match text {
        "true" => Some("1"),
        "false" => Some("0"),
        _ => text.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(text),
    }
}

/// Integers have any number of digits, other numbers are doubles, and one is compared with the other exactly.
fn same_number(a: &str, b: &str) -> bool {
    let is_double = |text: &str| text.contains(['.', 'e', 'E']);
    let whole = |text: &str| if text == "-0" { "0".to_owned() } else { text.to_owned() };
    match (is_double(a), is_double(b)) {
        (false, false) => whole(a) == whole(b),
        (true, true) => matches!((a.parse::<f64>(), b.parse::<f64>()), (Ok(a), Ok(b)) if a == b),
        (true, false) => same_number(b, a),
        // All digits of a double that is a whole number.
        (false, true) => {
            b.parse::<f64>().is_ok_and(|b| b.fract() == 0.0 && whole(a) == whole(&format!("{b:.0}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_equal_as_in_python() {
        for (a, b) in [
            ("1", " 1 "),
            ("1", "1.0"),
            ("true", "1"),
            ("0.0", "false"),
            ("-0.0", "0"),
            ("1e2", "100"),
            ("0.1", "0.1000000000000000055"),
            ("[1, [2, \"a\"]]", "[1.0,[2,\"\\u0061\"]]"),
            ("{\"a\": 1, \"b\": null}", "{\"b\": null, \"a\": 1}"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            // Both are read as infinite.
            ("1e999", "2e999"),
            // 2⁹⁰ is a double.
            ("1237940039285380274899124224", "1.2379400392853803e27"),
        ] {
            assert!(same_value(a, b) && same_value(b, a), "{a} {b}");
        }
        for (a, b) in [
            ("1", "2"),
            ("1", "\"1\""),
            ("null", "0"),
            ("null", "false"),
            ("[]", "{}"),
            ("[1]", "[1, 1]"),
            ("[1, 2]", "[2, 1]"),
            ("{\"a\": 1}", "{\"b\": 1}"),
            ("{\"a\": 1}", "{\"a\": 1, \"b\": 1}"),
            ("123456789012345678901234567890", "123456789012345678901234567891"),
            ("9007199254740993", "9007199254740992.0"),
            ("1.5", "1"),
            ("NaN", "NaN"),
            ("", ""),
            ("1 1", "1 1"),
        ] {
            assert!(!same_value(a, b) && !same_value(b, a), "{a} {b}");
        }
        // Deeper than it is looked into.
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(!same_value(&deep, &deep));
    }
}
