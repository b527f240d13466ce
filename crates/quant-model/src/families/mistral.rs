//! Mistral and Mistral-Nemo: a Llama whose layers all have a sliding window.

use super::{BiasRule, BlockLayout, Defaults, Family, RopeRule, SlidingRule, Tier};

pub(super) static FAMILY: Family = Family {
    id: "mistral",
    summary: "Mistral 7B, Nemo and compatible (dense)",
    architectures: &["MistralForCausalLM"],
    model_type: "mistral",
    config_class: "MistralConfig",
    tier: Tier::Reference { logits: "mistral" },
    source: "transformers models/mistral",
    defaults: Defaults {
        vocab: 32_000,
        hidden: 4096,
        intermediate: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: Some(8),
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        max_position_embeddings: 131_072,
        head_dim: None,
        tied: false,
    },
    rope: RopeRule::USUAL,
    qkv_bias: BiasRule::Never,
    o_bias: BiasRule::Never,
    mlp_bias: BiasRule::Never,
    qk_norm: false,
    layout: &BlockLayout::SEPARATE,
    sliding: SlidingRule::Every { window: Some(4096) },
    refusals: &[],
};
