//! What variants of a `config.json` mean: a table of changes and of what the config classes of transformers make of them
//! (5.24, and 4.57 where it differs and says so).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

mod common;

use common::config;
use quant_core::FloatType;
use quant_graph::{ModelSpec, RopeScaling};
use quant_model::{Reading, read_model_config};
use serde_json::{Value, json};

/// What a variant must come to.
enum Means {
    /// This, with nothing to say.
    Is(fn(&ModelSpec) -> bool),
    /// This, with a warning that names these words.
    Warns(&'static [&'static str], fn(&ModelSpec) -> bool),
    /// An error that names these words.
    Refused(&'static [&'static str]),
}
use Means::{Is, Refused, Warns};

const LLAMA: &str = "LlamaForCausalLM";
const MISTRAL: &str = "MistralForCausalLM";
const PHI3: &str = "Phi3ForCausalLM";
const QWEN2: &str = "Qwen2ForCausalLM";
const QWEN3: &str = "Qwen3ForCausalLM";
const PANGU: &str = "PanguEmbeddedForCausalLM";

/// The small valid config with changes; a value of `"-"` takes the key out.
fn variant(architecture: &str, changes: &Value) -> Value {
    let mut config = config(architecture);
    config.as_object_mut().unwrap().remove("model_type");
    for (key, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("-") => drop(config.as_object_mut().unwrap().remove(key)),
            _ => config[key] = value.clone(),
        }
    }
    config
}

fn check(rows: Vec<(&str, Value, Means)>) {
    for (architecture, changes, means) in rows {
        let read = read_model_config(&variant(architecture, &changes));
        let at = format!("{architecture} {changes}");
        let names = |text: &str, words: &[&str]| {
            for word in words {
                assert!(text.contains(word), "{at}: {word:?} is not in {text:?}");
            }
        };
        match (read, means) {
            (Ok(Reading { spec, warnings }), Is(holds)) => {
                assert!(holds(&spec), "{at}: {spec:?}");
                assert!(warnings.is_empty(), "{at}: {warnings:?}");
            }
            (Ok(Reading { spec, warnings }), Warns(words, holds)) => {
                assert!(holds(&spec), "{at}: {spec:?}");
                names(&warnings.join("\n"), words);
            }
            (Err(error), Refused(words)) => names(&error.to_string(), words),
            (Ok(reading), Refused(_)) => panic!("{at} was accepted: {reading:?}"),
            (Err(error), _) => panic!("{at}: {error}"),
        }
    }
}

fn linear(spec: &ModelSpec, by: f64) -> bool {
    spec.rope.scaling == RopeScaling::Linear { factor: by }
}

/// The length before scaling of yarn and llama3.
fn original(spec: &ModelSpec) -> f64 {
    match spec.rope.scaling {
        RopeScaling::Yarn { original_max_position_embeddings: original, .. }
        | RopeScaling::Llama3 { original_max_position_embeddings: original, .. } => original,
        _ => f64::NAN,
    }
}

fn yarn_factors(spec: &ModelSpec) -> (f64, f64) {
    match spec.rope.scaling {
        RopeScaling::Yarn { factor, attention_factor, .. } => (factor, attention_factor),
        _ => panic!("no yarn"),
    }
}

