//! Float folders, and dequantised ones, which their clients cannot tell from them.

use quant_graph::ModelSpec;
use serde_json::Value;

use super::Target;
use super::rules::{Checks, block_values, dtype, outer_values, tensors};
use super::stored::Stored;
use crate::formats::{Format, plain_expected};
use crate::source::Checkpoint;

pub(super) fn check(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    target: Target,
    dequantized: bool,
    checks: &mut Checks,
) -> Stored {
    let section = checkpoint.config().get("quantization_config").filter(|s| !s.is_null());
    let problems = section.map(|section| {
        let method = section.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
        format!("config.json has a quantization_config of {method:?}, which is not verified here")
    });
    let passed = if dequantized {
        format!("a float model to {target}; activation and cache quantisers are not applied there")
    } else {
        "a float model".to_owned()
    };
    checks.rule("quantization-config", problems.into_iter().collect(), passed);
    dtype(checks, checkpoint);
    tensors(checks, checkpoint, spec, Ok(plain_expected(spec)));
    Stored::Float
}

/// What is true of the numbers, whoever loads them; a format from outside gives its blocks itself.
pub(super) fn content(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    outside: Option<&dyn Format>,
    checks: &mut Checks,
) {
    block_values(checks, checkpoint, spec, outside);
    outer_values(checks, checkpoint, spec);
}
