//! The shape of a decoder block as data: its linears and how they are stored, what feeds them, where scales can move.
//!
//! A family says by a [`BlockLayout`](crate::BlockLayout) which matrices its checkpoints hold and what they are called; [`BlockSpec`] is that
//! layout met by the sizes of one model. Whoever works on a block iterates over it and names no family: a matrix that holds
//! queries, keys and values in one is a [`LinearSpec`] with three parts, an expert of a mixture is a [`LinearId`] with a
//! number.

use crate::layout::{LinearId, Norm, Role, Site};
use crate::spec::ModelSpec;
use std::ops::Range;

/// One stored matrix of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSpec {
    /// Which linear it is.
    pub id: LinearId,
    /// Full module name, the tensor's name without `.weight`.
    pub module: String,
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
    /// Whether it has a bias `[outputs]`.
    pub bias: bool,
    /// The rows of every role it holds; one entry unless it is fused.
    pub parts: Vec<(Role, Range<usize>)>,
}

impl LinearSpec {
    /// `(outputs, inputs)`.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }
    /// Weights, without the bias.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.outputs * self.inputs
    }
}

/// A weight `[outputs, inputs]` as its rounding is planned: a stored matrix of a block, or a table outside the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightSpec<'a> {
    /// Full module name.
    pub module: &'a str,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// The site that feeds it; none of a table.
    pub site: Option<Site>,
    /// The rows of every role it holds; none of a table.
    pub parts: &'a [(Role, Range<usize>)],
}

impl<'a> From<&'a LinearSpec> for WeightSpec<'a> {
    fn from(linear: &'a LinearSpec) -> Self {
        let LinearSpec { id, module, outputs, inputs, parts, .. } = linear;
        Self { module, outputs: *outputs, inputs: *inputs, site: Some(id.site()), parts }
    }
}

impl<'a> WeightSpec<'a> {
    /// A weight that is part of no block.
    #[must_use]
    pub fn table(module: &'a str, (outputs, inputs): (usize, usize)) -> Self {
        Self { module, outputs, inputs, site: None, parts: &[] }
    }
}

/// Linears that share an input: one Hessian, one set of activation parameters, and, because loaders multiply them as one
/// matrix, one quantisation type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSpec {
    /// Where the input is.
    pub site: Site,
    /// Features there.
    pub width: usize,
    /// The linears fed by it, in execution order.
    pub linears: Vec<LinearId>,
}

/// What a per-channel scale is divided out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeSource {
    /// A norm weight.
    Norm(Norm),
    /// The rows of a linear, and its bias, from row `first` on.
    Rows {
        /// The linear.
        linear: LinearId,
        /// The first row.
        first: usize,
    },
}

/// A per-channel scale can be divided out of `from` and multiplied into the columns of every linear at `to`, changing
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleEdge {
    /// What is divided.
    pub from: EdgeSource,
    /// The site whose linears' columns are multiplied.
    pub to: Site,
    /// `(query heads, key/value heads)` where a channel of `from` feeds the same channel of several heads of `to`; a scale
    /// must then be equal over those heads.
    pub heads: Option<(usize, usize)>,
}

/// One decoder block: everything in execution order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSpec {
    /// Its stored matrices.
    pub linears: Vec<LinearSpec>,
    /// What shares an input (the `true-sequential` order of GPTQ).
    pub stages: Vec<StageSpec>,
    /// Its norms and their widths.
    pub norms: Vec<(Norm, usize)>,
    /// Where scales can move.
    pub edges: Vec<ScaleEdge>,
    /// Sliding window; none is full attention.
    pub window: Option<usize>,
}

impl BlockSpec {
    fn new(spec: &ModelSpec, index: usize) -> Self {
        let prefix = spec.block_prefix(index);
        let rows = |role: Role| match role {
            Role::Q => (spec.query_width(), spec.qkv_bias),
            Role::K | Role::V => (spec.kv_width(), spec.qkv_bias),
            Role::Gate | Role::Up => (spec.intermediate, spec.mlp_bias),
            Role::O => (spec.hidden, spec.o_bias),
            _ => (spec.hidden, spec.mlp_bias),
        };
        let linears: Vec<LinearSpec> = spec
            .layout
            .linears
            .iter()
            .map(|&(role, module)| {
                let mut outputs = 0;
                let parts = role.parts().iter().map(|&part| {
                    let first = outputs;
                    outputs += rows(part).0;
                    (part, first..outputs)
                });
                let parts = parts.collect();
                LinearSpec {
                    id: LinearId::dense(role),
                    module: format!("{prefix}.{module}"),
                    outputs,
                    inputs: spec.site_width(role.site()),
                    bias: rows(role.parts()[0]).1,
                    parts,
                }
            })
            .collect();
        let stages = Site::ALL.into_iter().map(|site| StageSpec {
            site,
            width: spec.site_width(site),
            linears: linears.iter().map(|l| l.id).filter(|id| id.site() == site).collect(),
        });
        let stages = stages.collect();
        let source = |part: Role| {
            linears.iter().find_map(|l| {
                let (_, rows) = l.parts.iter().find(|(role, _)| *role == part)?;
                Some(EdgeSource::Rows { linear: l.id, first: rows.start })
            })
        };
        let norm = |norm, to| ScaleEdge { from: EdgeSource::Norm(norm), to, heads: None };
        let mut edges = vec![norm(Norm::Input, Site::AttentionInput)];
        let grouped = (spec.heads != spec.kv_heads).then_some((spec.heads, spec.kv_heads));
        edges.extend(source(Role::V).map(|from| ScaleEdge {
            from,
            to: Site::AttentionOutput,
            heads: grouped,
        }));
        edges.push(norm(Norm::PostAttention, Site::MlpInput));
        edges.extend(source(Role::Up).map(|from| ScaleEdge { from, to: Site::MlpActivation, heads: None }));
        Self {
            linears,
            stages,
            norms: spec.norms(),
            edges,
            window: spec.windows.get(index).copied().flatten(),
        }
    }

