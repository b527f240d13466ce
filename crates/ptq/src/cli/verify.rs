//! `ptq verify`

use super::{Failure, print_json, print_line};
use quant_checkpoint::verify::{Target, verify};
use quant_pipeline::folder_spec;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to check
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The program that will load it: vllm-ascend, vllm or transformers
    #[arg(long, value_name = "TARGET")]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // Nothing is asked of the tensors here: what is wrong with them is for the rules to say.
    let spec = folder_spec(&args.folder)?;
    let report = verify(&args.folder, &spec, args.target)?;
    if args.json {
        print_json(&report)?;
    } else {
        for check in &report.checks {
            let mark = if check.passed { "ok    " } else { "FAILED" };
            let detail = if check.detail.is_empty() { String::new() } else { format!(": {}", check.detail) };
            print_line(format!("{mark} {}{detail}", check.name))?;
        }
        let verdict = if report.passed() { "passes" } else { "does not pass" };
        print_line(format!("{} {verdict} for {}", args.folder.display(), args.target))?;
    }
    if report.passed() { Ok(()) } else { Err(Failure::check()) }
}
