//! Reading `config.json`: what is accepted, and one test per kind of refusal.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

use crate::common::{config_with, spec};
use quant_core::FloatType;
use quant_graph::{ModelSpec, RopeScaling};
use quant_model::families::COMMON_REFUSALS;
use quant_model::{FAMILIES, declared_dtype, model_spec};
use serde_json::{Value, json};

/// The message of a config that must be refused.
fn refused(architecture: &str, changes: Value) -> String {
    match model_spec(&config_with(architecture, changes.clone())) {
        Ok(_) => panic!("{changes} was accepted"),
        Err(error) => error.to_string(),
    }
}

fn mentions(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

const LLAMA: &str = "LlamaForCausalLM";
const MISTRAL: &str = "MistralForCausalLM";
const PHI3: &str = "Phi3ForCausalLM";
const QWEN2: &str = "Qwen2ForCausalLM";
const QWEN3: &str = "Qwen3ForCausalLM";
const PANGU: &str = "PanguEmbeddedForCausalLM";

#[test]
fn families_differ_only_in_their_table_rows() {
    let flags = |s: &ModelSpec| (s.qkv_bias, s.o_bias, s.mlp_bias, s.qk_norm);
    assert_eq!(flags(&spec(LLAMA)), (false, false, false, false));
    assert_eq!(flags(&spec(MISTRAL)), (false, false, false, false));
    assert_eq!(flags(&spec(QWEN2)), (true, false, false, false));
    assert_eq!(flags(&spec(QWEN3)), (false, false, false, true));
    assert_eq!(flags(&spec(PANGU)), (true, true, false, false));
    for family in FAMILIES {
        for architecture in family.architectures {
            assert_eq!(spec(architecture).family, family.id);
        }
    }
}

#[test]
fn released_configs_read_as_published() {
    let distill = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 131072, "max_window_layers": 21,
        "sliding_window": 4096, "use_sliding_window": false, "use_mrope": false, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_dropout": 0.0, "use_cache": true
    });
    let s = model_spec(&distill).unwrap();
    assert_eq!((s.head_dim, s.query_width(), s.kv_width(), s.dtype), (128, 1536, 256, FloatType::Bf16));
    assert!(s.windows.iter().all(Option::is_none) && !s.tied && s.rope.theta == 10_000.0);

    let qwen3 = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936,
        "tie_word_embeddings": true, "dtype": "bfloat16",
        "rope_parameters": { "rope_type": "default", "rope_theta": 1000000.0 }
    });
    let s = model_spec(&qwen3).unwrap();
    assert_eq!((s.head_dim, s.query_width(), s.model_type.as_str()), (128, 2048, "qwen3"));
    assert_eq!((s.rope.theta, s.rope.scaling.clone()), (1e6, RopeScaling::Default));
}

#[test]
fn bias_keys() {
    let biases = |a: &str, changes: Value| {
        let s = model_spec(&config_with(a, changes)).unwrap();
        (s.qkv_bias, s.o_bias, s.mlp_bias)
    };
    assert_eq!(biases(LLAMA, json!({ "attention_bias": true })), (true, true, false));
    assert_eq!(biases(LLAMA, json!({ "mlp_bias": true })), (false, false, true));
    assert_eq!(biases(QWEN2, json!({ "attention_bias": false })), (true, false, false));
    assert_eq!(biases(PANGU, json!({ "bias": false })), (false, false, false));
    assert_eq!(biases(PANGU, json!({ "bias": false, "attention_bias": true })), (true, true, false));
    assert_eq!(biases(PANGU, json!({ "bias": false, "qkv_bias": true })), (true, false, false));
    mentions(&refused(PANGU, json!({ "bias": 1 })), &["`bias`", "true or false", "found 1"]);
}

#[test]
fn unknown_architectures_list_the_known_ones() {
    let message = refused(LLAMA, json!({ "architectures": ["BertModel"] }));
    mentions(&message, &["BertModel", LLAMA, MISTRAL, PHI3, QWEN2, QWEN3, PANGU]);
    mentions(&refused(LLAMA, json!({ "architectures": [] })), &["architectures", LLAMA]);
    mentions(&refused(LLAMA, json!({ "architectures": "LlamaForCausalLM" })), &["architectures", "a list"]);
    mentions(&model_spec(&json!([1, 2])).unwrap_err().to_string(), &["an object", "[1,2]"]);
}

#[test]
fn sizes_must_be_there_and_sane() {
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    {
        for value in [json!(null), json!(0), json!(-4), json!(2.5), json!("8"), json!(1_u64 << 60)] {
            mentions(&refused(LLAMA, json!({ key: value })), &[&format!("`{key}`"), "an integer in"]);
        }
    }
    mentions(&refused(LLAMA, json!({ "max_position_embeddings": 0 })), &["max_position_embeddings"]);
    mentions(&refused(LLAMA, json!({ "num_key_value_heads": 0 })), &["num_key_value_heads"]);
}

