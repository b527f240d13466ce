//! The rules of vLLM, transformers and vLLM-Ascend for compressed-tensors.

use std::collections::{BTreeMap, BTreeSet};

use quant_core::ActRule;
use quant_graph::{ActOrder, ModelSpec, Role, STAGES};
use serde_json::Value;

use super::rules::{Checks, block_values, outer_values, positive_scales, stray_files, tensors};
use super::{Target, VLLM_VERSION};
use crate::formats::compressed_tensors_config::{Config, Layout, Storage};
use crate::formats::{CompressedTensors, Format as _};
use crate::source::Checkpoint;

pub(super) fn check(checkpoint: &Checkpoint, spec: &ModelSpec, target: Target, checks: &mut Checks) {
    let parsed = Config::read(checkpoint).and_then(|config| Ok((config.layouts(spec)?, config)));
    let (layouts, config) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            checks.rule("quantization-config", vec![error.to_string()], "");
            return;
        }
    };
    let passed = format!("{} groups, {} quantised linears", config.groups.len(), layouts.len());
    checks.rule("quantization-config", Vec::new(), passed);
    stray_files(checks, checkpoint);
    formats(&config, target, &layouts, checks);
    weight_schemes(spec, target, &layouts, checks);
    if target == Target::Vllm {
        marlin(&layouts, checks);
    }
    activation_schemes(target, &layouts, checks);
    if target != Target::Transformers {
        fused_layers(spec, &layouts, checks);
    }
    act_order(target, &layouts, checks);
    head(&config, checks);
    cache(&config, target, checks);
    transforms(&config, checks);
    tensors(checks, checkpoint, spec, CompressedTensors.expected(checkpoint, spec));
    positive_scales(checks, checkpoint, &["weight_scale", "input_scale"]);
    block_values(checks, checkpoint, spec, Some(&CompressedTensors));
    outer_values(checks, checkpoint, spec);
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
fn formats(config: &Config, target: Target, layouts: &Layouts, checks: &mut Checks) {
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
    if target != Target::Transformers {
        problems.extend(each(layouts, |_, layout| {
            let wanted = Storage::of(&layout.scheme);
            (layout.storage != wanted)
                .then(|| format!("{} where the loader wants {}", layout.storage.name(), wanted.name()))
        }));
    }
    checks.rule("formats", problems, used.into_iter().collect::<Vec<_>>().join(", "));
}

fn weight_schemes(spec: &ModelSpec, target: Target, layouts: &Layouts, checks: &mut Checks) {
    let inputs: BTreeMap<String, usize> = (0..spec.layers)
        .flat_map(|i| Role::ALL.map(|role| (spec.module(i, role), spec.linear(role).inputs)))
        .collect();
    let problems = each(layouts, |module, layout| {
        let (weight, bits) = (layout.weight, layout.weight.bits.get());
        let columns = inputs.get(module).copied().unwrap_or_default();
        if let Some(group) = weight.group.filter(|g| !columns.is_multiple_of(*g)) {
            return Some(format!("groups of {group} do not divide {columns} inputs"));
        }
        match (target, layout.scheme.input.is_some()) {
            (Target::Transformers, _) => None,
            (Target::VllmAscend, false) => Some("weight-only linears are not loaded".to_owned()),
            (Target::Vllm, false) if bits != 4 && bits != 8 => {
                Some(format!("no kernel for {bits}-bit weights, only 4 and 8"))
            }
            (Target::Vllm, false) if layout.per_tensor => {
                Some("one scale per tensor; packed weights want channels or groups".to_owned())
            }
            (Target::Vllm, false) => None,
            (_, true) if bits != 8 => {
                Some(format!("{bits}-bit weights with quantised activations; 8 are wanted"))
            }
            (_, true) if weight.group.is_some() => {
                Some("groups with quantised activations; one scale per channel is wanted".to_owned())
            }
            (_, true) if !weight.symmetric => {
                Some("asymmetric weights with quantised activations".to_owned())
            }
            (Target::VllmAscend, true) if layout.per_tensor => {
                Some("one scale per tensor; channels are wanted".to_owned())
            }
            (_, true) => None,
        }
    });
    checks.rule("weight-schemes", problems, "every weight has a kernel");
}

