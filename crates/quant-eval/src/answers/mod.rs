//! Answers and their grading.
//!
//! [`gold`] reads a right answer once, [`grade`] compares what a model wrote with it. What of a text is taken as the answer, and when
//! two mathematical answers are equal, follows the extractive match of LightEval, by which the published results of quantised reasoning
//! models were graded; the modules below say where they differ from it, each time for a reason. Nothing is executed, nothing has a
//! time limit: extraction takes time in proportion to the text, and what is longer than 2,000 bytes is not read as an answer.
//!
//! ```
//! use quant_eval::answers::{GoldKind, gold, grade};
//!
//! let gold = gold(GoldKind::Latex, r"Adding both, we have $\boxed{\frac{3}{4}}$.")?;
//! let given = grade(&gold, r"<think>Is it \boxed{1}?</think> It is \boxed{0.75}.");
//! assert!(given.correct);
//! assert_eq!(given.extracted.as_deref(), Some("0.75"));
//! # Ok::<(), quant_eval::EvalError>(())
//! ```

mod anchors;
mod boxed;
mod exact;
mod extract;
mod letters;
mod maths;
mod places;

use crate::EvalError;
use extract::{Extracted, Sought};
use maths::Value;

/// What the right answer of a task is, and with it what is looked for in an answer.
///
/// ```
/// use quant_eval::answers::{GoldKind, gold, grade};
///
/// let right = gold(GoldKind::Letter { count: 4 }, "B")?;
/// assert!(grade(&right, "A seems right, but no.\n\nAnswer: B").correct);
/// let right = gold(GoldKind::Exact, "3 17 42")?;
/// assert!(grade(&right, "sorted:\n3  17 42\n").correct);
/// # Ok::<(), quant_eval::EvalError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoldKind {
    /// A number or an expression (AIME).
    Expression,
    /// Text with the answer in LaTeX (MATH-500: a whole solution with `\boxed{…}`), or the answer alone.
    Latex,
    /// A rationale that ends in `#### n` (GSM8K). Such an `n` has no unit, and a percent sign behind a whole number of an answer is
    /// taken as one: `33 %` is 33, where the question asked for percents, and as always 0.33.
    Gsm8k,
    /// The letter of one of `count` options, from `A` on (GPQA: 4).
    Letter {
        /// Options, from 1 to 26.
        count: usize,
    },
    /// Text that must be met word by word, for tasks of one's own: the last `\boxed{…}`, else the last line.
    Exact,
}

/// A right answer that was read.
///
/// ```
/// use quant_eval::answers::{GoldKind, gold};
///
/// let right = gold(GoldKind::Gsm8k, "He has 2 + 3 = <<2+3=5>>5 of them.\n#### 5")?;
/// assert_eq!(right.text(), "5");
/// # Ok::<(), quant_eval::EvalError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Gold {
    text: String,
    right: Right,
}

#[derive(Clone, Debug)]
enum Right {
    /// As a value where it could be read; its text is compared besides.
    Maths {
        value: Option<Value>,
        /// Whether percents may have lost their sign.
        percents: bool,
    },
    Letter {
        letter: char,
        last: char,
    },
    Exact,
}

impl Gold {
    /// The right answer alone, as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// What is said of an answer.
///
/// ```
/// use quant_eval::answers::{GoldKind, gold, grade};
///
/// let right = gold(GoldKind::Expression, "204")?;
/// let given = grade(&right, r"We find 204. But wait: no. \boxed{205}");
/// assert_eq!((given.correct, given.gold_seen_in_text), (false, true));
/// # Ok::<(), quant_eval::EvalError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grade {
    /// Whether it is right.
    pub correct: bool,
    /// What was taken as the answer; none where nothing was found.
    pub extracted: Option<String>,
    /// Whether the right answer stands somewhere in the text, given or not: as a number or mathematics of its own, or word by word; of
    /// a letter, where it is said to be the answer. Right answers that are small numbers are seen in many a text.
    pub gold_seen_in_text: bool,
}

