//! What grades the answers of a task, by name.

use crate::EvalError;
use crate::answers::{Gold, GoldKind, Grade, gold, grade};
use quant_graph::{Catalogue, Entry};

/// Grades answers that hold programs, by running them on tests. What runs them must expect the worst of them.
pub trait ProgramGrader: std::fmt::Debug + Sync {
    /// Reads the tests, and runs nothing.
    ///
    /// # Errors
    /// [`EvalError::Tests`] where they cannot be read.
    fn check(&self, gold: &str) -> Result<(), EvalError>;

    /// Runs the program in an answer.
    ///
    /// # Errors
    /// [`EvalError::Tests`]; [`EvalError::Programs`] where the system does not start a program. What a program does is no error.
    fn grade(&self, gold: &str, text: &str) -> Result<Grade, EvalError>;
}

/// An answer and what is right.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Answer<'a> {
    /// What is right, as the task gives it.
    pub gold: &'a str,
    /// The text of the model.
    pub text: &'a str,
    /// Options of the question; 0 for one without.
    pub options: usize,
    /// What runs the program in the answer, where programs are run.
    pub programs: Option<&'a dyn ProgramGrader>,
}

impl<'a> Answer<'a> {
    /// The answer to a question without options.
    #[must_use]
    pub fn new(gold: &'a str, text: &'a str) -> Self {
        Self { gold, text, options: 0, programs: None }
    }
    /// The answer to a question with so many options.
    #[must_use]
    pub fn with_options(self, options: usize) -> Self {
        Self { options, ..self }
    }
    /// An answer whose program this runs.
    #[must_use]
    pub fn with_programs(self, programs: Option<&'a dyn ProgramGrader>) -> Self {
        Self { programs, ..self }
    }
}

/// A way to grade answers. A program adds its own to the registry of the pipeline.
///
/// ```
/// use quant_eval::{Answer, scorer};
///
/// let exact = scorer("exact")?;
/// assert!((exact.grade)(&Answer::new("125", "...so 125.\nThe answer is \\boxed{125}."))?.correct);
/// assert!(scorer("exakt").unwrap_err().to_string().contains("did you mean \"exact\"?"));
/// # Ok::<(), quant_eval::EvalError>(())
/// ```
#[derive(Debug)]
pub struct Scorer {
    /// Its name in task files.
    pub id: &'static str,
    /// One line about it.
    pub summary: &'static str,
    /// Whether answers are programs that are run: a task with it is refused unless the person allows that.
    pub runs_programs: bool,
    /// Grades an answer; an error where what is right cannot be read.
    pub grade: fn(&Answer<'_>) -> Result<Grade, EvalError>,
}

impl Entry for Scorer {
    const KIND: &'static str = "scorer";
    fn ours() -> &'static [&'static Self] {
        SCORERS
    }
    fn id(&self) -> &'static str {
        self.id
    }
}

/// The scorers of a program.
pub type Scorers = Catalogue<Scorer>;

macro_rules! scorers {
    ($($id:literal, $kind:expr, $summary:literal;)*) => {
        /// All scorers of this crate, alphabetical.
        pub static SCORERS: &[&Scorer] = &[$(&Scorer {
            id: $id,
            summary: $summary,
            runs_programs: false,
            grade: |answer| graded($kind(answer), answer),
        },)* &LIVECODEBENCH];
    };
}

/// Right are the tests of a problem: its fields `public_test_cases`, `private_test_cases` and `metadata` as one object in JSON.
static LIVECODEBENCH: Scorer = Scorer {
    id: "livecodebench",
    summary: "the program between the last two fences passes all tests of the problem; runs programs that a model wrote",
    runs_programs: true,
    grade: |answer| match answer.programs {
        Some(programs) => programs.grade(answer.gold, answer.text),
        None => Err(EvalError::NoPrograms { id: LIVECODEBENCH.id }),
    },
};

scorers![
    "exact", |_: &Answer<'_>| GoldKind::Exact, "the last boxed text, else the last line, is the right one word by word";
    "expression", |_: &Answer<'_>| GoldKind::Expression, "a number or an expression of the same value; right is an expression";
    "gsm8k", |_: &Answer<'_>| GoldKind::Gsm8k, "as expression; right is what stands behind ####";
    "latex", |_: &Answer<'_>| GoldKind::Latex, "as expression; right is boxed in a solution in LaTeX";
    "letter", |answer: &Answer<'_>| GoldKind::Letter { count: answer.options }, "the letter of an option";
];

fn graded(kind: GoldKind, answer: &Answer<'_>) -> Result<Grade, EvalError> {
    let right: Gold = gold(kind, answer.gold)?;
    Ok(grade(&right, answer.text))
}

/// A scorer of this crate by its name.
///
/// # Errors
/// [`EvalError::NoScorer`] naming the nearest one.
pub fn scorer(id: &str) -> Result<&'static Scorer, EvalError> {
    scorer_of(id, &Scorers::default())
}

/// A scorer of a program by its name.
///
/// # Errors
/// As [`scorer`].
pub fn scorer_of(id: &str, known: &Scorers) -> Result<&'static Scorer, EvalError> {
    known.get(id).ok_or_else(|| {
        let ids = known.ids();
        let nearest = quant_core::nearest(id, &ids).map(str::to_owned);
        EvalError::NoScorer { id: id.to_owned(), nearest, known: ids.join(", ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_not_graded_without_something_that_runs_them() {
        let error = (scorer("livecodebench").unwrap().grade)(&Answer::new("{}", "")).unwrap_err().to_string();
        assert!(error.contains("livecodebench") && error.contains("runs programs"), "{error}");
        let ids: Vec<&str> = SCORERS.iter().map(|scorer| scorer.id).collect();
        assert!(ids.is_sorted(), "{ids:?}");
        assert_eq!(SCORERS.iter().filter(|scorer| scorer.runs_programs).count(), 1);
    }
}
