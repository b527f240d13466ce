//! The registry of model families: one file each, one line in [`FAMILIES`] each.

use quant_graph::{BlockLayout, Catalogue, Entry};

mod llama;
mod mistral;
mod openpangu;
mod phi3;
mod qwen2;
mod qwen3;

/// Every family of this crate, alphabetically.
pub static FAMILIES: &[&Family] =
    &[&llama::FAMILY, &mistral::FAMILY, &openpangu::FAMILY, &phi3::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY];

/// The families in which a config may be read: ours, and those a program adds.
pub type Families = Catalogue<Family>;

impl Entry for Family {
    const KIND: &'static str = "family";
    fn ours() -> &'static [&'static Self] {
        FAMILIES
    }
    fn id(&self) -> &'static str {
        self.id
    }
    fn claims(&self) -> Vec<(&'static str, &'static str)> {
        let architectures = self.architectures.iter().map(|name| ("architecture", *name));
        architectures.chain([("model_type", self.model_type)]).collect()
    }
}

/// How a family's arithmetic was checked. Claims name their evidence, a set of logits under `tests/data`, which the tests of
/// the family's crate run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Logits agree with the family's own implementation in the reference library.
    Reference {
        /// The set that implementation wrote.
        logits: &'static str,
    },
    /// Logits agree with an arithmetically equal model of the reference library under another name.
    Equivalent {
        /// The set that model wrote.
        logits: &'static str,
    },
    /// Nobody compared it with anything; none of this crate is so.
    Unchecked,
}

impl Tier {
    /// Name used in lists.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference { .. } => "reference",
            Self::Equivalent { .. } => "equivalent",
            Self::Unchecked => "unchecked",
        }
    }
    /// Name of the set of logits that the claim rests on, if it makes one.
    #[must_use]
    pub fn logits(self) -> Option<&'static str> {
        match self {
            Self::Reference { logits } | Self::Equivalent { logits } => Some(logits),
            Self::Unchecked => None,
        }
    }
}

/// Whether linears have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasRule {
    /// In every model of the family.
    Always,
    /// In none.
    Never,
    /// As the config says: `overriding` decides alone if present; else any of `keys` being true; else `default`.
    Config {
        /// A key that wins over the others.
        overriding: Option<&'static str>,
        /// Keys of which one being true is enough.
        keys: &'static [&'static str],
        /// If none of the keys is there.
        default: bool,
    },
}

impl BiasRule {
    /// One key, false when missing.
    pub const fn key(keys: &'static [&'static str]) -> Self {
        Self::Config { overriding: None, keys, default: false }
    }
}

/// Where sliding windows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlidingRule {
    /// The family has none.
    Never,
    /// `sliding_window`, on every layer; null is none.
    Every {
        /// `sliding_window` where the config has no such key.
        window: Option<usize>,
    },
    /// `sliding_window` if `use_sliding_window`, on the layers `layer_types` names or from `max_window_layers` on.
    Qwen {
        /// `sliding_window` where the config has no such key; null there means no window.
        window: usize,
        /// `max_window_layers` where the config has no such key.
        from: usize,
    },
}

impl SlidingRule {
    /// The rule with the defaults that the config classes of Qwen2 and Qwen3 share.
    pub const QWEN: Self = Self::Qwen { window: 4096, from: 28 };
}

/// What the config class makes of the keys of rope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeRule {
    /// Whether the model rotates the part of each head that `partial_rotary_factor` says; if not, less than 1 is refused.
    pub partial: bool,
    /// The rope types it takes.
    pub kinds: &'static [&'static str],
    /// Other names that mean longrope, whatever else they mean elsewhere.
    pub longrope: &'static [&'static str],
    /// `original_max_position_embeddings` where the config has no such key beside its rope block. A class with this default
    /// does not look for the length inside the block.
    pub original: Option<usize>,
}

impl RopeRule {
    /// The rule of classes that have none of their own.
    pub const USUAL: Self = Self {
        partial: false,
        kinds: &["default", "linear", "dynamic", "yarn", "llama3", "longrope"],
        longrope: &[],
        original: None,
    };
}

