//! Rules that more than one loader has.

use quant_graph::{LinearWeight, ModelSpec};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;

use super::{Check, Severity};
use crate::error::{CheckpointError, Result};
use crate::formats::{ExpectedTensor, Format, faults, float_dtype, read_plain_block};
use crate::manifest::Manifest;
use crate::source::Checkpoint;

/// Problems named in a failed check; the others are counted.
const NAMED: usize = 4;
/// Rows of a table looked at at once.
const ROWS: usize = 4096;

/// Checks being gathered.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<Check>);

impl Checks {
    /// A rule, kept if there are no problems.
    pub(super) fn rule(&mut self, name: &'static str, problems: Vec<String>, passed: impl Into<String>) {
        self.push(name, Severity::Rule, problems, passed.into());
    }
    /// A recommendation.
    pub(super) fn advice(&mut self, name: &'static str, problems: Vec<String>, passed: impl Into<String>) {
        self.push(name, Severity::Advice, problems, passed.into());
    }
    pub(super) fn push(
        &mut self,
        name: &'static str,
        severity: Severity,
        mut problems: Vec<String>,
        passed: String,
    ) {
        let count = problems.len();
        problems.truncate(NAMED);
        let detail = match count {
            0 => passed,
            n if n > NAMED => format!("{}; and {} more", problems.join("; "), n - NAMED),
            _ => problems.join("; "),
        };
        self.0.push(Check { name, severity, passed: count == 0, detail });
    }
    /// Checks made elsewhere.
    pub(super) fn add(&mut self, checks: &[Check]) {
        self.0.extend_from_slice(checks);
    }
    pub(super) fn finish(self) -> Vec<Check> {
        self.0
    }
}

/// Every tensor present with its type and shape, and no other.
pub(super) fn tensors(
    checks: &mut Checks,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    expected: Result<Vec<ExpectedTensor>>,
) {
    let (problems, count) = match expected {
        Ok(expected) => (faults(checkpoint, spec, &expected), expected.len()),
        Err(error) => (vec![error], 0),
    };
    let passed = format!("{count} tensors with their types and shapes");
    checks.rule("tensors", texts(problems), passed);
}

/// No other weights or indices in the folder. A file that repeats tensors of the model as they are, or holds tensors
/// that belong to no model (reference outputs, tokens), is worth a word only.
pub(super) fn stray_files(checks: &mut Checks, checkpoint: &Checkpoint, spec: &ModelSpec) {
    let (mut problems, mut others) = (Vec::new(), Vec::new());
    for file in checkpoint.stray_weight_files().unwrap_or_else(|error| vec![error.to_string()]) {
        let Ok(stray) = Checkpoint::open_file(checkpoint.path().join(&file)) else {
            problems.push(format!("{file} belongs to other weights; the loader may go by it"));
            continue;
        };
        let of_model = |name: &str| {
            checkpoint.get(name).is_some() || (name.starts_with("model.") && !spec.is_ignorable(name))
        };
        let differs = |name: &str| match (stray.sha256(name), checkpoint.sha256(name)) {
            (Ok(there), Ok(here)) => there != here,
            _ => true,
        };
        let names = || stray.tensors().map(|t| t.name.as_str()).filter(|name| of_model(name));
        if names().any(differs) {
            problems.push(format!(
                "{file} holds other values of the model's tensors; the loader may read either"
            ));
        } else if names().next().is_some() {
            others.push(format!("{file} repeats tensors of the model as they are; it can be deleted"));
        } else {
            others.push(format!(
                "{file} holds other tensors; vLLM reads every *.safetensors of a folder without an index"
            ));
        }
    }
    checks.rule("stray-files", problems, "no other weights in the folder");
    checks.advice("other-tensors", others, "no other tensors in the folder");
}

/// Loaders guess the type of a model whose config does not name it from the files. Scales in f32 then turn a 16-bit model
/// into an f32 one, and the static type reads the 64-bit form of `deq_scale` as numbers.
pub(super) fn dtype(checks: &mut Checks, checkpoint: &Checkpoint) {
    let named = |key: &&str| checkpoint.config().get(*key).is_some_and(Value::is_string);
    let absent = !["dtype", "torch_dtype"].iter().any(named);
    let problem = absent.then(|| {
        "config.json names no dtype: the loader takes that of the tensors, scales included; add \"dtype\""
            .to_owned()
    });
    let problems = problem.into_iter().collect();
    let bound = checkpoint.tensors().any(|t| t.name.ends_with(".deq_scale"));
    let passed = "config.json names the dtype";
    if bound { checks.rule("dtype", problems, passed) } else { checks.advice("dtype", problems, passed) }
}

