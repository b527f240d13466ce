//! The rules of vLLM-Ascend for msmodelslim's layout.

use std::collections::BTreeMap;

use quant_graph::{LinearId, LinearSpec, ModelSpec};
use serde_json::Value;

use super::flatquant;
use super::rules::{Checks, block_values, dtype, exact_scales, outer_values, positive_scales, tensors};
use super::stored::Stored;
use super::targets::{Cache8, RuleSet};
use crate::error::Result;
use crate::formats::ascend_description::{self, Description};
use crate::formats::ascend_types::c8::{C8, cache_shaped};
use crate::formats::ascend_types::{AscendType, static_input};
use crate::formats::{Format as _, VllmAscend, layout_modules, read_int8};
use crate::source::Checkpoint;

/// Applies the rules of a set, and says how the linears are stored if that can be read.
pub(super) fn check(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    set: &RuleSet,
    checks: &mut Checks,
) -> Option<Stored> {
    let section = checkpoint.config().get("quantization_config").filter(|s| !s.is_null());
    let left =
        section.map(|_| "config.json has a quantization_config: vLLM would choose another loader".to_owned());
    checks.rule(
        "no-quantization-config",
        left.into_iter().collect(),
        "config.json has no quantization_config",
    );
    let description = match Description::read(checkpoint) {
        Ok(description) => description,
        Err(error) => {
            checks.rule("description", vec![error.to_string()], "");
            return None;
        }
    };
    // The loader opens one name only; without that file it takes the folder for a float model.
    let named = ascend_description::names(checkpoint.path()).pop().unwrap_or_default();
    let other = (named != ascend_description::FILE).then(|| {
        format!(
            "the description is called {named}, and the loader opens {} only: rename it",
            ascend_description::FILE
        )
    });
    let found = format!("{named} with {} entries", description.entries.len());
    checks.rule("description", other.into_iter().collect(), found);
    dtype(checks, checkpoint);
    let place =
        |(module, place)| Some((place, description.entries.get(&format!("{module}.weight"))?.clone()));
    let types = layout_modules(spec).into_iter().filter_map(place).collect();
    let cached = (0..spec.layers).any(|index| description.has_kv(spec, index));
    let stored = Stored::Types(types, cached, flatquant::devices(&description, checkpoint, spec));
    stored.checks(set, spec, checks);
    fused_layers(&description, spec, checks);
    flatquant::sizes(&description, checkpoint, spec, checks);
    outer_entries(&description, checks);
    entries_and_tensors(&description, checkpoint, spec, checks);
    norm_biases(&description, spec, checks);
    tensors(checks, checkpoint, spec, VllmAscend.expected(checkpoint, spec));
    dynamic_offsets(&description, checkpoint, spec, checks);
    if set.cache8 != Cache8::Skipped {
        cache(&description, checkpoint, spec, checks);
    }
    Some(stored)
}

/// What is true of the numbers, whoever loads them.
pub(super) fn content(checkpoint: &Checkpoint, spec: &ModelSpec, checks: &mut Checks) {
    let Ok(description) = Description::read(checkpoint) else { return };
    static_inputs(&description, checkpoint, spec, checks);
    flatquant::content(&description, checkpoint, spec, checks);
    weight_offsets(checkpoint, checks);
    positive_scales(checks, checkpoint, &["weight_scale", "input_scale", "deq_scale", "kv_cache_scale"]);
    block_values(checks, checkpoint, spec, Some(&VllmAscend));
    outer_values(checks, checkpoint, spec);
    exact_scales(checks, checkpoint, spec, false);
}

/// The offsets of dynamic linears are zeros that dense paths never read.
fn dynamic_offsets(
    description: &Description,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    checks: &mut Checks,
) {
    let absent = |module: String| {
        let name = format!("{module}.weight_offset");
        let dynamic = description.kind(&module).ok() == Some(AscendType::W8A8Dynamic);
        (dynamic && checkpoint.get(&name).is_none()).then(|| format!("no {name}; it is not used"))
    };
    let problems = layout_modules(spec).into_keys().filter_map(absent).collect();
    checks.advice("dynamic-offsets", problems, "every dynamic linear has its offsets");
}

/// A fused layer looks up every shard; all must be there and alike.
fn fused_layers(description: &Description, spec: &ModelSpec, checks: &mut Checks) {
    let mut problems = Vec::new();
    for index in 0..spec.layers {
        for stage in spec.block(index).stages {
            let kind = |id: &LinearId| {
                let name = format!("{}.weight", spec.module(index, *id));
                description.entries.get(&name).cloned().ok_or(name)
            };
            match stage.linears.iter().map(kind).collect::<std::result::Result<Vec<_>, _>>() {
                Err(name) => problems.push(format!("no entry {name}")),
                Ok(kinds) if kinds.iter().any(|k| *k != kinds[0]) => problems.push(format!(
                    "{}: the linears of one fused layer have the types {}",
                    spec.module(index, stage.linears[0]),
                    kinds.join(", ")
                )),
                Ok(_) => {}
            }
        }
    }
    checks.rule("fused-layers", problems, "q, k, v and gate, up have one type in every block");
}

