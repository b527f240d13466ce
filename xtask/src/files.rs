//! Which files belong to the repository.

use std::path::Path;
use std::process::Command;

/// Runs a program in `root` and returns what it printed.
pub(crate) fn output_of(root: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    let shown = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .output()
        .map_err(|e| format!("cannot run {}: {e}", shown()))?;
    if !output.status.success() {
        return Err(format!("{} failed: {}", shown(), String::from_utf8_lossy(&output.stderr).trim()));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{} printed something that is not UTF-8", shown()))
}

/// Paths, relative to `root`, of all files that are tracked or about to be: ignored ones are left out.
pub(crate) fn repository_files(root: &Path) -> Result<Vec<String>, String> {
    let list = output_of(root, "git", &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
    let mut paths: Vec<String> =
        list.split('\0').filter(|p| !p.is_empty() && root.join(p).is_file()).map(str::to_owned).collect();
    paths.sort();
    paths.dedup();
    Ok(paths)
}