#[test]
fn heads_must_divide() {
    mentions(
        &refused(LLAMA, json!({ "num_key_value_heads": 3 })),
        &["num_key_value_heads", "a divisor of num_attention_heads = 4", "found 3"],
    );
    mentions(&refused(LLAMA, json!({ "head_dim": 7 })), &["head_dim", "even", "found 7"]);
    let message =
        refused(LLAMA, json!({ "head_dim": null, "num_attention_heads": 6, "num_key_value_heads": 2 }));
    mentions(&message, &["num_attention_heads", "a divisor of hidden_size = 32"]);
    mentions(
        &refused(LLAMA, json!({ "head_dim": null, "num_attention_heads": 32, "num_key_value_heads": 2 })),
        &["head_dim", "even", "width of 1"],
    );
    let s = model_spec(&config_with(LLAMA, json!({ "num_key_value_heads": null }))).unwrap();
    assert_eq!(s.kv_heads, 4);
}

#[test]
fn norm_epsilon_dtype_and_activation() {
    for eps in [json!(0.0), json!(-1e-6), json!(1.0), json!("1e-6")] {
        mentions(&refused(LLAMA, json!({ "rms_norm_eps": eps })), &["rms_norm_eps", "a number in"]);
    }
    mentions(&refused(LLAMA, json!({ "torch_dtype": "float8_e4m3fn" })), &["torch_dtype", "bfloat16"]);
    mentions(&refused(LLAMA, json!({ "hidden_act": "gelu" })), &["hidden_act", "gelu", "silu"]);
    mentions(&refused(LLAMA, json!({ "is_causal": false })), &["is_causal"]);
    mentions(&refused(LLAMA, json!({ "tie_word_embeddings": "no" })), &["tie_word_embeddings"]);
    let s = model_spec(&config_with(LLAMA, json!({ "torch_dtype": "torch.float16" }))).unwrap();
    assert_eq!(s.dtype, FloatType::F16);
}

#[test]
fn other_attention_under_a_known_name_is_refused() {
    for (key, value) in [
        ("param_sink_number", json!(128)),
        ("qk_nope_dim", json!(96)),
        ("use_mhc", json!(true)),
        ("sandwich_norm", json!(true)),
        ("kv_lora_rank", json!(512)),
    ] {
        mentions(&refused(PANGU, json!({ key: value })), &[key, "not supported"]);
    }
    mentions(&refused(LLAMA, json!({ "num_local_experts": 8 })), &["mixture of experts"]);
    let harmless = json!({ "param_sink_number": 0, "use_mhc": false, "kv_lora_rank": null });
    assert!(model_spec(&config_with(PANGU, harmless)).is_ok());
}

