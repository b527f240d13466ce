//! The shape of a model: sizes, rotary embedding, tensor names.

use crate::layout::{BlockLayout, LinearId, Norm, Site};
use quant_core::FloatType;
use serde::{Serialize, Serializer};

/// How rotary frequencies are adapted to longer contexts (`config.json`: `rope_scaling`).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by a factor, a smooth ramp between.
    Llama3 {
        /// Division of long wavelengths.
        factor: f64,
        /// Longer than `original / low` is long.
        low_freq_factor: f64,
        /// Shorter than `original / high` is left alone.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_max_position_embeddings: f64,
    },
    /// YaRN: interpolation by a ramp over dimensions, and a factor on cos and sin.
    Yarn {
        /// Context extension.
        factor: f64,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Rotations above which a dimension is left alone.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated fully.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded outwards to integers.
        truncate: bool,
        /// Context length before scaling.
        original_max_position_embeddings: f64,
    },
    /// LongRoPE: every frequency divided by a factor of its own, one set of factors up to a length and one beyond, and a
    /// factor on cos and sin.
    LongRope {
        /// Divisors for sequences within the context before scaling, one per frequency.
        short_factor: Vec<f64>,
        /// Divisors for longer sequences, one per frequency.
        long_factor: Vec<f64>,
        /// Multiplies cos and sin, at every length.
        attention_factor: f64,
        /// Context length before scaling: longer sequences take `long_factor` for all of their positions.
        original_max_position_embeddings: f64,
    },
    /// NTK-aware scaling that starts beyond `max_position_embeddings`; below it the default.
    Dynamic {
        /// Context extension.
        factor: f64,
    },
}

/// Rotary position embedding, rotate-half convention.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Base of the inverse frequencies.
    pub theta: f64,
    /// Adaptation to longer contexts.
    pub scaling: RopeScaling,
    /// Channels at the beginning of each head that are rotated, an even number; the others pass. None is the whole head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary_dim: Option<usize>,
}

impl RopeSpec {
    /// Rotated channels of a head of `head_dim`: twice the number of frequencies.
    #[must_use]
    pub fn rotary_width(&self, head_dim: usize) -> usize {
        self.rotary_dim.map_or(head_dim, |width| width.min(head_dim))
    }
}

/// A part of a model outside its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outer {
    /// The embedding, `[vocab, hidden]`.
    Embedding,
    /// The weight of the final norm, `[hidden]`.
    FinalNorm,
    /// The head, `[vocab, hidden]`; a tied model has none of its own.
    Head,
}

impl Outer {
    /// Those that are tables `[vocab, hidden]`.
    pub const TABLES: [Self; 2] = [Self::Embedding, Self::Head];

    /// Name of its module.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Embedding => ModelSpec::EMBEDDING_MODULE,
            Self::FinalNorm => ModelSpec::FINAL_NORM_MODULE,
            Self::Head => ModelSpec::HEAD_MODULE,
        }
    }
    /// Name of its tensor.
    #[must_use]
    pub fn tensor(self) -> &'static str {
        match self {
            Self::Embedding => ModelSpec::EMBEDDING,
            Self::FinalNorm => ModelSpec::FINAL_NORM,
            Self::Head => ModelSpec::HEAD,
        }
    }
}

impl Serialize for Outer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.module())
    }
}

/// A dense pre-norm decoder with rotary grouped-query attention and a gated MLP, whatever its family is called.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSpec {
    /// Registry id of the family (`qwen2`).
    pub family: String,
    /// `architectures[0]` of the config.
    pub architecture: String,
    /// `model_type` of the config.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Rows of the embedding and the head.
    pub vocab: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeSpec,
    /// Longest context the config declares.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Per-head norms on queries and keys before rope.
    pub qk_norm: bool,
    /// Sliding window of every block; none is full attention.
    pub windows: Vec<Option<usize>>,
    /// How its checkpoints spell and store a block.
    #[serde(skip)]
    pub layout: &'static BlockLayout,
    /// The type the checkpoint declares for its tensors.
    pub dtype: FloatType,
}

impl ModelSpec {
    /// Embedding tensor, `[vocab, hidden]`.
    pub const EMBEDDING: &'static str = "model.embed_tokens.weight";
    /// Final norm, `[hidden]`.
    pub const FINAL_NORM: &'static str = "model.norm.weight";
    /// Head, `[vocab, hidden]`; absent when tied.
    pub const HEAD: &'static str = "lm_head.weight";
    /// Module name of the embedding.
    pub const EMBEDDING_MODULE: &'static str = "model.embed_tokens";
    /// Module name of the final norm.
    pub const FINAL_NORM_MODULE: &'static str = "model.norm";
    /// Module name of the head.
    pub const HEAD_MODULE: &'static str = "lm_head";

    /// Prefix of a block's modules, without a trailing dot.
    #[must_use]
    pub fn block_prefix(&self, index: usize) -> String {
        format!("model.layers.{index}")
    }
    /// `heads · head_dim`.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// `kv_heads · head_dim`.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Features at a site.
    #[must_use]
    pub fn site_width(&self, site: Site) -> usize {
        match site {
            Site::AttentionInput | Site::MlpInput => self.hidden,
            Site::AttentionOutput => self.query_width(),
            Site::MlpActivation => self.intermediate,
        }
    }
    /// Full module name of a linear.
    #[must_use]
    pub fn module(&self, index: usize, id: LinearId) -> String {
        format!("{}.{}", self.block_prefix(index), self.layout.module(id))
    }
    /// Full tensor name of a norm weight.
    #[must_use]
    pub fn norm(&self, index: usize, norm: Norm) -> String {
        format!("{}.{}.weight", self.block_prefix(index), self.layout.norm(norm))
    }
    /// The norms a block has and their widths.
    #[must_use]
    pub fn norms(&self) -> Vec<(Norm, usize)> {
        let mut norms = vec![(Norm::Input, self.hidden), (Norm::PostAttention, self.hidden)];
        if self.qk_norm {
            norms.extend([(Norm::Query, self.head_dim), (Norm::Key, self.head_dim)]);
        }
        norms
    }
    /// The parts outside the blocks: embedding, final norm, and the head unless it is tied.
    #[must_use]
    pub fn outer(&self) -> &'static [Outer] {
        const ALL: [Outer; 3] = [Outer::Embedding, Outer::FinalNorm, Outer::Head];
        if self.tied { &ALL[..2] } else { &ALL }
    }
    /// The part whose tensor holds `what`: the head of a tied model is the embedding.
    #[must_use]
    pub fn stored_in(&self, what: Outer) -> Outer {
        if self.tied && what == Outer::Head { Outer::Embedding } else { what }
    }
    /// Tensors some releases carry that hold nothing a loader needs: rotary buffers (`rotary_emb.inv_freq`, `cos_cached`,
    /// `sin_cached`), which loaders compute.
    #[must_use]
    pub fn is_ignorable(&self, name: &str) -> bool {
        let mut parts = name.split('.');
        let last = parts.next_back();
        last.is_some_and(|last| matches!(last, "cos_cached" | "sin_cached"))
            || parts.any(|part| part == "rotary_emb")
    }
}