fn outer_entries(description: &Description, checks: &mut Checks) {
    let problem = |name: &str| match description.entries.get(name).map(String::as_str) {
        Some("FLOAT") => None,
        Some(kind) => Some(format!("{name} has the type {kind}, the loader holds it as FLOAT")),
        None => Some(format!("no entry {name}; the loader looks it up, tied or not")),
    };
    // Norms are not looked up.
    let names = [ModelSpec::EMBEDDING, ModelSpec::HEAD];
    let problems = names.into_iter().filter_map(problem).collect();
    checks.rule("embedding-and-head", problems, "entries of type FLOAT");
}

fn entries_and_tensors(
    description: &Description,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    checks: &mut Checks,
) {
    let absent =
        |name: &&String| checkpoint.get(name).is_none() && !(spec.tied && name.as_str() == ModelSpec::HEAD);
    let problems: Vec<_> = description
        .entries
        .keys()
        .filter(absent)
        .map(|n| format!("{n} has an entry and no tensor"))
        .collect();
    // What must be there is known from the types of the linears; these say only that the two lists differ.
    checks.advice("entries-have-tensors", problems, "every entry has its tensor");
    let nameless = |name: &&str| !description.entries.contains_key(*name) && !spec.is_ignorable(name);
    let problems = checkpoint.tensors().map(|t| t.name.as_str()).filter(nameless);
    let problems = problems.map(|n| format!("{n} has no entry")).collect();
    checks.advice("tensors-have-entries", problems, "every tensor has its entry");
}

/// One key with `norm.bias` gives every norm of the model a bias parameter.
fn norm_biases(description: &Description, spec: &ModelSpec, checks: &mut Checks) {
    let mut problems = Vec::new();
    if let Some(first) = description.entries.keys().find(|k| k.contains("norm.bias")) {
        let norms =
            (0..spec.layers).flat_map(|i| spec.norms().into_iter().map(move |(n, _)| spec.norm(i, n)));
        for norm in norms.chain([ModelSpec::FINAL_NORM.to_owned()]) {
            let bias = norm.replace(".weight", ".bias");
            if !description.entries.contains_key(&bias) {
                problems.push(format!("{first} gives every norm a bias, {bias} is missing"));
            }
        }
    }
    checks.advice("norm-biases", problems, "all norms alike");
}

fn cache(description: &Description, checkpoint: &Checkpoint, spec: &ModelSpec, checks: &mut Checks) {
    let meta = |key: &str| description.meta.get(key).and_then(Value::as_str);
    let declared = meta("kv_cache_type").or_else(|| meta("kv_quant_type"));
    let entries = description.entries.values().filter(|kind| *kind == C8).count();
    let mut problems = Vec::new();
    match declared {
        None if entries > 0 => problems.push(format!("{entries} entries of type C8 and no kv_cache_type")),
        None => {}
        Some(C8) if meta("kv_cache_type").is_none() => {
            problems.push("kv_quant_type alone is read by old versions only; add kv_cache_type".to_owned());
        }
        Some(C8) => {}
        Some(other) => problems.push(format!("unknown kv_cache_type {other:?}")),
    }
    let mut float = Vec::new();
    if declared == Some(C8) || entries > 0 {
        for index in 0..spec.layers {
            let names = [LinearId::K, LinearId::V].map(|id| {
                let module = spec.module(index, id);
                ["kv_cache_scale", "kv_cache_offset"].map(|suffix| format!("{module}.{suffix}"))
            });
            let names = names.as_flattened();
            // A block without any of it has a float cache, which is allowed block by block.
            if !names.iter().any(|n| description.entries.contains_key(n) || checkpoint.get(n).is_some()) {
                float.push(format!("block {index} has a float cache"));
                continue;
            }
            for name in names {
                if description.entries.get(name).is_none_or(|k| k != C8) {
                    problems.push(format!("{name} is not an entry of type C8"));
                }
                problems.extend(cache_tensor(checkpoint, spec, name).err());
            }
        }
    }
    let passed =
        if entries == 0 { "a float cache" } else { "a symmetric 8-bit cache, one scale per channel" };
    checks.rule("kv-cache", problems, passed);
    checks.advice("float-cache", float, "the cache is alike in every block");
}