/// Reads a right answer.
///
/// ```
/// use quant_eval::answers::{GoldKind, gold};
///
/// let error = gold(GoldKind::Gsm8k, "no mark").unwrap_err().to_string();
/// assert!(error.contains("####"));
/// ```
///
/// # Errors
/// Where it has nothing of its kind in it. Mathematics that cannot be read is no error: then its text is compared.
pub fn gold(kind: GoldKind, text: &str) -> Result<Gold, EvalError> {
    let fail = |wanted, expected| {
        let text = text.chars().take(80).collect();
        Err(EvalError::Gold { wanted, text, expected })
    };
    if text.trim().is_empty() {
        return fail("answer", "text that is not blank");
    }
    match kind {
        GoldKind::Expression => Ok(maths_gold(text, Sought::Numbers, false)),
        GoldKind::Latex => Ok(maths_gold(text, Sought::Latex, false)),
        GoldKind::Gsm8k => match text.rsplit_once("####") {
            Some((_, answer)) if !answer.trim().is_empty() => Ok(maths_gold(answer, Sought::Numbers, true)),
            _ => fail("answer behind `####`", "a rationale that ends in a line such as `#### 18`"),
        },
        GoldKind::Letter { count } => {
            let last = u8::try_from(count)
                .ok()
                .filter(|count| (1..=26).contains(count))
                .map(|c| char::from(b'@' + c));
            let letter = text.trim().trim_matches(|c: char| "().".contains(c));
            let Some(last) = last else { return fail("letter", "from 1 to 26 options") };
            match letter.chars().next().filter(|c| letter.len() == 1 && ('A'..=last).contains(c)) {
                Some(letter) => Ok(Gold { text: letter.to_string(), right: Right::Letter { letter, last } }),
                None => fail("letter of an option", "one capital letter, `A` for the first option"),
            }
        }
        GoldKind::Exact => Ok(Gold { text: exact::normal(text), right: Right::Exact }),
    }
}

/// The answer of a solution, or all of a text that is an answer itself.
fn maths_gold(text: &str, sought: Sought, percents: bool) -> Gold {
    let whole = text.trim();
    // A sentence reads as a product of its letters: its delimiters or its words give it away.
    let delimited = ["$", "\\(", "\\[", "\\boxed", "\\fbox"].iter().any(|mark| whole.contains(mark));
    let words = whole
        .split_whitespace()
        .filter(|word| word.len() > 1 && word.chars().all(char::is_alphabetic))
        .count();
    let alone = if sought == Sought::Latex { !delimited } else { words < 3 };
    let plain = if alone { maths::read(whole).map(|value| (value, whole.to_owned())) } else { None };
    let found = match plain {
        Some(value) => Extracted { value: Some(value), first: None },
        None => extract::extract(whole, sought),
    };
    match found {
        Extracted { value: Some((value, text)), .. } => {
            Gold { text, right: Right::Maths { value: Some(value), percents } }
        }
        Extracted { first, .. } => Gold {
            text: first.unwrap_or_else(|| whole.to_owned()),
            right: Right::Maths { value: None, percents },
        },
    }
}

/// Grades an answer, of which all text is searched, thoughts included.
///
/// ```
/// use quant_eval::answers::{GoldKind, gold, grade};
///
/// let right = gold(GoldKind::Latex, r"\left(-\infty, 2\right]")?;
/// assert!(grade(&right, r"Hence $x \le 2$.").correct);
/// assert!(!grade(&right, r"Hence $x < 2$.").correct);
/// # Ok::<(), quant_eval::EvalError>(())
/// ```
#[must_use]
pub fn grade(gold: &Gold, answer: &str) -> Grade {
    match &gold.right {
        Right::Maths { value, percents } => {
            let found = extract::extract(answer, Sought::All);
            let same = |read: Option<&Value>| match (value, read) {
                (Some(gold), Some(read)) => maths::equal(gold, read),
                _ => false,
            };
            let without_percent = |text: &str| {
                let whole = text.trim_end().strip_suffix('%')?;
                maths::read(whole.strip_suffix('\\').unwrap_or(whole)).filter(maths::is_whole)
            };
            let is_right = |text: &str, read: Option<&Value>| {
                same(read) || *percents && same(without_percent(text).as_ref()) || same_text(&gold.text, text)
            };
            let given = found.value.as_ref().map(|(value, text)| (text.as_str(), Some(value)));
            let first = found.first.as_deref().map(|text| (text, None));
            let correct = given.into_iter().chain(first).any(|(text, value)| is_right(text, value));
            let seen = || {
                exact::seen(&gold.text, answer)
                    || extract::seen(answer, |text| is_right(text, maths::read(text).as_ref()))
            };
            Grade {
                correct,
                gold_seen_in_text: correct || seen(),
                extracted: found.value.map(|(_, text)| text).or(found.first),
            }
        }
        Right::Letter { letter, last } => {
            let given = letters::extract(answer, *last);
            let correct = given == Some(*letter);
            Grade {
                correct,
                extracted: given.map(String::from),
                gold_seen_in_text: correct || letters::said(answer, *letter, *last),
            }
        }
        Right::Exact => {
            let given = exact::given(answer);
            let correct = given.as_ref() == Some(&gold.text);
            Grade { correct, gold_seen_in_text: correct || exact::seen(&gold.text, answer), extracted: given }
        }
    }
}

/// Equal but for spaces and appearance.
fn same_text(gold: &str, given: &str) -> bool {
    let gold = maths::bare(gold);
    !gold.is_empty() && gold == maths::bare(given)
}
