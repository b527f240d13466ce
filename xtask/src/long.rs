//! `cargo xtask long`: tests that have a long form, in it.

use crate::Findings;
use std::path::Path;
use std::process::Command;

/// Every row of the official figures, every prediction of memory, every moment at which a run ends. Their tables belong into `benchmarks/README.md`.
pub(crate) fn long(root: &Path) -> Result<Findings, String> {
    let mut findings = Findings::default();
    for test in ["parity", "memory", "survive"] {
        // Of the whole workspace: a choice of one package gives what it depends on other features, and builds all of it anew.
        let arguments = ["test", "--locked", "--release", "--workspace", "--test", test, "--", "--nocapture"];
        let ran = Command::new("cargo").args(arguments).env("PTQ_LONG", "1").current_dir(root).output();
        let ran = ran.map_err(|e| format!("cargo cannot be run: {e}"))?;
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        findings
            .notices
            .extend(out.lines().filter(|l| l.starts_with('|') || l.contains("peak ")).map(str::to_owned));
        if !ran.status.success() {
            findings.faults.push(format!("{test} failed:\n{out}\n{err}"));
        }
    }
    findings.summary = format!("{} lines", findings.notices.len());
    Ok(findings)
}
