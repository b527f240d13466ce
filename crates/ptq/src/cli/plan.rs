//! `ptq plan`

use super::job::{JobArgs, arithmetic, factor};
use super::{Failure, Table, human, print_json, print_line};
use quant_core::{ActRule, KvGranularity};
use quant_graph::{LinearScheme, WeightScheme};
use quant_pipeline::prepare;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Folder that would be written; checked as far as that can be done without writing
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.job.recipe_schema {
        return print_json(&quant_pipeline::schema());
    }
    let job = args.job.job(args.output.clone().unwrap_or_default())?;
    let prepared = prepare(&job)?;
    if args.output.is_some() {
        prepared.check_output(&job)?;
    }
    for warning in &prepared.warnings {
        eprintln!("warning: {warning}");
    }
    let plan = &prepared.plan;
    let mut groups: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (_, role, scheme) in plan.scheme.linears() {
        let linear = plan.spec.linear(role);
        let entry = groups.entry(describe(scheme)).or_default();
        entry.0 += 1;
        entry.1 += linear.outputs * linear.inputs;
    }
    let tokens = prepared.tokens.as_ref();
    if args.job.json {
        let json = serde_json::json!({
            "model": plan.spec, "format": plan.recipe.format.id(), "scheme": plan.scheme,
            "compute": plan.recipe.compute, "factor": factor(&plan.recipe),
            "needs_calibration": plan.needs.calibration(),
            "calibration_tokens": tokens.map(quant_data::TokenSet::tokens),
            "memory": {"peak": prepared.memory.peak(prepared.spill), "peak_spilled": prepared.memory.peak(true),
                "phases": prepared.memory.phases, "base": prepared.memory.base, "spill": prepared.spill,
                "retry": prepared.memory.retry, "bound": prepared.memory.bound(prepared.spill)},
            "disk": prepared.disk,
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
        groups.values().map(|g| g.1).sum::<usize>(),
        plan.recipe.format.id()
    ));
    let mut table = Table::new(&["scheme", "linears", "weights"]);
    for (text, (count, size)) in &groups {
        table.row(vec![text.clone(), count.to_string(), size.to_string()]);
    }
    print_line(table);
    if let Some(kv) = plan.scheme.kv {
        let symmetry = if kv.rule == ActRule::Symmetric { "symmetric" } else { "asymmetric" };
        let scales = match kv.granularity {
            KvGranularity::TokenHead => "a scale per token and head",
            KvGranularity::ChannelStatic => "a static scale per channel",
        };
        print_line(format!("KV cache: {} bits, {symmetry}, {scales}", kv.bits.get()));
    }
    print_line(format!("arithmetic: {}", arithmetic(&plan.recipe)));
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
    print_line(format!(
        "disk: {} of output{}",
        human(prepared.disk.output),
        match prepared.disk.spilled {
            0 => String::new(),
            spilled => format!(", {} of activations during the run", human(spilled)),
        }
    ));
    Ok(())
}

/// A linear's storage in words.
fn describe(scheme: &LinearScheme) -> String {
    let weights = |w: WeightScheme| {
        let symmetry = if w.symmetric { "symmetric" } else { "asymmetric" };
        let group = w.group.map_or_else(|| "per channel".to_owned(), |g| format!("groups of {g}"));
        format!("{}-bit weights, {symmetry}, {group}", w.bits.get())
    };
    if scheme.is_float() {
        return "float".to_owned();
    }
    let inputs = scheme.input.map_or_else(String::new, |i| {
        let when = if i.dynamic { "per token" } else { "static" };
        format!("; {}-bit activations, {when}", i.bits.get())
    });
    format!("{}{inputs}", scheme.weight.map_or_else(|| "float weights".to_owned(), weights))
}
