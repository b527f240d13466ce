//! `ptq list`: the registries.

use super::{Failure, Table, print_json, print_line};
use quant_checkpoint::formats::FORMATS;
use quant_checkpoint::verify::targets::RuleSet;
use quant_checkpoint::verify::{Rules, Target};
use quant_methods::METHODS;
use quant_model::FAMILIES;
use quant_pipeline::PRESETS;
use serde_json::json;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.json {
        let methods: Vec<_> = METHODS
            .iter()
            .map(|m| json!({"id": m.id, "summary": m.summary, "source": m.source, "tier": m.tier}))
            .collect();
        let families: Vec<_> = FAMILIES
            .iter()
            .map(|f| json!({"id": f.id, "summary": f.summary, "architectures": f.architectures, "tier": f.tier.name()}))
            .collect();
        let formats: Vec<_> = FORMATS
            .iter()
            .map(|f| json!({"id": f.id(), "summary": f.summary(), "schemes": f.schemes(), "clients": f.clients(), "tier": f.tier()}))
            .collect();
        let presets: Vec<_> =
            PRESETS.iter().map(|p| json!({"name": p.name, "summary": p.summary()})).collect();
        return print_json(
            &json!({"methods": methods, "families": families, "formats": formats, "targets": targets(), "presets": presets}),
        );
    }
    let mut table = Table::new(&["method", "tier", "what"]);
    METHODS.iter().for_each(|m| table.row(vec![m.id.into(), m.tier.to_string(), m.summary.into()]));
    print_line(table);
    let mut table = Table::new(&["family", "tier", "architectures"]);
    FAMILIES
        .iter()
        .for_each(|f| table.row(vec![f.id.into(), f.tier.name().into(), f.architectures.join(", ")]));
    print_line(format!("\n{table}"));
    let mut table = Table::new(&["format", "tier", "holds", "for"]);
    FORMATS.iter().for_each(|f| {
        table.row(vec![f.id().into(), f.tier().to_string(), f.schemes().into(), f.clients().join(", ")]);
    });
    print_line(format!("\n{table}"));
    let mut table = Table::new(&["target", "versions", "reads"]);
    for target in Target::ALL {
        let sets: Vec<String> = target.rule_sets().map(RuleSet::versions).collect();
        let reads = Rules::newest(target).set().formats.join(", ");
        table.row(vec![target.name().into(), sets.join(", "), reads]);
    }
    print_line(format!("\n{table}"));
    print_line("\nPreset recipes:");
    for preset in PRESETS {
        print_line(format!("  {:24} {}", preset.name, preset.summary()));
    }
    Ok(())
}

/// The targets with the versions that have rules of their own.
fn targets() -> Vec<serde_json::Value> {
    let target = |target: Target| {
        let versions: Vec<String> = target.rule_sets().map(RuleSet::versions).collect();
        json!({"id": target.name(), "versions": versions, "formats": Rules::newest(target).set().formats})
    };
    Target::ALL.into_iter().map(target).collect()
}
