//! An output that stands already, made by an earlier run of the same job.

use crate::PipelineError;
use crate::job::{QuantizeJob, QuantizeOutcome, ReadSeconds, WriteSeconds};
use crate::manifest::{self, CalibrationFacts};
use crate::open::with_threads;
use crate::prepare::PreparedJob;
use crate::report::{LinearReport, Named, RunReport, peak_memory};
use crate::serving;
use crate::version::tool;
use quant_checkpoint::verify::damage;
use quant_checkpoint::{CheckpointError, MARKER, TensorHash, parse_strict_json, side_files};
use quant_data::TokenSet;
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// Side files beyond this size are none of ours.
const LARGEST: u64 = 256 << 20;

const REPORT: &str = "quantization_report.json";

/// The outcome of the run that made the folder at `target`, if that was a run of this job. What a run does not write down (seconds,
/// memory, details of a linear) is zero or none.
///
/// # Errors
/// Input tensors that cannot be read: a finished output says of them only their hashes. [`CheckpointError::DamagedOutput`] where the
/// folder is not what was written, unless it may be replaced.
pub(crate) fn stands(
    job: &QuantizeJob,
    prepared: &PreparedJob,
    target: &Path,
) -> Result<Option<QuantizeOutcome>, PipelineError> {
    let PreparedJob { folder, plan, tokens, memory, spill, warnings, .. } = prepared;
    let Some(manifest) = json(target, "manifest.json").filter(|_| !target.join(MARKER).exists()) else {
        return Ok(None);
    };
    let facts = tokens.as_ref().map(CalibrationFacts::of);
    let same = |key: &str, value: Value| manifest.get(key) == Some(&value);
    let recipe = fs::read(target.join("recipe.yaml")).is_ok_and(|r| r == job.recipe.source().as_bytes());
    if !recipe
        || !same("tool", tool().into())
        || !same("format", job.recipe.format().id().into())
        || !same("settings", manifest::settings(job, plan))
        || !same("calibration", manifest::calibration(job, facts.as_ref()))
    {
        return Ok(None);
    }
    let empty = Map::new();
    let inputs = manifest.get("input").and_then(Value::as_object).unwrap_or(&empty);
    let checkpoint = &folder.checkpoint;
    let as_then = |(name, hash): (&String, &Value)| {
        let known = checkpoint.get(name).is_some();
        Ok::<_, CheckpointError>(
            known && Some(checkpoint.sha256(name)?.to_string().as_str()) == hash.as_str(),
        )
    };
    let listed: Vec<(&String, &Value)> = inputs.iter().collect();
    let same: Result<Vec<bool>, _> =
        with_threads(job.threads, |_| listed.into_par_iter().map(as_then).collect())?;
    if inputs.is_empty() || same?.contains(&false) {
        return Ok(None);
    }
    let faults = with_threads(job.threads, |_| faults(job, prepared, target))??;
    if !faults.is_empty() {
        let damaged = CheckpointError::DamagedOutput { path: target.to_owned(), faults };
        return if job.force { Ok(None) } else { Err(damaged.into()) };
    }
    let Some(report) = json(target, REPORT) else { return Ok(None) };
    let weights = fs::read_dir(target).into_iter().flatten().flatten();
    let weights = weights.filter(|e| e.path().extension().is_some_and(|e| e == "safetensors"));
    let custom_code = folder.checkpoint.config().get("auto_map").is_some_and(|map| !map.is_null());
    Ok(Some(QuantizeOutcome {
        output: job.output.clone(),
        format: job.recipe.format().id(),
        run: RunReport {
            linears: linears(prepared, &report),
            calibration_tokens: tokens.as_ref().map_or(0, TokenSet::tokens),
            ..RunReport::default()
        },
        bits_per_weight: report.get("bits_per_weight").and_then(Value::as_f64).unwrap_or_default(),
        bytes: weights.filter_map(|e| Some(e.metadata().ok()?.len())).sum(),
        input_bytes: folder.checkpoint.total_bytes(),
        compact_bytes: report.get("compact_bytes").and_then(Value::as_u64),
        resumed: Some(plan.spec.layers),
        stood: true,
        seconds: 0.0,
        read: ReadSeconds::default(),
        write: WriteSeconds::default(),
        predicted_memory: memory.peak(*spill),
        peak_memory: peak_memory(),
        spilled: *spill,
        calibration: tokens.as_ref().map(TokenSet::describe),
        not_copied: side_files(&job.model)?.left,
        serve: serving::commands(plan, &job.output.to_string_lossy(), custom_code),
        // That of the run, which knows more than its plan.
        warnings: report.get("warnings").and_then(Value::as_array).map_or_else(
            || warnings.clone(),
            |all| all.iter().filter_map(|w| Some(w.as_str()?.to_owned())).collect(),
        ),
    }))
}

/// What is no longer as a run of this job wrote it.
fn faults(job: &QuantizeJob, prepared: &PreparedJob, target: &Path) -> Result<Vec<String>, PipelineError> {
    let formats = job.recipe.registry().formats();
    let mut faults = damage(target, &prepared.plan.stored, formats);
    if json(target, REPORT).is_none() {
        faults.push(format!("{REPORT} is missing or no JSON"));
    }
    for name in side_files(&job.model)?.copied {
        let of = |dir: &Path| fs::File::open(dir.join(&name)).and_then(TensorHash::of_reader).ok();
        if of(target) != of(&job.model) {
            faults.push(format!("{name} is missing or not that of the model"));
        }
    }
    Ok(faults)
}

/// A JSON file of a folder, if it is there and is one.
pub(crate) fn json(dir: &Path, name: &str) -> Option<Value> {
    let path = dir.join(name);
    path.symlink_metadata().ok().filter(|meta| meta.is_file() && meta.len() <= LARGEST)?;
    parse_strict_json(name, &fs::read(path).ok()?).ok()
}

/// The linears of a report.
fn linears(prepared: &PreparedJob, report: &Value) -> Vec<LinearReport> {
    let entries = report.get("linears").and_then(Value::as_array);
    let mut found = Vec::new();
    for entry in entries.into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let number = |key: &str| entry.get(key).and_then(Value::as_f64);
        let Some(module) = text("module") else { continue };
        let mut blocks = prepared.plan.blocks.iter();
        let block = blocks.position(|block| block.values().any(|linear| linear.module == module));
        let figures = entry.get("figures").and_then(Value::as_object);
        let figures = figures.map(|all| {
            let figure = |(name, value): (&String, &Value)| Some((name.clone().into(), value.as_f64()?));
            all.iter().filter_map(figure).collect::<Named>()
        });
        let method = text("method").and_then(|id| prepared.plan.recipe.registry().methods().get(id));
        found.push(LinearReport {
            module: module.to_owned(),
            block,
            method: method.map(|m| m.id.into()),
            scheme: text("scheme").unwrap_or_default().to_owned(),
            bits_per_weight: number("bits_per_weight").unwrap_or_default(),
            weight_error: number("weight_error").unwrap_or_default(),
            output_error: number("output_error"),
            loss: number("loss"),
            figures: figures.unwrap_or_default(),
            stored_bytes: 0,
            group_bits: None,
            salient_columns: None,
            seconds: 0.0,
        });
    }
    found
}
