//! The shape of a model: roles, sites, stages, scale edges, tensor names.

use quant_core::FloatType;
use serde::Serialize;

/// A linear of a decoder block, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention output projection.
    O,
    /// Gate projection of the MLP.
    Gate,
    /// Up projection of the MLP.
    Up,
    /// Down projection of the MLP.
    Down,
}

impl Role {
    /// All roles in execution order.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Module name inside a block, as Hugging Face checkpoints of these families spell it.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
    /// The site whose activations feed this linear.
    #[must_use]
    pub fn site(self) -> Site {
        match self {
            Self::Q | Self::K | Self::V => Site::AttentionInput,
            Self::O => Site::AttentionOutput,
            Self::Gate | Self::Up => Site::MlpInput,
            Self::Down => Site::MlpActivation,
        }
    }
    /// Loaders fuse these into one matrix, so they must have one quantisation type.
    #[must_use]
    pub fn fused_with(self) -> &'static [Self] {
        self.site().stage().linears
    }
}

/// A place in the block where activations enter one or more linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Site {
    /// After the input norm; feeds q, k, v. Width: hidden.
    AttentionInput,
    /// The attention result before its output projection. Width: heads · head_dim.
    AttentionOutput,
    /// After the post-attention norm; feeds gate and up. Width: hidden.
    MlpInput,
    /// `silu(gate) · up`; feeds down. Width: intermediate.
    MlpActivation,
}

impl Site {
    /// All sites in execution order.
    pub const ALL: [Self; 4] =
        [Self::AttentionInput, Self::AttentionOutput, Self::MlpInput, Self::MlpActivation];

    /// The stage that starts here.
    #[must_use]
    pub fn stage(self) -> &'static Stage {
        &STAGES[self as usize]
    }
}

/// Linears that share an input: one Hessian, one set of activation parameters, one quantisation type.
#[derive(Debug, PartialEq, Eq)]
pub struct Stage {
    /// Where the input is.
    pub site: Site,
    /// The linears fed by it.
    pub linears: &'static [Role],
}

/// The stages of a block in execution order (the `true-sequential` order of GPTQ).
pub static STAGES: [Stage; 4] = [
    Stage { site: Site::AttentionInput, linears: &[Role::Q, Role::K, Role::V] },
    Stage { site: Site::AttentionOutput, linears: &[Role::O] },
    Stage { site: Site::MlpInput, linears: &[Role::Gate, Role::Up] },
    Stage { site: Site::MlpActivation, linears: &[Role::Down] },
];

/// A per-channel scale can be divided out of `norm` and multiplied into every linear at `site`, changing nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct ScaleEdge {
    /// The norm whose weight is divided.
    pub norm: Norm,
    /// The site whose linears' columns are multiplied.
    pub site: Site,
}

/// The norm-to-linear edges of a pre-norm block (SmoothQuant's pairs).
pub static SCALE_EDGES: [ScaleEdge; 2] = [
    ScaleEdge { norm: Norm::Input, site: Site::AttentionInput },
    ScaleEdge { norm: Norm::PostAttention, site: Site::MlpInput },
];

/// A norm weight of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Before attention, `[hidden]`.
    Input,
    /// Before the MLP, `[hidden]`.
    PostAttention,
    /// Per-head query norm before rope, `[head_dim]`.
    Query,
    /// Per-head key norm before rope, `[head_dim]`.
    Key,
}

impl Norm {
    /// Module name inside a block.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Input => "input_layernorm",
            Self::PostAttention => "post_attention_layernorm",
            Self::Query => "self_attn.q_norm",
            Self::Key => "self_attn.k_norm",
        }
    }
}

/// One linear of a block: shape `[outputs, inputs]` and whether it has a bias `[outputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearSpec {
    /// What it does.
    pub role: Role,
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

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

/// Name and shape a checkpoint of this model must contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Full tensor name.
    pub name: String,
    /// Shape, rows first.
    pub shape: Vec<usize>,
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
    /// Module name of the head.
    pub const HEAD_MODULE: &'static str = "lm_head";

    /// Prefix of a block's modules, without a trailing dot.
    #[must_use]
    pub fn block_prefix(&self, index: usize) -> String {
        format!("model.layers.{index}")
    }
    /// Full module name of a linear.
    #[must_use]
    pub fn module(&self, index: usize, role: Role) -> String {
        format!("{}.{}", self.block_prefix(index), role.module())
    }
    /// Full tensor name of a norm weight.
    #[must_use]
    pub fn norm(&self, index: usize, norm: Norm) -> String {
        format!("{}.{}.weight", self.block_prefix(index), norm.module())
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
    /// Shape and bias of a linear.
    #[must_use]
    pub fn linear(&self, role: Role) -> LinearSpec {
        let (outputs, bias) = match role {
            Role::Q => (self.query_width(), self.qkv_bias),
            Role::K | Role::V => (self.kv_width(), self.qkv_bias),
            Role::O => (self.hidden, self.o_bias),
            Role::Gate | Role::Up => (self.intermediate, self.mlp_bias),
            Role::Down => (self.hidden, self.mlp_bias),
        };
        LinearSpec { role, outputs, inputs: self.site_width(role.site()), bias }
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
    /// Weights of one block, in elements (norms and biases included).
    #[must_use]
    pub fn block_parameters(&self) -> usize {
        let linears: usize = Role::ALL
            .iter()
            .map(|&role| self.linear(role))
            .map(|l| l.outputs * l.inputs + if l.bias { l.outputs } else { 0 })
            .sum();
        linears + self.norms().iter().map(|(_, width)| width).sum::<usize>()
    }
    /// Every tensor of one block in file order: per linear weight then bias, then the norms.
    #[must_use]
    pub fn block_tensors(&self, index: usize) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        for role in Role::ALL {
            let linear = self.linear(role);
            let module = self.module(index, role);
            tensors.push(TensorSpec {
                name: format!("{module}.weight"),
                shape: vec![linear.outputs, linear.inputs],
            });
            if linear.bias {
                tensors.push(TensorSpec { name: format!("{module}.bias"), shape: vec![linear.outputs] });
            }
        }
        for (norm, width) in self.norms() {
            tensors.push(TensorSpec { name: self.norm(index, norm), shape: vec![width] });
        }
        tensors
    }
    /// Every tensor of a float checkpoint of this model.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors: Vec<_> = (0..self.layers).flat_map(|i| self.block_tensors(i)).collect();
        tensors.extend(self.outer_tensors());
        tensors
    }
    /// The tensors outside the blocks: embedding, final norm, and the head unless it is tied.
    #[must_use]
    pub fn outer_tensors(&self) -> Vec<TensorSpec> {
        let table = vec![self.vocab, self.hidden];
        let mut tensors = vec![
            TensorSpec { name: Self::EMBEDDING.into(), shape: table.clone() },
            TensorSpec { name: Self::FINAL_NORM.into(), shape: vec![self.hidden] },
        ];
        if !self.tied {
            tensors.push(TensorSpec { name: Self::HEAD.into(), shape: table });
        }
        tensors
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
