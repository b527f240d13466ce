//! `cargo xtask survive`: the long form of the test of random kills.

use crate::Findings;
use std::path::Path;
use std::process::Command;

/// Kills, over all recipes of the test.
const KILLS: usize = 300;

/// Runs the test with so many kills and gives its table, which belongs into `benchmarks/README.md`.
pub(crate) fn survive(root: &Path) -> Result<Findings, String> {
    let test = ["test", "--release", "-p", "ptq", "--test", "survive", "random_kills", "--", "--nocapture"];
    let ran =
        Command::new("cargo").args(test).env("SURVIVE_KILLS", KILLS.to_string()).current_dir(root).output();
    let ran = ran.map_err(|e| format!("cargo cannot be run: {e}"))?;
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let rows: Vec<&str> = out.lines().filter(|line| line.starts_with('|')).collect();
    let cell =
        |row: &str, column: usize| row.split('|').nth(column).and_then(|c| c.trim().parse::<usize>().ok());
    let sum = |column: usize| rows.iter().filter_map(|row| cell(row, column)).sum::<usize>();
    let (kills, outputs) = (sum(3), sum(6));
    let mut findings = Findings {
        summary: format!("{kills} kills, {outputs} outputs compared"),
        notices: rows.iter().map(|row| (*row).to_owned()).collect(),
        ..Findings::default()
    };
    if !ran.status.success() {
        findings.faults.push(format!("the test failed:\n{out}\n{err}"));
    }
    if kills < KILLS {
        findings.faults.push(format!("{kills} kills, {KILLS} were wanted"));
    }
    Ok(findings)
}
