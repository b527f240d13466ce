//! What a text gives as its mathematical answer.
//!
//! The procedure of LightEval's extractive match, which the published evaluation of quantised reasoning models uses: places that may
//! hold an answer have priorities, those of the lowest number go first, of one priority the one that ends farthest to the right, and
//! the first that can be read is the answer. What stood first is remembered as text, for answers that cannot be read. The whole text
//! is searched, thoughts included.
//!
//! | priority | what |
//! |---|---|
//! | 0 | `\boxed{…}`; `final answer is … . I hope` |
//! | 50 | `final answer … is …` |
//! | 100, 200 | within 50 characters of `answer:`, of `answer`; for numbers also behind the last `=` within 100 |
//! | 300 | any mathematics in delimiters, fraction, number or arithmetic |
//!
//! Differences: braces of a box must match, so that one that is cut off is none; an empty one, as prompts have it, is none either; where
//! there is another, nothing below priority 0 is looked at, as a number elsewhere is not what a box says that cannot be read; boxes
//! side by side are not joined, and mathematics joined by "and" is not.

use super::anchors::{after_is, anchors, hope_follows};
use super::boxed::boxes;
use super::maths::{Value, read};
use super::places::{Place, environments, first_within, numbers};
use std::borrow::Cow;
use std::collections::HashSet;

/// How many places are tried before a text is taken to have no answer: a text with more has none that a reader would find.
const MOST_TRIED: usize = 512;
/// How many different places are looked at for the right answer.
const MOST_SEEN: usize = 20_000;

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Extracted {
    /// The answer, if one could be read, with its text.
    pub(super) value: Option<(Value, String)>,
    /// The text of the place that stood first.
    pub(super) first: Option<String>,
}

/// Which places are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sought {
    /// Mathematics and numbers: what an answer is searched for.
    All,
    /// Mathematics: what a right answer in LaTeX is searched for.
    Latex,
    /// Numbers: what a plain right answer is searched for.
    Numbers,
}

/// Where mathematics, numbers and boxes are.
struct Places {
    boxes: Vec<Place>,
    latex: Vec<Place>,
    numbers: Vec<Place>,
}

impl Places {
    fn of(text: &str, sought: Sought) -> Self {
        let place =
            |found: super::boxed::Boxed| Place { whole: found.whole, inside: found.inside, percent: false };
        let latex = sought != Sought::Numbers;
        Self {
            boxes: if latex { boxes(text).into_iter().map(place).collect() } else { Vec::new() },
            latex: if latex { environments(text) } else { Vec::new() },
            numbers: if sought == Sought::Latex { Vec::new() } else { numbers(text) },
        }
    }
}

/// The answer of a text.
pub(super) fn extract(text: &str, sought: Sought) -> Extracted {
    let places = Places::of(text, sought);
    let mut ranked: Vec<(u32, &Place, bool)> = Vec::new();
    let filled = |place: &&Place| !text[place.inside.clone()].trim().is_empty();
    ranked.extend(places.boxes.iter().filter(filled).map(|place| (0, place, true)));
    let has_box = !ranked.is_empty();
    for anchor in anchors(text) {
        if anchor.is_final {
            let (mut latex, mut number) = (None, None);
            for (at, bare) in after_is(text, anchor) {
                let direct = |found: &&Place| text[at..found.whole.start.max(at)].trim().is_empty();
                let first = first_within(text, &places.latex, at, 20, false).filter(direct);
                latex = latex.or_else(|| first.map(|place| final_rank(text, bare, place)));
                number = number.or_else(|| {
                    first_within(text, &places.numbers, at, 2, true)
                        .map(|place| final_rank(text, bare, place))
                });
            }
            ranked.extend(latex.map(|(priority, place)| (priority, place, true)));
            ranked.extend(number.map(|(priority, place)| (priority, place, false)));
        }
        let priority = if anchor.colon { 100 } else { 200 };
        if let Some(place) = first_within(text, &places.latex, anchor.after, 50, false) {
            ranked.push((priority, place, true));
        }
        let number = behind_equals(text, &places.numbers, anchor.after).or_else(|| {
            first_within(text, &places.numbers, anchor.after, 50, true).filter(|p| !equals_follow(text, p))
        });
        ranked.extend(number.map(|place| (priority, place, false)));
    }
    ranked.extend(places.latex.iter().map(|place| (300, place, true)));
    ranked.extend(places.numbers.iter().map(|place| (300, place, false)));
    ranked.retain(|(priority, ..)| !has_box || *priority == 0);
    ranked.sort_by_key(|(priority, place, _)| (*priority, usize::MAX - place.whole.end, place.whole.start));
    let mut found = Extracted::default();
    for (_, place, latex) in ranked.into_iter().take(MOST_TRIED) {
        let written = written(text, place, latex);
        if found.first.is_none() && !written.trim().is_empty() {
            found.first = Some(written.trim().to_owned());
        }
        if let Some(value) = read(&written) {
            found.value = Some((value, written.trim().to_owned()));
            break;
        }
    }
    found
}

