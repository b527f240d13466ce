//! Tasks whose answers are programs.

use crate::tiny_reasoner;
use quant_data::{Task, built_in_task};
use quant_pipeline::{Registry, Silent};
use quant_study::{Record, StudyError, TaskJob, TaskOutcome, run_task};
use std::path::{Path, PathBuf};

fn run(job: &TaskJob) -> Result<TaskOutcome, StudyError> {
    run_task(job, None, &mut Silent, &Registry::default())
}

/// Short answers: the model of the repository writes no programs.
fn job() -> TaskJob {
    let data: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let task = built_in_task("livecodebench").unwrap();
    TaskJob {
        data: vec![data],
        threads: 2,
        seeds: Some(vec![42]),
        max_new_tokens: Some(20),
        ..TaskJob::new(tiny_reasoner(), task)
    }
}

#[test]
fn programs_run_only_where_they_are_allowed_to() {
    let error = run(&job()).unwrap_err();
    assert!(matches!(error, StudyError::Refused(_)), "{error:?}");
    let words = error.to_string();
    assert!(words.contains("livecodebench") && words.contains("--allow-code-execution"), "{words}");
    // An interpreter that is not there: nothing is asked of the model, and nothing is kept.
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let elsewhere = TaskJob {
        allow_code_execution: true,
        python: Some("/nowhere/python3".into()),
        output: Some(output.clone()),
        ..job()
    };
    let error = run(&elsewhere).unwrap_err();
    assert!(matches!(&error, StudyError::Refused(words) if words.contains("no sandbox")), "{error:?}");
    assert!(!output.join("items.jsonl").exists());
}

#[test]
fn a_model_without_programs_is_wrong_and_no_error() {
    let outcome = match run(&TaskJob { allow_code_execution: true, ..job() }) {
        Ok(outcome) => outcome,
        Err(StudyError::Refused(reason)) if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("{reason}")
        }
        Err(StudyError::Refused(reason)) => return quant_testkit::skipped(reason),
        Err(error) => panic!("{error}"),
    };
    assert_eq!((outcome.result.items, outcome.result.figure.value), (3, Some(0.0)));
    for record in &outcome.records {
        let Record::Answer { right, extracted, .. } = record else { panic!("{record:?}") };
        assert_eq!((*right, extracted.as_ref()), (false, None));
    }
}

#[test]
fn tests_that_cannot_be_read_are_named() {
    let written = built_in_task("livecodebench").unwrap().written().replace(
        "gold_fields: [public_test_cases, private_test_cases, metadata]",
        "gold_fields: [starter_code]",
    );
    let job = TaskJob { task: Task::parse(&written).unwrap(), allow_code_execution: true, ..job() };
    let error = run(&job).unwrap_err();
    if let StudyError::Refused(reason) = error {
        return quant_testkit::skipped(reason);
    }
    assert!(error.to_string().contains("missing field `public_test_cases`"), "{error}");
}