#[test]
fn missing_keys_have_the_defaults_of_the_class() {
    let sizes = json!({ "hidden_size": "-", "intermediate_size": "-", "num_hidden_layers": "-",
        "num_attention_heads": "-", "num_key_value_heads": "-", "head_dim": "-", "vocab_size": "-",
        "max_position_embeddings": "-", "rope_theta": "-", "rms_norm_eps": "-", "tie_word_embeddings": "-",
        "torch_dtype": "-", "hidden_act": "-" });
    let filled = &["no `hidden_size`; 4096", "no `vocab_size`", "no `num_hidden_layers`", "Config"];
    fn shape(s: &ModelSpec) -> [usize; 8] {
        [
            s.vocab,
            s.hidden,
            s.intermediate,
            s.layers,
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.max_position_embeddings,
        ]
    }
    fn rest(s: &ModelSpec) -> (f64, f64, bool, FloatType) {
        (s.norm_eps, s.rope.theta, s.tied, s.dtype)
    }
    check(vec![
        (
            LLAMA,
            sizes.clone(),
            Warns(filled, |s| {
                shape(s) == [32_000, 4096, 11_008, 32, 32, 32, 128, 2048]
                    && rest(s) == (1e-6, 1e4, false, FloatType::F32)
            }),
        ),
        (
            QWEN2,
            sizes.clone(),
            Warns(filled, |s| {
                shape(s) == [151_936, 4096, 22_016, 32, 32, 32, 128, 32_768]
                    && rest(s) == (1e-6, 1e4, false, FloatType::F32)
            }),
        ),
        (
            QWEN3,
            sizes.clone(),
            Warns(filled, |s| {
                shape(s) == [151_936, 4096, 22_016, 32, 32, 32, 128, 32_768]
                    && rest(s) == (1e-6, 1e4, false, FloatType::F32)
            }),
        ),
        (
            PANGU,
            sizes.clone(),
            Warns(filled, |s| {
                shape(s) == [153_376, 4096, 12_800, 34, 32, 8, 128, 32_768]
                    && rest(s) == (1e-5, 1.6e7, false, FloatType::F32)
                    && (s.qkv_bias, s.o_bias, s.mlp_bias) == (true, true, false)
            }),
        ),
        (
            MISTRAL,
            sizes.clone(),
            Warns(filled, |s| {
                shape(s) == [32_000, 4096, 14_336, 32, 32, 8, 128, 131_072]
                    && rest(s) == (1e-6, 1e4, false, FloatType::F32)
                    && s.windows == [Some(4096); 32]
            }),
        ),
        (
            PHI3,
            sizes.clone(),
            Warns(&["no `hidden_size`; 3072", "Phi3Config"], |s| {
                shape(s) == [32_064, 3072, 8192, 32, 32, 32, 96, 4096]
                    && rest(s) == (1e-5, 1e4, false, FloatType::F32)
                    && s.windows == [None; 32]
                    && s.rope.rotary_dim.is_none()
            }),
        ),
        (LLAMA, json!({ "num_key_value_heads": "-" }), Is(|s| s.kv_heads == 4)),
        (MISTRAL, json!({ "head_dim": "-" }), Is(|s| s.head_dim == 8)),
        // The Qwen classes have 32, not the number of heads.
        (QWEN2, json!({ "num_key_value_heads": "-" }), Refused(&["num_key_value_heads", "got 32 heads"])),
        (QWEN3, json!({ "head_dim": "-" }), Is(|s| s.head_dim == 128)),
        (QWEN2, json!({ "head_dim": "-" }), Is(|s| s.head_dim == 8)),
    ]);
}

#[test]
fn null_is_not_missing() {
    check(vec![
        (LLAMA, json!({ "num_key_value_heads": null }), Is(|s| s.kv_heads == 4)),
        (QWEN2, json!({ "num_key_value_heads": null }), Is(|s| s.kv_heads == 4)),
        (LLAMA, json!({ "head_dim": null }), Is(|s| s.head_dim == 8)),
        (MISTRAL, json!({ "head_dim": null }), Is(|s| s.head_dim == 8)),
        (QWEN3, json!({ "head_dim": null }), Refused(&["head_dim", "Qwen3Config", "null"])),
        (
            LLAMA,
            json!({ "tie_word_embeddings": null, "attention_bias": null }),
            Is(|s| !s.tied && !s.qkv_bias),
        ),
        (PANGU, json!({ "bias": null }), Is(|s| !s.qkv_bias && !s.o_bias)),
        (LLAMA, json!({ "rms_norm_eps": null }), Refused(&["rms_norm_eps", "null"])),
        (LLAMA, json!({ "max_position_embeddings": null }), Refused(&["max_position_embeddings", "null"])),
        (LLAMA, json!({ "hidden_size": null }), Refused(&["hidden_size", "null"])),
        (LLAMA, json!({ "hidden_act": null }), Refused(&["hidden_act", "null"])),
        (LLAMA, json!({ "rope_theta": null }), Refused(&["rope_theta", "null"])),
        (
            LLAMA,
            json!({ "rope_theta": null, "rope_parameters": { "rope_theta": 5e5 } }),
            Is(|s| s.rope.theta == 5e5),
        ),
        (
            LLAMA,
            json!({ "rope_parameters": { "rope_theta": null } }),
            Refused(&["rope_parameters.rope_theta", "null"]),
        ),
        (LLAMA, json!({ "rope_scaling": null, "rope_parameters": null }), Is(|s| s.rope.theta == 1e4)),
        (QWEN2, json!({ "layer_types": null }), Is(|s| s.windows == [None, None])),
        (LLAMA, json!({ "torch_dtype": null, "dtype": "bfloat16" }), Is(|s| s.dtype == FloatType::Bf16)),
    ]);
}

