//! Qwen3 dense.

use super::{BiasRule, Defaults, Family, SlidingRule, Tier};

pub(super) static FAMILY: Family = Family {
    id: "qwen3",
    summary: "Qwen3 dense",
    architectures: &["Qwen3ForCausalLM"],
    tier: Tier::Reference,
    source: "transformers models/qwen3",
    defaults: Defaults {
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        max_position_embeddings: 32_768,
        // The config class has its own head width; heads · head_dim need not be the hidden width.
        head_dim: Some(128),
        tied: false,
    },
    qkv_bias: BiasRule::key(&["attention_bias"]),
    o_bias: BiasRule::key(&["attention_bias"]),
    mlp_bias: BiasRule::Never,
    qk_norm: true,
    sliding: SlidingRule::Qwen,
    refusals: &[],
};
