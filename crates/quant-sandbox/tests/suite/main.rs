//! Untrusted programs in the sandbox, each beside a control that shows that it would do its harm elsewhere.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod livecodebench;
mod walls;

use quant_sandbox::{Sandbox, SandboxOptions};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

static SANDBOX: LazyLock<Result<Sandbox, String>> =
    LazyLock::new(|| Sandbox::find(&SandboxOptions::default()).map_err(|e| e.to_string()));

/// The sandbox, or none where this machine has none, which a run of `CI` must not be content with.
fn sandbox() -> Option<&'static Sandbox> {
    match &*SANDBOX {
        Ok(sandbox) => Some(sandbox),
        Err(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{reason}"),
        Err(reason) => {
            quant_testkit::skipped(reason);
            None
        }
    }
}

/// What a program prints that runs as it is, without the sandbox.
fn bare(sandbox: &Sandbox, program: &str, input: &str) -> String {
    let mut command = Command::new(sandbox.python());
    command.args(["-B", "-s", "-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// The processes of this machine that have a mark among their arguments, once they are as many as expected or two seconds have
/// passed: what was killed takes a moment to go.
fn processes_with(mark: &str, expected: usize) -> Vec<String> {
    let mut found = Vec::new();
    for _ in 0..200 {
        found = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).collect();
        found.retain(|path| {
            let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
            command.split(|&byte| byte == 0).any(|word| word == mark.as_bytes())
        });
        if found.len() == expected {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    found.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}
