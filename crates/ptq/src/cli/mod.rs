//! The command line: a thin layer over the libraries. stdout is data, stderr is talk.

mod analyze;
mod backend;
mod bench;
mod doctor;
mod download;
mod eval;
mod exit;
mod generate;
mod html;
mod inspect;
mod job;
mod list;
mod output;
mod plan;
mod plots;
mod progress;
mod quantize;
mod server;
mod study;
mod synth;
mod table;
mod task;
mod verify;

pub use exit::{Failure, INTERRUPTED, exit_code};
pub use table::Table;

use output::{print_json, print_line, say, written};

use clap::{Parser, Subcommand};
use quant_pipeline::Registry;
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
    #[command(
        after_help = "Example:\n  ptq plan --model Qwen2.5-7B-Instruct --recipe w4a16g128 --calibration corpus.txt",
        mut_arg("force", |arg| arg.help("Judge --output as a run with --force would, which may replace it")),
        mut_arg("resume", |arg| arg.help("Judge --output as a run with --resume would, which goes on with what broke off there")),
        mut_arg("restart", |arg| arg.help("Judge --output as a run with --restart would, which throws that away"))
    )]
    Plan(plan::Args),
    /// Calibrate, quantise and export a checkpoint
    #[command(
        after_help = "Example:\n  ptq quantize --model Qwen2.5-7B-Instruct --recipe w8a8-ascend --output Qwen2.5-7B-w8a8"
    )]
    Quantize(quantize::Args),
    /// Measure perplexity, divergence from a reference model, and tasks with choices or graded answers
    #[command(
        after_help = "Examples:\n  ptq eval --model Qwen2.5-7B-w8a8 --reference Qwen2.5-7B-Instruct --text wiki.test.raw\n  \
                      ptq eval --model Qwen2.5-7B-w8a8 --task gsm8k --data-dir data --limit 100 --execute int8"
    )]
    Eval(Box<eval::Args>),
    /// Reproduce an accuracy map: models by recipes by tasks, with a report that says which setting is safe and why another is not
    #[command(after_help = "Examples:\n  ptq study --preset tiny --output tiny-study\n  \
                            ptq study --grid grid.yaml --output my-study --plan")]
    Study(study::Args),
    /// Show what a recipe does to each block by itself: activations, errors, effect on the final logits; nothing is trained
    #[command(
        after_help = "Example:\n  ptq analyze --model Qwen2.5-1.5B --recipe w4a4kv4-quarot-research --calibration corpus.txt --output analysis.html"
    )]
    Analyze(analyze::Args),
    /// Continue prompts with a float model or a quantised folder, whose codes are executed
    #[command(
        after_help = "Example:\n  ptq generate --model Qwen2.5-7B-w8a8 --chat --prompt 'What is 74 + 51?'"
    )]
    Generate(generate::Args),
    /// Measure the kernels of a quantised model beside the peaks of this machine, and predict an Ascend NPU
    #[command(after_help = "Example:\n  ptq bench --named r1-distill-qwen-1.5b --output bench.html")]
    Bench(bench::Args),
    /// Show what this machine has: instructions, memory, disk, and CANN for Ascend NPUs with what it enables
    #[command(
        after_help = "Example:\n  ptq doctor --cann-library /usr/local/Ascend/ascend-toolkit/latest/lib64"
    )]
    Doctor(doctor::Args),
    /// Check a folder by the rules of the program that will load it
    #[command(after_help = "Example:\n  ptq verify Qwen2.5-7B-w8a8 --target vllm-ascend")]
    Verify(verify::Args),
    /// Show what is in a checkpoint or quantised folder
    #[command(after_help = "Example:\n  ptq inspect Qwen2.5-7B-w8a8 --tensors")]
    Inspect(inspect::Args),
    /// List methods, families, formats, recipes, tasks, scorers and studies
    #[command(after_help = "Example:\n  ptq list --json")]
    List(list::Args),
    /// Make a checkpoint of random weights for measurements of speed and memory
    #[command(
        after_help = "Examples:\n  ptq synth --output synth --shape qwen2-1.5b --layers 2\n  ptq synth --output synth --shape qwen2-7b --layers 1 --tokens 128x2048"
    )]
    Synth(synth::Args),
}

/// Parses the process's arguments, runs the command, prints a failure, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    main_with(&Registry::default())
}

/// The same program with the methods, families, formats and presets of `registry`: what another crate adds there, every
/// command knows.
#[must_use]
pub fn main_with(registry: &Registry) -> ExitCode {
    // The registers of tiles are asked for while this is the only thread: threads of other libraries may have signal stacks too small
    // for them, and then the kernel refuses.
    let _ = quant_kernels::Level::detect();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version to stdout, mistakes to stderr.
            let printed = error.print();
            return ended(if error.use_stderr() { Err(Failure::told(2)) } else { written(printed) });
        }
    };
    ended(match cli.command {
        Command::Plan(args) => plan::run(&args, registry),
        Command::Quantize(args) => quantize::run(&args, registry),
        Command::Eval(args) => match &args.task {
            Some(name) => task::run(name, &args, registry),
            None => eval::run(&args, registry),
        },
        Command::Study(args) => study::run(&args, registry),
        Command::Analyze(args) => analyze::run(&args, registry),
        Command::Generate(args) => generate::run(&args, registry),
        Command::Bench(args) => bench::run(&args, registry),
        Command::Doctor(args) => doctor::run(&args),
        Command::Verify(args) => verify::run(&args, registry),
        Command::Inspect(args) => inspect::run(&args, registry),
        Command::List(args) => list::run(&args, registry),
        Command::Synth(args) => synth::run(&args),
    })
}

/// Tells a failure and gives the exit code.
fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                say(format_args!("error: {message}"));
            }
            ExitCode::from(failure.code())
        }
    }
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

/// Whether codes are simulated or executed.
fn execution(text: &str) -> Result<quant_model::Execution, String> {
    match text {
        "sim" => Ok(quant_model::Execution::Simulated),
        "int8" => Ok(quant_model::Execution::Integer),
        _ => Err("expected sim or int8".into()),
    }
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
