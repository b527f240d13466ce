//! What goes to stdout: results, and nothing else.

use super::Failure;
use std::io::{self, Write};

/// Prints JSON to stdout.
pub(super) fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    print_line(serde_json::to_string_pretty(value).map_err(|e| Failure::other(e.to_string()))?)
}

/// Prints text and a line end to stdout.
pub(super) fn print_line(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    written(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
}

/// A result that did not reach its reader is a failure, unless the reader has seen enough and closed the pipe.
pub(super) fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::stdout(&e)),
        _ => Ok(()),
    }
}

/// Prints a line of talk to stderr. Where nobody can read it, the work goes on.
pub(super) fn say(text: impl std::fmt::Display) {
    drop(writeln!(io::stderr(), "{text}"));
}