/// A config key that announces another architecture under the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Refused when present and not null, false or zero.
    pub key: &'static str,
    /// What the key means.
    pub reason: &'static str,
}

/// Values of the family's config class where a `config.json` leaves a key out. A key that is there and null is another
/// matter: see [`crate::model_spec`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// `vocab_size`.
    pub vocab: usize,
    /// `hidden_size`.
    pub hidden: usize,
    /// `intermediate_size`.
    pub intermediate: usize,
    /// `num_hidden_layers`.
    pub layers: usize,
    /// `num_attention_heads`.
    pub heads: usize,
    /// `num_key_value_heads`; none is `num_attention_heads`.
    pub kv_heads: Option<usize>,
    /// `rms_norm_eps`.
    pub norm_eps: f64,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// `max_position_embeddings`.
    pub max_position_embeddings: usize,
    /// `head_dim`; none is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `tie_word_embeddings`.
    pub tied: bool,
}

/// A model family: what distinguishes its members from the shared pre-norm decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Family {
    /// Short name.
    pub id: &'static str,
    /// One line for lists.
    pub summary: &'static str,
    /// Accepted `architectures[0]`.
    pub architectures: &'static [&'static str],
    /// `model_type` of its config class, by which transformers chooses the class.
    pub model_type: &'static str,
    /// Name of that class.
    pub config_class: &'static str,
    /// How it was checked.
    pub tier: Tier,
    /// Where its rules come from.
    pub source: &'static str,
    /// Config class defaults.
    pub defaults: Defaults,
    /// Rotary embedding.
    pub rope: RopeRule,
    /// Biases of q, k and v.
    pub qkv_bias: BiasRule,
    /// Bias of o.
    pub o_bias: BiasRule,
    /// Biases of gate, up and down.
    pub mlp_bias: BiasRule,
    /// Per-head norms on queries and keys before rope.
    pub qk_norm: bool,
    /// Which matrices its checkpoints hold, and their names.
    pub layout: &'static BlockLayout,
    /// Sliding windows.
    pub sliding: SlidingRule,
    /// Keys that mean a different model, besides [`COMMON_REFUSALS`].
    pub refusals: &'static [Refusal],
}

/// Keys that change the forward pass of any decoder and that none of the families computes. The list holds what known
/// models say; see [`crate::model_spec`] for what it cannot catch.
pub static COMMON_REFUSALS: &[Refusal] = &[
    Refusal { key: "kv_lora_rank", reason: "latent (low-rank) attention" },
    Refusal { key: "q_lora_rank", reason: "latent (low-rank) attention" },
    Refusal { key: "qk_nope_head_dim", reason: "partly rotated heads" },
    Refusal { key: "qk_rope_head_dim", reason: "partly rotated heads" },
    Refusal { key: "v_head_dim", reason: "values of another width than keys" },
    Refusal { key: "num_experts", reason: "mixture of experts" },
    Refusal { key: "num_local_experts", reason: "mixture of experts" },
    Refusal { key: "n_routed_experts", reason: "mixture of experts" },
    Refusal { key: "attn_logit_softcapping", reason: "soft-capped attention scores" },
    Refusal { key: "final_logit_softcapping", reason: "soft-capped logits" },
    Refusal { key: "clip_qkv", reason: "clipped queries, keys and values" },
    Refusal { key: "query_pre_attn_scalar", reason: "another scale of the attention scores" },
    Refusal { key: "attention_multiplier", reason: "another scale of the attention scores" },
    Refusal { key: "attn_temperature_tuning", reason: "attention scores scaled by position" },
    Refusal { key: "residual_multiplier", reason: "scaled residuals" },
    Refusal { key: "embedding_multiplier", reason: "scaled embeddings" },
    Refusal { key: "logits_scaling", reason: "scaled logits" },
    Refusal { key: "logit_scale", reason: "scaled logits" },
    Refusal { key: "use_sinks", reason: "attention sinks" },
    Refusal { key: "attention_sinks", reason: "attention sinks" },
    Refusal { key: "param_sink_number", reason: "attention sinks" },
    Refusal { key: "attn_output_gate", reason: "gated attention outputs" },
    Refusal { key: "use_qk_norm", reason: "norms on queries and keys" },
    Refusal { key: "qk_layernorm", reason: "norms on queries and keys" },
    Refusal { key: "no_rope_layers", reason: "layers without rotary embedding" },
    Refusal { key: "no_rope_layer_interval", reason: "layers without rotary embedding" },
    Refusal { key: "alibi", reason: "linear position biases" },
    Refusal { key: "use_alibi", reason: "linear position biases" },
    Refusal { key: "use_mrope", reason: "rotary embedding in sections" },
    Refusal { key: "rope_interleave", reason: "rotary embedding of neighbouring channels" },
    Refusal { key: "attention_chunk_size", reason: "attention in chunks" },
    Refusal { key: "interleaved_sliding_window", reason: "interleaved sliding windows" },
    Refusal { key: "num_kv_shared_layers", reason: "layers that share keys and values" },
    Refusal { key: "use_parallel_residual", reason: "attention and MLP side by side" },
    Refusal { key: "sandwich_norm", reason: "norms after attention and MLP" },
    Refusal { key: "use_post_norm", reason: "norms after attention and MLP" },
    Refusal { key: "use_mhc", reason: "multi-stream residuals" },
];

