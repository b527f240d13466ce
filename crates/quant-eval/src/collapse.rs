//! By what an answer is seen to be broken.

use serde::Serialize;
use std::collections::HashMap;

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model gave a token that ends a sequence.
    End,
    /// The limit of new tokens was reached.
    Limit,
}

/// How a family writes its thoughts.
///
/// A template that opens the thought in the prompt leaves only the closing mark to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThoughtMarks<'a> {
    /// What opens a thought, for example `<think>`.
    pub open: &'a str,
    /// What closes it, for example `</think>`.
    pub close: &'a str,
    /// The tokens of `close`: one special token, or a sequence that is the same wherever it stands.
    pub close_tokens: &'a [u32],
    /// Whether the prompt has opened the thought.
    pub opened_by_prompt: bool,
}

/// One answer as it was generated, without its prompt.
#[derive(Clone, Copy, Debug)]
pub struct Generated<'a> {
    /// Its text with special tokens written out, without the one that ended it.
    pub text: &'a str,
    /// Its tokens without the one that ended it.
    pub tokens: &'a [u32],
    /// How it ended.
    pub finish: Finish,
    /// How thoughts are marked; none for a model without.
    pub marks: Option<ThoughtMarks<'a>>,
    /// Whether it was graded as right.
    pub correct: bool,
    /// Whether the right answer stands somewhere in the text ([`Grade::gold_seen_in_text`](crate::answers::Grade)).
    pub gold_seen: bool,
}

/// What repeats at the end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Loop {
    /// Tokens after which it repeats.
    pub period: usize,
    /// How often it stands there in whole, the first time included.
    pub repetitions: usize,
    /// Index of the token at which it begins.
    pub start: usize,
}

/// When a repetition counts as a loop: both must be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LoopRule {
    /// Whole repetitions, the first one included.
    pub repetitions: usize,
    /// Tokens of them all.
    pub tokens: usize,
}

impl Default for LoopRule {
    /// Four repetitions, 48 tokens: a line of a table or a ruler of dashes is shorter, and what a model repeats four times to the
    /// token, in the end, it does not leave.
    fn default() -> Self {
        Self { repetitions: 4, tokens: 48 }
    }
}

/// Signs of collapse of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Collapse {
    /// Tokens of the answer, thought included.
    pub tokens: usize,
    /// Tokens ahead of the closing mark, or all of an unclosed thought; 0 without a thought. None where the text has the closing
    /// mark and the tokens do not.
    pub thought_tokens: Option<usize>,
    /// Pieces of text between empty lines, as published statistics count the length of an answer.
    pub chunks: usize,
    /// It did not end by itself.
    pub no_end: bool,
    /// What it repeated when it stopped.
    pub repeats: Option<Loop>,
    /// A thought was opened and not closed.
    pub unclosed_thought: bool,
    /// Nothing but white space stands behind the thought, or in all. An unclosed thought has no answer behind it.
    pub empty_answer: bool,
    /// The right answer stands in the thought (anywhere, without one), and what was given is not right.
    pub seen_not_given: bool,
}

impl Collapse {
    /// Whether there is any sign that the answer is broken, and not only wrong.
    #[must_use]
    pub fn is_collapsed(&self) -> bool {
        self.no_end || self.repeats.is_some() || self.unclosed_thought || self.empty_answer
    }
}

