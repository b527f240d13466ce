//! `ptq quantize`

use super::job::{JobArgs, arithmetic, factor};
use super::progress::{Progress, on_interrupt, seconds};
use super::{Failure, Table, human, print_json, print_line};
use quant_kernels::Level;
use quant_pipeline::{LinearReport, QuantizeOutcome, Recipe, Registry, quantize};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Folder to write; required
    #[arg(long, value_name = "DIR", required_unless_present = "recipe_schema")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    if args.job.recipe_schema {
        return print_json(&quant_pipeline::schema_with(registry));
    }
    let Some(output) = &args.output else { return Err(Failure::usage("--output is needed")) };
    let job = args.job.job(output.clone(), registry)?;
    let mut progress = Progress::new(on_interrupt()?);
    let result = quantize(&job, &mut progress);
    progress.finish();
    let outcome = result?;
    if args.job.json {
        return print_json(&Report {
            compute: job.recipe.compute().name(),
            statistics: job.recipe.statistics().name(),
            instructions: job.recipe.instructions().map(Level::name),
            factor: factor(&job.recipe),
            outcome: &outcome,
        });
    }
    let worst = outcome.run.worst(WORST);
    if !worst.is_empty() {
        print_line(format_args!(
            "the {} linears with the largest errors; all are in {}",
            worst.len(),
            outcome.output.join("quantization_report.json").display()
        ))?;
        print_line(format_args!("{}\n", linear_table(&worst)))?;
    }
    print_line(summary(&outcome, &job.recipe))?;
    Ok(())
}

/// An outcome beside the settings that change its numbers.
#[derive(serde::Serialize)]
struct Report<'a> {
    compute: &'static str,
    statistics: &'static str,
    instructions: Option<&'static str>,
    factor: Option<String>,
    #[serde(flatten)]
    outcome: &'a QuantizeOutcome,
}

/// Linears that are printed; the report has them all.
const WORST: usize = 10;

/// One line per linear: scheme, bits, errors.
fn linear_table(linears: &[&LinearReport]) -> Table {
    let mut table =
        Table::new(&["linear", "method", "scheme", "bits/weight", "weight error", "output error", "s"]);
    for l in linears {
        table.row(vec![
            l.module.clone(),
            l.method.as_deref().unwrap_or("-").into(),
            l.scheme.clone(),
            format!("{:.2}", l.bits_per_weight),
            l.method.as_ref().map_or_else(|| "-".into(), |_| format!("{:.5}", l.weight_error)),
            l.output_error.map_or_else(|| "-".into(), |e| format!("{e:.5}")),
            format!("{:.2}", l.seconds),
        ]);
    }
    table
}

/// Names of the files that stayed behind, on one line.
fn not_copied(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names {
        [] => String::new(),
        few if few.len() <= SHOWN => format!("\nnot copied: {}", few.join(", ")),
        many => format!(
            "\nnot copied: {} and {} more, see quantization_report.json",
            many[..SHOWN].join(", "),
            many.len() - SHOWN
        ),
    }
}

fn summary(outcome: &QuantizeOutcome, recipe: &Recipe) -> String {
    if outcome.stood {
        return format!(
            "{}: finished before, by the same job: {}, {:.3} bits per weight, {}{}",
            outcome.output.display(),
            outcome.format,
            outcome.bits_per_weight,
            human(outcome.bytes),
            served(outcome)
        );
    }
    let mut text = format!(
        "{}: {}, {:.3} bits per weight, {} (input {}), {}",
        outcome.output.display(),
        outcome.format,
        outcome.bits_per_weight,
        human(outcome.bytes),
        human(outcome.input_bytes),
        seconds(outcome.seconds),
    );
    if let Some(bytes) = outcome.compact_bytes {
        text += &format!("\na compact folder of these weights would take {}", human(bytes));
    }
    text += &format!("\n{}", arithmetic(recipe));
    text += &format!(
        "\nreading {} (hashing {}), writing {} (hashing {}, fsync {}), keeping a journal {}",
        seconds(outcome.read.read),
        seconds(outcome.read.hash),
        seconds(outcome.write.write),
        seconds(outcome.write.hash),
        seconds(outcome.write.fsync),
        seconds(outcome.write.journal)
    );
    for (what, s) in &outcome.run.seconds {
        text += &format!(", {what} {}", seconds(*s));
    }
    if let Some(peak) = outcome.peak_memory {
        text += &format!("\npeak memory {} (predicted {})", human(peak), human(outcome.predicted_memory));
    }
    // Of one kind each: an error of weights and one of outputs say different things.
    let run = &outcome.run;
    for (what, worst) in [("output", run.largest_output_error()), ("weight", run.largest_weight_error())] {
        if let Some((error, module)) = worst {
            text += &format!("\nlargest relative {what} error {error:.5} at {module}");
        }
    }
    let raised = outcome.run.factors.iter().filter(|f| f.factor.attempts.len() > 1).count();
    if raised > 0 {
        text +=
            &format!("\n{raised} factorisations needed more than one attempt; see quantization_report.json");
    }
    text + &not_copied(&outcome.not_copied) + &served(outcome)
}

/// How to load it, a line for each program.
fn served(outcome: &QuantizeOutcome) -> String {
    outcome.serve.iter().map(|line| format!("\n{:13} {}", line.client, line.command)).collect()
}
