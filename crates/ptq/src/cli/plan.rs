//! `ptq plan`

use super::job::{JobArgs, arithmetic, factor};
use super::progress::seconds;
use super::{Failure, Table, human, print_json, print_line, say};
use quant_core::{ActRule, KvGranularity};
use quant_graph::{Clipping, KvScheme, LinearId, LinearScheme, ModelSpec, Outer, WeightForm, WeightScheme};
use quant_kernels::Level;
use quant_methods::PlannedRounding;
use quant_pipeline::{Forecast, Plan, Registry, prepare, with_threads};
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

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    if args.job.recipe_schema {
        return print_json(&quant_pipeline::schema_with(registry));
    }
    let job = args.job.job(args.output.clone().unwrap_or_default(), registry)?;
    let prepared = prepare(&job)?;
    if args.output.is_some() && prepared.check_output(&job)? {
        say(format_args!(
            "{}: finished before, by the same job; there is nothing to do",
            job.output.display()
        ));
    }
    for warning in &prepared.warnings {
        say(format_args!("warning: {warning}"));
    }
    let plan = &prepared.plan;
    let tokens = prepared.tokens.as_ref();
    let forecast = with_threads(job.threads, |_| Forecast::new(&prepared, job.threads))?;
    let groups = equal_blocks(plan);
    if args.job.json {
        let json = serde_json::json!({
            "model": plan.spec, "format": plan.recipe.format().id(), "methods": methods(plan),
            "blocks": groups, "tables": tables(plan), "kv_cache": plan.scheme.kv, "float": stays_float(plan),
            "compute": plan.recipe.compute(),
            "statistics": plan.recipe.statistics(),
            "instructions": plan.recipe.instructions().map(Level::name),
            "factor": factor(&plan.recipe),
            "needs_calibration": plan.streams.calibration(),
            "calibration_tokens": tokens.map(quant_data::TokenSet::tokens),
            "forecast": forecast,
            "memory": {"peak": prepared.memory.peak(prepared.spill), "peak_spilled": prepared.memory.peak(true),
                "phases": prepared.memory.phases, "base": prepared.memory.base, "spill": prepared.spill,
                "retry": prepared.memory.retry, "bound": prepared.memory.bound(prepared.spill),
                "bound_spilled": prepared.memory.bound(true)},
            "disk": prepared.disk,
            "keeping": prepared.keeping,
            "targets": prepared.verdicts,
            "warnings": prepared.warnings,
        });
        return print_json(&json);
    }
    let spec = &plan.spec;
    let weights = spec.layers * spec.block_parameters();
    print_line(format_args!(
        "{} ({} blocks, hidden {}, {weights} weights in linears) to {}",
        spec.architecture,
        spec.layers,
        spec.hidden,
        plan.recipe.format().id()
    ))?;
    print_line(format_args!("method: {}", methods_text(plan)))?;
    let mut table = Table::new(&["blocks", "linears", "scheme"]);
    for group in &groups {
        for (scheme, roles) in by_scheme(&plan.spec, group.linears) {
            table.row(vec![group.range(), roles.join(" "), scheme]);
        }
    }
    for (outer, planned) in &plan.tables {
        let scheme = LinearScheme { weight: Some(planned.weight), input: None };
        let (method, bits) = (planned.solver.method().id, plan.table_bits_per_weight(planned));
        let text = format!("{}; {method}, {bits:.3} bits per weight", describe(&scheme));
        table.row(vec!["-".into(), outer.module().into(), text]);
    }
    print_line(table)?;
    print_line(format_args!("stays float: {}", stays_float(plan).join(", ")))?;
    if let Some(kv) = plan.scheme.kv {
        print_line(format_args!("KV cache: {}", cache(&kv)))?;
    }
    for verdict in &prepared.verdicts {
        print_line(verdict)?;
    }
    print_line(format_args!("arithmetic: {}", arithmetic(&plan.recipe)))?;
    match tokens {
        Some(tokens) => print_line(format_args!("calibration: {}", tokens.describe()))?,
        None if plan.streams.calibration() => {
            print_line("calibration: needed, not given; memory and time below are without it")?;
        }
        None => print_line("calibration: not needed")?,
    }
    if prepared.spill {
        print_line("activations go to disk, to stay within the memory budget")?;
    }
    print_line(format_args!(
        "output: {:.3} bits per weight of the linears, {} of weights",
        forecast.bits_per_weight,
        human(forecast.output_bytes)
    ))?;
    if let Some(worst) = forecast.worst {
        print_line(format_args!(
            "if every block falls back to 8 bits: {:.3} bits per weight of the linears, {} of weights",
            worst.bits_per_weight,
            human(worst.output_bytes)
        ))?;
    }
    print_line(format_args!(
        "predicted peak memory: {} with activations in memory, {} with activations on disk",
        human(prepared.memory.peak(false)),
        human(prepared.memory.peak(true))
    ))?;
    print_line(format_args!(
        "disk: {} of output{}, at most {} of journal during the run{}",
        human(prepared.disk.weights + prepared.disk.files),
        match prepared.disk.spilled {
            0 => String::new(),
            spilled => format!(", {} of activations during the run", human(spilled)),
        },
        human(prepared.disk.journal),
        match prepared.keeping.every {
            1 => String::new(),
            every => format!(" (activations once in {every} blocks)"),
        }
    ))?;
    let least = if tokens.is_none() && plan.streams.calibration() { "at least " } else { "" };
    let time = seconds(forecast.seconds);
    let threads = if job.threads == 1 { "one thread".to_owned() } else { format!("{} threads", job.threads) };
    print_line(format_args!("estimated time: {least}{time} on {threads}"))?;
    Ok(())
}