/// The signs of one answer. Takes time in proportion to its length.
///
/// ```
/// use quant_eval::collapse::{Finish, Generated, LoopRule, ThoughtMarks, collapse};
///
/// let marks =
///     ThoughtMarks { open: "<think>", close: "</think>", close_tokens: &[9], opened_by_prompt: true };
/// let generated = Generated {
///     text: "Two and two are 4, wait</think>\n\n\\boxed{5}",
///     tokens: &[1, 2, 3, 4, 9, 5, 6],
///     finish: Finish::End,
///     marks: Some(marks),
///     correct: false,
///     gold_seen: true,
/// };
/// let signs = collapse(&generated, LoopRule::default());
/// assert_eq!((signs.thought_tokens, signs.seen_not_given, signs.is_collapsed()), (Some(4), true, false));
/// ```
#[must_use]
pub fn collapse(generated: &Generated<'_>, rule: LoopRule) -> Collapse {
    let text = generated.text;
    let thought = generated.marks.and_then(|marks| thought(text, &marks));
    let answer = match thought {
        None => Some(text),
        Some(Thought::Unclosed) => None,
        Some(Thought::Closed { answer }) => text.get(answer..),
    };
    let thought_tokens = match (thought, generated.marks) {
        (Some(Thought::Unclosed), _) => Some(generated.tokens.len()),
        (Some(Thought::Closed { .. }), Some(marks)) => position(generated.tokens, marks.close_tokens),
        _ => Some(0),
    };
    Collapse {
        tokens: generated.tokens.len(),
        thought_tokens,
        chunks: text.split("\n\n").filter(|chunk| !chunk.trim().is_empty()).count(),
        no_end: generated.finish == Finish::Limit,
        repeats: repeats(generated.tokens, rule),
        unclosed_thought: thought == Some(Thought::Unclosed),
        empty_answer: answer.is_none_or(|answer| answer.trim().is_empty()),
        seen_not_given: generated.gold_seen && !generated.correct,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thought {
    Unclosed,
    /// Where the answer begins.
    Closed {
        answer: usize,
    },
}

/// The first thought of a text. A closing mark without an opening one closes what the prompt must have opened, also where it is said
/// not to have.
fn thought(text: &str, marks: &ThoughtMarks<'_>) -> Option<Thought> {
    let opened = if marks.opened_by_prompt || marks.open.is_empty() {
        marks.opened_by_prompt.then_some(0)
    } else {
        text.find(marks.open).map(|at| at + marks.open.len())
    };
    let find = |from: usize| -> Option<usize> {
        let within = text.get(from..).filter(|_| !marks.close.is_empty())?;
        within.find(marks.close).map(|at| from + at + marks.close.len())
    };
    let end = find(opened.unwrap_or(0));
    match (opened, end) {
        (_, Some(answer)) => Some(Thought::Closed { answer }),
        (Some(_), None) => Some(Thought::Unclosed),
        (None, None) => None,
    }
}

/// Where `wanted` first stands in `tokens`.
fn position(tokens: &[u32], wanted: &[u32]) -> Option<usize> {
    (!wanted.is_empty()).then(|| tokens.windows(wanted.len()).position(|window| window == wanted))?
}

/// Of every token of `tokens`, the one with which a repetition would go on there: where the `length` tokens before have stood before, what
/// came behind them then (the last time). None elsewhere. A model that gives these more than it should is on its way into a loop.
///
/// ```
/// use quant_eval::collapse::repetition;
///
/// // Behind 1 2 came 7 the first time.
/// assert_eq!(repetition(&[1, 2, 7, 1, 2, 8], 2), [None, None, None, None, None, Some(7)]);
/// ```
#[must_use]
pub fn repetition(tokens: &[u32], length: usize) -> Vec<Option<u32>> {
    let mut seen: HashMap<&[u32], u32> = HashMap::new();
    let next = |(at, &token): (usize, &u32)| {
        let before = tokens.get(at.checked_sub(length)?..at)?;
        seen.insert(before, token)
    };
    tokens.iter().enumerate().map(next).collect()
}

/// What repeats at the end of `tokens`: of all periods that meet the rule, the one whose repetition reaches farthest back, the
/// shortest of those. A last repetition that is cut off belongs to it.
///
/// ```
/// use quant_eval::collapse::{LoopRule, repeats};
///
/// let rule = LoopRule { repetitions: 3, tokens: 6 };
/// // 7, then 1 2 three times and once more in part.
/// let found = repeats(&[7, 1, 2, 1, 2, 1, 2, 1], rule).unwrap();
/// assert_eq!((found.period, found.repetitions, found.start), (2, 3, 1));
/// assert_eq!(repeats(&[1, 2, 3, 4, 5, 6, 7, 8], rule), None);
/// ```
#[must_use]
pub fn repeats(tokens: &[u32], rule: LoopRule) -> Option<Loop> {
    let count = tokens.len();
    let at = |back: usize| tokens[count - 1 - back];
    // The Z function of the reversed tokens (Gusfield 1997, section 1.4): `same[p]` tokens from the end are as those `p` before.
    let mut same = vec![0_usize; count];
    let (mut left, mut right) = (0, 0);
    let mut best: Option<Loop> = None;
    for period in 1..count {
        let mut length = if period < right { same[period - left].min(right - period) } else { 0 };
        while period + length < count && at(length) == at(period + length) {
            length += 1;
        }
        if period + length > right {
            (left, right) = (period, period + length);
        }
        same[period] = length;
        let (stretch, repetitions) = (period + length, (period + length) / period);
        let start = count - stretch;
        let enough = repetitions >= rule.repetitions.max(2) && stretch >= rule.tokens;
        if enough && best.is_none_or(|best| start < best.start) {
            best = Some(Loop { period, repetitions, start });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MARKS: ThoughtMarks<'static> =
        ThoughtMarks { open: "<think>", close: "</think>", close_tokens: &[90, 91], opened_by_prompt: false };

    fn signs(text: &str, tokens: &[u32], finish: Finish, marks: Option<ThoughtMarks<'_>>) -> Collapse {
        let generated = Generated { text, tokens, finish, marks, correct: false, gold_seen: false };
        collapse(&generated, LoopRule::default())
    }

    #[test]
    fn thoughts_are_found_and_measured() {
        let tokens = [1, 2, 3, 90, 91, 4];
        let prompted = ThoughtMarks { opened_by_prompt: true, ..MARKS };
        let of = |text: &str, marks| {
            let found = signs(text, &tokens, Finish::End, marks);
            (found.thought_tokens, found.unclosed_thought, found.empty_answer)
        };
        assert_eq!(of("<think>so</think> 4", Some(MARKS)), (Some(3), false, false));
        assert_eq!(of("<think>so</think> \n", Some(MARKS)), (Some(3), false, true));
        assert_eq!(of("<think>so it is 4", Some(MARKS)), (Some(6), true, true));
        assert_eq!(of("so</think> 4", Some(prompted)), (Some(3), false, false));
        assert_eq!(of("so it is 4", Some(prompted)), (Some(6), true, true));
        // Nobody opened it, but it was closed.
        assert_eq!(of("so</think> 4", Some(MARKS)), (Some(3), false, false));
        assert_eq!(of("it is 4", Some(MARKS)), (Some(0), false, false));
        assert_eq!(of("<think> is text", None), (Some(0), false, false));
        assert_eq!(of(" \n", None), (Some(0), false, true));
        // The text says closed, the tokens do not.
        let other = ThoughtMarks { close_tokens: &[7], ..MARKS };
        assert_eq!(of("<think>so</think> 4", Some(other)), (None, false, false));
        assert_eq!(of("a", Some(ThoughtMarks { open: "", close: "", ..MARKS })), (Some(0), false, false));
    }

    #[test]
    fn an_answer_that_was_there_is_told_from_one_that_was_given() {
        let of = |correct, gold_seen| {
            let generated = Generated {
                text: "4\n\n\n\n5\n\n ",
                tokens: &[1],
                finish: Finish::End,
                marks: None,
                correct,
                gold_seen,
            };
            let found = collapse(&generated, LoopRule::default());
            assert_eq!(found.chunks, 2);
            found.seen_not_given
        };
        assert_eq!([of(true, true), of(false, true), of(false, false)], [false, true, false]);
        let cut = signs("4", &[1], Finish::Limit, None);
        assert!(cut.no_end && cut.is_collapsed() && !signs("4", &[1], Finish::End, None).is_collapsed());
    }

    #[test]
    fn a_loop_has_a_period_and_a_beginning() {
        let mut tokens: Vec<u32> = (100..150).collect();
        for _ in 0..20 {
            tokens.extend([5, 6, 7, 5, 8]);
        }
        tokens.extend([5, 6]);
        let found = repeats(&tokens, LoopRule::default()).unwrap();
        assert_eq!(found, Loop { period: 5, repetitions: 20, start: 50 });
        // A token more in the end, and it does not repeat any more.
        tokens.push(1);
        assert_eq!(repeats(&tokens, LoopRule::default()), None);
        assert_eq!(repeats(&[1; 47], LoopRule::default()), None);
        assert_eq!(repeats(&[1; 48], LoopRule::default()).map(|l| (l.period, l.start)), Some((1, 0)));
        // Paragraphs that end with rulers: the paragraph is what repeats.
        let paragraph: Vec<u32> = (0..30).chain([77; 60]).collect();
        let found = repeats(&paragraph.repeat(5), LoopRule::default()).unwrap();
        assert_eq!((found.period, found.repetitions, found.start), (90, 5, 0));
        assert_eq!(repeats(&[], LoopRule { repetitions: 0, tokens: 0 }), None);
    }

    #[test]
    fn a_million_tokens_take_no_time() {
        for tokens in
            [vec![3; 1 << 20], (0..1 << 20).map(|i| i % 1000 / 999).collect(), (0..1 << 20).collect()]
        {
            let before = std::time::Instant::now();
            let found = repeats(&tokens, LoopRule::default());
            assert!(before.elapsed().as_secs_f64() < 1.0);
            assert_eq!(found.is_some(), tokens[0] == 3 || tokens[5] == 0);
        }
    }

    proptest! {
        #[test]
        fn loops_are_those_of_the_definition(tokens in prop::collection::vec(0_u32..2, 0..40)) {
            let rule = LoopRule { repetitions: 3, tokens: 5 };
            let stretch = |period: usize| {
                period + (period..tokens.len()).take_while(|i| {
                    tokens[tokens.len() - 1 - i] == tokens[tokens.len() - 1 - i + period]
                }).count()
            };
            let naive = (1..tokens.len())
                .filter(|&p| stretch(p) / p >= 3 && stretch(p) >= 5)
                .max_by_key(|&p| (stretch(p), std::cmp::Reverse(p)))
                .map(|p| Loop { period: p, repetitions: stretch(p) / p, start: tokens.len() - stretch(p) });
            prop_assert_eq!(repeats(&tokens, rule), naive);
        }
    }
}
