//! The rules of vLLM, transformers and vLLM-Ascend for compressed-tensors.

use std::collections::{BTreeMap, BTreeSet};

use quant_graph::{LinearId, ModelSpec};
use serde_json::Value;

use super::Severity;
use super::rules::{Checks, block_values, dtype, exact_scales, outer_values, positive_scales, tensors};
use super::stored::Stored;
use super::targets::{Packed, RuleSet};
use crate::error::Result;
use crate::formats::compressed_tensors_config::{Config, Layout, Storage};
use crate::formats::{CompressedTensors, ExpectedTensor, FLOATS, Format as _};
use crate::source::Checkpoint;

/// Applies the rules of a set, and says how the linears are stored if that can be read.
pub(super) fn check(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    set: &RuleSet,
    checks: &mut Checks,
) -> Option<Stored> {
    let parsed = Config::read(checkpoint).and_then(|config| Ok((config.layouts(spec)?, config)));
    let (layouts, config) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            checks.rule("quantization-config", vec![error.to_string()], "");
            return None;
        }
    };
    let passed = format!("{} groups, {} quantised linears", config.groups.len(), layouts.len());
    checks.rule("quantization-config", Vec::new(), passed);
    dtype(checks, checkpoint);
    formats(&config, set, &layouts, checks);
    let stored = Stored::Layouts(by_id(spec, &layouts));
    stored.checks(set, spec, checks);
    if set.fuses {
        fused_layers(spec, &layouts, checks);
    }
    head(&config, set, checks);
    cache(&config, checkpoint, spec, set, checks);
    transforms(&config, checks);
    tensors(checks, checkpoint, spec, expected(&config, checkpoint, spec));
    Some(stored)
}

/// What is true of the numbers, whoever loads them.
pub(super) fn content(checkpoint: &Checkpoint, spec: &ModelSpec, checks: &mut Checks) {
    positive_scales(checks, checkpoint, &["weight_scale", "input_scale", "k_scale", "v_scale"]);
    exact_scales(checks, checkpoint, spec, true);
    block_values(checks, checkpoint, spec, Some(&CompressedTensors));
    outer_values(checks, checkpoint, spec);
}