/// Whether what `is_right` knows stands at any place of a text.
pub(super) fn seen(text: &str, is_right: impl Fn(&str) -> bool) -> bool {
    let places = Places::of(text, Sought::All);
    let latex = places.boxes.iter().chain(&places.latex).map(|place| (place, true));
    let mut known = HashSet::new();
    latex
        .chain(places.numbers.iter().map(|place| (place, false)))
        .map(|(place, latex)| written(text, place, latex))
        .filter(|written| known.insert(written.clone()))
        .take(MOST_SEEN)
        .any(|written| is_right(&written))
}

/// The text of a place: numbers without separators and with a point, percents with their sign.
fn written<'a>(text: &'a str, place: &Place, latex: bool) -> Cow<'a, str> {
    let inside = &text[place.inside.clone()];
    let plain = |c: char| c.is_ascii_digit() || "-., ".contains(c);
    let mut written = Cow::Borrowed(inside);
    if !latex && inside.contains([',', ' ']) && inside.chars().all(plain) {
        written = Cow::Owned(separated(inside));
    }
    if place.percent {
        written = Cow::Owned(format!("{written}\\%"));
    }
    written
}

/// `1,234.5` and `1 234` without separators; a comma that separates no thousands is a point.
fn separated(number: &str) -> String {
    let groups: Vec<&str> = number.split([',', ' ']).collect();
    let three = |group: &&str| group.len() == 3 || group.get(3..4) == Some(".") && group.len() > 4;
    let thousands = groups.len() > 1
        && groups[1..].iter().all(three)
        && !groups[0].trim_start_matches('-').starts_with('0');
    if thousands { groups.concat() } else { number.replace(',', ".") }
}

/// A place behind a final answer with its priority.
fn final_rank<'a>(text: &str, bare: bool, place: &'a Place) -> (u32, &'a Place) {
    (if bare && hope_follows(text, place.whole.end) { 0 } else { 50 }, place)
}

fn equals_follow(text: &str, place: &Place) -> bool {
    text[place.whole.end..].trim_start().starts_with('=')
}

/// The number behind the last equals sign within 100 characters and on the line.
fn behind_equals<'a>(text: &str, numbers: &'a [Place], after: usize) -> Option<&'a Place> {
    let end = super::anchors::reach(text, after, 101);
    let window = &text[after..end];
    let line = &window[..window.find('\n').unwrap_or(window.len())];
    line.match_indices('=').map(|(at, _)| after + at).rev().find_map(|equals| {
        let found = first_within(text, numbers, equals, 20, true)?;
        let direct = text[equals + 1..found.inside.start.max(equals + 1)]
            .chars()
            .all(|c| c.is_whitespace() || !c.is_alphanumeric());
        (direct && !equals_follow(text, found)).then_some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Option<String> {
        extract(text, Sought::All).value.map(|(_, text)| text)
    }

    #[test]
    fn priorities() {
        let cases = [
            (r"<think>it is \boxed{1}</think> so \boxed{2}", "2"),
            (r"first \boxed{1}, the answer is 7", "1"),
            ("The final answer is $3$. I hope it is correct. Answer: 4", "3"),
            ("The final answer to this is 3. The answer: 4", "3"),
            ("Answer: 4, and not the answer 5", "4"),
            ("the answer is $x = 5$ since 6", "x = 5"),
            ("Answer: 2 + 3 = 5", "5"),
            ("we have 3 apples, then 4", "4"),
            (r"we have \frac{1}{2} of it", r"\frac{1}{2}"),
            ("in all 1,234 of them", "1234"),
            ("in all 50% of them", r"50\%"),
            (r"\boxed{7", "7"),
            ("he has $12.", "12"),
        ];
        for (text, wanted) in cases {
            assert_eq!(
                given(text).as_deref().unwrap_or("none"),
                if text == r"\boxed{7" { "none" } else { wanted },
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_remembered() {
        let found = extract(r"\boxed{\heartsuit}, or so", Sought::All);
        assert!(found.value.is_none());
        assert_eq!(found.first.as_deref(), Some(r"\heartsuit"));
        // A number elsewhere is not what the box says.
        let found = extract(r"4 or \boxed{\heartsuit}", Sought::All);
        assert_eq!((found.value, found.first.as_deref()), (None, Some(r"\heartsuit")));
        // An empty box is none.
        assert_eq!(given(r"the answer in \boxed{} is 4").as_deref(), Some("4"));
    }
}