#[test]
fn windows() {
    let both = &["sliding_window", "layer_types"];
    for qwen in [QWEN2, QWEN3] {
        check(vec![
            (
                qwen,
                json!({ "use_sliding_window": true, "max_window_layers": 1 }),
                Is(|s| s.windows == [None, Some(4096)]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": 16 }),
                Is(|s| s.windows == [None, None]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": null, "max_window_layers": 0 }),
                Is(|s| s.windows == [None, None]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": null, "sliding_window": 16, "max_window_layers": 0 }),
                Is(|s| s.windows == [None, None]),
            ),
            (
                qwen,
                json!({ "sliding_window": 16, "max_window_layers": 0 }),
                Is(|s| s.windows == [None, None]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "layer_types": ["full_attention", "sliding_attention"] }),
                Is(|s| s.windows == [None, Some(4096)]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 0,
                "layer_types": ["sliding_attention", "full_attention"] }),
                Warns(&["`layer_types`", "`max_window_layers`"], |s| s.windows == [Some(16), None]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 1,
                "layer_types": ["full_attention", "sliding_attention"] }),
                Is(|s| s.windows == [None, Some(16)]),
            ),
            (
                qwen,
                json!({ "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] }),
                Refused(both),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": null,
                "layer_types": ["sliding_attention", "full_attention"] }),
                Refused(both),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "max_window_layers": null }),
                Refused(&["max_window_layers"]),
            ),
        ]);
    }
    check(vec![
        (
            LLAMA,
            json!({ "sliding_window": 16 }),
            Warns(&["`sliding_window` = 16", "LlamaConfig"], |s| s.windows == [None, None]),
        ),
        (
            LLAMA,
            json!({ "use_sliding_window": true }),
            Warns(&["`use_sliding_window`"], |s| s.windows == [None, None]),
        ),
        (
            LLAMA,
            json!({ "sliding_window": null, "use_sliding_window": false }),
            Is(|s| s.windows == [None, None]),
        ),
    ]);
}

