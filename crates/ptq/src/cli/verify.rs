//! `ptq verify`

use super::{Failure, count, print_json, print_line};
use quant_checkpoint::verify::{Check, Rules, Severity, VerifyReport, loads_with, verify_all_with};
use quant_pipeline::{Registry, folder_spec_with};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to check
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The program that will load it, with its version if not the newest (vllm@0.23); `ptq list` has them. Default: every
    /// one that reads the format
    #[arg(long, value_name = "TARGET[@VERSION]")]
    target: Option<Rules>,
    /// Devices it must load on by tensor parallelism
    #[arg(long, value_name = "N", value_parser = count)]
    tp: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    // Nothing is asked of the tensors here: what is wrong with them is for the rules to say.
    let spec = folder_spec_with(&args.folder, registry)?;
    let reports = verify_all_with(&args.folder, &spec, args.target.as_slice(), args.tp, registry.formats())?;
    let passed = reports.iter().any(VerifyReport::passed);
    if args.json {
        match (args.target, reports.as_slice()) {
            (Some(_), [report]) => print_json(report)?,
            _ => print_json(&json!({ "passed": passed, "targets": reports }))?,
        }
    } else {
        for report in &reports {
            print_report(report, args)?;
        }
    }
    if passed { Ok(()) } else { Err(Failure::check()) }
}

fn print_report(report: &VerifyReport, args: &Args) -> Result<(), Failure> {
    print_line(format_args!("rules of {}", report.rules))?;
    if let Some(notice) = &report.notice {
        print_line(format_args!("notice {notice}"))?;
    }
    for check in &report.checks {
        let detail = if check.detail.is_empty() { String::new() } else { format!(": {}", check.detail) };
        print_line(format_args!("{} {}{detail}", mark(check), check.name))?;
    }
    let verdict = match report.passed() {
        true => format!("passes for {} and {}", report.target, loads_with(&report.tensor_parallel)),
        false => format!("does not pass for {}", report.target),
    };
    print_line(format_args!("{} {verdict}", args.folder.display()))
}

/// Advice is no failure.
fn mark(check: &Check) -> &'static str {
    match (check.passed, check.severity) {
        (true, _) => "ok    ",
        (false, Severity::Rule) => "FAILED",
        (false, Severity::Advice) => "advice",
    }
}
