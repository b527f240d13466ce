//! The keys of every section of a recipe, and the JSON schema made from them.

use super::fields::{self, Field, Kind};
use quant_checkpoint::formats;
use quant_methods::{METHODS, Method};
use serde_json::{Map, Value, json};

const CONVENTIONS: &[&str] = &["q-asym", "q-sym", "q-sym-gptq", "q-awq"];
const VARIANTS: &[&str] = &["exact", "official"];

const SCHEME: Field = Field {
    name: "scheme",
    kind: Kind::Scheme,
    default: "",
    help: "bits of weights, activations and KV cache and the group size: W4A16g128, W8A8, W8A8KV8, W4A4KV4; 16 leaves a part alone",
};
const SYMMETRIC: Field = Field {
    name: "symmetric",
    kind: Kind::Bool,
    default: "true",
    help: "whether the zero level of weights is fixed in the middle; follows `convention` where that is given",
};
const CONVENTION: Field = Field {
    name: "convention",
    kind: Kind::Choice(CONVENTIONS),
    default: "null",
    help: "how scale and zero point follow from a group's range; default q-sym when symmetric, q-asym otherwise",
};
const MSE_CLIP: Field = Field {
    name: "mse_clip",
    kind: Kind::Bool,
    default: "false",
    help: "search the range of every group for the least |error|^2.4",
};
const VARIANT: Field = Field {
    name: "variant",
    kind: Kind::Choice(VARIANTS),
    default: "\"exact\"",
    help: "exact: the mathematics; official: the published code with its quirks",
};

pub(super) static RTN: &[Field] = &[SCHEME, SYMMETRIC, CONVENTION, MSE_CLIP, VARIANT];
pub(super) static GPTQ: &[Field] = &[
    SCHEME,
    SYMMETRIC,
    CONVENTION,
    Field {
        name: "actorder",
        kind: Kind::Choice(&["none", "static", "dynamic"]),
        default: "\"none\"",
        help: "round columns by descending Hessian diagonal, with groups in memory order (static) or in that order (dynamic)",
    },
    MSE_CLIP,
    Field {
        name: "true_sequential",
        kind: Kind::Bool,
        default: "true",
        help: "later linears of a block see the already quantised earlier ones",
    },
    Field {
        name: "damping",
        kind: Kind::Number(0.0, 0.9999),
        default: "0.01",
        help: "fraction of the mean Hessian diagonal added to the diagonal; raised by 0.0015 steps if the factorisation fails",
    },
    Field {
        name: "block_size",
        kind: Kind::Integer(1, 4096),
        default: "128",
        help: "columns whose updates are applied together; changes rounding only in the last bits, and stale dynamic groups",
    },
    Field {
        name: "factor",
        kind: Kind::Choice(&["f32", "f64"]),
        default: "\"f32\"",
        help: "precision of the factorisation; f32 is checked by a residual and retried in f64",
    },
    VARIANT,
];
pub(super) static SMOOTHQUANT: &[Field] = &[
    Field {
        name: "alpha",
        kind: Kind::Number(0.0, 1.0),
        default: "0.5",
        help: "migration strength; larger moves more of the difficulty into the weights",
    },
    VARIANT,
];
pub(super) static ACTIVATIONS: &[Field] = &[
    Field {
        name: "symmetric",
        kind: Kind::Bool,
        default: "null",
        help: "default: what the export target executes (vllm-ascend and compressed-tensors dynamic: true; otherwise false)",
    },
    Field {
        name: "dynamic",
        kind: Kind::Bool,
        default: "true",
        help: "scales per token at run time, or one scale per tensor from calibration",
    },
    Field {
        name: "clip_ratio",
        kind: Kind::Number(0.01, 1.0),
        default: "1.0",
        help: "factor on the range of dynamic activations",
    },
    Field {
        name: "observer",
        kind: Kind::Choice(&["minmax", "percentile", "mse"]),
        default: "\"minmax\"",
        help: "range of static activations",
    },
    Field {
        name: "in_calibration",
        kind: Kind::Bool,
        default: "false",
        help: "quantise activations while calibrating, too",
    },
];
pub(super) static KV_CACHE: &[Field] = &[
    Field {
        name: "symmetric",
        kind: Kind::Bool,
        default: "null",
        help: "default: true for channel_static, false for token_head",
    },
    Field {
        name: "granularity",
        kind: Kind::Choice(&["token_head", "channel_static"]),
        default: "null",
        help: "what shares a scale; default channel_static for vllm-ascend (C8), token_head otherwise",
    },
];
pub(super) static TOP: &[&str] =
    &["version", "modifiers", "activations", "kv_cache", "overrides", "compute", "ignore", "export"];

/// The keys of a modifier.
pub(super) fn fields_of(method: &Method) -> &'static [Field] {
    match method.id {
        "gptq" => GPTQ,
        "smoothquant" => SMOOTHQUANT,
        _ => RTN,
    }
}

/// The JSON schema of recipes, with every default.
#[must_use]
pub fn schema() -> Value {
    let modifiers: Vec<Value> = METHODS
        .iter()
        .map(|m| {
            let mut body = fields::schema(fields_of(m));
            body["description"] = m.summary.into();
            let mut properties = Map::new();
            properties.insert(m.id.into(), body);
            json!({"type": "object", "additionalProperties": false, "properties": properties, "required": [m.id]})
        })
        .collect();
    let mut override_schema = fields::schema(GPTQ);
    override_schema["required"] = json!([]);
    // Settings of the whole run.
    if let Some(properties) = override_schema["properties"].as_object_mut() {
        properties.remove("true_sequential");
    }
    let formats: Vec<&str> = formats::FORMATS.iter().map(|f| f.id()).collect();
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
            "activations": fields::schema(ACTIVATIONS),
            "kv_cache": fields::schema(KV_CACHE),
            "overrides": {"type": "object", "default": {}, "additionalProperties": override_schema,
                "description": "module glob to keys of the rounding modifier; * crosses dots; the last match wins; a glob that matches nothing is an error"},
            "compute": {"enum": ["f32", "bf16"], "default": "f32",
                "description": "operands of calibration products; accumulation is f32"},
            "ignore": {"type": "array", "items": {"type": "string"}, "default": ["lm_head"],
                "description": "module globs left in float; lm_head always is; a glob that matches nothing is a warning"},
            "export": {"type": "object", "additionalProperties": false,
                "properties": {"format": {"enum": formats, "default": "dequantized"}}}
        }
    })
}
