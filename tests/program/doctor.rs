//! `ptq doctor` on machines without an NPU, and with libraries that are none.

use crate::common::{ptq, text};
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
    std::fs::write(work.path().join("libascendcl.so"), b"no library").unwrap();
    let broken = ptq(&["doctor", "--json", "--cann-library", &folder]).expect(1, &[]).json();
    assert!(!broken["ascend"]["problems"].as_array().unwrap().is_empty(), "{broken}");
}
