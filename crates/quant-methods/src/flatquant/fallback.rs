//! What stands in a block whose training could not be repaired.
//!
//! Two things may: rotations that nobody learned, which cost nothing, and more bits, which a recipe has to allow. Both have the
//! shapes of what the training would have left, so that nobody behind the block has to know but who counts bits; only for a kernel that has
//! transforms before four bits alone there are none before eight.

use super::block::FlatBlock;
use super::epochs::{Task, lost_numbers};
use super::parameters::FlatParameters;
use super::scheme::FlatScheme;
use super::settings::FlatVariant;
use crate::{BlockPlan, Fallback, FallbackReport, MethodError, Rounding, Settings, SettingsError};
use ndarray::Array1;
use quant_core::{Bits, Scheme};
use quant_graph::LinearId;
use quant_kernels::Par;
use quant_rotate::{
    ClipLogits, Hadamard, Learned, Parametrisation, RandomHadamard, RotateError, StraightThrough,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bits of [`Fallback::Bits8`].
pub(super) const WIDE: Bits = Bits::EIGHT;

/// A logit whose factor is 1 in f32.
const OPEN: f32 = 20.0;

/// A word of the recipe's list.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    None,
    Rotation,
    Bits8,
}

impl Word {
    fn allowed(self) -> Option<Fallback> {
        match self {
            Self::None => None,
            Self::Rotation => Some(Fallback::Rotation),
            Self::Bits8 => Some(Fallback::Bits8),
        }
    }
}

/// What a recipe allows.
#[derive(Clone, Debug, Default)]
pub(super) struct Fallbacks {
    kinds: Vec<Fallback>,
    /// The bits of the recipe's section, and what rounds to more.
    wide: Option<Wide>,
    /// Whether the recipe names them, so that what they mean for a model is worth a notice.
    named: bool,
}

type Wide = (Scheme, Arc<dyn Rounding>);

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Fallen {
    /// In order.
    pub(super) tried: Vec<FallbackReport>,
    /// The parameters that were taken, their error, and whether they are for more bits.
    pub(super) taken: Option<(FlatParameters<f32>, f64, bool)>,
}

impl Fallen {
    /// In words, beside the error of what the attempts left.
    pub(super) fn told(&self, instead_of: f64) -> Option<String> {
        let word = |tried: &FallbackReport| match tried.to {
            Fallback::Rotation => format!("rotations have the relative error {:.3e}", tried.error),
            Fallback::Bits8 => format!("8 bits have the relative error {:.3e}", tried.error),
        };
        let tried: Vec<String> = self.tried.iter().map(word).collect();
        let how = match self.tried.last()? {
            FallbackReport { taken: true, to: Fallback::Rotation, .. } => "falls back to rotations",
            FallbackReport { taken: true, to: Fallback::Bits8, .. } => "falls back to 8 bits",
            _ => "keeps what it had, no fallback being better",
        };
        Some(format!("{how}: {}, the best of all attempts {instead_of:.3e}", tried.join(", ")))
    }
}

impl Fallbacks {
    /// As a section says; `round` makes what rounds to a scheme. Eight bits that the section does not ask for are left out where
    /// there is nothing to make of them.
    pub(super) fn new(
        settings: &Settings,
        variant: FlatVariant,
        round: impl Fn(&str) -> Result<Option<Arc<dyn Rounding>>, SettingsError>,
    ) -> Result<Self, SettingsError> {
        let conflict = |problem: &str| {
            Err(SettingsError::Conflict {
                path: format!("{}.fallback", settings.path()),
                problem: problem.into(),
            })
        };
        if variant != FlatVariant::Stable {
            if settings.given("fallback").is_some() {
                return conflict("only variant: stable sees that a training went wrong; drop one of the two");
            }
            return Ok(Self::default());
        }
        let words: Vec<Option<Fallback>> =
            settings.words::<Word>("fallback")?.into_iter().map(Word::allowed).collect();
        if words.len() > 1 && words.contains(&None) {
            return conflict("none stands alone; leave it out, or the others");
        }
        let named = settings.given("fallback").is_some();
        let mut kinds: Vec<Fallback> = words.into_iter().flatten().collect();
        let mut wide = None;
        if kinds.contains(&Fallback::Bits8) {
            match Self::wider(settings, &round)? {
                Ok(found) => wide = found,
                Err(problem) if named => return conflict(problem),
                Err(_) => kinds.retain(|kind| *kind != Fallback::Bits8),
            }
        }
        Ok(Self { kinds, wide, named })
    }

