//! A finished output of `ptq quantize`, and what its run wrote down.

use super::job::AnalyzeJob;
use super::report::{LinearAnalysis, Trace};
use crate::PipelineError;
use crate::open::{OpenFolder, open_folder_with};
use crate::stood::json;
use quant_checkpoint::Checkpoint;
use quant_graph::ModelSpec;
use serde_json::Value;
use std::path::Path;

/// A finished output that was made by the recipe of a job from its model.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) folder: OpenFolder,
    pub(super) lessons: Vec<Trace>,
    linears: Vec<LinearAnalysis>,
}

impl Finished {
    /// Opens the folder and sees that it is one.
    ///
    /// # Errors
    /// [`PipelineError::Usage`] for what is no finished output, or that of another recipe or model; unreadable files.
    pub(super) fn open(
        dir: &Path,
        job: &AnalyzeJob,
        spec: &ModelSpec,
        input: &Checkpoint,
    ) -> Result<Self, PipelineError> {
        let refused = |why: String| {
            Err(PipelineError::Usage(format!(
                "--report {}: {why}; give a finished output of `ptq quantize` from --model by --recipe, or leave --report away",
                dir.display()
            )))
        };
        let Some(report) = json(dir, "quantization_report.json") else {
            return refused("it has no quantization_report.json".into());
        };
        let Some(manifest) = json(dir, "manifest.json") else {
            return refused("it has no manifest.json".into());
        };
        let recipe = std::fs::read(dir.join("recipe.yaml")).unwrap_or_default();
        if recipe != job.recipe.source().as_bytes() {
            return refused("its recipe.yaml is another recipe, which can be given as --recipe".into());
        }
        let first = format!("{}.", spec.block_prefix(0));
        let hashes = manifest.get("input").and_then(Value::as_object);
        let hashes = hashes.into_iter().flatten().filter(|(name, _)| name.starts_with(&first));
        let mut checked = 0;
        for (name, hash) in hashes {
            let known = input.get(name).is_some();
            if !known || Some(input.sha256(name)?.to_string().as_str()) != hash.as_str() {
                return refused(format!("it was made from another model: {name} is not the same"));
            }
            checked += 1;
        }
        if checked == 0 {
            return refused("its manifest.json does not say from which tensors it was made".into());
        }
        let lessons = report.get("lessons").cloned().unwrap_or(Value::Array(Vec::new()));
        let lessons: Vec<Trace> = match serde_json::from_value(lessons) {
            Ok(lessons) => lessons,
            Err(error) => return refused(format!("the lessons of its report cannot be read ({error})")),
        };
        if let Some(lesson) = lessons.iter().find(|lesson| lesson.block >= spec.layers) {
            return refused(format!(
                "its report has a lesson of block {}, and the model has {} blocks",
                lesson.block, spec.layers
            ));
        }
        let folder = open_folder_with(dir, job.recipe.registry())?;
        let shape =
            |s: &ModelSpec| (s.layers, s.hidden, s.intermediate, s.heads, s.kv_heads, s.head_dim, s.vocab);
        if shape(&folder.spec) != shape(spec) {
            return refused("its model has another shape".into());
        }
        Ok(Self { folder, lessons, linears: linears(&report) })
    }

    /// What its run said of the linears of a block.
    pub(super) fn linears(&self, spec: &ModelSpec, block: usize) -> Vec<LinearAnalysis> {
        let linears = spec.block(block).linears.into_iter();
        let known = |module: &str| self.linears.iter().find(|linear| linear.module == module).cloned();
        linears.filter_map(|linear| known(&linear.module)).collect()
    }
}

fn linears(report: &Value) -> Vec<LinearAnalysis> {
    let entries = report.get("linears").and_then(Value::as_array);
    let of = |entry: &Value| {
        let number = |key: &str| entry.get(key).and_then(Value::as_f64);
        Some(LinearAnalysis {
            module: entry.get("module")?.as_str()?.to_owned(),
            scheme: entry.get("scheme").and_then(Value::as_str).unwrap_or_default().to_owned(),
            weight_error: number("weight_error")?,
            relative_mse: number("output_error").map(|error| error * error),
        })
    };
    entries.into_iter().flatten().filter_map(of).collect()
}
