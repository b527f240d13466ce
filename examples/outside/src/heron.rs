//! A family: the decoder that all families here share, under another name and with other names of its tensors.

use ptq::graph::{BlockLayout, Norm, Role};
use ptq::model::Family;
use ptq::model::families::{BiasRule, Defaults, Refusal, RopeRule, SlidingRule, Tier};

/// `model.layers.0.attn.wq.weight` and so on: names in the manner of the first Llama's code.
static LAYOUT: BlockLayout = BlockLayout {
    linears: &[
        (Role::Q, "attn.wq"),
        (Role::K, "attn.wk"),
        (Role::V, "attn.wv"),
        (Role::O, "attn.wo"),
        (Role::Gate, "ffn.w1"),
        (Role::Up, "ffn.w3"),
        (Role::Down, "ffn.w2"),
    ],
    norms: &[
        (Norm::Input, "attn_norm"),
        (Norm::PostAttention, "ffn_norm"),
        (Norm::Query, "attn.q_norm"),
        (Norm::Key, "attn.k_norm"),
    ],
};

/// The row.
pub static FAMILY: Family = Family {
    id: "heron",
    summary: "Heron, the example of a family from outside",
    architectures: &["HeronForCausalLM"],
    model_type: "heron",
    config_class: "HeronConfig",
    // A family that is used for more than an example names the logits it was compared with.
    tier: Tier::Unchecked,
    source: "this example",
    defaults: Defaults {
        vocab: 32_000,
        hidden: 2048,
        intermediate: 5632,
        layers: 22,
        heads: 32,
        kv_heads: None,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 2048,
        head_dim: None,
        tied: false,
    },
    rope: RopeRule::USUAL,
    qkv_bias: BiasRule::key(&["attention_bias"]),
    o_bias: BiasRule::Never,
    mlp_bias: BiasRule::Never,
    qk_norm: true,
    layout: &LAYOUT,
    sliding: SlidingRule::Never,
    refusals: &[Refusal { key: "herons_per_pond", reason: "several models in one" }],
};
