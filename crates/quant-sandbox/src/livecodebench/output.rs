//! Whether what a program printed is what it should print.

use std::cmp::Ordering;

/// Line by line behind the removal of space around the whole and around each line: the same text, or the same decimal numbers.
pub(crate) fn same_output(found: &str, expected: &str) -> bool {
    let (found, expected) = (lines(found), lines(expected));
    found.len() == expected.len()
        && found.iter().zip(&expected).all(|(found, expected)| same_line(found, expected))
}

fn lines(text: &str) -> Vec<&str> {
    text.trim_matches(is_space).split('\n').map(|line| line.trim_matches(is_space)).collect()
}

/// What `str.strip` and `str.split` of Python take for space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn same_line(found: &str, expected: &str) -> bool {
    let numbers = |line: &str| {
        line.split(is_space).filter(|w| !w.is_empty()).map(Decimal::parse).collect::<Option<Vec<_>>>()
    };
    found == expected
        || match (numbers(found), numbers(expected)) {
            (Some(found), Some(expected)) => {
                found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| a.equals(b))
            }
            _ => false,
        }
}

/// A number as Python's `decimal.Decimal` reads it from a text, of ASCII digits.
#[derive(Debug)]
enum Decimal {
    /// Whether it is negative, its digits without zeros at either end, and the power of ten of the last one. Zero has no digits.
    Finite(bool, String, i64),
    Infinite(bool),
    /// Equal to nothing.
    NotANumber,
}

impl Decimal {
    fn parse(word: &str) -> Option<Self> {
        let word = word.replace('_', "").to_ascii_lowercase();
        let (negative, word) = match word.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, word.strip_prefix('+').unwrap_or(&word)),
        };
        if word == "inf" || word == "infinity" {
            return Some(Self::Infinite(negative));
        }
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(payload) = word.strip_prefix("snan").or_else(|| word.strip_prefix("nan")) {
            return all_digits(payload).then_some(Self::NotANumber);
        }
        let (mantissa, exponent) = match word.split_once('e') {
            Some((mantissa, exponent)) => {
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                (mantissa, (!digits.is_empty() && all_digits(digits)).then(|| exponent.parse::<i64>().ok())??)
            }
            None => (word, 0),
        };
        let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.len() + part.len() == 0 || !all_digits(whole) || !all_digits(part) {
            return None;
        }
        let digits = format!("{whole}{part}");
        let kept = digits.trim_end_matches('0');
        let zeros = i64::try_from(digits.len() - kept.len()).ok()?;
        let digits = kept.trim_start_matches('0').to_owned();
        let exponent = exponent.checked_sub(i64::try_from(part.len()).ok()?)?.checked_add(zeros)?;
        let exponent = if digits.is_empty() { 0 } else { exponent };
        Some(Self::Finite(negative && !digits.is_empty(), digits, exponent))
    }

    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Finite(a, b, c), Self::Finite(d, e, f)) => (a, b, c).cmp(&(d, e, f)) == Ordering::Equal,
            (Self::Infinite(a), Self::Infinite(b)) => a == b,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_equal_however_they_are_written(digits in 1_u32..10_000, zeros in 0_usize..5, power in -300_i32..300) {
            let plain = format!("{digits}e{power}");
            let shifted = format!("+0{digits}.{}E{power}", "0".repeat(zeros));
            let scaled = format!("{digits}{}e{}", "0".repeat(zeros), power - zeros as i32);
            prop_assert!(same_output(&shifted, &plain) && same_output(&scaled, &plain), "{} {} {}", plain, shifted, scaled);
            let next = format!("{}e{power}", digits + 1);
            let negative = format!("-{plain}");
            prop_assert!(!same_output(&next, &plain) && !same_output(&negative, &plain));
        }

        #[test]
        fn any_text_is_the_same_as_itself(text in "[ -~\n\t\u{e9}]{0,60}", other in "[0-9. \n-]{0,20}") {
            prop_assert!(same_output(&text, &text) && same_output(&other, &other));
            prop_assert_eq!(same_output(&text, &other), same_output(&other, &text));
        }
    }

    #[test]
    fn lines_are_compared_without_the_space_around_them() {
        for (found, expected) in [
            ("1\n2\n", "1\n2"),
            ("\n 1 \r\n2\t\n\n", "1\n2"),
            ("a b", "a b"),
            ("", "\n"),
            ("0.50 1e1", "0.5 10"),
            ("1_000", "1000.0"),
            ("-0", "0"),
            (".5", "00.5"),
            ("5.", "5"),
            ("1  2", "1 2"),
            ("inf", "Infinity"),
            ("1e-400", "10E-401"),
            ("123456789012345678901234567890", "123456789012345678901234567890.0"),
            ("nan", "nan"),
        ] {
            assert!(same_output(found, expected) && same_output(expected, found), "{found:?} {expected:?}");
        }
        for (found, expected) in [
            ("1\n2", "1 2"),
            ("1", "1\n1"),
            ("a  b", "a b"),
            ("Yes", "YES"),
            ("1 x", "1.0 x"),
            ("0.1", "0.10000000000000001"),
            ("nan", "NaN"),
            ("inf", "-inf"),
            ("1", "-1"),
            ("1e5e", "100000"),
            ("1e", "1"),
            (".", "0"),
            ("1e99999999999999999999", "inf"),
            ("123456789012345678901234567890", "123456789012345678901234567891"),
        ] {
            assert!(!same_output(found, expected) && !same_output(expected, found), "{found:?} {expected:?}");
        }
    }
}