/// The format's own tensors, and the cache scales that llm-compressor writes beside them.
fn expected(config: &Config, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Vec<ExpectedTensor>> {
    let mut expected = CompressedTensors.expected(checkpoint, spec)?;
    if let Some(scheme) = cache_scheme(config) {
        let per_head = scheme.get("strategy").and_then(Value::as_str) == Some("attn_head");
        for index in 0..spec.layers {
            for name in cache_scales(spec, index) {
                let (shape, other) = if per_head {
                    (vec![spec.kv_heads, 1, 1], vec![spec.kv_heads])
                } else {
                    (vec![1], vec![])
                };
                let tensor = ExpectedTensor::optional(name, FLOATS, &shape);
                expected.push(ExpectedTensor { other_shape: Some(other), ..tensor });
            }
        }
    }
    Ok(expected)
}

/// Names of a block's static cache scales.
fn cache_scales(spec: &ModelSpec, index: usize) -> [String; 2] {
    ["k_scale", "v_scale"].map(|s| format!("{}.self_attn.{s}", spec.block_prefix(index)))
}

fn by_id(spec: &ModelSpec, layouts: &Layouts) -> BTreeMap<(usize, LinearId), Layout> {
    let places = crate::formats::layout_modules(spec);
    layouts.iter().filter_map(|(module, layout)| Some((*places.get(module)?, *layout))).collect()
}

type Layouts = BTreeMap<String, Layout>;

/// The problem of every linear that has one.
fn each(layouts: &Layouts, problem: impl Fn(&str, &Layout) -> Option<String>) -> Vec<String> {
    layouts
        .iter()
        .filter_map(|(module, layout)| problem(module, layout).map(|p| format!("{module}: {p}")))
        .collect()
}

/// The root names the one format of all groups, or `mixed-precision`; vLLM chooses kernels by it.
fn formats(config: &Config, set: &RuleSet, layouts: &Layouts, checks: &mut Checks) {
    let mut problems = Vec::new();
    let root = config.section.get("format").and_then(Value::as_str);
    let used: BTreeSet<&str> = config.groups.iter().map(|g| g.format.as_str()).collect();
    match (root, used.len()) {
        (None, _) => problems.push("quantization_config has no format".to_owned()),
        (Some("mixed-precision"), 2..) | (Some("dense"), 0) => {}
        (Some(root), 1) if used.contains(root) => {}
        (Some(root), 0..=1) => {
            let group = used.first().copied().unwrap_or("none");
            problems.push(format!("the root format is {root:?}, the groups' is {group:?}"));
        }
        (Some(root), _) => problems
            .push(format!("groups differ in format, the root says {root:?} instead of mixed-precision")),
    }
    // The library decompresses by the group's format, whatever is quantised.
    if !matches!(set.packed, Packed::Unpacked) {
        problems.extend(each(layouts, |_, layout| {
            let wanted = Storage::of(&layout.scheme);
            (layout.storage != wanted)
                .then(|| format!("{} where the loader wants {}", layout.storage.name(), wanted.name()))
        }));
    }
    checks.rule("formats", problems, used.into_iter().collect::<Vec<_>>().join(", "));
}

fn fused_layers(spec: &ModelSpec, layouts: &Layouts, checks: &mut Checks) {
    let mut problems = Vec::new();
    for index in 0..spec.layers {
        for stage in spec.block(index).stages {
            let layout = |id: &LinearId| layouts.get(&spec.module(index, *id));
            let first = layout(&stage.linears[0]);
            if let Some(other) = stage.linears.iter().find(|r| layout(r) != first) {
                let (first, other) = (spec.module(index, stage.linears[0]), spec.module(index, *other));
                problems.push(format!("{first} and {other} are one layer and stored differently"));
            }
        }
    }
    checks.rule("fused-layers", problems, "q, k, v and gate, up are stored alike in every block");
}

/// The head is a linear to the library: targets of a class reach it unless it is ignored. Servers have a class of their
/// own for it.
fn head(config: &Config, set: &RuleSet, checks: &mut Checks) {
    let caught = config.group(ModelSpec::HEAD_MODULE).map(|group| {
        format!("{} reaches {} and ignore does not list it", group.name, ModelSpec::HEAD_MODULE)
    });
    let severity = if set.head_is_linear { Severity::Rule } else { Severity::Advice };
    checks.push("ignore-head", severity, caught.into_iter().collect(), "the head is left alone".to_owned());
}

fn cache_scheme(config: &Config) -> Option<&Value> {
    config.section.get("kv_cache_scheme").filter(|s| !s.is_null())
}

fn cache(config: &Config, checkpoint: &Checkpoint, spec: &ModelSpec, set: &RuleSet, checks: &mut Checks) {
    let Some(scheme) = cache_scheme(config) else {
        return checks.rule("kv-cache", Vec::new(), "a float cache");
    };
    let text = |key: &str| scheme.get(key).and_then(Value::as_str).unwrap_or_default();
    let eight = scheme.get("num_bits").and_then(Value::as_u64) == Some(8);
    let per_head = text("strategy") == "attn_head";
    let problem = if !set.float8_cache {
        Some("kv_cache_scheme is not loaded".to_owned())
    } else if text("type") != "float" || !eight || !(per_head || text("strategy") == "tensor") {
        Some("the only cache scheme is 8-bit float, one scale per tensor or per head".to_owned())
    } else if scheme.get("symmetric").and_then(Value::as_bool) == Some(false) {
        Some("an asymmetric 8-bit float cache; the only cache scheme is symmetric".to_owned())
    } else {
        None
    };
    let loaded = problem.is_none();
    checks.rule("kv-cache", problem.into_iter().collect(), "a symmetric 8-bit float cache");
    if !loaded {
        return;
    }
    let mut remarks = Vec::new();
    if per_head {
        remarks.push("scales per head want an attention backend that has them".to_owned());
    }
    let absent = |name: &String| checkpoint.get(name).is_none();
    let names = (0..spec.layers).flat_map(|i| cache_scales(spec, i)).filter(absent);
    remarks.extend(names.map(|n| format!("no {n}: the scale 1.0 is taken")));
    checks.advice("cache-scales", remarks, "static scales in every block");
}

fn transforms(config: &Config, checks: &mut Checks) {
    let present = |key: &&str| match config.section.get(*key) {
        None | Some(Value::Null) => false,
        Some(Value::Object(object)) => !object.is_empty(),
        Some(_) => true,
    };
    let problems = ["transform_config", "sparsity_config"].into_iter().filter(present);
    let problems =
        problems.map(|k| format!("{k} is not empty, and its operators are not verified here")).collect();
    checks.rule("transforms", problems, "no transforms, no sparsity");
}