    /// One of its linears.
    #[must_use]
    pub fn linear(&self, id: LinearId) -> Option<&LinearSpec> {
        self.linears.iter().find(|linear| linear.id == id)
    }
    /// The linears fed from a site.
    #[must_use]
    pub fn at(&self, site: Site) -> &[LinearId] {
        self.stages.iter().find(|stage| stage.site == site).map_or(&[], |stage| &stage.linears)
    }
    /// The linears that loaders multiply as one matrix with this one, itself among them: they must have one quantisation
    /// type and one rule of scales.
    #[must_use]
    pub fn loaded_with(&self, id: LinearId) -> &[LinearId] {
        self.at(id.site())
    }
    /// The edges that start at a norm.
    pub fn norm_edges(&self) -> impl Iterator<Item = (Norm, Site)> + '_ {
        self.edges.iter().filter_map(|edge| match edge.from {
            EdgeSource::Norm(norm) => Some((norm, edge.to)),
            EdgeSource::Rows { .. } => None,
        })
    }
    /// Numbers in the block: weights, biases and norms.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let linears: usize =
            self.linears.iter().map(|l| l.weights() + if l.bias { l.outputs } else { 0 }).sum();
        linears + self.norms.iter().map(|(_, width)| width).sum::<usize>()
    }
}

impl ModelSpec {
    /// The topology of block `index`: its linears, what feeds them, and where scales can move.
    #[must_use]
    pub fn block(&self, index: usize) -> BlockSpec {
        BlockSpec::new(self, index)
    }
    /// A linear of block `index`; none if the block has no such linear.
    #[must_use]
    pub fn linear(&self, index: usize, id: LinearId) -> Option<LinearSpec> {
        self.block(index).linears.into_iter().find(|linear| linear.id == id)
    }
    /// Weights of one block, in elements (norms and biases included).
    #[must_use]
    pub fn block_parameters(&self) -> usize {
        self.block(0).parameters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockLayout, RopeScaling, RopeSpec};
    use quant_core::FloatType;

    fn spec(layout: &'static BlockLayout) -> ModelSpec {
        ModelSpec {
            family: "test".into(),
            architecture: "TestForCausalLM".into(),
            model_type: "test".into(),
            hidden: 12,
            intermediate: 20,
            layers: 2,
            heads: 3,
            kv_heads: 1,
            head_dim: 4,
            vocab: 10,
            norm_eps: 1e-6,
            rope: RopeSpec { theta: 1e4, scaling: RopeScaling::Default, rotary_dim: None },
            max_position_embeddings: 16,
            tied: true,
            qkv_bias: true,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            windows: vec![None, Some(8)],
            layout,
            dtype: FloatType::F32,
        }
    }

    /// A fused layout is the separate one with rows put together: the same stages, numbers and edges by other linears.
    #[test]
    fn fused_linears_hold_the_rows_of_their_parts() {
        let (separate, fused) = (spec(&BlockLayout::SEPARATE), spec(&BlockLayout::FUSED));
        let (one, two) = (separate.block(1), fused.block(1));
        assert_eq!(one.parameters(), two.parameters());
        assert_eq!(one.window, Some(8));
        let qkv = two.linear(LinearId::QKV).unwrap();
        assert_eq!(qkv.shape(), (12 + 4 + 4, 12));
        assert_eq!(qkv.parts, [(Role::Q, 0..12), (Role::K, 12..16), (Role::V, 16..20)]);
        assert_eq!(qkv.module, "model.layers.1.self_attn.qkv_proj");
        assert!(qkv.bias && !two.linear(LinearId::GATE_UP).unwrap().bias);
        for (a, b) in one.stages.iter().zip(&two.stages) {
            let rows = |block: &BlockSpec, ids: &[LinearId]| {
                ids.iter().map(|id| block.linear(*id).unwrap().outputs).sum::<usize>()
            };
            assert_eq!((a.site, a.width), (b.site, b.width));
            assert_eq!(rows(&one, &a.linears), rows(&two, &b.linears));
        }
        let from =
            |block: &BlockSpec| block.edges.iter().map(|e| (e.from, e.to, e.heads)).collect::<Vec<_>>();
        let rows = |linear, first| EdgeSource::Rows { linear, first };
        assert_eq!(
            from(&two),
            [
                (EdgeSource::Norm(Norm::Input), Site::AttentionInput, None),
                (rows(LinearId::QKV, 16), Site::AttentionOutput, Some((3, 1))),
                (EdgeSource::Norm(Norm::PostAttention), Site::MlpInput, None),
                (rows(LinearId::GATE_UP, 20), Site::MlpActivation, None),
            ]
        );
        assert_eq!(from(&one)[1].0, rows(LinearId::V, 0));
        let names = |spec: &ModelSpec| spec.tensors().into_iter().map(|t| t.name).collect::<Vec<_>>();
        assert!(names(&fused).contains(&"model.layers.0.mlp.gate_up_proj.weight".to_owned()));
        assert_eq!(names(&separate).iter().filter(|n| n.ends_with(".bias")).count(), 6);
    }
}
