//! Phi-3, Phi-3.5-mini and Phi-4-mini: a Llama whose q, k, v and gate, up are stored as one matrix each, with rope on part of
//! the head and LongRoPE.

use super::{BiasRule, BlockLayout, Defaults, Family, Refusal, RopeRule, SlidingRule, Tier};

pub(super) static FAMILY: Family = Family {
    id: "phi3",
    summary: "Phi-3, Phi-3.5-mini, Phi-4-mini (dense)",
    architectures: &["Phi3ForCausalLM"],
    model_type: "phi3",
    config_class: "Phi3Config",
    tier: Tier::Reference { logits: "phi3" },
    source: "transformers models/phi3",
    defaults: Defaults {
        vocab: 32_064,
        hidden: 3072,
        intermediate: 8192,
        layers: 32,
        heads: 32,
        kv_heads: None,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 4096,
        head_dim: None,
        tied: false,
    },
    rope: RopeRule {
        partial: true,
        kinds: &["default", "longrope"],
        // Names of the first releases.
        longrope: &["su", "yarn"],
        original: Some(4096),
    },
    qkv_bias: BiasRule::Never,
    o_bias: BiasRule::Never,
    mlp_bias: BiasRule::Never,
    qk_norm: false,
    layout: &BlockLayout::FUSED,
    sliding: SlidingRule::Every { window: None },
    refusals: &[Refusal { key: "lm_head_bias", reason: "a head with a bias" }],
};