/// Embedding and head, where they are quantised.
fn tables(plan: &Plan) -> serde_json::Value {
    let of = |(table, planned): (&Outer, &PlannedRounding)| {
        let json = serde_json::json!({"method": planned.solver.method().id, "weight": planned.weight,
            "bits_per_weight": plan.table_bits_per_weight(planned)});
        (table.module().to_owned(), json)
    };
    plan.tables.iter().map(of).collect::<serde_json::Map<_, _>>().into()
}

/// Consecutive blocks whose linears are stored alike.
#[derive(serde::Serialize)]
struct EqualBlocks<'a> {
    first: usize,
    last: usize,
    linears: &'a BTreeMap<LinearId, LinearScheme>,
}

impl EqualBlocks<'_> {
    fn range(&self) -> String {
        if self.first == self.last { self.first.to_string() } else { format!("{}-{}", self.first, self.last) }
    }
}

fn equal_blocks(plan: &Plan) -> Vec<EqualBlocks<'_>> {
    let mut groups: Vec<EqualBlocks<'_>> = Vec::new();
    for (index, linears) in plan.scheme.blocks.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if group.linears == linears => group.last = index,
            _ => groups.push(EqualBlocks { first: index, last: index, linears }),
        }
    }
    groups
}

/// The linears of a block by how they are stored, in order of execution.
fn by_scheme(
    spec: &ModelSpec,
    linears: &BTreeMap<LinearId, LinearScheme>,
) -> Vec<(String, Vec<&'static str>)> {
    let mut schemes: Vec<(String, Vec<&'static str>)> = Vec::new();
    for (id, scheme) in linears {
        let module = spec.layout.module(*id);
        let name = module.rsplit('.').next().unwrap_or_default().trim_end_matches("_proj");
        let text = describe(scheme);
        match schemes.iter_mut().find(|(known, _)| *known == text) {
            Some((_, roles)) => roles.push(name),
            None => schemes.push((text, vec![name])),
        }
    }
    schemes
}

/// What is used, in the order in which it works: what comes before rounding, and everything that rounds.
fn methods(plan: &Plan) -> Vec<String> {
    plan.recipe.before_rounding().chain(plan.roundings().into_iter().map(str::to_owned)).collect()
}

/// The same as a text.
fn methods_text(plan: &Plan) -> String {
    plan.recipe.before_rounding().chain([plan.roundings().join(", ")]).collect::<Vec<_>>().join(", then ")
}

/// What is stored as it is.
fn stays_float(plan: &Plan) -> Vec<String> {
    let float =
        |(table, name): &(Outer, &str)| (!plan.tables.contains_key(table)).then(|| (*name).to_owned());
    let embedding = if plan.stored.tied { "embedding (also the head)" } else { "embedding" };
    let mut parts = vec![(Outer::Embedding, embedding)];
    parts.extend((!plan.stored.tied).then_some((Outer::Head, "head")));
    let linears = plan.scheme.linears().filter(|(_, _, s)| s.weight.is_none()).count();
    let linears = (linears > 0).then(|| format!("{linears} linears"));
    parts.iter().filter_map(float).chain(["norms".into()]).chain(linears).collect()
}

/// The cache's storage in words.
fn cache(kv: &KvScheme) -> String {
    let symmetry = if kv.rule == ActRule::Asymmetric { "asymmetric" } else { "symmetric" };
    let scales = |granularity| match granularity {
        KvGranularity::TokenHead => "a scale per token and head",
        KvGranularity::ChannelStatic => "a static scale per channel",
    };
    let place = match (kv.before_rope, kv.pre_bias) {
        (false, _) => "",
        (true, false) => ", keys before rope",
        (true, true) => ", keys before rope and without their bias",
    };
    let clip = match kv.clip_ratio {
        Clipping::NONE => String::new(),
        clipping => format!(", clip ratio {clipping}"),
    };
    let scales = if kv.keys == kv.values {
        scales(kv.keys).to_owned()
    } else {
        format!("{} of keys and {} of values", scales(kv.keys), scales(kv.values))
    };
    format!("{} bits, {symmetry}, {scales}{place}{clip}", kv.bits.get())
}

/// A linear's storage in words.
fn describe(scheme: &LinearScheme) -> String {
    let weights = |w: WeightScheme| {
        let symmetry = if w.symmetric { "symmetric" } else { "asymmetric" };
        let group = w.group.map_or_else(|| "per channel".to_owned(), |g| format!("groups of {g}"));
        let bits = w.bits.get();
        match w.form {
            WeightForm::Integer => format!("{bits}-bit weights, {symmetry}, {group}"),
            WeightForm::Binary | WeightForm::BinaryResidual => format!("{}, {group}", w.form.name()),
            WeightForm::MixedInteger => format!("{bits}-bit weights on average, each group its own, {group}"),
        }
    };
    if scheme.is_float() {
        return "float".to_owned();
    }
    let inputs = scheme.input.map_or_else(String::new, |i| {
        let when = match (i.dynamic, i.shards) {
            (true, 1) => "per token".to_owned(),
            (true, shards) => format!("per token and shard of {shards}"),
            (false, _) => "static".to_owned(),
        };
        format!("; {}-bit activations, {when}", i.bits.get())
    });
    format!("{}{inputs}", scheme.weight.map_or_else(|| "float weights".to_owned(), weights))
}
