//! Grading of answers to LiveCodeBench's problems (Jain et al. 2024, <https://arxiv.org/abs/2403.07974>).
//!
//! The program is what stands between the last two fences of an answer ([`extract_code`]). It passes a problem if it passes each of
//! its tests ([`grade`]). A test is an input on stdin with the output that must be printed, or the arguments of a function with what it
//! must return. Each test runs in a sandbox of its own, which never sees what is expected; the comparison is made outside.

mod output;
mod pickle;
mod tests_of;
mod value;

pub use tests_of::{Case, Tests};

use crate::Sandbox;
use crate::error::SandboxError;
use crate::limits::{Limits, Status};
use output::same_output;
use std::time::Duration;
use value::same_value;

/// Runs an answer, in the sandbox.
const DRIVER: &str = include_str!("driver.py");
/// Characters of what a program wrote that a failure shows.
const SHOWN: usize = 200;

/// What the benchmark lets an answer use for one test: six seconds on the wall; and for the machine's sake 4 GiB, 16 processes, 16
/// MiB of output and of files, and as much time again on the processor, for several threads.
pub fn limits() -> Limits {
    Limits {
        wall: Duration::from_secs(6),
        cpu: Duration::from_secs(12),
        memory: 4 << 30,
        ..Limits::default()
    }
}

/// The program in an answer: the lines between the last two that hold three backticks; without two of them, none.
///
/// ```
/// use quant_sandbox::livecodebench::extract_code;
///
/// assert_eq!(extract_code("First ```x``` …\n```python\nprint(1)\n```\nThat is it."), "print(1)");
/// assert_eq!(extract_code("print(1)"), "");
/// ```
pub fn extract_code(answer: &str) -> String {
    let lines: Vec<&str> = answer.split('\n').collect();
    let mut fences = (0..lines.len()).rev().filter(|&line| lines[line].contains("```"));
    match (fences.next(), fences.next()) {
        (Some(last), Some(first)) => lines[first + 1..last].join("\n"),
        _ => String::new(),
    }
}

/// How an answer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grade {
    /// Tests that it passed before the first that it did not.
    pub passed: usize,
    /// Why it failed the next one; none if it passed all.
    pub failure: Option<Failure>,
}

impl Grade {
    /// Whether it passed all tests.
    pub fn is_pass(&self) -> bool {
        self.failure.is_none()
    }
}

/// Why an answer failed a test. What it wrote is shown by its first 200 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// Something else than what was expected.
    WrongAnswer(String),
    /// It ended with an error: the last line of its complaint.
    Error(String),
    /// It took too long.
    TimedOut,
    /// It wrote too much.
    OutputCapped,
    /// It wanted too much memory.
    OutOfMemory,
}

/// Runs a program on the tests in order, until it fails one.
///
/// # Errors
///
/// Those of [`Sandbox::run`]; what the program does is no error.
///
/// ```no_run
/// use quant_sandbox::livecodebench::{Tests, extract_code, grade, limits};
/// use quant_sandbox::{Sandbox, SandboxOptions};
///
/// let sandbox = Sandbox::find(&SandboxOptions::default())?;
/// let tests = Tests::parse(r#"[{"input": "2\n", "output": "4\n"}]"#, "[]", "{}", 1 << 30)?;
/// let code = extract_code("```python\nprint(int(input()) ** 2)\n```");
/// assert!(grade(&sandbox, &code, &tests, &limits())?.is_pass());
/// # Ok::<(), quant_sandbox::SandboxError>(())
/// ```
pub fn grade(sandbox: &Sandbox, code: &str, tests: &Tests, limits: &Limits) -> Result<Grade, SandboxError> {
    let program = program(code, tests.function.as_deref());
    for (passed, case) in tests.cases.iter().enumerate() {
        let run = sandbox.run(&program, case.input.as_bytes(), limits)?;
        let printed = String::from_utf8_lossy(&run.stdout);
        let failure = match run.status {
            Status::Exited(0) => {
                let same = if tests.function.is_some() { same_value } else { same_output };
                if same(&printed, &case.output) {
                    continue;
                }
                Failure::WrongAnswer(shown(&printed))
            }
            Status::TimedOut => Failure::TimedOut,
            Status::OutputCapped => Failure::OutputCapped,
            Status::OutOfMemory => Failure::OutOfMemory,
            other => {
                let complaint = String::from_utf8_lossy(&run.stderr);
                let last = complaint.lines().rev().find(|line| !line.trim().is_empty());
                Failure::Error(last.map_or_else(|| format!("{other:?}"), shown))
            }
        };
        return Ok(Grade { passed, failure: Some(failure) });
    }
    Ok(Grade { passed: tests.cases.len(), failure: None })
}

/// The driver with an answer. A text in JSON is one in Python, but for lone surrogates, which Rust has not.
fn program(code: &str, function: Option<&str>) -> String {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let function = function.map_or_else(|| "None".to_owned(), text);
    format!("CODE = {}\nFUNCTION = {function}\n{DRIVER}", text(code))
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_stands_between_the_last_two_fences() {
        for (answer, code) in [
            ("a\n```python\nx = 1\n\ny\n```\nb", "x = 1\n\ny"),
            ("```\na\n```\n```py\nb\n```", "b"),
            // Fences are counted, not paired.
            ("```\na\n```\ntext\n```", "text"),
            ("````\na\n  ```\r", "a"),
            ("```a```", ""),
            ("```\n```", ""),
            ("", ""),
        ] {
            assert_eq!(extract_code(answer), code, "{answer:?}");
        }
    }

    #[test]
    fn programs_hold_the_answer_as_one_text() {
        let program = program("print(\"a\\n\")\n# é\u{7f}\u{2028}\t", Some("f"));
        let line = program.lines().next().unwrap();
        assert_eq!(line, "CODE = \"print(\\\"a\\\\n\\\")\\n# é\u{7f}\u{2028}\\t\"");
        assert!(program.contains("\nFUNCTION = \"f\"\n"));
    }
}