#[test]
fn rope_in_both_spellings() {
    let scaling = |changes: Value| model_spec(&config_with(LLAMA, changes)).unwrap().rope;
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(scaling(json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } })).scaling, linear);
    let new =
        scaling(json!({ "rope_parameters": { "rope_type": "linear", "factor": 4, "rope_theta": 5e5 } }));
    assert_eq!((new.scaling, new.theta), (linear, 5e5));
    assert_eq!(scaling(json!({ "rope_scaling": null })).scaling, RopeScaling::Default);
    assert_eq!(scaling(json!({ "rope_scaling": {} })).scaling, RopeScaling::Default);
    let nested = json!({ "rope_type": "default", "rope_theta": 1e6 });
    let both = json!({ "rope_parameters": { "full_attention": nested, "sliding_attention": nested } });
    assert_eq!(scaling(both).theta, 1e6);
    assert_eq!(
        scaling(json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } })).scaling,
        RopeScaling::Dynamic { factor: 2.0 }
    );
    let yarn = scaling(json!({ "rope_scaling": { "type": "yarn", "factor": 4.0 } })).scaling;
    assert_eq!(
        yarn,
        RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: 0.1 * 4.0_f64.ln() + 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            original_max_position_embeddings: 128.0,
        }
    );
    let deepseek = json!({ "type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0 });
    match scaling(json!({ "rope_scaling": deepseek })).scaling {
        RopeScaling::Yarn { attention_factor, .. } => assert_eq!(attention_factor, 1.0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rope_refusals() {
    let rope = |scaling: Value| refused(LLAMA, json!({ "rope_scaling": scaling }));
    mentions(&rope(json!({ "rope_type": "su" })), &["rope_scaling.rope_type", "su", "yarn", "longrope"]);
    mentions(&rope(json!({ "type": "mrope" })), &["rope_scaling.type", "mrope"]);
    mentions(&rope(json!({ "type": "linear" })), &["rope_scaling.factor", "found nothing"]);
    mentions(&rope(json!({ "type": "linear", "factor": 0.5 })), &["rope_scaling.factor", "found 0.5"]);
    mentions(&rope(json!("yarn")), &["rope_scaling", "an object"]);
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                         "original_max_position_embeddings": 64 });
    mentions(&rope(llama3), &["high_freq_factor", "more than low_freq_factor = 4"]);
    mentions(&rope(json!({ "type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2 })), &["beta_fast"]);
    mentions(&refused(LLAMA, json!({ "rope_theta": 0.0 })), &["rope_theta"]);
    mentions(
        &refused(LLAMA, json!({ "partial_rotary_factor": 0.5 })),
        &["partial_rotary_factor", "whole head"],
    );
    let differing = json!({ "rope_parameters": {
        "full_attention": { "rope_theta": 1e6 }, "sliding_attention": { "rope_theta": 1e4 } } });
    mentions(&refused(QWEN3, differing), &["rope_parameters", "layer type"]);
}

#[test]
fn sliding_windows_by_layer() {
    let windows = |changes: Value| model_spec(&config_with(QWEN2, changes)).unwrap().windows;
    let on = json!({ "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 1 });
    assert_eq!(windows(on.clone()), [None, Some(16)]);
    assert_eq!(windows(json!({ "use_sliding_window": false, "sliding_window": 16 })), [None, None]);
    assert_eq!(windows(json!({ "use_sliding_window": true, "sliding_window": null })), [None, None]);
    let mut named = on;
    named["layer_types"] = json!(["sliding_attention", "full_attention"]);
    assert_eq!(windows(named), [Some(16), None]);
    mentions(
        &refused(QWEN2, json!({ "use_sliding_window": true, "sliding_window": 0, "max_window_layers": 0 })),
        &["sliding_window"],
    );
    mentions(&refused(QWEN2, json!({ "layer_types": ["full_attention"] })), &["layer_types", "2 entries"]);
    mentions(&refused(QWEN2, json!({ "layer_types": ["full_attention", "linear"] })), &["layer_types"]);
    mentions(
        &refused(LLAMA, json!({ "layer_types": ["full_attention", "sliding_attention"] })),
        &["layer_types", "no sliding windows"],
    );
}

#[test]
fn keys_of_other_architectures_are_refused() {
    for refusal in COMMON_REFUSALS {
        mentions(&refused(LLAMA, json!({ refusal.key: 2 })), &[refusal.key, refusal.reason]);
        for harmless in [json!(null), json!(false), json!(0)] {
            assert!(
                model_spec(&config_with(QWEN3, json!({ refusal.key: harmless }))).is_ok(),
                "{}",
                refusal.key
            );
        }
    }
}

/// Every key that published configs of these families carry beside those that are read.
#[test]
fn genuine_configs_are_accepted() {
    let llama = json!({ "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "initializer_range": 0.02, "mlp_bias": false, "pretraining_tp": 1,
        "transformers_version": "4.45.0", "use_cache": true, "pad_token_id": null, "_name_or_path": "x" });
    let mistral = json!({ "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02,
        "sliding_window": null, "model_type": "mistral", "transformers_version": "4.42.0.dev0", "use_cache": true });
    let phi3 = json!({ "attention_bias": false, "attention_dropout": 0.0, "auto_map": { "AutoConfig": "configuration_phi3.Phi3Config" },
        "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "initializer_range": 0.02, "model_type": "phi3",
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rope_scaling": null,
        "sliding_window": 2047, "lm_head_bias": false, "mlp_bias": false, "full_attn_mod": 1, "use_cache": true });
    let qwen2 = json!({ "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
        "max_window_layers": 28, "sliding_window": 4096, "use_sliding_window": false, "use_mrope": false,
        "use_cache": true, "initializer_range": 0.02, "dual_chunk_attention_config": { "chunk_size": 262144 } });
    let qwen3 = json!({ "attention_bias": false, "max_window_layers": 36, "rope_scaling": null, "sliding_window": null,
        "use_sliding_window": false, "eos_token_id": 151645 });
    let pangu = json!({ "auto_map": { "AutoConfig": "configuration_openpangu_dense.PanguEmbeddedConfig" },
        "bias": true, "bos_token_id": 1, "eos_token_id": 45892, "pad_token_id": 0, "model_type": "PanguEmbedded" });
    for (architecture, keys) in
        [(LLAMA, llama), (MISTRAL, mistral), (PHI3, phi3), (QWEN2, qwen2), (QWEN3, qwen3), (PANGU, pangu)]
    {
        model_spec(&config_with(architecture, keys)).unwrap_or_else(|e| panic!("{architecture}: {e}"));
    }
}

#[test]
fn a_config_may_leave_the_type_to_the_tensors() {
    let declared = |changes: Value| declared_dtype(&config_with(LLAMA, changes));
    assert_eq!(declared(json!({})).unwrap(), Some(FloatType::F32));
    assert_eq!(declared(json!({ "torch_dtype": null })).unwrap(), None);
    assert_eq!(declared(json!({ "torch_dtype": null, "dtype": "bfloat16" })).unwrap(), Some(FloatType::Bf16));
    assert!(declared(json!({ "torch_dtype": "int8" })).is_err());
}