/// The fast kernel of packed weights. Without it the folder may still load through a slower one, or not, by the GPU.
fn marlin(layouts: &Layouts, checks: &mut Checks) {
    const GROUPS: [usize; 3] = [32, 64, 128];
    let problems = each(layouts, |_, layout| {
        let weight = layout.weight;
        if layout.scheme.input.is_some() {
            return None;
        }
        match weight.group {
            Some(group) if !GROUPS.contains(&group) => Some(format!(
                "groups of {group}; Marlin of vLLM {VLLM_VERSION} takes 32, 64, 128 and whole channels"
            )),
            _ if !weight.symmetric && weight.bits.get() == 8 => Some(format!(
                "asymmetric 8-bit weights; Marlin of vLLM {VLLM_VERSION} takes zero points of 4 bits only"
            )),
            _ => None,
        }
    });
    let passed = format!("every packed weight fits the Marlin kernel of vLLM {VLLM_VERSION}");
    checks.advice("marlin", problems, passed);
}

fn activation_schemes(target: Target, layouts: &Layouts, checks: &mut Checks) {
    let problems = each(layouts, |_, layout| {
        let input = layout.scheme.input?;
        if input.bits.get() != 8 && target != Target::Transformers {
            return Some(format!("{}-bit activations; 8 are wanted", input.bits.get()));
        }
        (target == Target::VllmAscend && input.rule == ActRule::Asymmetric)
            .then(|| "asymmetric activations".to_owned())
    });
    checks.rule("activation-schemes", problems, "every activation has a kernel");
}

fn fused_layers(spec: &ModelSpec, layouts: &Layouts, checks: &mut Checks) {
    let mut problems = Vec::new();
    for index in 0..spec.layers {
        for stage in &STAGES {
            let layout = |role: &Role| layouts.get(&spec.module(index, *role));
            let first = layout(&stage.linears[0]);
            if let Some(other) = stage.linears.iter().find(|r| layout(r) != first) {
                let (first, other) = (spec.module(index, stage.linears[0]), spec.module(index, *other));
                problems.push(format!("{first} and {other} are one layer and stored differently"));
            }
        }
    }
    checks.rule("fused-layers", problems, "q, k, v and gate, up are stored alike in every block");
}

fn act_order(target: Target, layouts: &Layouts, checks: &mut Checks) {
    let problems = each(layouts, |_, layout| match (target, layout.weight.act_order) {
        (Target::Transformers, ActOrder::Dynamic) => {
            Some("actorder group is refused by the library since 0.19".to_owned())
        }
        (Target::VllmAscend, order) if order != ActOrder::None => Some("actorder is not loaded".to_owned()),
        (Target::Vllm, ActOrder::Dynamic) if layout.storage == Storage::Int => {
            Some("actorder group needs packed weights".to_owned())
        }
        _ => None,
    });
    checks.rule("act-order", problems, "no order the loader cannot follow");
}

/// The head is a linear too: targets of a class reach it unless it is ignored.
fn head(config: &Config, checks: &mut Checks) {
    let caught = config.group(ModelSpec::HEAD_MODULE).map(|group| {
        format!("{} reaches {} and ignore does not list it", group.name, ModelSpec::HEAD_MODULE)
    });
    checks.rule("ignore-head", caught.into_iter().collect(), "the head is left alone");
}

fn cache(config: &Config, target: Target, checks: &mut Checks) {
    let scheme = config.section.get("kv_cache_scheme").filter(|s| !s.is_null());
    let problem = scheme.and_then(|scheme| {
        let text = |key: &str| scheme.get(key).and_then(Value::as_str).unwrap_or_default();
        if target == Target::VllmAscend {
            return Some("kv_cache_scheme is not loaded".to_owned());
        }
        let eight = scheme.get("num_bits").and_then(Value::as_u64) == Some(8);
        (text("type") != "float" || text("strategy") != "tensor" || !eight)
            .then(|| "the only cache scheme is 8-bit float per tensor".to_owned())
    });
    checks.rule("kv-cache", problem.into_iter().collect(), "no integer cache");
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
