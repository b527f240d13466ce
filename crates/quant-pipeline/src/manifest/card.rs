//! The model card of an output folder.

use super::Provenance;
use super::origin::Origin;
use super::quality;
use crate::version::tool;
use quant_checkpoint::verify::loads_with;
use quant_core::Bytes;
use serde_yaml_ng::{Mapping, Value as Yaml};
use std::fmt::Write as _;

/// The metadata that hubs read.
fn front_matter(origin: &Origin, format: &str) -> String {
    let mut top = Mapping::new();
    let mut put = |key: &str, value: Yaml| drop(top.insert(key.into(), value));
    if let Some(base) = &origin.base_model {
        put("base_model", base.as_str().into());
        put("base_model_relation", "quantized".into());
    }
    put("library_name", "transformers".into());
    // An inherited library takes the place of the default.
    for (key, value) in &origin.inherited {
        put(key.as_str().unwrap_or_default(), value.clone());
    }
    put("tags", Yaml::Sequence(vec!["quantized".into(), format.into()]));
    serde_yaml_ng::to_string(&top).unwrap_or_default()
}

/// The whole card. It holds no time, no path and no thread count.
pub(super) fn card(of: &Provenance<'_>) -> String {
    let (recipe, outcome, run) = (&of.job.recipe, of.outcome, &of.outcome.run);
    let weights = recipe.rounding().weights();
    let name = of.origin.name().unwrap_or(&of.plan.spec.model_type);
    let from = of.origin.base_model.as_deref().unwrap_or(name);
    let transforms: String = recipe.before_rounding().map(|text| format!("{text} + ")).collect();
    let calibration = of.calibration.as_ref().map_or_else(
        || "none".to_owned(),
        |c| format!("{} sequences, {} tokens (SHA-256 of the ids {})", c.sequences, c.tokens, c.sha256),
    );
    let mut card = format!(
        "---\n{}---\n\n# {name}, {}\n\nMade by {} from `{from}` ({}).\n\n",
        front_matter(of.origin, outcome.format),
        weights.scheme,
        tool(),
        of.plan.spec.architecture
    );
    let _ = writeln!(
        card,
        "| | |\n|---|---|\n| format | {} |\n| method | {transforms}{} |\n| bits per weight of the linears | {:.3} |\n\
         | size of the weights | {} (input {}) |\n| calibration | {calibration} |\n",
        outcome.format,
        of.plan.roundings().join(", "),
        outcome.bits_per_weight,
        Bytes(of.output_bytes),
        Bytes(outcome.input_bytes),
    );
    if let Some(bytes) = outcome.compact_bytes {
        let _ = writeln!(
            card,
            "The folder holds the values of the weights. Stored bit by bit, with their scales, masks and bit widths, they would \
             take {} with everything else as in the input.\n",
            Bytes(bytes)
        );
    }
    let tables = run.linears.iter().filter(|l| l.block.is_none()).map(|l| {
        format!(
            "`{}`: {}, {}, {:.3} bits per weight.",
            l.module,
            l.scheme,
            l.method.as_deref().unwrap_or("float"),
            l.bits_per_weight
        )
    });
    for line in tables {
        let _ = writeln!(card, "{line}\n");
    }
    for (what, largest) in [("output", run.largest_output_error()), ("weight", run.largest_weight_error())] {
        if let Some((error, module)) = largest {
            let _ = writeln!(card, "Largest relative {what} error of a linear: {error:.4} ({module}).\n");
        }
    }
    if !outcome.warnings.is_empty() {
        let _ = writeln!(card, "## Warnings\n");
        for warning in &outcome.warnings {
            let _ = writeln!(card, "- {}", warning.replace('\n', " "));
        }
        card.push('\n');
    }
    card.push_str("## Use\n\n");
    let serve = of.serve_here();
    if serve.is_empty() {
        card.push_str("No program that is known here loads this folder as it is.\n\n");
    } else {
        card.push_str("In this folder:\n\n| with | | |\n|---|---|---|\n");
        for line in serve {
            let loads = loads_with(&line.tensor_parallel);
            let _ = writeln!(card, "| {} | `{}` | {loads} |", line.client, line.command);
        }
        card.push('\n');
    }
    card.push_str(&quality::section(&[]));
    let _ = writeln!(
        card,
        "\n## How it was made\n\nEvery linear is listed in `quantization_report.json`, every tensor's hash in \
         `manifest.json`, the recipe is `recipe.yaml`:\n\n```yaml\n{}```\n\nThe licence is that of the base model.",
        recipe.source()
    );
    card
}