/// Loaders hold scales in the model's type: those of another number type, or not exact in it, are rounded.
pub(super) fn exact_scales(checks: &mut Checks, checkpoint: &Checkpoint, spec: &ModelSpec, own_type: bool) {
    let mut problems = Vec::new();
    let held = spec.dtype.served();
    let scales = |t: &str| t.ends_with(".weight_scale") || t.ends_with(".input_scale");
    for info in checkpoint.tensors().filter(|t| scales(&t.name)) {
        let Ok(values) = checkpoint.read_f32(&info.name) else { continue };
        let rounded = values.iter().filter(|v| held.round(**v) != **v).count();
        if rounded > 0 {
            problems.push(format!(
                "{}: {rounded} of {} scales are rounded when loaded",
                info.name,
                values.len()
            ));
        } else if own_type && info.dtype != float_dtype(spec.dtype) {
            let model = float_dtype(spec.dtype);
            problems.push(format!(
                "{} is {}, and converted to the model's {model} when loaded",
                info.name, info.dtype
            ));
        }
    }
    checks.advice("exact-scales", problems, "all scales are exact in the model's type");
}

/// Every block dequantises to finite numbers, read one at a time.
pub(super) fn block_values(
    checks: &mut Checks,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    format: Option<&dyn Format>,
) {
    let decoder = match format.map(|f| f.decoder(checkpoint, spec)).transpose() {
        Ok(decoder) => decoder,
        Err(error) => return checks.rule("block-values", vec![error.to_string()], ""),
    };
    let mut problems = Vec::new();
    let mut linears = 0;
    for index in 0..spec.layers {
        let block = match &decoder {
            Some(decoder) => decoder.block(checkpoint, spec, index),
            None => read_plain_block(checkpoint, spec, index, None),
        };
        match block {
            Ok(block) => {
                for (id, linear) in block.linears {
                    linears += 1;
                    if !is_finite(&linear.weight) {
                        problems.push(format!("{}: a value overflows", spec.module(index, id)));
                    }
                }
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    checks.rule("block-values", problems, format!("{linears} linears dequantise to finite values"));
}

fn is_finite(weight: &LinearWeight) -> bool {
    match weight {
        // Readers refuse other floats, and binary codes are made of finite ones.
        LinearWeight::Float(_) | LinearWeight::Binary(_) => true,
        LinearWeight::Quantized(matrix) => {
            // The largest step of any level from any zero bounds every value of a group.
            let top = matrix.bits().max_level();
            matrix
                .scales()
                .iter()
                .zip(matrix.zeros())
                .all(|(s, z)| (s * z.abs().max((top - z).abs())).is_finite())
        }
    }
}

/// Embedding, final norm and head are finite.
pub(super) fn outer_values(checks: &mut Checks, checkpoint: &Checkpoint, spec: &ModelSpec) {
    let mut problems = Vec::new();
    for tensor in spec.outer_tensors() {
        let result = match tensor.shape.as_slice() {
            [rows, _] => (0..*rows).step_by(ROWS).try_for_each(|start| {
                checkpoint.read_rows_f32(&tensor.name, start..(start + ROWS).min(*rows)).map(|_| ())
            }),
            _ => checkpoint.read_f32(&tensor.name).map(|_| ()),
        };
        problems.extend(result.err());
    }
    checks.rule("outer-values", texts(problems), "embedding, final norm and head are finite");
}

/// Every tensor has the hash that the manifest of a folder of ours records, and the manifest knows no other. A folder
/// without such a manifest is not held to it.
pub(super) fn manifest(checks: &mut Checks, checkpoint: &Checkpoint) {
    let manifest = match Manifest::read(checkpoint.path()) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return,
        Err(error) => return checks.rule("manifest", vec![error.to_string()], ""),
    };
    let lost = manifest.output.keys().filter(|name| checkpoint.get(name).is_none());
    let mut problems: Vec<String> =
        lost.map(|n| format!("{n} is in the manifest and not in the folder")).collect();
    let names: Vec<&str> = checkpoint.tensors().map(|t| t.name.as_str()).collect();
    // Each is streamed in pieces, so memory stays small however large it is.
    let differs = |name: &&str| match (manifest.output.get(*name), checkpoint.sha256(name)) {
        (_, Err(error)) => Some(error.to_string()),
        (None, Ok(_)) => Some(format!("{name} is not in the manifest")),
        (Some(written), Ok(hash)) if *written != hash.to_string() => {
            Some(format!("{name} is not the tensor that was written: its hash differs from the manifest"))
        }
        _ => None,
    };
    problems.par_extend(names.par_iter().filter_map(differs));
    checks.rule("manifest", problems, format!("{} tensors have the hashes of the manifest", names.len()));
}

/// All tensors whose names end in one of `suffixes` are finite and positive. Integer tensors are passed over.
pub(super) fn positive_scales(checks: &mut Checks, checkpoint: &Checkpoint, suffixes: &[&str]) {
    let (mut problems, mut count) = (Vec::new(), 0);
    for info in checkpoint.tensors().filter(|t| suffixes.iter().any(|s| t.name.ends_with(s))) {
        if info.dtype == Dtype::I64 {
            continue;
        }
        count += 1;
        match checkpoint.read_f32(&info.name) {
            Ok(values) => {
                if let Some(bad) = values.iter().find(|v| **v <= 0.0) {
                    problems.push(format!("{}: a scale of {bad}", info.name));
                }
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    checks.rule("scales", problems, format!("{count} tensors of positive, finite scales"));
}

pub(super) fn texts(errors: Vec<CheckpointError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}
