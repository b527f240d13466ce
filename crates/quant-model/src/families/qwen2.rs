//! Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen.

use super::{BiasRule, BlockLayout, Defaults, Family, RopeRule, SlidingRule, Tier};

pub(super) static FAMILY: Family = Family {
    id: "qwen2",
    summary: "Qwen2/2.5, QwQ, DeepSeek-R1-Distill-Qwen",
    architectures: &["Qwen2ForCausalLM"],
    model_type: "qwen2",
    config_class: "Qwen2Config",
    tier: Tier::Reference { logits: "qwen2" },
    source: "transformers models/qwen2",
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
        head_dim: None,
        tied: false,
    },
    rope: RopeRule::USUAL,
    // The implementation has these biases whatever the config says.
    qkv_bias: BiasRule::Always,
    o_bias: BiasRule::Never,
    mlp_bias: BiasRule::Never,
    qk_norm: false,
    layout: &BlockLayout::SEPARATE,
    sliding: SlidingRule::QWEN,
    refusals: &[],
};
