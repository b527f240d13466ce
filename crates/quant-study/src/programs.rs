//! Answers that are programs. They run in a sandbox, and only where the person allows that.

use crate::StudyError;
use quant_data::{Task, TaskKind};
use quant_eval::answers::Grade;
use quant_eval::{EvalError, ProgramGrader};
use quant_pipeline::Registry;
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

/// Whether the answers of a task are programs.
pub(crate) fn runs_programs(task: &Task, registry: &Registry) -> Result<bool, StudyError> {
    let TaskKind::Generate(ask) = task.kind() else { return Ok(false) };
    Ok(quant_eval::scorer_of(&ask.scorer, registry.scorers())?.runs_programs)
}

/// Refuses tasks whose answers are programs where these may not or cannot be run.
pub(crate) fn check_programs(
    tasks: &[Task],
    allowed: bool,
    python: Option<&Path>,
    registry: &Registry,
) -> Result<(), StudyError> {
    let mut found = false;
    for task in tasks {
        if runs_programs(task, registry)? {
            check_allowed(task, allowed)?;
            // It is the same one for all of them.
            if !found {
                Programs::find(task, python, 1)?;
                found = true;
            }
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use quant_data::built_in_task;

    /// The sandbox, or none where this machine has none, which a run of `CI` must not be content with.
    fn programs() -> Option<Programs> {
        let task = built_in_task("livecodebench").unwrap();
        match Programs::find(&task, None, 2) {
            Ok(programs) => Some(programs),
            Err(error) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{error}"),
            Err(error) => {
                quant_testkit::skipped(error);
                None
            }
        }
    }

    /// What is right of each problem of the fixture, by its name.
    fn golds() -> Vec<(String, String)> {
        let task = built_in_task("livecodebench").unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let files = task.source().find(task.name(), &[folder]).unwrap();
        let questions = task.questions(&files, 42, None).unwrap();
        questions.into_iter().map(|question| (question.id, question.gold)).collect()
    }

    fn answer(program: &str) -> String {
        format!("I think so.\n```python\nprint(0)\n```\nNo:\n```python\n{program}\n```\nDone.")
    }

    #[test]
    fn answers_are_what_their_programs_do() {
        let Some(programs) = programs() else { return };
        let golds = golds();
        for (id, program, right) in [
            ("own_sum", "print(sum(map(int, input().split())))", true),
            ("own_sum", "print(5)", false),
            ("own_sum", "while True: pass", false),
            ("own_sum", "raise SystemError('no')", false),
            ("own_sum", "print(sum(map(int, input().split()))", false),
            (
                "own_reverse",
                "class Solution:\n    def turned(self, items):\n        return items[::-1]",
                true,
            ),
            ("own_reverse", "class Solution:\n    def turned(self, items):\n        return items", false),
            ("own_reverse", "class Solution:\n    pass", false),
            // Its private tests are packed: the wrong one passes those that are not.
            ("own_longest", "print(max(input().split(), key=len))", true),
            ("own_longest", "print(max(reversed(input().split()), key=len))", false),
        ] {
            let gold = &golds.iter().find(|(name, _)| name == id).unwrap().1;
            let grade = programs.grade(gold, &answer(program)).unwrap();
            assert_eq!(grade.correct, right, "{id}: {program}");
            assert_eq!(grade.extracted.as_deref(), Some(program));
        }
        let grade = programs.grade(&golds[0].1, "The sum is 5.").unwrap();
        assert_eq!((grade.correct, grade.extracted), (false, None));
    }

    #[test]
    fn tests_are_read_before_anything_is_asked() {
        let Some(programs) = programs() else { return };
        for (_, gold) in golds() {
            programs.check(&gold).unwrap();
        }
        for (gold, words) in [
            ("{}", "missing field `public_test_cases`"),
            (
                r#"{"public_test_cases": "[]", "private_test_cases": "*", "metadata": ""}"#,
                "private_test_cases: expected",
            ),
        ] {
            let error = programs.check(gold).unwrap_err().to_string();
            assert!(error.starts_with("the tests of a problem") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn so_many_run_at_a_time() {
        let Some(programs) = programs() else { return };
        let running = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    programs.in_turn(|| {
                        use std::sync::atomic::Ordering::SeqCst;
                        assert!(running.fetch_add(1, SeqCst) < 2);
                        std::thread::sleep(std::time::Duration::from_millis(5));
                        running.fetch_sub(1, SeqCst);
                    });
                });
            }
        });
        assert_eq!(*programs.free.lock().unwrap(), 2);
    }

    #[test]
    fn nothing_runs_where_it_may_not_or_cannot() {
        let tasks = [built_in_task("gsm8k").unwrap(), built_in_task("livecodebench").unwrap()];
        let check = |allowed, python: Option<&str>| {
            check_programs(&tasks, allowed, python.map(Path::new), &Registry::default())
        };
        let error = check(false, None).unwrap_err();
        assert!(
            matches!(&error, StudyError::Refused(words) if words.contains("--allow-code-execution")),
            "{error}"
        );
        let error = check(true, Some("/nowhere/python3")).unwrap_err();
        assert!(matches!(&error, StudyError::Refused(words) if words.contains("no sandbox")), "{error}");
        check_programs(&tasks[..1], false, None, &Registry::default()).unwrap();
    }
}
