//! `cargo xtask map`: the accuracy map of the embedded model, and its picture in README.

use crate::Findings;
use std::path::Path;
use std::process::Command;

/// The picture of the study.
const PICTURE: &str = "assets/study-tiny.svg";

/// Runs the study `tiny` from the beginning, puts its picture into the repository, and tells what it took and how the picture changed.
pub(crate) fn map(root: &Path) -> Result<Findings, String> {
    let output = root.join("target/map");
    if output.exists() {
        std::fs::remove_dir_all(&output).map_err(|e| format!("{}: {e}", output.display()))?;
    }
    let mut run = Command::new("cargo");
    run.args(["run", "--release", "--locked", "--bin", "ptq", "--", "study", "--preset", "tiny", "--output"]);
    let ran = run.arg(&output).current_dir(root).output().map_err(|e| format!("cargo cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    if !ran.status.success() {
        return Err(format!("the study failed:\n{said}"));
    }
    let mut findings = Findings::default();
    findings.notices.extend(said.lines().filter(|line| line.starts_with("this run took")).map(str::to_owned));
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let (new, place) = (read(&output.join("map.svg"))?, root.join(PICTURE));
    let same = place.exists() && read(&place)? == new;
    std::fs::write(&place, &new).map_err(|e| format!("{}: {e}", place.display()))?;
    findings.summary = format!("{PICTURE} is {}", if same { "as it was" } else { "new" });
    Ok(findings)
}
