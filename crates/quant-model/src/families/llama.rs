//! Llama 2, 3, 3.1, 3.2 and models published under its architecture.

use super::{BiasRule, BlockLayout, Defaults, Family, RopeRule, SlidingRule, Tier};

pub(super) static FAMILY: Family = Family {
    id: "llama",
    summary: "Llama 2/3.x and compatible models",
    architectures: &["LlamaForCausalLM"],
    model_type: "llama",
    config_class: "LlamaConfig",
    tier: Tier::Reference { logits: "llama-rope-linear" },
    source: "transformers models/llama",
    defaults: Defaults {
        vocab: 32_000,
        hidden: 4096,
        intermediate: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: None,
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        max_position_embeddings: 2048,
        head_dim: None,
        tied: false,
    },
    rope: RopeRule::USUAL,
    qkv_bias: BiasRule::key(&["attention_bias"]),
    o_bias: BiasRule::key(&["attention_bias"]),
    mlp_bias: BiasRule::key(&["mlp_bias"]),
    qk_norm: false,
    layout: &BlockLayout::SEPARATE,
    sliding: SlidingRule::Never,
    refusals: &[],
};
