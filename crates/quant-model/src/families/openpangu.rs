//! openPangu-Embedded (dense): a Llama with attention biases.

use super::{BiasRule, BlockLayout, Defaults, Family, Refusal, RopeRule, SlidingRule, Tier};

/// The R releases keep the architecture name and change the attention.
const PARTIAL: &str =
    "openPangu-R attention (sink parameters, partial rotary embedding); only dense openPangu-Embedded";

pub(super) static FAMILY: Family = Family {
    id: "openpangu",
    summary: "openPangu-Embedded 1B/7B (dense)",
    architectures: &["PanguEmbeddedForCausalLM"],
    model_type: "PanguEmbedded",
    config_class: "PanguEmbeddedConfig",
    tier: Tier::Equivalent { logits: "pangu-as-llama-bias" },
    source: "configuration and modelling files of the openPangu-Embedded releases; vLLM models/openpangu",
    defaults: Defaults {
        // Those of the 7B release.
        vocab: 153_376,
        hidden: 4096,
        intermediate: 12_800,
        layers: 34,
        heads: 32,
        kv_heads: Some(8),
        norm_eps: 1e-5,
        rope_theta: 16_000_000.0,
        max_position_embeddings: 32_768,
        head_dim: None,
        tied: false,
    },
    rope: RopeRule::USUAL,
    qkv_bias: BiasRule::Config {
        overriding: Some("qkv_bias"),
        keys: &["attention_bias", "bias"],
        default: true,
    },
    o_bias: BiasRule::Config { overriding: None, keys: &["attention_bias", "bias"], default: true },
    mlp_bias: BiasRule::key(&["mlp_bias"]),
    qk_norm: false,
    layout: &BlockLayout::SEPARATE,
    sliding: SlidingRule::Never,
    refusals: &[
        Refusal { key: "param_sink_number", reason: PARTIAL },
        Refusal { key: "qk_nope_dim", reason: PARTIAL },
    ],
};
