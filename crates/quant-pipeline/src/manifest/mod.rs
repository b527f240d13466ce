//! What every output folder says about itself: recipe, manifest, report, model card.

mod card;
mod origin;
mod quality;

pub(crate) use origin::Origin;
pub use quality::Card;

use crate::job::{QuantizeJob, QuantizeOutcome};
use crate::plan::Plan;
use crate::report::LinearReport;
use crate::serving::{ServeCommand, commands};
use crate::version::tool;
use quant_checkpoint::TensorHash;
use quant_data::TokenSet;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Pretty JSON with a final newline.
pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Elements of the weight of a linear of a block; 0 of a table outside.
pub(crate) fn linear_size(plan: &Plan, report: &LinearReport) -> f64 {
    let linears = report.block.into_iter().flat_map(|block| plan.spec.block(block).linears);
    linears.filter(|l| l.module == report.module).map(|l| l.weights() as f64).sum()
}

/// Everything the self-description is made from.
pub(crate) struct Provenance<'a> {
    pub(crate) job: &'a QuantizeJob,
    pub(crate) plan: &'a Plan,
    pub(crate) outcome: &'a QuantizeOutcome,
    pub(crate) input_hashes: BTreeMap<String, TensorHash>,
    pub(crate) output_hashes: &'a BTreeMap<String, TensorHash>,
    /// Bytes of the tensors written.
    pub(crate) output_bytes: u64,
    pub(crate) origin: &'a Origin,
    pub(crate) calibration: Option<CalibrationFacts>,
    /// Whether the config names custom code.
    pub(crate) custom_code: bool,
}

/// What calibration really used.
#[derive(Clone, Debug)]
pub(crate) struct CalibrationFacts {
    pub(crate) sequences: usize,
    pub(crate) tokens: usize,
    /// Of the ids as little-endian u32, every sequence after its length: the same tokens have it wherever they came from.
    pub(crate) sha256: TensorHash,
}

impl CalibrationFacts {
    pub(crate) fn of(tokens: &TokenSet) -> Self {
        let words =
            tokens.sequences.iter().flat_map(|s| std::iter::once(s.len() as u32).chain(s.iter().copied()));
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        Self { sequences: tokens.sequences.len(), tokens: tokens.tokens(), sha256: TensorHash::of(&bytes) }
    }
}

/// The settings that an output depends on besides its scheme.
pub(crate) fn settings(job: &QuantizeJob, plan: &Plan) -> Value {
    let mut settings = json!({
        "compute": job.recipe.compute().to_string(),
        // Of the first factorisation; overrides are in the recipe, attempts in the list of factors.
        "factor": plan.solvers().find_map(quant_methods::Solver::precision),
        "scale_type": plan.scale_type,
        "convention": job.recipe.rounding().weights().convention.name(),
        "variant": job.recipe.rounding().weights().variant,
        "true_sequential": plan.true_sequential(),
        "modifiers": job.recipe.modifiers().iter().map(|(id, s)| json!({*id: s})).collect::<Vec<_>>(),
    });
    let (compute, statistics) = (job.recipe.compute(), job.recipe.statistics());
    if statistics != compute {
        settings["statistics"] = statistics.name().into();
    }
    if let Some(level) = job.recipe.instructions() {
        settings["instructions"] = level.name().into();
    }
    settings
}

/// The calibration data, as far as an output depends on it.
pub(crate) fn calibration(job: &QuantizeJob, facts: Option<&CalibrationFacts>) -> Value {
    facts.map_or(Value::Null, |facts| {
        json!({
            "num_samples": job.num_samples, "max_seq_len": job.max_seq_len, "seed": job.seed,
            "sequences": facts.sequences, "tokens": facts.tokens, "sha256": facts.sha256,
            "source": job.calibration.as_ref().map(|c| {
                c.path().file_name().map(|n| n.to_string_lossy().into_owned())
            }),
        })
    })
}

impl Provenance<'_> {
    /// Names and contents of the files. None of them holds a time, a path or a thread count: the same job gives the same
    /// bytes.
    pub(crate) fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("recipe.yaml", self.job.recipe.source().as_bytes().to_vec()),
            ("quantization_report.json", pretty(&self.report())),
            ("manifest.json", pretty(&self.manifest())),
            ("README.md", card::card(self).into_bytes()),
        ]
    }

    fn report(&self) -> Value {
        let linears: Vec<Value> = self
            .outcome
            .run
            .linears
            .iter()
            .map(|l| {
                let mut entry = json!({
                    "module": l.module, "method": l.method, "scheme": l.scheme, "bits_per_weight": l.bits_per_weight,
                    "weight_error": l.weight_error, "output_error": l.output_error, "loss": l.loss,
                });
                if !l.figures.is_empty() {
                    entry["figures"] = json!(l.figures);
                }
                if let Some(bits) = &l.group_bits {
                    entry["group_bits"] = bits.clone().into();
                }
                if let Some(columns) = &l.salient_columns {
                    entry["salient_columns"] = columns.clone().into();
                }
                entry
            })
            .collect();
        let mut report = json!({
            "tool": tool(), "format": self.outcome.format, "scheme": self.job.recipe.rounding().weights().scheme.to_string(),
            "settings": settings(self.job, self.plan), "calibration": calibration(self.job, self.calibration.as_ref()),
            "bits_per_weight": self.outcome.bits_per_weight,
            "linears": linears,
            "factors": self.outcome.run.factors,
            "not_copied": self.outcome.not_copied,
            "warnings": self.outcome.warnings,
        });
        if !self.outcome.run.lessons.is_empty() {
            report["lessons"] = json!(self.outcome.run.lessons);
        }
        if let Some(bytes) = self.outcome.compact_bytes {
            report["compact_bytes"] = bytes.into();
        }
        report
    }

    fn manifest(&self) -> Value {
        let list = |hashes: &BTreeMap<String, TensorHash>| -> Map<String, Value> {
            hashes.iter().map(|(name, hash)| (name.clone(), hash.to_string().into())).collect()
        };
        json!({
            "tool": tool(), "format": self.outcome.format, "base_model": self.origin.base_model, "hash": "sha256 of the tensor's bytes",
            "settings": settings(self.job, self.plan), "calibration": calibration(self.job, self.calibration.as_ref()),
            "input": list(&self.input_hashes), "output": list(self.output_hashes),
        })
    }

    /// The lines of the card: whoever reads it is in the folder.
    fn serve_here(&self) -> Vec<ServeCommand> {
        commands(self.plan, ".", self.custom_code)
    }
}
