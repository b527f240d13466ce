//! A skipped test is seen without asking for the output of passing tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn a_test_that_skips() {
    quant_testkit::skipped("as an example, nothing is missing");
}

#[test]
fn skips_are_not_captured() {
    let this = std::env::current_exe().unwrap();
    let run = Command::new(this).args(["--exact", "a_test_that_skips"]).output().unwrap();
    let err = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.success());
    assert_eq!(err, "skipped: a_test_that_skips: as an example, nothing is missing\n");
}
