//! Longrope, partial rotary embeddings, and all of Phi-3.

use super::table::{Is, LLAMA, MISTRAL, PANGU, PHI3, QWEN2, QWEN3, Refused, Warns, check};
use quant_graph::{ModelSpec, RopeScaling};
use serde_json::{Value, json};

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
