//! `ptq analyze`

mod page;
mod text;

use super::output::OutputFile;
use super::progress::{Progress, on_interrupt, seconds};
use super::{Failure, bytes, default_threads, human, print_json, print_line, say, threads};
use quant_data::CalibrationSpec;
use quant_pipeline::{AnalyzeJob, PreparedAnalysis, Registry, Sample, prepare_analysis, read_recipe_with};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder (Hugging Face layout), not quantised
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Recipe file, or the name of a preset (`ptq list`)
    #[arg(long, value_name = "FILE|PRESET")]
    recipe: String,
    /// Text, JSON lines with `text` or `messages`, or token ids FILE.safetensors:TENSOR
    #[arg(long, value_name = "FILE[:TENSOR]")]
    calibration: String,
    /// Sequences of the calibration data, and tokens to which each is cut
    #[arg(long, value_name = "NxL", default_value_t)]
    sample: Sample,
    /// Finished output of `ptq quantize` from this model by this recipe: its blocks are analysed, and the traces of its training shown
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Write everything with its plots into one file that needs no other
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Threads (default: all processors); the result does not depend on it
    #[arg(long, value_name = "T", value_parser = threads)]
    threads: Option<usize>,
    /// Memory budget, such as 8GB (default: none), kept by activations on disk; an analysis that may exceed it is refused
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Allow an existing --output to be replaced
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let job = AnalyzeJob {
        model: args.model.clone(),
        recipe: read_recipe_with(&args.recipe, registry)?,
        calibration: CalibrationSpec::parse(&args.calibration)?,
        sample: args.sample,
        report: args.report.clone(),
        threads: args.threads.unwrap_or_else(default_threads),
        memory: args.memory,
        spill: None,
    };
    // What cannot be written is said before anything is measured.
    let folders = [Some(&args.model), args.report.as_ref()];
    let output = args.output.as_ref().map(|path| {
        let folders: Vec<_> = folders.iter().flatten().map(|folder| folder.as_path()).collect();
        OutputFile::check(path, args.force, &folders)
    });
    let output = output.transpose()?;
    let prepared = prepare_analysis(&job)?;
    say(cost(&prepared));
    let mut progress = Progress::new(on_interrupt()?);
    let result = prepared.run(&mut progress);
    progress.finish();
    let analysis = result?;
    if args.json {
        print_json(&analysis)?;
    } else {
        print_line(text::text(&analysis))?;
    }
    // Behind what is printed, so that a disk that has become full does not take both.
    output.map_or(Ok(()), |output| output.write(page::page(&analysis)?.as_bytes()))
}

/// What the work will take, in a line or two.
fn cost(prepared: &PreparedAnalysis) -> String {
    let cost = &prepared.cost;
    let disk = if cost.spilled { format!(", {} on disk", human(cost.disk)) } else { String::new() };
    format!(
        "{} blocks on {}\n{} block reads ({}), the sample {} times through a block, about {}, {} of memory{disk}",
        prepared.blocks(),
        prepared.sample(),
        cost.block_reads,
        human(cost.read_bytes),
        cost.block_passes,
        seconds(cost.seconds),
        human(cost.memory),
    )
}
