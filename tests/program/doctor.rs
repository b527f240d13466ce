//! `ptq doctor` on machines without an NPU, and with libraries that are none.

use crate::common::{ptq, text};
use std::path::Path;
use tempfile::tempdir;

#[test]
fn nothing_installed_is_a_finding_and_something_broken_fails() {
    let work = tempdir().unwrap();
    let folder = text(work.path()).to_owned();
    let report = ptq(&["doctor", "--json", "--cann-library", &folder]).expect(0, &[]).json();
    assert!(report["processor"]["threads"].as_u64().unwrap() >= 1);
    assert!(report["processor"]["float_level"].is_string() && report["disk"].is_array());
    assert_eq!(report["ascend"]["devices"].as_array().map(Vec::len), Some(0));
    let printed = ptq(&["doctor", "--cann-library", &folder]).expect(0, &[]).out;
    for words in ["processor", "memory", "disk", "integer products by"] {
        assert!(printed.contains(words), "no {words:?} in {printed}");
    }
    // The search order of the system, where no CANN is installed.
    let installed = ["cann", "ascend-toolkit"].map(|name| Path::new("/usr/local/Ascend").join(name));
    if !installed.iter().any(|folder| folder.exists()) && std::env::var_os("ASCEND_HOME_PATH").is_none() {
        let report = ptq(&["doctor", "--json"]).expect(0, &[]).json();
        assert_eq!(report["ascend"]["problems"].as_array().map(Vec::len), Some(0), "{report}");
    }
    std::fs::write(work.path().join("libascendcl.so"), b"no library").unwrap();
    let broken = ptq(&["doctor", "--json", "--cann-library", &folder]).expect(1, &[]).json();
    let problems = broken["ascend"]["problems"].as_array().unwrap();
    // The linker's own words, not only that it failed.
    let told = |problem: &serde_json::Value| {
        problem.as_str().is_some_and(|text| text.matches("libascendcl.so").count() == 2)
    };
    assert!(problems.iter().any(told), "{broken}");
}
