//! Missing keys, `null`, names, types and biases.

use super::table::{Is, LLAMA, MISTRAL, PANGU, PHI3, QWEN2, QWEN3, Refused, Warns, check};
use quant_core::FloatType;
use quant_graph::ModelSpec;
use serde_json::json;

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
