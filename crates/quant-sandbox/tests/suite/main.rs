//! Untrusted programs in the sandbox, each beside a control that shows that it would do its harm elsewhere.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod walls;

use quant_sandbox::{Sandbox, SandboxOptions};
use std::sync::LazyLock;

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
