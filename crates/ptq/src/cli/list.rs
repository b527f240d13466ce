//! `ptq list`: the registries.

use super::table::paragraph;
use super::{Failure, print_json, print_line};
use quant_checkpoint::verify::targets::RuleSet;
use quant_checkpoint::verify::{Rules, Target};
use quant_pipeline::Registry;
use serde_json::json;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry) -> Result<(), Failure> {
    if args.json { print_json(&registries(registry)) } else { print_text(registry) }
}

/// Everything that the text says, and the help of every key.
fn registries(registry: &Registry) -> serde_json::Value {
    let methods: Vec<_> = registry
        .methods()
        .iter()
        .map(|m| {
            json!({"id": m.id, "kind": m.kind.name(), "summary": m.summary, "source": m.source, "tier": m.tier,
                "keys": quant_methods::settings::schema(m.fields)})
        })
        .collect();
    let families: Vec<_> = registry
        .families()
        .iter()
        .map(|f| json!({"id": f.id, "summary": f.summary, "architectures": f.architectures, "tier": f.tier.name()}))
        .collect();
    let formats: Vec<_> = registry
        .formats()
        .iter()
        .map(|f| {
            json!({"id": f.id(), "summary": f.summary(), "schemes": f.schemes(), "clients": f.clients(),
                "tier": f.tier()})
        })
        .collect();
    let presets: Vec<_> = registry
        .presets()
        .iter()
        .map(|p| json!({"name": p.name, "summary": p.summary(), "recipe": p.text}))
        .collect();
    let tasks: Vec<_> = quant_data::TASKS.iter().map(|t| json!({"name": t.name, "text": t.text})).collect();
    let scorers: Vec<_> =
        registry.scorers().iter().map(|s| json!({"id": s.id, "summary": s.summary})).collect();
    let studies: Vec<_> = quant_study::STUDIES
        .iter()
        .map(|s| json!({"name": s.name, "summary": s.summary(), "grid": s.text}))
        .collect();
    json!({"tasks": tasks, "task_schema": quant_data::task_schema(), "scorers": scorers, "studies": studies, "methods": methods, "families": families, "formats": formats, "targets": targets(), "presets": presets})
}

fn print_text(registry: &Registry) -> Result<(), Failure> {
    print_line("Methods (tier 1: tested against the official code and exported)")?;
    for m in registry.methods().iter() {
        let keys: Vec<&str> = m.fields.iter().map(|f| f.name).collect();
        entry(m.id, &format!("{}, tier {}, {}", m.kind.name(), m.tier, m.source))?;
        more(m.summary)?;
        more(&format!("keys: {}", keys.join(", ")))?;
    }
    print_line("\nFamilies (reference: logits compared with transformers)")?;
    for f in registry.families().iter() {
        entry(f.id, &format!("{}, {}", f.tier.name(), f.architectures.join(", ")))?;
        more(f.summary)?;
    }
    print_line("\nFormats")?;
    for f in registry.formats().iter() {
        entry(f.id(), &format!("tier {}, {}", f.tier(), f.summary()))?;
        more(&format!("holds: {}", f.schemes()))?;
        more(&format!("for: {}", f.clients().join(", ")))?;
    }
    print_line("\nTargets (`--target ID` is the newest version, `--target vllm@0.23` another)")?;
    for target in Target::ALL {
        let versions: Vec<String> = target.rule_sets().map(RuleSet::versions).collect();
        entry(target.name(), &format!("reads {}", Rules::newest(target).set().formats.join(", ")))?;
        more(&format!("versions with rules of their own: {}", versions.join(", ")))?;
    }
    print_line("\nPreset recipes")?;
    for preset in registry.presets().iter() {
        entry(preset.name, "")?;
        more(&preset.summary())?;
    }
    print_line("\nTasks (`ptq eval --task`)")?;
    for shipped in quant_data::TASKS {
        let summary = quant_data::Task::parse(shipped.text).map(|task| task.summary().to_owned());
        entry(shipped.name, &summary.unwrap_or_default())?;
    }
    print_line("\nScorers of tasks")?;
    for scorer in registry.scorers().iter() {
        entry(scorer.id, scorer.summary)?;
    }
    print_line("\nStudies (`ptq study --preset`)")?;
    for study in quant_study::STUDIES {
        entry(study.name, &study.summary())?;
    }
    Ok(())
}

/// A name with what is known of it.
fn entry(name: &str, what: &str) -> Result<(), Failure> {
    let colon = if what.is_empty() { "" } else { ": " };
    print_line(paragraph(&format!("{name}{colon}{what}"), 2))
}

/// A line of its own below an entry.
fn more(text: &str) -> Result<(), Failure> {
    print_line(paragraph(text, 6))
}

/// The targets with the versions that have rules of their own.
fn targets() -> Vec<serde_json::Value> {
    let target = |target: Target| {
        let versions: Vec<String> = target.rule_sets().map(RuleSet::versions).collect();
        json!({"id": target.name(), "versions": versions, "formats": Rules::newest(target).set().formats})
    };
    Target::ALL.into_iter().map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_pipeline::Preset;

    #[test]
    fn what_a_program_adds_is_listed() {
        static PRESET: Preset = Preset { name: "outside", text: "# Of another crate.\n" };
        let presets = |registry: &Registry| {
            let listed = registries(registry)["presets"].as_array().unwrap().clone();
            listed
                .into_iter()
                .filter(|p| p["name"] == "outside")
                .map(|p| p["summary"].clone())
                .collect::<Vec<_>>()
        };
        assert!(presets(&Registry::default()).is_empty());
        assert_eq!(presets(&Registry::default().with_preset(&PRESET).unwrap()), ["Of another crate."]);
    }
}