#[test]
fn one_window_for_all_layers() {
    check(vec![
        (MISTRAL, json!({}), Is(|s| s.windows == [Some(4096); 2])),
        (MISTRAL, json!({ "sliding_window": null }), Is(|s| s.windows == [None; 2])),
        (MISTRAL, json!({ "sliding_window": 16 }), Is(|s| s.windows == [Some(16); 2])),
        (MISTRAL, json!({ "sliding_window": 0 }), Refused(&["sliding_window", "found 0"])),
        (MISTRAL, json!({ "sliding_window": 4096.5 }), Refused(&["sliding_window", "an integer"])),
        (PHI3, json!({}), Is(|s| s.windows == [None; 2])),
        (PHI3, json!({ "sliding_window": null }), Is(|s| s.windows == [None; 2])),
        (PHI3, json!({ "sliding_window": 16 }), Is(|s| s.windows == [Some(16); 2])),
        // Keys of other families: fine where they say the same.
        (MISTRAL, json!({ "use_sliding_window": true }), Is(|s| s.windows == [Some(4096); 2])),
        (
            MISTRAL,
            json!({ "sliding_window": null, "use_sliding_window": false }),
            Is(|s| s.windows == [None; 2]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": 16, "use_sliding_window": false }),
            Refused(&["`use_sliding_window` = false", "`sliding_window` = 16", "vLLM"]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": 16, "layer_types": ["sliding_attention", "sliding_attention"] }),
            Is(|s| s.windows == [Some(16); 2]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": null, "layer_types": ["full_attention", "full_attention"] }),
            Is(|s| s.windows == [None; 2]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"] }),
            Refused(&["`layer_types`", "`sliding_window` = 16"]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": null, "layer_types": ["full_attention", "sliding_attention"] }),
            Refused(&["`layer_types`", "`sliding_window` = null"]),
        ),
    ]);
}

#[test]
fn rope_blocks() {
    let old = json!({ "type": "linear", "factor": 4.0 });
    let new = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 });
    let yarn = |more: Value| {
        let mut block = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 });
        more.as_object().unwrap().iter().for_each(|(k, v)| block[k] = v.clone());
        block
    };
    let llama3 =
        json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 });
    let nested = json!({ "rope_type": "default", "rope_theta": 1e6 });
    check(vec![
        (LLAMA, json!({ "rope_scaling": old }), Is(|s| linear(s, 4.0) && s.rope.theta == 1e4)),
        (
            LLAMA,
            json!({ "rope_theta": "-", "rope_parameters": new }),
            Is(|s| linear(s, 2.0) && s.rope.theta == 5e5),
        ),
        (
            LLAMA,
            json!({ "rope_parameters": new }),
            Warns(&["`rope_theta` = 10000", "`rope_parameters.rope_theta` = 500000"], |s| {
                s.rope.theta == 5e5
            }),
        ),
        (LLAMA, json!({ "rope_parameters": { "rope_type": "default" } }), Is(|s| s.rope.theta == 1e4)),
        // Two blocks: rope_scaling replaces the other, its rope_theta included.
        (
            LLAMA,
            json!({ "rope_scaling": old, "rope_parameters": new }),
            Warns(&["`rope_parameters`", "`rope_scaling`"], |s| linear(s, 4.0) && s.rope.theta == 1e4),
        ),
        (
            LLAMA,
            json!({ "rope_theta": "-", "rope_scaling": old, "rope_parameters": new }),
            Warns(&["`rope_parameters`", "`rope_scaling`", "rope_theta of 10000"], |s| {
                linear(s, 4.0) && s.rope.theta == 1e4
            }),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": old, "rope_parameters": { "rope_type": "linear", "factor": 4, "rope_theta": 1e4 } }),
            Is(|s| linear(s, 4.0)),
        ),
        (
            LLAMA,
            json!({ "rope_theta": "-", "rope_scaling": {}, "rope_parameters": new }),
            Is(|s| linear(s, 2.0) && s.rope.theta == 5e5),
        ),
        (LLAMA, json!({ "rope_scaling": old, "rope_parameters": {} }), Is(|s| linear(s, 4.0))),
        // The two names of the kind: transformers 5 reads one, 4 the other.
        (
            LLAMA,
            json!({ "rope_scaling": { "type": "linear", "rope_type": "linear", "factor": 4.0 } }),
            Is(|s| linear(s, 4.0)),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": { "type": "linear", "rope_type": "dynamic", "factor": 4.0 } }),
            Refused(&["`rope_scaling.type` = \"linear\"", "`rope_scaling.rope_type` = \"dynamic\""]),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": { "type": "linear", "rope_type": null, "factor": 4.0 } }),
            Is(|s| linear(s, 4.0)),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": { "factor": 4.0 } }),
            Warns(&["`rope_scaling.factor` = 4.0", "default"], |s| s.rope.scaling == RopeScaling::Default),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": { "type": "linear", "factor": null } }),
            Refused(&["rope_scaling.factor", "null"]),
        ),
        // The length before scaling.
        (LLAMA, json!({ "rope_scaling": yarn(json!({})) }), Is(|s| original(s) == 32.0)),
        (
            LLAMA,
            json!({ "original_max_position_embeddings": 64, "rope_scaling": { "type": "yarn", "factor": 4.0 } }),
            Is(|s| original(s) == 64.0),
        ),
        (
            LLAMA,
            json!({ "original_max_position_embeddings": 64, "rope_scaling": yarn(json!({})) }),
            Warns(
                &[
                    "`original_max_position_embeddings` = 64",
                    "`rope_scaling.original_max_position_embeddings` = 32",
                ],
                |s| original(s) == 64.0,
            ),
        ),
        (
            LLAMA,
            json!({ "original_max_position_embeddings": 64, "rope_scaling": llama3 }),
            Is(|s| original(s) == 64.0),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": llama3 }),
            Warns(
                &["`rope_scaling.original_max_position_embeddings`", "max_position_embeddings = 128"],
                |s| original(s) == 128.0,
            ),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": yarn(json!({ "original_max_position_embeddings": null })) }),
            Warns(&["`rope_scaling.original_max_position_embeddings` = null"], |s| original(s) == 128.0),
        ),
        // Yarn.
        (LLAMA, json!({ "rope_scaling": yarn(json!({ "factor": 2.0 })) }), Is(|s| yarn_factors(s).0 == 2.0)),
        (
            LLAMA,
            json!({ "rope_scaling": yarn(json!({ "factor": null })) }),
            Warns(&["`rope_scaling.factor` = null", "max_position_embeddings"], |s| yarn_factors(s).0 == 4.0),
        ),
        (LLAMA, json!({ "rope_scaling": { "type": "yarn" } }), Refused(&["rope_scaling.factor", "nothing"])),
        (
            LLAMA,
            json!({ "rope_scaling": yarn(json!({ "attention_factor": 1.5, "mscale": 1.0, "mscale_all_dim": 1.0 })) }),
            Is(|s| yarn_factors(s).1 == 1.5),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": yarn(json!({ "attention_factor": null, "beta_fast": null, "beta_slow": 0 })) }),
            Is(|s| yarn_factors(s).1 == 0.1 * 4.0_f64.ln() + 1.0),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": yarn(json!({ "mscale": 1.0, "mscale_all_dim": 0 })) }),
            Is(|s| yarn_factors(s).1 == 0.1 * 4.0_f64.ln() + 1.0),
        ),
        (
            LLAMA,
            json!({ "rope_scaling": yarn(json!({ "finetuned": true })) }),
            Warns(&["`rope_scaling.finetuned` = true", "yarn"], |s| yarn_factors(s).0 == 4.0),
        ),
        // Per layer type.
        (
            QWEN3,
            json!({ "rope_theta": "-", "rope_parameters": { "full_attention": nested, "sliding_attention": nested } }),
            Is(|s| s.rope.theta == 1e6),
        ),
        (
            QWEN3,
            json!({ "rope_parameters": { "full_attention": nested, "rope_theta": 1e4 } }),
            Refused(&["rope_parameters", "layer type"]),
        ),
    ]);
}

