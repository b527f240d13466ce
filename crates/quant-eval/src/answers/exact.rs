//! Answers that must be met word by word.

use super::boxed::boxes;

/// Words with single spaces between them.
pub(super) fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The last box, else the last line that is not blank.
pub(super) fn given(answer: &str) -> Option<String> {
    let last = boxes(answer).pop().map(|found| &answer[found.inside]);
    let given = last.or_else(|| answer.lines().rev().find(|line| !line.trim().is_empty()))?;
    Some(normal(given))
}

/// Whether the words of `gold` follow each other somewhere in `answer`, bounded by what is neither letter nor digit.
pub(super) fn seen(gold: &str, answer: &str) -> bool {
    let answer = normal(answer);
    let outside = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    !gold.is_empty()
        && answer.match_indices(gold).any(|(at, found)| {
            outside(answer[..at].chars().next_back()) && outside(answer[at + found.len()..].chars().next())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_goes_before_the_last_line() {
        assert_eq!(given("so \\boxed{3  17\n42} it is\n\n").as_deref(), Some("3 17 42"));
        assert_eq!(given("3 17 41\n 3  17 42 \n\n").as_deref(), Some("3 17 42"));
        assert_eq!(given(" \n"), None);
    }

    #[test]
    fn numbers_are_seen_whole() {
        assert!(seen("3 17", "we get 3\n17, or"));
        assert!(!seen("3 17", "13 17") && !seen("3 17", "3 170") && !seen("", "3"));
        assert!(seen("17", "117 17"));
    }
}
