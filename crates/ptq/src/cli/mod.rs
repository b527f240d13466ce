//! The command line: a thin layer over the libraries. stdout is data, stderr is talk.

mod eval;
mod exit;
mod inspect;
mod job;
mod list;
mod plan;
mod progress;
mod quantize;
mod synth;
mod table;
mod verify;

pub use exit::{Failure, INTERRUPTED, exit_code};
pub use table::Table;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Post-training quantisation of large language models for Ascend NPUs (vLLM-Ascend), vLLM and transformers
#[derive(Debug, Parser)]
#[command(name = "ptq", version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 a check failed, 2 usage or recipe, 3 unsupported, 4 bad checkpoint or data, \
                          5 resources, 130 interrupted";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a recipe would do to a model, what it would need, and whether it can work
    Plan(plan::Args),
    /// Calibrate, quantise and export a checkpoint
    Quantize(quantize::Args),
    /// Measure perplexity, and divergence from a reference model
    Eval(eval::Args),
    /// Check a folder by the rules of the program that will load it
    Verify(verify::Args),
    /// Show what is in a checkpoint or quantised folder
    Inspect(inspect::Args),
    /// List methods, families, formats and preset recipes
    List(list::Args),
    /// Make a checkpoint of random weights for measurements of speed and memory
    Synth(synth::Args),
}

/// Parses the process's arguments, runs the command, prints a failure, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version to stdout with code 0, mistakes to stderr with code 2.
            let code = if error.use_stderr() { 2 } else { 0 };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let result = match cli.command {
        Command::Plan(args) => plan::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::List(args) => list::run(&args),
        Command::Synth(args) => synth::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                eprintln!("error: {message}");
            }
            ExitCode::from(failure.code())
        }
    }
}

/// Prints JSON to stdout.
fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    use std::io::Write;
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Failure::other(e.to_string()))?;
    text.push('\n');
    // A reader that has seen enough is no failure.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::other(e.to_string())),
        _ => Ok(()),
    }
}

/// Prints a line to stdout, ignoring a closed pipe.
fn print_line(line: impl std::fmt::Display) {
    use std::io::Write;
    drop(writeln!(std::io::stdout(), "{line}"));
}

/// A number of threads, at least 1.
fn threads(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("expected a whole number from 1 to 1024".into()),
    }
}

/// The number of threads to use when none is given.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A count of at least 1.
fn count(text: &str) -> Result<usize, String> {
    text.parse::<usize>()
        .ok()
        .filter(|&n| n >= 1)
        .ok_or_else(|| "expected a whole number of at least 1".into())
}

/// A number of bytes: `8000000000`, `8GB`, `8GiB`, `500M`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 =
        text[..digits].parse().map_err(|_| "expected a size such as 8GB, 500M or 8589934592")?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        other => return Err(format!("unknown unit {other:?}; use KB, MB, GB, KiB, MiB or GiB")),
    };
    let value = number * unit;
    if value >= 1.0 { Ok(value as u64) } else { Err("expected at least one byte".into()) }
}

/// Bytes for people.
fn human(bytes: u64) -> String {
    quant_core::Bytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_read() {
        assert_eq!(bytes("8GB"), Ok(8_000_000_000));
        assert_eq!(bytes("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(bytes("123"), Ok(123));
        assert!(
            bytes("-1").is_err()
                && bytes("GB").is_err()
                && bytes("3 parsecs").is_err()
                && bytes("0").is_err()
        );
        assert!(threads("0").is_err() && threads("2") == Ok(2));
    }
}
