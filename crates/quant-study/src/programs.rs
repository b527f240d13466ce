//! Answers that are programs. They run in a sandbox, and only where the person allows that.

use crate::StudyError;
use quant_data::Task;
use quant_eval::answers::Grade;
use quant_eval::{EvalError, ProgramGrader};
use quant_sandbox::livecodebench::{Tests, extract_code, grade, limits};
use quant_sandbox::{Sandbox, SandboxError, SandboxOptions};
use serde::Deserialize;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

/// Most bytes of the tests of one problem.
const MOST_UNPACKED: u64 = 1 << 30;

/// Refuses a task whose answers are programs, unless they may be run.
pub(crate) fn check_allowed(task: &Task, allowed: bool) -> Result<(), StudyError> {
    if allowed {
        return Ok(());
    }
    Err(StudyError::Refused(format!(
        "the task {} runs programs that a model wrote; they are run in a sandbox, and only with --allow-code-execution",
        task.name()
    )))
}

/// Grades answers to the problems of LiveCodeBench.
#[derive(Debug)]
pub(crate) struct Programs {
    sandbox: Sandbox,
    /// How many more programs may run: more than there are processors would be slow for no fault of theirs.
    free: Mutex<usize>,
    one_more: Condvar,
}

/// The tests of a problem as the task gives them.
#[derive(Deserialize)]
struct Fields {
    public_test_cases: String,
    private_test_cases: String,
    metadata: String,
}

impl Programs {
    /// Finds the sandbox, with this interpreter or the system's; so many programs run at a time.
    pub(crate) fn find(task: &Task, python: Option<&Path>, at_a_time: usize) -> Result<Self, StudyError> {
        let mut options = SandboxOptions::default();
        options.python = python.map(Path::to_owned);
        let sandbox = Sandbox::find(&options).map_err(|error| match error {
            missing @ SandboxError::Unavailable { .. } => StudyError::Refused(format!(
                "the task {} runs programs that a model wrote: {missing}",
                task.name()
            )),
            other => EvalError::Programs { source: other.into() }.into(),
        })?;
        Ok(Self { sandbox, free: Mutex::new(at_a_time.max(1)), one_more: Condvar::new() })
    }

    /// Runs `f` once there is a place for it.
    fn in_turn<T>(&self, f: impl FnOnce() -> T) -> T {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free =
            self.one_more.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        drop(free);
        let result = f();
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.one_more.notify_one();
        result
    }
}

fn tests(gold: &str) -> Result<Tests, EvalError> {
    let fields: Fields = serde_json::from_str(gold).map_err(|e| EvalError::Tests { source: e.into() })?;
    Tests::parse(&fields.public_test_cases, &fields.private_test_cases, &fields.metadata, MOST_UNPACKED)
        .map_err(|e| EvalError::Tests { source: e.into() })
}

impl ProgramGrader for Programs {
    fn check(&self, gold: &str) -> Result<(), EvalError> {
        tests(gold).map(|_| ())
    }

    fn grade(&self, gold: &str, text: &str) -> Result<Grade, EvalError> {
        let tests = tests(gold)?;
        let code = extract_code(text);
        let graded = self.in_turn(|| grade(&self.sandbox, &code, &tests, &limits()));
        let graded = graded.map_err(|e| EvalError::Programs { source: e.into() })?;
        Ok(Grade {
            correct: graded.is_pass(),
            extracted: (!code.is_empty()).then_some(code),
            // A program is right by what it does, of which nothing can be seen in a thought.
            gold_seen_in_text: false,
        })
    }
}