    /// What rounds to more bits than the section says, or why nothing does.
    fn wider(
        settings: &Settings,
        round: impl Fn(&str) -> Result<Option<Arc<dyn Rounding>>, SettingsError>,
    ) -> Result<Result<Option<Wide>, &'static str>, SettingsError> {
        let asked = if settings.given("scheme").is_some() { round(&settings.text("scheme")?)? } else { None };
        let Some(scheme) = asked.map(|rounding| rounding.weights().scheme) else {
            return Ok(Err("without a scheme FlatQuant does not round; give it one, or leave out bits8"));
        };
        let widened = Scheme {
            weights: scheme.weights.map(|bits| bits.max(WIDE)),
            activations: scheme.activations.map(|bits| bits.max(WIDE)),
            ..scheme
        };
        if widened == scheme {
            return Ok(Err("the scheme has no weights or activations of less than 8 bits; leave out bits8"));
        }
        Ok(Ok(round(&widened.to_string())?.map(|rounding| (scheme, rounding))))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// What rounds a linear to more bits; none for one that has other bits than the section says, which an override asked for.
    pub(super) fn rounding(&self, block: &BlockPlan<'_>, id: LinearId) -> Option<&dyn Rounding> {
        let (scheme, rounding) = self.wide.as_ref()?;
        let own = block.scheme.get(&id)?;
        let bits = (own.weight.map(|weight| weight.bits), own.input.map(|input| input.bits));
        (bits == (scheme.weights, scheme.activations)).then_some(&**rounding)
    }

    /// What the person should know of a block that may get more bits; `bare` says that it then has no transforms.
    pub(super) fn notices(&self, block: &BlockPlan<'_>, bare: bool) -> Vec<String> {
        let mut notices = Vec::new();
        if self.wide.is_none() || !self.named {
            return notices;
        }
        if block.kv.is_some_and(|kv| kv.bits < WIDE) {
            notices.push(
                "the cache keeps its bits whatever they fall back to: it is the same in all blocks"
                    .to_owned(),
            );
        }
        if bare {
            notices.push(
                "8 bits that they may fall back to have no transforms, since the kernel has pairs before 4 bits alone"
                    .to_owned(),
            );
        }
        notices
    }