/// The family of an architecture, among those of this crate.
#[must_use]
pub fn family_of(architecture: &str) -> Option<&'static Family> {
    family_among(architecture, &Families::default())
}

/// The family of an architecture, among `families`.
#[must_use]
pub(crate) fn family_among(architecture: &str, families: &Families) -> Option<&'static Family> {
    families.iter().find(|family| family.architectures.contains(&architecture))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_is_sorted_and_unambiguous() {
        assert!(FAMILIES.is_sorted_by_key(|f| f.id));
        let mut names: Vec<_> = FAMILIES.iter().flat_map(|f| f.architectures).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "two families claim one architecture");
        for family in FAMILIES {
            assert_eq!(FAMILIES.iter().filter(|f| f.model_type == family.model_type).count(), 1);
            assert!(family.architectures.iter().all(|a| family_of(a) == Some(family)));
            assert!(!family.summary.is_empty() && !family.source.is_empty());
        }
    }

    #[test]
    fn a_family_from_outside_is_read_where_it_was_added() {
        static OUTSIDE: Family = Family {
            id: "outside",
            summary: "a family of another crate",
            architectures: &["OutsideForCausalLM"],
            model_type: "outside",
            config_class: "OutsideConfig",
            tier: Tier::Unchecked,
            ..llama::FAMILY
        };
        static THIEF: Family = Family { id: "thief", ..OUTSIDE };
        let ours = Families::default();
        let more = ours.with(&OUTSIDE).unwrap();
        let taken = more.with(&THIEF).unwrap_err().to_string();
        assert!(
            taken.starts_with("the architecture \"OutsideForCausalLM\" belongs to the family"),
            "{taken}"
        );
        let config = serde_json::json!({"architectures": ["OutsideForCausalLM"], "model_type": "outside"});
        let refused = crate::model_spec_with(&config, &ours).unwrap_err().to_string();
        assert!(refused.contains("LlamaForCausalLM") && !refused.contains("a family of another crate"));
        assert_eq!(crate::model_spec_with(&config, &more).unwrap().family, "outside");
        // What is added is offered, and its model_type is known for another family's.
        let unknown = serde_json::json!({"architectures": ["NoSuchLM"]});
        let offered = crate::model_spec_with(&unknown, &more).unwrap_err().to_string();
        assert!(offered.contains("OutsideForCausalLM (a family of another crate)"), "{offered}");
        let mixed = serde_json::json!({"architectures": ["LlamaForCausalLM"], "model_type": "outside"});
        assert!(
            crate::model_spec_with(&mixed, &ours).is_ok() && crate::model_spec_with(&mixed, &more).is_err()
        );
    }
}
