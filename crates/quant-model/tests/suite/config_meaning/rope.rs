//! Rotary embeddings as every family but Phi-3 declares them.

use super::table::{Is, LLAMA, QWEN3, Refused, Warns, check, linear, original, yarn_factors};
use quant_graph::RopeScaling;
use serde_json::{Value, json};

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