    /// Tries what is allowed, in order, until something is better than `best`, the parameters that the attempts left and their
    /// error; `initial` are those that the first began with. Where eight bits are to be `bare`, nothing is transformed before them.
    ///
    /// What can be inverted is better than what can hardly be, then what has the smaller error in deployed form.
    pub(super) fn fall_back(
        &self,
        block: &FlatBlock<'_, '_>,
        task: &Task<'_>,
        best: (&FlatParameters<f32>, f64),
        (initial, bare): (&FlatParameters<f32>, bool),
        par: Par,
    ) -> Result<Fallen, MethodError> {
        let ill = !best.0.ill_conditioned()?.is_empty();
        let rotated = initial.rotated(task.settings.seed, block.name)?;
        let mut unscaled = rotated.clone();
        unscaled.scales.clear();
        let rotated = [rotated, unscaled];
        let mut fallen = Fallen::default();
        for kind in &self.kinds {
            let wide = *kind == Fallback::Bits8;
            let candidates: Vec<FlatParameters<f32>> = match kind {
                Fallback::Rotation => rotated.to_vec(),
                Fallback::Bits8 if bare => vec![FlatParameters::none()],
                Fallback::Bits8 => {
                    let all = rotated.iter().chain([initial, best.0]);
                    all.map(|parameters| parameters.clone().opened()).collect()
                }
            };
            let scheme = match (wide, bare) {
                (false, _) => *task.scheme,
                (true, false) => task.scheme.widened(),
                (true, true) => task.scheme.widened().untransformed(),
            };
            let mut least: Option<(FlatParameters<f32>, f64)> = None;
            for parameters in candidates {
                let error = measured(block, &scheme, &parameters, task, par)?;
                // What has no error, or no inverse to speak of, is none.
                if least.as_ref().is_none_or(|least| error < least.1) {
                    least = Some((parameters, error));
                }
            }
            let Some((parameters, error)) = least else { continue };
            let better = error.is_finite() && (ill || error < best.1);
            fallen.tried.push(FallbackReport { to: *kind, error, taken: better });
            if better {
                fallen.taken = Some((parameters, error, wide));
                break;
            }
        }
        Ok(fallen)
    }
}

/// The error of parameters; infinite for those that lose numbers or can hardly be inverted.
fn measured(
    block: &FlatBlock<'_, '_>,
    scheme: &FlatScheme,
    parameters: &FlatParameters<f32>,
    task: &Task<'_>,
    par: Par,
) -> Result<f64, MethodError> {
    let error = if parameters.ill_conditioned()?.is_empty() {
        block.relative_error(scheme, parameters, task.sequences, task.target, par)
    } else {
        return Ok(f64::INFINITY);
    };
    match error {
        Ok(error) if error.is_nan() => Ok(f64::INFINITY),
        Err(error) if lost_numbers(&error) => Ok(f64::INFINITY),
        other => other,
    }
}

impl FlatScheme {
    /// The same with eight bits of weights and activations, or more where there are more. The cache stays: it is one for all blocks.
    fn widened(&self) -> Self {
        let wide = |quantiser: Option<StraightThrough>| quantiser.map(|quantiser| quantiser.at_least(WIDE));
        let plain = self.plain.map(|site| {
            site.map(|mut plain| {
                (plain.weights, plain.activations) = (wide(plain.weights), wide(plain.activations));
                plain
            })
        });
        Self { weights: wide(self.weights), activations: wide(self.activations), plain, ..*self }
    }
}

impl FlatParameters<f32> {
    /// Of a block with nothing learned in it.
    fn none() -> Self {
        Self {
            matrices: BTreeMap::new(),
            scales: BTreeMap::new(),
            weight_clips: BTreeMap::new(),
            input_clips: BTreeMap::new(),
        }
    }

    /// The same with rotations in place of all matrices: Hadamard matrices with random signs where their side has one, random
    /// orthogonal ones where it has none. Their condition number is 1.
    fn rotated(&self, seed: u64, name: &str) -> Result<Self, RotateError> {
        let mut rotated = self.clone();
        for (matrix, learned) in &mut rotated.matrices {
            let (side, name) = (learned.side(), format!("{name}.{}, rotation", matrix.name()));
            *learned = if Hadamard::order_of(side).is_some() {
                let signed = RandomHadamard::new(Hadamard::new(side)?, side, seed, &name)?;
                Learned::free(signed.matrix().mapv(|v| v as f32).view())?
            } else {
                Learned::initial(side, Parametrisation::Inverse, seed, &name)
            };
        }
        Ok(rotated)
    }

    /// The same without any clipping: what few bits gain by it more bits lose.
    fn opened(mut self) -> Self {
        self.weight_clips.clear();
        for ClipLogits { max, min } in self.input_clips.values_mut() {
            (*max, *min) = (Array1::from_elem(max.len(), OPEN), Array1::from_elem(min.len(), OPEN));
        }
        self
    }
}
