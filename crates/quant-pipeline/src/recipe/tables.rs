//! The keys of every section of a recipe, and the JSON schema made from them.

use crate::registry::Registry;
use quant_kernels::Compute;
use quant_methods::settings::{self, Field, FieldKind};
use serde_json::{Map, Value, json};

pub(super) static ACTIVATIONS: &[Field] = &[
    Field {
        name: "symmetric",
        kind: FieldKind::Bool,
        default: "null",
        help: "default: what the export target executes (vllm-ascend and compressed-tensors dynamic: true; otherwise false)",
        run_wide: true,
    },
    Field {
        name: "dynamic",
        kind: FieldKind::Bool,
        default: "true",
        help: "scales per token at run time, or one scale per tensor from calibration",
        run_wide: true,
    },
    Field {
        name: "clip_ratio",
        kind: FieldKind::Number(0.01, 1.0),
        default: "1.0",
        help: "factor on the range of dynamic activations",
        run_wide: true,
    },
    Field {
        name: "observer",
        kind: FieldKind::Choice(&["minmax", "percentile", "mse"]),
        default: "\"minmax\"",
        help: "range of static activations",
        run_wide: true,
    },
    Field {
        name: "in_calibration",
        kind: FieldKind::Bool,
        default: "false",
        help: "quantise activations and the cache while calibrating, too",
        run_wide: true,
    },
];
pub(super) static KV_CACHE: &[Field] = &[
    Field {
        name: "symmetric",
        kind: FieldKind::Bool,
        default: "null",
        help: "default: true for channel_static behind rope, false otherwise",
        run_wide: true,
    },
    Field {
        name: "granularity",
        kind: FieldKind::Choice(&["token_head", "channel_static"]),
        default: "null",
        help: "what shares a scale; default channel_static for vllm-ascend (C8) and before rope, token_head otherwise",
        run_wide: true,
    },
    Field {
        name: "value_granularity",
        kind: FieldKind::Choice(&["token_head", "channel_static"]),
        default: "null",
        help: "what shares a scale among values; default token_head where keys are quantised before rope, otherwise as keys",
        run_wide: true,
    },
    Field {
        name: "before_rope",
        kind: FieldKind::Bool,
        default: "false",
        help: "quantise keys before rope, where a channel keeps its range over all positions (KVQuant)",
        run_wide: true,
    },
    Field {
        name: "pre_bias",
        kind: FieldKind::Bool,
        default: "false",
        help: "take the bias of keys off before they are quantised and add it again afterwards; before rope only",
        run_wide: true,
    },
    Field {
        name: "clip_ratio",
        kind: FieldKind::Number(0.01, 1.0),
        default: "1.0",
        help: "factor on the ranges of token_head",
        run_wide: true,
    },
];
pub(super) static TOP: &[&str] = &[
    "version",
    "modifiers",
    "activations",
    "kv_cache",
    "overrides",
    "compute",
    "statistics",
    "ignore",
    "export",
];

/// The JSON schema of recipes, with every default.
#[must_use]
pub fn schema() -> Value {
    schema_with(&Registry::default())
}

/// The same for recipes that are read with `registry`.
#[must_use]
pub fn schema_with(registry: &Registry) -> Value {
    let modifiers: Vec<Value> = registry
        .methods()
        .iter()
        .map(|m| {
            let mut body = settings::schema(m.fields);
            body["description"] = m.summary.into();
            let mut properties = Map::new();
            properties.insert(m.id.into(), body);
            json!({"type": "object", "additionalProperties": false, "properties": properties, "required": [m.id]})
        })
        .collect();
    let roundings = || registry.methods().iter().filter(|m| m.kind.rounds());
    let mut override_schema = settings::override_schema(roundings().flat_map(|m| m.fields));
    for method in roundings() {
        override_schema["properties"][method.id] = settings::override_schema(method.fields);
    }
    let formats = registry.formats().ids();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ptq recipe",
        "type": "object",
        "additionalProperties": false,
        "required": ["version", "modifiers"],
        "properties": {
            "version": {"const": 1},
            "modifiers": {"type": "array", "minItems": 1, "items": {"oneOf": modifiers},
                "description": "transforms first, then exactly one rounding"},
            "activations": settings::schema(ACTIVATIONS),
            "kv_cache": settings::schema(KV_CACHE),
            "overrides": {"type": "object", "default": {}, "additionalProperties": override_schema,
                "description": "module glob to keys of the rounding modifier, which replace the modifier's, or to { method: { keys } } of another rounding, whose scheme is the modifier's unless written; * crosses dots; the last match wins; a glob that matches nothing is an error; the keys lm_head and model.embed_tokens, and no glob, quantise head and embedding"},
            "compute": {"enum": Compute::ALL.map(Compute::name), "default": "f32",
                "description": "operands of calibration products, as they are, rounded to bf16, or as sums of two or three bf16 numbers; accumulation is f32"},
            "statistics": {"enum": Compute::ALL.map(Compute::name),
                "description": "the same for sums over calibration tokens (Hessians); as compute unless given"},
            "ignore": {"type": "array", "items": {"type": "string"}, "default": ["lm_head"],
                "description": "module globs left in float; lm_head and model.embed_tokens are without being named, unless an override has exactly that name; a glob that matches nothing is a warning"},
            "export": {"type": "object", "additionalProperties": false,
                "properties": {"format": {"enum": formats, "default": "dequantized"}}}
        }
    })
}
