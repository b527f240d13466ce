//! The names of a block: roles, linears, sites and norms, and how a family's checkpoints store and spell them.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// What a linear of a decoder block computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Queries, keys and values stored as one matrix.
    Qkv,
    /// Attention output projection.
    O,
    /// Gate projection of the MLP.
    Gate,
    /// Up projection of the MLP.
    Up,
    /// Gate and up stored as one matrix.
    GateUp,
    /// Down projection of the MLP.
    Down,
}

impl Role {
    /// In one word, for people and as a key.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Qkv => "qkv",
            Self::O => "o",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::GateUp => "gateup",
            Self::Down => "down",
        }
    }
    /// The site whose activations feed this linear.
    #[must_use]
    pub fn site(self) -> Site {
        match self {
            Self::Q | Self::K | Self::V | Self::Qkv => Site::AttentionInput,
            Self::O => Site::AttentionOutput,
            Self::Gate | Self::Up | Self::GateUp => Site::MlpInput,
            Self::Down => Site::MlpActivation,
        }
    }
    /// The roles whose rows a matrix of this role holds, in their order; of a matrix that is not fused, itself.
    #[must_use]
    pub fn parts(self) -> &'static [Self] {
        match self {
            Self::Q => &[Self::Q],
            Self::K => &[Self::K],
            Self::V => &[Self::V],
            Self::Qkv => &[Self::Q, Self::K, Self::V],
            Self::O => &[Self::O],
            Self::Gate => &[Self::Gate],
            Self::Up => &[Self::Up],
            Self::GateUp => &[Self::Gate, Self::Up],
            Self::Down => &[Self::Down],
        }
    }
}

/// Which linear of a block: the key of everything that is kept per linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinearId {
    /// What it computes.
    pub role: Role,
    /// Which expert of a mixture it belongs to; none in a dense block.
    pub expert: Option<u16>,
}

impl LinearId {
    /// The query projection of a dense block, as the next ones.
    pub const Q: Self = Self::dense(Role::Q);
    /// The key projection.
    pub const K: Self = Self::dense(Role::K);
    /// The value projection.
    pub const V: Self = Self::dense(Role::V);
    /// Queries, keys and values in one.
    pub const QKV: Self = Self::dense(Role::Qkv);
    /// The attention output projection.
    pub const O: Self = Self::dense(Role::O);
    /// The gate projection.
    pub const GATE: Self = Self::dense(Role::Gate);
    /// The up projection.
    pub const UP: Self = Self::dense(Role::Up);
    /// Gate and up in one.
    pub const GATE_UP: Self = Self::dense(Role::GateUp);
    /// The down projection.
    pub const DOWN: Self = Self::dense(Role::Down);

    /// The only linear of that role in a block without experts.
    #[must_use]
    pub const fn dense(role: Role) -> Self {
        Self { role, expert: None }
    }
    /// The site whose activations feed it.
    #[must_use]
    pub fn site(self) -> Site {
        self.role.site()
    }
}

impl fmt::Display for LinearId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.expert {
            None => f.write_str(self.role.name()),
            Some(expert) => write!(f, "{}.{expert}", self.role.name()),
        }
    }
}

impl Serialize for LinearId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A place in the block where activations enter one or more linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
}

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

/// How the checkpoints of a family store a block: which matrices there are and the module names of matrices and norms.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// The stored matrices in execution order, with their module names inside a block.
    pub linears: &'static [(Role, &'static str)],
    /// Module names of the norms inside a block.
    pub norms: &'static [(Norm, &'static str)],
}

/// The names that most families share.
const NORMS: &[(Norm, &str)] = &[
    (Norm::Input, "input_layernorm"),
    (Norm::PostAttention, "post_attention_layernorm"),
    (Norm::Query, "self_attn.q_norm"),
    (Norm::Key, "self_attn.k_norm"),
];

impl BlockLayout {
    /// Seven matrices, as Llama and most models after it store them.
    pub const SEPARATE: Self = Self {
        linears: &[
            (Role::Q, "self_attn.q_proj"),
            (Role::K, "self_attn.k_proj"),
            (Role::V, "self_attn.v_proj"),
            (Role::O, "self_attn.o_proj"),
            (Role::Gate, "mlp.gate_proj"),
            (Role::Up, "mlp.up_proj"),
            (Role::Down, "mlp.down_proj"),
        ],
        norms: NORMS,
    };
    /// Four matrices, as Phi-3 stores them: queries, keys and values in one, gate and up in one.
    pub const FUSED: Self = Self {
        linears: &[
            (Role::Qkv, "self_attn.qkv_proj"),
            (Role::O, "self_attn.o_proj"),
            (Role::GateUp, "mlp.gate_up_proj"),
            (Role::Down, "mlp.down_proj"),
        ],
        norms: NORMS,
    };

    /// The linears of a dense block, in execution order.
    pub fn ids(&self) -> impl Iterator<Item = LinearId> + '_ {
        self.linears.iter().map(|(role, _)| LinearId::dense(*role))
    }
    /// Module name of a linear inside a block; of one that this layout does not have, the word for its role.
    #[must_use]
    pub fn module(&self, id: LinearId) -> &'static str {
        let named = self.linears.iter().find(|(role, _)| *role == id.role);
        named.map_or_else(|| id.role.name(), |(_, module)| module)
    }
    /// Module name of a norm inside a block.
    #[must_use]
    pub fn norm(&self, norm: Norm) -> &'static str {
        let named = self.norms.iter().chain(NORMS).find(|(known, _)| *known == norm);
        named.map_or("norm", |(_, module)| module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_is_told_by_role_and_expert() {
        let expert = LinearId { role: Role::Down, expert: Some(3) };
        assert_ne!(expert, LinearId::DOWN);
        assert_eq!((expert.to_string(), expert.site()), ("down.3".into(), Site::MlpActivation));
        assert_eq!(serde_json::to_string(&LinearId::GATE_UP).unwrap(), "\"gateup\"");
        for role in [Role::Qkv, Role::GateUp] {
            assert!(role.parts().iter().all(|part| part.site() == role.site()));
        }
    }
}
