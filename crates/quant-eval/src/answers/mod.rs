//! Answers and their grading.

mod boxed;
mod exact;

use crate::EvalError;

/// What the right answer of a task is, and with it what is looked for in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoldKind {
    /// A number or an expression (AIME).
    Expression,
    /// Text with the answer in LaTeX (MATH-500: a whole solution with `\boxed{…}`).
    Latex,
    /// A rationale that ends in `#### n` (GSM8K).
    Gsm8k,
    /// The letter of one of `count` options, from `A` on (GPQA: 4).
    Letter {
        /// Options, at most 26.
        count: usize,
    },
    /// Text that must be met word by word, for tasks of one's own: the last `\boxed{…}`, else the last line.
    Exact,
}

/// A right answer that was read.
#[derive(Clone, Debug)]
pub struct Gold {
    kind: GoldKind,
    text: String,
}

/// What is said of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grade {
    /// Whether it is right.
    pub correct: bool,
    /// What was taken as the answer; none where nothing was found.
    pub extracted: Option<String>,
    /// Whether the right answer stands somewhere in the text, given or not.
    pub gold_seen_in_text: bool,
}

/// Reads a right answer.
///
/// # Errors
/// Where it has nothing of its kind in it.
pub fn gold(kind: GoldKind, text: &str) -> Result<Gold, EvalError> {
    let text = match kind {
        GoldKind::Gsm8k => text.rsplit("####").next().unwrap_or(text),
        _ => text,
    };
    Ok(Gold { kind, text: exact::normal(text) })
}

/// Grades an answer.
#[must_use]
pub fn grade(gold: &Gold, answer: &str) -> Grade {
    let _ = gold.kind;
    let given = exact::given(answer);
    Grade {
        correct: given.as_ref() == Some(&gold.text),
        gold_seen_in_text: exact::seen(&gold.text, answer),
        extracted: given,
    }
}
