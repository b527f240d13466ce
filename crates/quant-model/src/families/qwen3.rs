//! Qwen3 dense.

use super::{BiasRule, BlockLayout, Defaults, Family, RopeRule, SlidingRule, Tier};

pub(super) static FAMILY: Family = Family {
    id: "qwen3",
    summary: "Qwen3 dense",
    architectures: &["Qwen3ForCausalLM"],
    model_type: "qwen3",
    config_class: "Qwen3Config",
    tier: Tier::Reference { logits: "qwen3" },
    source: "transformers models/qwen3",
    defaults: Defaults {
        vocab: 151_936,
        hidden: 4096,
        intermediate: 22_016,
        layers: 32,
        heads: 32,
        kv_heads: Some(32),
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        max_position_embeddings: 32_768,
        // The config class has its own head width; heads · head_dim need not be the hidden width.
        head_dim: Some(128),
        tied: false,
    },
    rope: RopeRule::USUAL,
    qkv_bias: BiasRule::key(&["attention_bias"]),
    o_bias: BiasRule::key(&["attention_bias"]),
    mlp_bias: BiasRule::Never,
    qk_norm: true,
    layout: &BlockLayout::SEPARATE,
    sliding: SlidingRule::QWEN,
    refusals: &[],
};