#[test]
fn longrope() {
    fn parts(s: &ModelSpec) -> (&[f64], &[f64], f64, f64) {
        match &s.rope.scaling {
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                attention_factor,
                original_max_position_embeddings,
            } => (short_factor, long_factor, *attention_factor, *original_max_position_embeddings),
            other => panic!("{other:?}"),
        }
    }
    fn attention(s: &ModelSpec) -> f64 {
        parts(s).2
    }
    /// Of a factor of 4 over an original length of 32.
    fn usual(s: &ModelSpec) -> bool {
        attention(s) == (1.0 + 4.0_f64.ln() / 32.0_f64.ln()).sqrt()
    }
    let block = |more: Value| {
        let mut block = json!({ "type": "longrope", "short_factor": [1, 1.5, 2, 2.5], "long_factor": [2, 3, 4, 5],
            "original_max_position_embeddings": 32 });
        for (key, value) in more.as_object().unwrap() {
            match value.as_str() {
                Some("-") => drop(block.as_object_mut().unwrap().remove(key)),
                _ => block[key] = value.clone(),
            }
        }
        json!({ "rope_scaling": block })
    };
    for family in [LLAMA, MISTRAL, QWEN2, QWEN3] {
        check(vec![(
            family,
            block(json!({})),
            Is(|s| {
                let (short, long, _, original) = parts(s);
                (short, long, original) == (&[1.0, 1.5, 2.0, 2.5], &[2.0, 3.0, 4.0, 5.0], 32.0) && usual(s)
            }),
        )]);
    }
    let missing = "-";
    let mut beside = block(json!({}));
    beside["original_max_position_embeddings"] = json!(64);
    let mut nested = block(json!({ "rope_theta": 1e4 }));
    nested = json!({ "rope_parameters": { "full_attention": nested["rope_scaling"] } });
    check(vec![
        // The length before scaling: as for yarn.
        (
            LLAMA,
            beside,
            Warns(&["`original_max_position_embeddings` = 64", "= 32; 64 is used"], |s| {
                parts(s).3 == 64.0 && attention(s) == (1.0 + 2.0_f64.ln() / 64.0_f64.ln()).sqrt()
            }),
        ),
        (
            LLAMA,
            block(json!({ "original_max_position_embeddings": missing })),
            Warns(&["max_position_embeddings = 128 is used"], |s| parts(s).3 == 128.0 && attention(s) == 1.0),
        ),
        (LLAMA, nested, Is(usual)),
        // The factor is the ratio of the lengths unless it is given.
        (LLAMA, block(json!({ "factor": null })), Is(usual)),
        (LLAMA, block(json!({ "factor": 4 })), Is(usual)),
        (
            LLAMA,
            block(json!({ "factor": 8.0 })),
            Warns(&["`rope_scaling.factor` = 8.0", "= 4;", "transformers 5"], |s| {
                attention(s) == (1.0 + 8.0_f64.ln() / 32.0_f64.ln()).sqrt()
            }),
        ),
        (LLAMA, block(json!({ "factor": 0.5 })), Is(|s| attention(s) == 1.0)),
        (LLAMA, block(json!({ "factor": 8.0, "attention_factor": 1.5 })), Is(|s| attention(s) == 1.5)),
        (LLAMA, block(json!({ "attention_factor": null })), Is(usual)),
        (LLAMA, block(json!({ "original_max_position_embeddings": 200 })), Is(|s| attention(s) == 1.0)),
        (
            LLAMA,
            block(json!({ "original_max_position_embeddings": 1 })),
            Refused(&["rope_scaling.original_max_position_embeddings", "more than 1"]),
        ),
        // Other names, other keys.
        (LLAMA, block(json!({ "type": "su" })), Refused(&["rope_scaling.type", "su", "longrope"])),
        (
            LLAMA,
            block(json!({ "short_mscale": 1.5, "attention_factor": 1.5 })),
            Warns(&["short_mscale"], |_| true),
        ),
        (
            LLAMA,
            block(json!({ "long_mscale": 1.2 })),
            Refused(&["`rope_scaling.long_mscale` = 1.2", "vLLM", "transformers by 1.18"]),
        ),
        (
            LLAMA,
            block(json!({ "finetuned": true })),
            Warns(&["`rope_scaling.finetuned` = true", "longrope"], usual),
        ),
        // The lists.
        (
            LLAMA,
            block(json!({ "short_factor": missing })),
            Refused(&["short_factor", "4 numbers", "nothing"]),
        ),
        (LLAMA, block(json!({ "long_factor": [1, 2, 3] })), Refused(&["long_factor", "4 numbers", "not 3"])),
        (LLAMA, block(json!({ "long_factor": [1, 2, 3, "4"] })), Refused(&["long_factor", "4 numbers"])),
        (LLAMA, block(json!({ "long_factor": [1, 2, 3, 0] })), Refused(&["long_factor", "4 numbers"])),
        (LLAMA, block(json!({ "long_factor": 2.0 })), Refused(&["long_factor", "a list"])),
    ]);
}

