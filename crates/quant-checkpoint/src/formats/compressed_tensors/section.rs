//! Writing `quantization_config`.

use quant_core::{ActRule, Bits};
use quant_graph::{ActOrder, LinearScheme, ModelScheme, ModelSpec};
use serde_json::{Map, Value, json};

use super::ID;
use super::config::Layout;
use crate::formats::ConfigNotes;

/// The version whose fields are written: the first with `scale_dtype`, `zp_dtype` and a format per group.
const VERSION: &str = "0.13.0";
fn weight_args(layout: &Layout, notes: &ConfigNotes) -> Value {
    let weight = layout.weight;
    // The library accepts an order only together with groups; per channel the order leaves no trace anyway.
    let ordered = weight.act_order == ActOrder::Static && weight.group.is_some();
    args(
        weight.bits,
        weight.symmetric,
        if weight.group.is_some() { "group" } else { "channel" },
        false,
        weight.group,
        ordered,
        Some(&notes.weight_observer),
    )
}

fn args(
    bits: Bits,
    symmetric: bool,
    strategy: &str,
    dynamic: bool,
    group_size: Option<usize>,
    ordered: bool,
    observer: Option<&str>,
) -> Value {
    json!({
        "actorder": ordered.then_some("static"),
        "block_structure": null,
        "dynamic": dynamic,
        "group_size": group_size,
        "num_bits": bits.get(),
        "observer": observer,
        "observer_kwargs": {},
        "scale_dtype": null,
        "strategy": strategy,
        "symmetric": symmetric,
        "type": "int",
        "zp_dtype": (!symmetric && !dynamic).then_some("torch.int8"),
    })
}

/// The section for a scheme.
pub(super) fn write(spec: &ModelSpec, scheme: &ModelScheme, notes: &ConfigNotes) -> Value {
    let mut kinds: Vec<(LinearScheme, Vec<String>)> = Vec::new();
    let mut ignore = Vec::new();
    for (index, id, linear) in scheme.linears() {
        let module = spec.module(index, id);
        if linear.weight.is_none() {
            ignore.push(module);
        } else if let Some((_, modules)) = kinds.iter_mut().find(|(known, _)| known == linear) {
            modules.push(module);
        } else {
            kinds.push((*linear, vec![module]));
        }
    }
    ignore.push(ModelSpec::HEAD_MODULE.to_owned());
    let single = kinds.len() == 1;
    let (mut groups, mut formats) = (Map::new(), Vec::new());
    for (number, (linear, modules)) in kinds.into_iter().enumerate() {
        let Some(layout) = Layout::of(&linear) else { continue };
        let format = layout.storage.name();
        formats.push(format);
        let targets = if single { vec!["Linear".to_owned()] } else { modules };
        let inputs = linear.input.map(|i| {
            let (strategy, observer) =
                if i.dynamic { ("token", None) } else { ("tensor", Some(notes.input_observer.as_str())) };
            args(i.bits, i.rule != ActRule::Asymmetric, strategy, i.dynamic, None, false, observer)
        });
        let group = json!({
            "format": format,
            "input_activations": inputs,
            "output_activations": null,
            "targets": targets,
            "weights": weight_args(&layout, notes),
        });
        groups.insert(format!("group_{number}"), group);
    }
    let format = match formats.as_slice() {
        [] => "dense",
        [first, rest @ ..] if rest.iter().all(|f| f == first) => first,
        _ => "mixed-precision",
    };
    json!({
        "config_groups": groups,
        "format": format,
        "global_compression_ratio": null,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "quant_method": ID,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    })
}
