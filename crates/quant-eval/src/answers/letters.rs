//! Letters of options.
//!
//! Priorities of the published extraction: 0 and 50 "final answer is", 100 `answer:` and 150 `answer` with a letter that stands by
//! itself within 50 characters, 200 a letter at the start, 250 one that stands by itself, 300 any. Beyond it, a letter that stands by
//! itself may be in brackets, a box, bold or in dollars, and one in a box counts as 100, the rightmost of them being taken.

use super::anchors::{after_is, anchors, hope_follows, reach};
use super::boxed::boxes;

/// Marks that may stand in front of a letter, and behind it.
const BEFORE: [&str; 10] =
    ["**", "*", "$", "\\(", "(", "\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{", "\\boxed{"];
const AFTER: [&str; 6] = ["**", "*", "$", "\\)", ")", "}"];

/// The letter that is the answer of a text, of those up to `last`.
pub(super) fn extract(text: &str, last: char) -> Option<char> {
    let anchors = anchors(text);
    let mut ranked: Vec<(u32, usize, char)> = Vec::new();
    let is_option = |c: char| ('A'..=last).contains(&c);
    for anchor in &anchors {
        if anchor.is_final {
            for (at, bare) in after_is(text, *anchor) {
                let rest = text[at..].trim_start();
                let Some(letter) = rest.chars().next().filter(|c| is_option(*c)) else { continue };
                let end = text.len() - rest.len() + 1;
                let priority = if bare && hope_follows(text, end) { 0 } else { 50 };
                ranked.push((priority, end, letter));
            }
        }
        let within = reach(text, anchor.after, 51);
        if let Some((end, letter)) = first_alone(text, anchor.after, within, last) {
            ranked.push((if anchor.colon { 100 } else { 150 }, end, letter));
        }
    }
    for found in boxes(text) {
        let inside = &text[found.inside.clone()];
        if let Some((end, letter)) = alone(inside, last)
            && inside[end..].trim_matches(|c: char| c.is_whitespace() || ".,:".contains(c)).is_empty()
        {
            ranked.push((100, found.whole.end, letter));
        }
    }
    if let Some((end, letter)) = alone(text, last) {
        ranked.push((200, end, letter));
    }
    if let Some((end, letter)) = last_alone(text, last) {
        ranked.push((250, end, letter));
    }
    if let Some((at, letter)) = text.char_indices().rev().find(|(_, c)| is_option(*c)) {
        ranked.push((300, at + 1, letter));
    }
    // The rightmost of the first priority.
    ranked
        .into_iter()
        .min_by_key(|(priority, end, _)| (*priority, usize::MAX - end))
        .map(|(_, _, letter)| letter)
}

/// Whether a text says somewhere that `letter` is the answer.
pub(super) fn said(text: &str, letter: char, last: char) -> bool {
    let near = |after: usize| first_alone(text, after, reach(text, after, 51), last);
    anchors(text).iter().any(|anchor| near(anchor.after).is_some_and(|(_, found)| found == letter))
        || boxes(text)
            .into_iter()
            .any(|found| alone(&text[found.inside], last).is_some_and(|(_, l)| l == letter))
}

/// The letter at the start of a text, with its marks, if nothing but punctuation or space follows; its end.
fn alone(text: &str, last: char) -> Option<(usize, char)> {
    let mut rest = text.trim_start();
    // As many marks as anybody nests.
    for _ in 0..6 {
        let Some(next) = BEFORE.iter().find_map(|mark| rest.strip_prefix(mark)) else { break };
        rest = next;
    }
    let letter = rest.chars().next().filter(|c| ('A'..=last).contains(c))?;
    rest = &rest[1..];
    for _ in 0..6 {
        let Some(next) = AFTER.iter().find_map(|mark| rest.strip_prefix(mark)) else { break };
        rest = next;
    }
    let ends = rest.chars().next().is_none_or(|c| c.is_whitespace() || ".,:;".contains(c));
    ends.then_some((text.len() - rest.len(), letter))
}

/// The first letter by itself that begins in `from..to`, behind a space or at `from`.
fn first_alone(text: &str, from: usize, to: usize, last: char) -> Option<(usize, char)> {
    let window = &text[from..to];
    let starts = window.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(at, _)| from + at);
    // A line has its own answer, or its next one has: the space in front of the letter may end the line, nothing before it.
    let line_end = window.find('\n').map_or(to, |at| from + at);
    std::iter::once(from)
        .chain(starts)
        .take_while(|at| *at <= line_end)
        .find_map(|at| alone(&text[at..], last).map(|(end, letter)| (at + end, letter)))
}

/// The last letter by itself behind a space or at the start.
fn last_alone(text: &str, last: char) -> Option<(usize, char)> {
    let starts =
        text.char_indices().rev().filter(|(_, c)| c.is_whitespace()).map(|(at, c)| at + c.len_utf8());
    starts
        .chain(std::iter::once(0))
        .filter(|at| !text[*at..].starts_with(char::is_whitespace))
        .find_map(|at| alone(&text[at..], last).map(|(end, letter)| (at + end, letter)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_by_priority() {
        let cases = [
            ("Answer: B", 'B'),
            ("Answer: B.", 'B'),
            ("I first thought A. Answer: C\nThat is the answer, D is not.", 'C'),
            ("**Answer:** (D)", 'D'),
            ("**Answer: B**", 'B'),
            ("Answer: $\\boxed{A}$", 'A'),
            ("so \\boxed{C}. It is A or B", 'C'),
            ("so \\boxed{\\text{(B)}}", 'B'),
            ("The final answer is C", 'C'),
            ("Answer: A\nThe final answer is B. I hope it is correct", 'B'),
            ("the correct answer would be option D, of course", 'D'),
            ("B) because of A", 'B'),
            ("D is what I take", 'D'),
            ("we take C", 'C'),
            ("it is (B), I think", 'B'),
            ("Answer: E", 'E'),
            ("Answer:\nB", 'B'),
            ("xAx", 'A'),
        ];
        for (text, letter) in cases {
            let last = if letter == 'E' { 'E' } else { 'D' };
            assert_eq!(extract(text, last), Some(letter), "{text}");
        }
        assert_eq!(extract("nothing", 'D'), None);
        assert_eq!(extract("", 'D'), None);
        // Of four options, E is none.
        assert_eq!(extract("Answer: E, not B", 'D'), Some('B'));
    }

    #[test]
    fn what_was_said_and_taken_back() {
        assert!(said("the answer is B. No, the answer is C", 'B', 'D'));
        assert!(!said("option B is wrong, the answer is C", 'B', 'D'));
    }
}