/// The classes of these families rotate the whole head whatever this says, or fail at the first forward pass; vLLM rotates
/// the part.
#[test]
fn part_of_a_head() {
    let half = json!({ "partial_rotary_factor": 0.5 });
    for family in [LLAMA, MISTRAL, QWEN2, QWEN3, PANGU] {
        check(vec![
            (family, half.clone(), Refused(&["partial_rotary_factor", "whole head"])),
            (family, json!({ "rope_parameters": half }), Refused(&["rope_parameters.partial_rotary_factor"])),
            (family, json!({ "partial_rotary_factor": 1.0 }), Is(|s| s.rope.rotary_dim.is_none())),
        ]);
    }
}

#[test]
fn rope_of_phi3() {
    fn parts(s: &ModelSpec) -> (Option<usize>, usize, f64, f64) {
        match &s.rope.scaling {
            RopeScaling::LongRope {
                short_factor,
                attention_factor,
                original_max_position_embeddings,
                ..
            } => {
                (s.rope.rotary_dim, short_factor.len(), *attention_factor, *original_max_position_embeddings)
            }
            _ => (s.rope.rotary_dim, 0, 1.0, 0.0),
        }
    }
    /// Of a factor of 4 over an original length of 32.
    fn usual(s: &ModelSpec) -> bool {
        parts(s) == (None, 4, (1.0 + 4.0_f64.ln() / 32.0_f64.ln()).sqrt(), 32.0)
    }
    let block =
        |kind: &str| json!({ "type": kind, "short_factor": [1, 1.5, 2, 2.5], "long_factor": [2, 3, 4, 5] });
    let scaled = |block: &Value| json!({ "original_max_position_embeddings": 32, "rope_scaling": block });
    let two_names = |new: &str, old: &str| {
        let mut block = block(old);
        block["rope_type"] = json!(new);
        scaled(&block)
    };
    let mut inside = block("longrope");
    inside["original_max_position_embeddings"] = json!(32);
    let mut half = block("longrope");
    (half["short_factor"], half["long_factor"]) = (json!([1, 2]), json!([3, 4]));
    let part = |part: Value| json!({ "partial_rotary_factor": part });
    check(vec![
        // Every name it had.
        (PHI3, scaled(&block("longrope")), Is(usual)),
        (PHI3, scaled(&block("su")), Is(usual)),
        (PHI3, scaled(&block("yarn")), Is(usual)),
        (PHI3, two_names("longrope", "su"), Is(usual)),
        (PHI3, two_names("default", "su"), Refused(&["rope_type", "`rope_scaling.type` = \"su\""])),
        (PHI3, scaled(&json!({ "type": "yarn", "factor": 4.0 })), Refused(&["rope_scaling.short_factor"])),
        (
            PHI3,
            json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }),
            Refused(&["rope_scaling.type", "linear", "default, longrope"]),
        ),
        // The length before scaling stands beside the block, or is the default of the class.
        (PHI3, json!({ "rope_scaling": block("longrope") }), Is(|s| parts(s) == (None, 4, 1.0, 4096.0))),
        (
            PHI3,
            json!({ "rope_scaling": inside }),
            Warns(&["no `original_max_position_embeddings`", "= 32; 4096 is used"], |s| parts(s).3 == 4096.0),
        ),
        (PHI3, scaled(&inside), Is(usual)),
        (
            PHI3,
            json!({ "original_max_position_embeddings": null, "rope_scaling": block("longrope") }),
            Refused(&["original_max_position_embeddings", "null"]),
        ),
        // Part of a head of 8.
        (PHI3, part(json!(0.5)), Is(|s| s.rope.rotary_dim == Some(4))),
        (PHI3, part(json!(0.55)), Is(|s| s.rope.rotary_dim == Some(4))),
        (PHI3, part(json!(1.0)), Is(|s| s.rope.rotary_dim.is_none())),
        (PHI3, json!({ "rope_parameters": part(json!(0.25)) }), Is(|s| s.rope.rotary_dim == Some(2))),
        (
            PHI3,
            json!({ "partial_rotary_factor": 0.5, "rope_parameters": part(json!(0.25)) }),
            Warns(
                &["`partial_rotary_factor` = 0.5", "`rope_parameters.partial_rotary_factor` = 0.25"],
                |s| s.rope.rotary_dim == Some(2),
            ),
        ),
        (PHI3, part(json!(null)), Refused(&["partial_rotary_factor", "null"])),
        (PHI3, part(json!(1.5)), Refused(&["partial_rotary_factor", "found 1.5"])),
        (PHI3, part(json!(0.0)), Refused(&["partial_rotary_factor", "not 0"])),
        (PHI3, part(json!(0.4)), Refused(&["partial_rotary_factor", "head_dim = 8", "even", "not 3"])),
        // The lists have a factor per rotated pair.
        (
            PHI3,
            json!({ "partial_rotary_factor": 0.5, "original_max_position_embeddings": 32, "rope_scaling": half }),
            Is(|s| parts(s).0 == Some(4) && parts(s).1 == 2),
        ),
        (
            PHI3,
            json!({ "partial_rotary_factor": 0.5, "rope_scaling": block("longrope") }),
            Refused(&["rope_scaling.short_factor", "2 numbers", "not 4"]),
        ),
        (PHI3, json!({ "lm_head_bias": true }), Refused(&["lm_head_bias", "bias"])),
    ]);
}

