//! The matrices of a model.

use super::{CrossHead, QuaRot, Rotation};
use crate::SettingsError;
use quant_core::{AxisTransform, OnlineTransform, PairTransform};
use quant_graph::{ModelSpec, Online, Site};
use quant_rotate::{Hadamard, RandomHadamard};

/// The rotations of a model, as far as the settings want them.
#[derive(Clone, Debug)]
pub(super) struct Rotations {
    /// Of the residual stream.
    pub(super) residual: Option<RandomHadamard>,
    /// Of each head of values.
    pub(super) head: Option<Hadamard>,
    /// Of the input of down, run by run.
    pub(super) down: Option<Hadamard>,
    online: Online,
}

impl Rotations {
    pub(super) fn new(settings: &QuaRot, spec: &ModelSpec) -> Result<Self, SettingsError> {
        let refuse = |key: &str, why: String| SettingsError::Conflict {
            path: format!("{}.{key}", settings.path),
            problem: why,
        };
        let hadamard = |key: &'static str, size: usize| {
            Hadamard::new(size).map_err(|error| refuse(key, error.to_string()))
        };
        let divides = |size: usize, width: usize, what: &str| {
            if width.is_multiple_of(size) {
                return Ok(());
            }
            Err(refuse(
                "block",
                format!("{size} does not divide the {width} channels of {what}; use another, or none"),
            ))
        };
        let mut online = Online::default();
        let residual = if settings.has(Rotation::R1) {
            let size = settings.block.unwrap_or(spec.hidden);
            divides(size, spec.hidden, "the residual stream")?;
            let rotation =
                RandomHadamard::new(hadamard("rotations", size)?, spec.hidden, settings.seed, "r1");
            Some(rotation.map_err(|error| refuse("rotations", error.to_string()))?)
        } else {
            None
        };
        let mut head = None;
        if settings.has(Rotation::R2) {
            head = Some(hadamard("rotations", spec.head_dim)?);
            let possible = settings.tp == 1 && spec.heads > 1 && Hadamard::order_of(spec.heads).is_some();
            if settings.cross_head == CrossHead::On && !possible {
                let why = if settings.tp > 1 {
                    "on cannot be under tp: heads lie on different devices".to_owned()
                } else {
                    format!(
                        "on needs a Hadamard matrix of the {} heads, and there is none; use auto or off",
                        spec.heads
                    )
                };
                return Err(refuse("cross_head", why));
            }
            if settings.cross_head != CrossHead::Off && possible {
                let mut axes = hadamard("cross_head", spec.heads)?.axes();
                axes.push(AxisTransform::Identity(spec.head_dim));
                let mixed = OnlineTransform::kronecker(axes);
                let mixed = mixed.map_err(|error| refuse("cross_head", error.to_string()))?;
                online.sites.insert(Site::AttentionOutput, mixed.into());
            }
        }
        if settings.has(Rotation::R3) {
            let failed = |error: String| refuse("rotations", error);
            let hadamard = hadamard("rotations", spec.head_dim)?;
            let turned = || hadamard.online(spec.head_dim).map_err(|error| failed(error.to_string()));
            let pair = PairTransform::new(turned()?, turned()?).map_err(|error| failed(error.to_string()))?;
            online.pair = Some(pair.into());
        }
        let down = if settings.has(Rotation::R4) {
            if !spec.intermediate.is_multiple_of(settings.tp) {
                let why = format!("{} does not divide the {} inputs of down", settings.tp, spec.intermediate);
                return Err(refuse("tp", why));
            }
            let part = spec.intermediate / settings.tp;
            let size = settings.block.unwrap_or(part);
            divides(size, part, "a part of down's input")?;
            let hadamard = hadamard("rotations", size)?;
            let turned = hadamard.online(spec.intermediate);
            let turned = turned.map_err(|error| refuse("rotations", error.to_string()))?;
            online.sites.insert(Site::MlpActivation, turned.into());
            Some(hadamard)
        } else {
            None
        };
        if !spec.heads.is_multiple_of(settings.tp) {
            let why = format!("{} devices cannot have equal parts of {} heads", settings.tp, spec.heads);
            return Err(refuse("tp", why));
        }
        Ok(Self { residual, head, down, online })
    }
    /// What runs with the model.
    pub(super) fn online(&self) -> &Online {
        &self.online
    }
}
