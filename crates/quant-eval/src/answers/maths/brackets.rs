//! Which brackets belong together.

use super::token::{Bracket, Token};

/// Brackets, fractions and the like inside each other.
pub(super) const DEEPEST: usize = 40;

/// Every bracket's other end; none where they do not match. Round and square ones may close each other.
pub(super) fn matches(tokens: &[Token]) -> Option<Vec<usize>> {
    let mut other = vec![usize::MAX; tokens.len()];
    let mut open: Vec<(Bracket, usize)> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Open(bracket) => open.push((*bracket, at)),
            Token::Close(bracket) => {
                let (opened, from) = open.pop()?;
                let round = |b: Bracket| matches!(b, Bracket::Round | Bracket::Square);
                if opened != *bracket && !(round(opened) && round(*bracket)) {
                    return None;
                }
                (other[from], other[at]) = (at, from);
            }
            _ => {}
        }
        if open.len() > DEEPEST {
            return None;
        }
    }
    open.is_empty().then_some(other)
}

#[cfg(test)]
mod tests {
    use super::super::lex::tokens;
    use super::*;

    #[test]
    fn brackets_match_or_nothing_does() {
        let other = |text: &str| matches(&tokens(text).unwrap());
        assert_eq!(other("(1]"), Some(vec![2, usize::MAX, 0]));
        for wrong in ["(1", "1)", r"\{1)", r"(1\}", "{(1})"] {
            assert_eq!(tokens(wrong).and_then(|tokens| matches(&tokens)), None, "{wrong}");
        }
        assert!(other(&format!("{}1{}", "(".repeat(DEEPEST), ")".repeat(DEEPEST))).is_some());
        assert!(other(&format!("{}1{}", "(".repeat(DEEPEST + 1), ")".repeat(DEEPEST + 1))).is_none());
    }
}