#[test]
fn names_and_types_and_biases() {
    check(vec![
        (
            LLAMA,
            json!({ "torch_dtype": "float16", "dtype": "bfloat16" }),
            Warns(&["`dtype` = \"bfloat16\"", "`torch_dtype` = \"float16\""], |s| s.dtype == FloatType::Bf16),
        ),
        (LLAMA, json!({ "torch_dtype": "float16", "dtype": "float16" }), Is(|s| s.dtype == FloatType::F16)),
        (LLAMA, json!({ "torch_dtype": "-", "dtype": "half" }), Is(|s| s.dtype == FloatType::F16)),
        (LLAMA, json!({ "model_type": "llama" }), Is(|s| s.family == "llama")),
        (
            LLAMA,
            json!({ "model_type": "qwen2" }),
            Refused(&["`model_type` = \"qwen2\"", "`architectures` = [\"LlamaForCausalLM\"]"]),
        ),
        (
            LLAMA,
            json!({ "model_type": "gemma" }),
            Warns(&["`model_type` = \"gemma\"", "`architectures`"], |s| {
                s.family == "llama" && s.model_type == "gemma"
            }),
        ),
        (
            LLAMA,
            json!({ "model_type": "mistral" }),
            Refused(&["`model_type` = \"mistral\"", "`architectures`"]),
        ),
        (MISTRAL, json!({ "model_type": "mistral" }), Is(|s| s.family == "mistral")),
        (
            MISTRAL,
            json!({ "attention_bias": true, "mlp_bias": true }),
            Warns(&["`attention_bias` = true", "`mlp_bias` = true", "MistralConfig"], |s| {
                (s.qkv_bias, s.o_bias, s.mlp_bias) == (false, false, false)
            }),
        ),
        (PANGU, json!({ "model_type": "PanguEmbedded" }), Is(|s| s.family == "openpangu")),
        (
            QWEN2,
            json!({ "attention_bias": false }),
            Warns(&["`attention_bias` = false", "Qwen2Config"], |s| s.qkv_bias && !s.o_bias),
        ),
        (QWEN2, json!({ "attention_bias": true, "mlp_bias": false }), Is(|s| s.qkv_bias && !s.o_bias)),
        (QWEN3, json!({ "mlp_bias": true }), Warns(&["`mlp_bias` = true", "Qwen3Config"], |s| !s.mlp_bias)),
        (
            PANGU,
            json!({ "bias": false, "attention_bias": true }),
            Warns(&["`attention_bias` = true", "`bias` = false"], |s| s.qkv_bias && s.o_bias),
        ),
        (
            PANGU,
            json!({ "bias": true, "qkv_bias": false }),
            Warns(&["`qkv_bias` = false", "`bias` = true"], |s| !s.qkv_bias && s.o_bias),
        ),
    ]);
}
