//! Numbers and names.

use super::expression::Expression;
use super::rational::Rational;
use super::token::Token;

/// A number by its digits, of which so many stand behind the point.
pub(super) fn number(digits: String, scale: Option<u32>) -> Expression {
    let places = scale.unwrap_or(0);
    match Rational::decimal(&digits, places) {
        Some(value) => Expression::Number { value, decimal: scale.is_some() },
        None => {
            let digits = digits.trim_start_matches('0').to_owned();
            Expression::Long { digits, scale: places }
        }
    }
}

/// A whole number with a fraction between zero and one.
pub(super) fn mixed(whole: i128, above: i128, below: i128) -> Option<Expression> {
    let value = Rational::integer(whole).plus(Rational::new(above, below)?)?;
    (0 < above && above < below).then_some(Expression::Number { value, decimal: false })
}

/// What a token is in a subscript.
pub(super) fn subscript_text(token: &Token) -> Option<String> {
    Some(match token {
        Token::Number { digits, scale: None } => digits.clone(),
        Token::Symbol(name) => name.clone(),
        Token::Text(words) => word(words),
        Token::Euler => "e".to_owned(),
        Token::Imaginary => "i".to_owned(),
        Token::Plus => "+".to_owned(),
        Token::Minus => "-".to_owned(),
        Token::Separator => ",".to_owned(),
        _ => return None,
    })
}

/// Words as the name of a symbol: letters and digits alone, in lower case.
pub(super) fn word(words: &str) -> String {
    let kept: String = words.chars().filter(|c| c.is_alphanumeric()).collect();
    // One letter is a variable, whose case says which.
    if kept.chars().count() > 1 { kept.to_lowercase() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_all_their_digits() {
        let digits = "9".repeat(60);
        assert_eq!(number(format!("00{digits}"), None), Expression::Long { digits, scale: 0 });
        assert!(number("0125".to_owned(), Some(3)).is_decimal());
        assert_eq!(mixed(2, 3, 4).and_then(|m| m.exact(1)), Rational::new(11, 4));
        assert!(mixed(2, 4, 3).is_none() && mixed(2, 1, 0).is_none());
    }

    #[test]
    fn words_are_their_letters() {
        assert_eq!((word("No solution."), word("(E)")), ("nosolution".to_owned(), "E".to_owned()));
    }
}
