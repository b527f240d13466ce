//! `ptq quantize`

use super::progress::{Progress, seconds};
use super::{
    Failure, INTERRUPTED, Table, bytes, count, default_threads, human, print_json, print_line, threads,
};
use quant_data::CalibrationSpec;
use quant_pipeline::{QuantizeJob, QuantizeOutcome, quantize, read_recipe};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder (Hugging Face layout)
    #[arg(long, value_name = "DIR", required_unless_present = "recipe_schema")]
    model: Option<PathBuf>,
    /// Recipe file, or the name of a preset (`ptq list`)
    #[arg(long, value_name = "FILE|PRESET", required_unless_present = "recipe_schema")]
    recipe: Option<String>,
    /// Text, JSONL with `text` or `messages`, or token ids FILE.safetensors:TENSOR; needed by most recipes
    #[arg(long, value_name = "FILE[:TENSOR]")]
    calibration: Option<String>,
    /// Folder to write
    #[arg(long, value_name = "DIR", required_unless_present = "recipe_schema")]
    output: Option<PathBuf>,
    /// First rows of a token tensor (default all), or random windows of a text (default 128)
    #[arg(long, value_name = "N", value_parser = count)]
    num_samples: Option<usize>,
    /// Tokens per sequence: rows are cut to it (default: not cut), windows have it (default 2048)
    #[arg(long, value_name = "L", value_parser = count)]
    max_seq_len: Option<usize>,
    /// Seed of the random windows
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Threads; the output does not depend on it
    #[arg(long, value_name = "T", value_parser = threads)]
    threads: Option<usize>,
    /// Memory budget, such as 8GB; activations are spilled to disk to keep it
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Replace an existing output folder
    #[arg(long)]
    force: bool,
    /// Print the report as JSON on stdout
    #[arg(long)]
    json: bool,
    /// Print the JSON schema of recipes, with all defaults, and exit
    #[arg(long)]
    recipe_schema: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.recipe_schema {
        return print_json(&quant_pipeline::schema());
    }
    let (Some(model), Some(recipe), Some(output)) = (&args.model, &args.recipe, &args.output) else {
        return Err(Failure::usage("--model, --recipe and --output are needed"));
    };
    let job = QuantizeJob {
        model: model.clone(),
        recipe: read_recipe(recipe)?,
        calibration: args.calibration.as_deref().map(CalibrationSpec::parse).transpose()?,
        output: output.clone(),
        num_samples: args.num_samples,
        max_seq_len: args.max_seq_len,
        seed: args.seed,
        threads: args.threads.unwrap_or_else(default_threads),
        memory: args.memory,
        force: args.force,
    };
    let mut progress = Progress::new(on_interrupt()?);
    let result = quantize(&job, &mut progress);
    progress.finish();
    let outcome = result?;
    if args.json {
        return print_json(&outcome);
    }
    print_line(linear_table(&outcome));
    print_line("");
    print_line(summary(&outcome));
    Ok(())
}

/// A flag that Ctrl-C sets, so that the run stops between two steps and removes what it has begun. A second Ctrl-C ends
/// the process where it is; what is left then carries a marker that every reader refuses.
fn on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let handler = move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("\ninterrupted: stopping after this step; once more to stop at once");
    };
    ctrlc::set_handler(handler).map_err(|e| Failure::other(format!("cannot handle Ctrl-C: {e}")))?;
    Ok(flag)
}

/// One line per linear: scheme, bits, errors.
fn linear_table(outcome: &QuantizeOutcome) -> Table {
    let mut table = Table::new(&["linear", "method", "scheme", "bits", "weight error", "output error", "s"]);
    for l in &outcome.run.linears {
        table.row(vec![
            l.module.clone(),
            l.method.unwrap_or("-").into(),
            l.scheme.clone(),
            format!("{:.2}", l.bits_per_weight),
            format!("{:.5}", l.weight_error),
            l.output_error.map_or_else(|| "-".into(), |e| format!("{e:.5}")),
            format!("{:.2}", l.seconds),
        ]);
    }
    table
}

fn summary(outcome: &QuantizeOutcome) -> String {
    let mut text = format!(
        "{}: {}, {:.3} bits per weight, {} (input {}), {}",
        outcome.output.display(),
        outcome.format,
        outcome.bits_per_weight,
        human(outcome.bytes),
        human(outcome.input_bytes),
        seconds(outcome.seconds),
    );
    text += &format!(
        "\nwriting {} (hashing {}, fsync {})",
        seconds(outcome.write.write),
        seconds(outcome.write.hash),
        seconds(outcome.write.fsync)
    );
    for (what, s) in &outcome.run.seconds {
        text += &format!(", {what} {}", seconds(*s));
    }
    if let Some(peak) = outcome.peak_memory {
        text += &format!("\npeak memory {} (predicted {})", human(peak), human(outcome.predicted_memory));
    }
    if let Some(worst) = outcome.run.worst() {
        let error = worst.output_error.unwrap_or(worst.weight_error);
        text += &format!("\nlargest relative error {error:.5} at {}", worst.module);
    }
    let raised = outcome.run.factors.iter().filter(|f| f.factor.attempts.len() > 1).count();
    if raised > 0 {
        text +=
            &format!("\n{raised} factorisations needed more than one attempt; see quantization_report.json");
    }
    text
}