fn cache_tensor(checkpoint: &Checkpoint, spec: &ModelSpec, name: &str) -> std::result::Result<(), String> {
    cache_shaped(checkpoint, name, spec.kv_width()).map_err(|e| e.to_string())?;
    let values = checkpoint.read_f32(name).map_err(|e| e.to_string())?;
    if name.ends_with("kv_cache_offset") && values.iter().any(|v| *v != 0.0) {
        return Err(format!("{name}: the loader dequantises with the scale only, offsets must be zero"));
    }
    Ok(())
}

/// The four tensors of a static input, and that a fused layer has one input.
fn static_inputs(description: &Description, checkpoint: &Checkpoint, spec: &ModelSpec, checks: &mut Checks) {
    let (mut problems, mut count) = (Vec::new(), 0);
    for index in 0..spec.layers {
        let block = spec.block(index);
        for stage in &block.stages {
            let mut inputs = BTreeMap::new();
            for linear in stage.linears.iter().filter_map(|id| block.linear(*id)) {
                let kind = description.kind(&linear.module).ok().filter(|k| k.has_static_input());
                let Some(kind) = kind else { continue };
                count += 1;
                match static_linear(checkpoint, linear, kind) {
                    Ok(input) => {
                        inputs.insert(linear.module.as_str(), input);
                    }
                    Err(problem) => problems.push(problem),
                }
            }
            let mut inputs = inputs.into_iter();
            if let Some((first, input)) = inputs.next() {
                let other = inputs.find(|(_, other)| *other != input);
                problems.extend(other.map(|(module, _)| {
                    format!("{first} and {module} share an input and differ in its scale or offset")
                }));
            }
        }
    }
    checks.rule("static-inputs", problems, format!("{count} static inputs agree with their weights"));
}

/// Scale and offset of a linear's input, once its other static tensors are found to follow from them.
fn static_linear(
    checkpoint: &Checkpoint,
    linear: &LinearSpec,
    kind: AscendType,
) -> std::result::Result<(f32, f32), String> {
    let module = linear.module.as_str();
    let read = || -> Result<Option<String>> {
        let input = static_input::static_input(checkpoint, module)?;
        let rows = linear.outputs;
        let deq = static_input::deq_scales(checkpoint, module, rows)?;
        // Compares deq_scale with the product it must be, where both factors are stored.
        static_input::weight_scales(checkpoint, module, kind, rows)?;
        let bias = format!("{module}.bias");
        let bias = match checkpoint.get(&bias) {
            Some(_) => checkpoint.read_f32(&bias)?.into_raw_vec_and_offset().0,
            None => vec![0.0; rows],
        };
        let weights = read_int8(checkpoint, &format!("{module}.weight"))?;
        let quant_bias = checkpoint.read_i32(&format!("{module}.quant_bias"))?;
        for (row, (line, found)) in weights.outer_iter().zip(&quant_bias).enumerate() {
            let (Some(&bias), Some(&deq)) = (bias.get(row), deq.get(row)) else { break };
            let sum: i64 = line.iter().map(|&w| i64::from(w)).sum();
            let (shift, bias) =
                (f64::from(input.zero - 128.0) * sum as f64, f64::from(bias) / f64::from(deq));
            // msmodelslim computes this in the model's type: bfloat16 keeps eight bits of each term.
            let tolerance = 1.0 + (bias.abs() + shift.abs()) / 128.0;
            if (f64::from(*found) - (bias - shift)).abs() > tolerance {
                let expected = (bias - shift).round_ties_even();
                return Ok(Some(format!(
                    "{module}.quant_bias, element {row}: expected {expected}, found {found}"
                )));
            }
        }
        Ok(None)
    };
    match read() {
        Ok(Some(problem)) => Err(problem),
        Err(error) => Err(error.to_string()),
        Ok(None) => {
            let input = static_input::static_input(checkpoint, module).map_err(|e| e.to_string())?;
            Ok((input.scale, input.zero))
        }
    }
}

/// Kernels ignore the offsets of W8A8 and add those of W8A16, so only zeros mean what they say.
fn weight_offsets(checkpoint: &Checkpoint, checks: &mut Checks) {
    let mut problems = Vec::new();
    for info in checkpoint.tensors().filter(|t| t.name.ends_with(".weight_offset")) {
        match checkpoint.read_f32(&info.name) {
            Ok(values) if values.iter().any(|v| *v != 0.0) => {
                problems
                    .push(format!("{}: offsets other than zero are not applied by the loader", info.name));
            }
            Ok(_) => {}
            Err(error) => problems.push(error.to_string()),
        }
    }
    checks.rule("weight-offsets", problems, "all zero");
}
