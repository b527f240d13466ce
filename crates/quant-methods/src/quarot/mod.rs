//! QuaRot: rotate the residual stream, values, keys and what enters o and down by Hadamard matrices, fused where they can be.
//!
//! `x Wᵀ = (x R)(W R)ᵀ` for an orthogonal `R`, and an RMS norm without gain commutes with it. With the gains of the norms folded into
//! the linears behind them, the whole residual stream lives in a rotated basis (arXiv 2404.00456; the names of the rotations are those
//! of SpinQuant, arXiv 2405.16406):
//!
//! | | of | in the weights | while the model runs |
//! |---|---|---|---|
//! | `r1` | the residual stream, random signs | embedding, q, k, v, o, gate, up, down, head | |
//! | `r2` | each head of v | v, o | the mixing of heads, where `cross_head` |
//! | `r3` | each head of q and k, behind rope | | q and k |
//! | `r4` | what enters down | down | down's input |
//!
//! Everything is computed in f64 and rounded once.

mod fuse;
mod rotations;

use crate::settings::FieldKind;
use crate::{Field, Method, MethodKind, ModelTransform, Modifier, SettingsError, WholePlan};
use quant_graph::{BlockSource, ModelSpec, Site, SourceError};
use quant_kernels::Par;
use rotations::Rotations;
use serde::Deserialize;

/// Registry line.
pub static METHOD: Method = Method {
    id: "quarot",
    summary: "rotates residual stream, values, keys and the inputs of o and down so that few bits hold them",
    source: "arXiv 2404.00456",
    kind: MethodKind::Transform,
    build: |settings| {
        let quarot = QuaRot {
            seed: settings.integer("seed")? as u64,
            rotations: settings.words("rotations")?,
            cross_head: settings.word("cross_head")?.unwrap_or_default(),
            block: settings.size_or_none("block")?,
            tp: settings.integer("tp")?,
            path: settings.path().to_owned(),
        };
        Ok(Modifier::model(quarot))
    },
    fields: &[
        Field {
            name: "seed",
            kind: FieldKind::Integer(0, u32::MAX as u64),
            default: "0",
            help: "of the signs of r1",
            run_wide: false,
        },
        Field {
            name: "rotations",
            kind: FieldKind::Words(&["r1", "r2", "r3", "r4"]),
            default: "[\"r1\", \"r2\", \"r3\", \"r4\"]",
            help: "residual stream, values, queries and keys, the input of down; r1 and r2 cost nothing at run time",
            run_wide: false,
        },
        Field {
            name: "cross_head",
            kind: FieldKind::Choice(&["auto", "on", "off"]),
            default: "\"auto\"",
            help: "mix heads of the attention output at run time (r2); auto: where their number has a Hadamard matrix",
            run_wide: false,
        },
        Field {
            name: "block",
            kind: FieldKind::SizeOrNone(&[16, 32, 64, 128]),
            default: "\"none\"",
            help: "r1 and r4 as block-diagonal matrices of this size in place of full ones",
            run_wide: false,
        },
        Field {
            name: "tp",
            kind: FieldKind::Integer(1, 64),
            default: "1",
            help: "devices of a tensor-parallel deployment: r4 stays within each part, and heads are not mixed",
            run_wide: false,
        },
    ],
    tier: 1,
};

/// A rotation by its usual name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rotation {
    R1,
    R2,
    R3,
    R4,
}

/// Whether heads of the attention output are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CrossHead {
    #[default]
    Auto,
    On,
    Off,
}

/// The settings of a recipe's section.
#[derive(Clone, Debug)]
pub(crate) struct QuaRot {
    seed: u64,
    rotations: Vec<Rotation>,
    cross_head: CrossHead,
    block: Option<usize>,
    tp: usize,
    /// Of the section, for errors.
    path: String,
}

impl QuaRot {
    fn has(&self, rotation: Rotation) -> bool {
        self.rotations.contains(&rotation)
    }
}

impl ModelTransform for QuaRot {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn describe(&self) -> String {
        let names: Vec<String> = self.rotations.iter().map(|r| format!("{r:?}").to_lowercase()).collect();
        format!("Hadamard rotations {}", names.join(", "))
    }
    fn plan(&self, spec: &ModelSpec) -> Result<WholePlan, SettingsError> {
        let rotations = Rotations::new(self, spec)?;
        let online = rotations.online().scheme().unwrap_or_default();
        let mut notices = Vec::new();
        let mixed = online.sites.contains_key(&Site::AttentionOutput);
        if self.has(Rotation::R2) && self.cross_head == CrossHead::Auto && !mixed && self.tp == 1 {
            notices.push(format!(
                "quarot: no Hadamard matrix mixes {} heads, so r2 rotates each head alone",
                spec.heads
            ));
        }
        let without =
            |key: &str, of: &str| format!("quarot: {key} changes nothing without {of} among the rotations");
        if self.cross_head == CrossHead::On && !self.has(Rotation::R2) {
            notices.push(without("cross_head", "r2"));
        }
        if self.block.is_some() && !self.has(Rotation::R1) && !self.has(Rotation::R4) {
            notices.push(without("block", "r1 or r4"));
        }
        if self.tp > 1 && !self.has(Rotation::R2) && !self.has(Rotation::R4) {
            notices.push(without("tp", "r2 or r4"));
        }
        Ok(WholePlan { online, notices })
    }
    fn fuse<'a>(
        &self,
        source: &'a mut dyn BlockSource,
        par: Par,
    ) -> Result<Box<dyn BlockSource + 'a>, SourceError> {
        let rotations = Rotations::new(self, source.spec())
            .map_err(|cause| SourceError::new("the rotated model", METHOD.id, cause))?;
        let rotated = fuse::RotatedSource::new(source, rotations, par)?;
        Ok(Box::new(rotated))
    }
}
