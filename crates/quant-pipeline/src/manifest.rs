//! What every output folder says about itself: recipe, manifest, report, model card.

use crate::plan::Plan;
use crate::quantize::{QuantizeJob, QuantizeOutcome};
use crate::report::LinearReport;
use quant_checkpoint::TensorHash;
use quant_graph::Role;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Pretty JSON with a final newline.
pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Elements of a linear's weight.
pub(crate) fn linear_size(plan: &Plan, report: &LinearReport) -> f64 {
    let role = Role::ALL.into_iter().find(|r| report.module.ends_with(r.module()));
    role.map_or(0.0, |role| {
        let linear = plan.spec.linear(role);
        (linear.outputs * linear.inputs) as f64
    })
}

/// Everything the self-description is made from.
pub(crate) struct Provenance<'a> {
    pub(crate) job: &'a QuantizeJob,
    pub(crate) plan: &'a Plan,
    pub(crate) outcome: &'a QuantizeOutcome,
    pub(crate) input_hashes: BTreeMap<String, TensorHash>,
    pub(crate) output_hashes: &'a BTreeMap<String, TensorHash>,
}

impl Provenance<'_> {
    /// Names and contents of the files. None of them holds a time, a path or a thread count: the same job gives the same
    /// bytes.
    pub(crate) fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("recipe.yaml", self.job.recipe.source.clone().into_bytes()),
            ("quantization_report.json", pretty(&self.report())),
            ("manifest.json", pretty(&self.manifest())),
            ("README.md", self.card().into_bytes()),
        ]
    }

    fn settings(&self) -> Value {
        json!({
            "compute": self.job.recipe.compute.to_string(),
            // Of the first factorisation; overrides are in the recipe, attempts in the list of factors.
            "factor": self.plan.blocks.iter().flat_map(|b| b.values()).find_map(|l| l.factor()).map(|f| f.precision),
            "scale_type": self.plan.scale_type,
            "convention": self.job.recipe.rounding.weights().convention.name(),
            "variant": self.job.recipe.rounding.weights().variant,
            "true_sequential": self.plan.true_sequential(),
            "modifiers": self.job.recipe.modifiers.iter().map(|(id, s)| json!({*id: s})).collect::<Vec<_>>(),
        })
    }

    fn calibration(&self) -> Value {
        self.outcome.calibration.as_ref().map_or(Value::Null, |_| {
            json!({
                "num_samples": self.job.num_samples, "max_seq_len": self.job.max_seq_len, "seed": self.job.seed,
                "tokens": self.outcome.run.calibration_tokens,
                "source": self.job.calibration.as_ref().map(|c| {
                    c.path().file_name().map(|n| n.to_string_lossy().into_owned())
                }),
            })
        })
    }

    fn report(&self) -> Value {
        let linears: Vec<Value> = self
            .outcome
            .run
            .linears
            .iter()
            .map(|l| {
                json!({
                    "module": l.module, "method": l.method, "scheme": l.scheme, "bits_per_weight": l.bits_per_weight,
                    "weight_error": l.weight_error, "output_error": l.output_error, "loss": l.loss,
                })
            })
            .collect();
        json!({
            "tool": tool(), "format": self.outcome.format, "scheme": self.job.recipe.rounding.weights().scheme.to_string(),
            "settings": self.settings(), "calibration": self.calibration(),
            "bits_per_weight": self.outcome.bits_per_weight,
            "linears": linears,
            "factors": self.outcome.run.factors,
            "not_copied": self.outcome.not_copied,
            "warnings": self.outcome.warnings,
        })
    }

    fn manifest(&self) -> Value {
        let list = |hashes: &BTreeMap<String, TensorHash>| -> Map<String, Value> {
            hashes.iter().map(|(name, hash)| (name.clone(), hash.to_string().into())).collect()
        };
        json!({
            "tool": tool(), "format": self.outcome.format, "hash": "sha256 of the tensor's bytes",
            "settings": self.settings(), "calibration": self.calibration(),
            "input": list(&self.input_hashes), "output": list(self.output_hashes),
        })
    }

    fn card(&self) -> String {
        let recipe = &self.job.recipe;
        // `.` and `..` have a name only once they are resolved.
        let folder = self.job.model.canonicalize().unwrap_or_else(|_| self.job.model.clone());
        let name =
            folder.file_name().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned());
        let mut card = format!(
            "---\nbase_model: {name}\ntags:\n- quantized\n- {}\n---\n\n# {name}, {}\n\nMade by {} from `{name}` ({}).\n\n",
            self.outcome.format,
            recipe.rounding.weights().scheme,
            tool(),
            self.plan.spec.architecture
        );
        let _ = writeln!(
            card,
            "| | |\n|---|---|\n| format | {} |\n| method | {}{} |\n| bits per weight of the linears | {:.3} |\n| calibration | {} |\n",
            self.outcome.format,
            recipe
                .transforms
                .iter()
                .map(|t| format!("{} ({}) + ", t.method().id, t.describe()))
                .collect::<String>(),
            recipe.rounding.method().id,
            self.outcome.bits_per_weight,
            self.outcome.calibration.as_ref().map_or_else(
                || "none".to_owned(),
                |_| format!("{} tokens", self.outcome.run.calibration_tokens)
            ),
        );
        let run = &self.outcome.run;
        for (what, largest) in
            [("output", run.largest_output_error()), ("weight", run.largest_weight_error())]
        {
            if let Some((error, module)) = largest {
                let _ = writeln!(card, "Largest relative {what} error of a linear: {error:.4} ({module}).\n");
            }
        }
        let _ = writeln!(
            card,
            "Clients: {}.\n\nEvery linear is listed in `quantization_report.json`, every tensor's hash in `manifest.json`, the \
             recipe is `recipe.yaml`:\n\n```yaml\n{}```\n\nThe licence is that of the base model.",
            recipe.format.clients().join(", "),
            recipe.source
        );
        card
    }
}

fn tool() -> String {
    format!("ptq {}", env!("CARGO_PKG_VERSION"))
}
