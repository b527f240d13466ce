//! `ptq plan`

use super::{Failure, Table, bytes, count, default_threads, human, print_json, print_line, threads};
use quant_data::CalibrationSpec;
use quant_pipeline::{QuantizeJob, prepare, read_recipe};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Recipe file or preset
    #[arg(long, value_name = "FILE|PRESET")]
    recipe: String,
    /// Calibration data, to predict memory for it
    #[arg(long, value_name = "FILE[:TENSOR]")]
    calibration: Option<String>,
    /// As for quantize
    #[arg(long, value_name = "N", value_parser = count)]
    num_samples: Option<usize>,
    /// As for quantize
    #[arg(long, value_name = "L", value_parser = count)]
    max_seq_len: Option<usize>,
    /// As for quantize
    #[arg(long, value_name = "T", value_parser = threads)]
    threads: Option<usize>,
    /// As for quantize
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let job = QuantizeJob {
        model: args.model.clone(),
        recipe: read_recipe(&args.recipe)?,
        calibration: args.calibration.as_deref().map(CalibrationSpec::parse).transpose()?,
        output: PathBuf::new(),
        num_samples: args.num_samples,
        max_seq_len: args.max_seq_len,
        seed: 0,
        threads: args.threads.unwrap_or_else(default_threads),
        memory: args.memory,
        force: false,
    };
    let prepared = prepare(&job)?;
    for warning in &prepared.warnings {
        eprintln!("warning: {warning}");
    }
    let plan = &prepared.plan;
    let mut groups: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    for (_, role, scheme) in plan.scheme.linears() {
        let linear = plan.spec.linear(role);
        let size = (linear.outputs * linear.inputs) as f64;
        let text = match (scheme.weight, scheme.input) {
            (None, None) => "float".to_owned(),
            (weight, input) => {
                let method = |w: quant_graph::WeightScheme| {
                    let symmetry = if w.symmetric { "symmetric" } else { "asymmetric" };
                    let group =
                        w.group.map_or_else(|| "per channel".to_owned(), |g| format!("groups of {g}"));
                    format!("{}-bit weights, {symmetry}, {group}", w.bits.get())
                };
                let input = input.map_or_else(String::new, |i| {
                    let when = if i.dynamic { "per token" } else { "static" };
                    format!("; {}-bit activations, {when}", i.bits.get())
                });
                format!("{}{input}", weight.map_or_else(|| "float weights".to_owned(), method))
            }
        };
        let entry = groups.entry(text).or_default();
        entry.0 += 1;
        entry.1 += size;
    }
    let tokens = prepared.tokens.as_ref();
    if args.json {
        let json = serde_json::json!({
            "model": plan.spec, "format": plan.recipe.format.id(), "scheme": plan.scheme,
            "needs_calibration": plan.needs.calibration(),
            "calibration_tokens": tokens.map(quant_data::TokenSet::tokens),
            "memory": {"peak": prepared.memory.peak(prepared.spill), "peak_spilled": prepared.memory.peak(true),
                "phases": prepared.memory.phases, "base": prepared.memory.base, "spill": prepared.spill},
            "warnings": prepared.warnings,
        });
        return print_json(&json);
    }
    let spec = &plan.spec;
    print_line(format!(
        "{} ({} blocks, hidden {}, {} weights in linears) to {}",
        spec.architecture,
        spec.layers,
        spec.hidden,
        groups.values().map(|g| g.1).sum::<f64>(),
        plan.recipe.format.id()
    ));
    let mut table = Table::new(&["scheme", "linears", "weights"]);
    for (text, (count, size)) in &groups {
        table.row(vec![text.clone(), count.to_string(), format!("{size}")]);
    }
    print_line(table);
    if let Some(kv) = plan.scheme.kv {
        print_line(format!("KV cache: {} bits, {:?}, {:?}", kv.bits.get(), kv.rule, kv.granularity));
    }
    match tokens {
        Some(tokens) => print_line(format!("calibration: {}", tokens.describe())),
        None if plan.needs.calibration() => {
            print_line("calibration: needed, not given; the memory below is without its activations");
        }
        None => print_line("calibration: not needed"),
    }
    if prepared.spill {
        print_line("activations go to disk, to stay within the memory budget");
    }
    print_line(format!(
        "predicted peak memory: {} with activations in memory, {} with activations on disk",
        human(prepared.memory.peak(false)),
        human(prepared.memory.peak(true))
    ));
    Ok(())
}
