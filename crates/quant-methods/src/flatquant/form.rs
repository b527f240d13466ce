//! What of a block is trained, and for which deployment: one that runs any transform, or a kernel for Kronecker pairs.

use super::scheme::{FlatScheme, FlatShape, PlainSite, is_cut};
use super::settings::{FlatSettings, FlatVariant};
use crate::{BlockPlan, Rounding, SettingsError};
use quant_core::{ActRule, Bits};
use quant_graph::{BlockSpec, Clipping, InputScheme, LinearId, LinearScheme, PairKernel, Site, WeightScheme};
use quant_rotate::StraightThrough;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bits of what a [`PairKernel`] multiplies.
const FOUR: u32 = 4;

/// Which transforms are learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Transforms {
    /// Those that the deployment runs.
    #[default]
    Auto,
    /// Those of the published algorithm, whatever runs them.
    Free,
    /// One Kronecker pair for every input, as a [`PairKernel`] has them.
    Pairs,
}

/// What becomes of linears whose input has no pair that the kernel takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unpaired {
    /// They have it all the same, and the format refuses them.
    #[default]
    Refuse,
    /// They are not transformed.
    W4a4,
    /// Nor are they quantised to four bits, but to eight.
    W8a8,
}

/// The keys of a recipe that say what a block is trained for.
#[derive(Clone, Debug)]
pub(super) struct Form {
    pub(super) transforms: Transforms,
    pub(super) unpaired: Unpaired,
    /// What rounds linears without a pair where they get eight bits.
    pub(super) wide: Option<Arc<dyn Rounding>>,
    /// Devices that each have a part of what enters o and down.
    pub(super) tp: usize,
    /// Of the section, for errors.
    pub(super) path: String,
}

impl Form {
    pub(super) fn conflict(&self, key: &str, problem: String) -> SettingsError {
        SettingsError::Conflict { path: self.at(key), problem }
    }
    /// What the format or the model cannot have.
    fn unsupported(&self, key: &str, problem: String) -> SettingsError {
        SettingsError::Unsupported { path: self.at(key), problem }
    }
    fn at(&self, key: &str) -> String {
        if key.is_empty() { self.path.clone() } else { format!("{}.{key}", self.path) }
    }

    /// The sizes of a block, and the type in which its deployment has pairs.
    pub(super) fn shape(&self, settings: &FlatSettings, block: &BlockPlan<'_>) -> FlatShape {
        let shape = FlatShape::new(block.spec, block.index);
        match self.kernel(block) {
            _ if settings.variant == FlatVariant::Official => shape.cast_to(block.spec.dtype),
            Some((kernel, _)) => shape.held_in(kernel.held).in_shards(self.tp),
            None => shape,
        }
    }

    /// Of which kind the clip ratios of inputs are.
    pub(super) fn clipping(scheme: &FlatScheme) -> Clipping {
        if scheme.tied_clips { Clipping::Tied } else { Clipping::Learned }
    }

    /// The kernel that the pairs of a block are for, and the scheme of the linears that have one; none where anything is run, or no
    /// linear has the four bits that it multiplies.
    fn kernel(&self, block: &BlockPlan<'_>) -> Option<(PairKernel, LinearScheme)> {
        let kernel = match self.transforms {
            Transforms::Free => return None,
            Transforms::Auto => block.kernel?,
            Transforms::Pairs => block.kernel.unwrap_or(PairKernel::of(block.spec.dtype)),
        };
        let four = |bits: Bits| bits.get() == FOUR;
        let fits = |scheme: &LinearScheme| {
            scheme.weight.is_some_and(|weight| four(weight.bits))
                && scheme.input.is_some_and(|input| four(input.bits))
        };
        let own = |(id, scheme): (&LinearId, &LinearScheme)| self.unlearned(*id, *scheme);
        Some((kernel, block.scheme.iter().map(own).find(fits)?))
    }

    /// Whether the deployment of a block multiplies inputs by nothing but pairs before four bits, so that what has other bits has no
    /// transform.
    pub(super) fn is_for_kernel(&self, block: &BlockPlan<'_>) -> bool {
        block.kernel.is_some() && self.kernel(block).is_some()
    }

    /// What a block is trained for; none where nothing of it is quantised.
    pub(super) fn flat(
        &self,
        settings: &FlatSettings,
        block: &BlockPlan<'_>,
    ) -> Result<Option<FlatScheme>, SettingsError> {
        let spec = block.spec.block(block.index);
        let kernel = self.kernel(block);
        self.check_parts(block, kernel.is_some())?;
        if settings.variant == FlatVariant::Official {
            self.check_official(block, kernel.is_some())?;
        }
        self.check_alike(block, &spec, kernel.is_some())?;
        let first = self.scheme_at(block, spec.linears.first().map(|linear| linear.id));
        let main = kernel.map_or(first, |(_, scheme)| scheme);
        if main.is_float() && block.kv.is_none() {
            return Ok(None);
        }
        let bits = main.weight.map(|weight| self.weight_bits(weight)).transpose()?;
        let input = main.input.map(|input| self.input(input)).transpose()?;
        if kernel.is_some() && input.is_some_and(|(_, symmetric)| !symmetric) {
            let problem =
                "pairs are for a kernel with symmetric activations: use activations: { symmetric: true }";
            return Err(self.conflict("transforms", problem.into()));
        }
        let cache = self.cache(block, kernel.is_some())?;
        let flat = FlatScheme::new(bits, input, cache);
        let mut flat = settings.scheme(&flat.map_err(|error| self.conflict("scheme", error.to_string()))?);
        if let Some((kernel, main)) = kernel {
            flat.output_pair = true;
            flat.tied_clips = settings.share_inputs;
            for site in Site::ALL {
                let own = self.scheme_at(block, spec.at(site).first().copied());
                if !self.is_paired(kernel, main, own, self.part(block, site)) {
                    flat.plain[site as usize] = Some(self.plain(own)?);
                }
            }
        }
        Ok(Some(flat))
    }

    /// Whether what enters o and down can be cut as asked.
    fn check_parts(&self, block: &BlockPlan<'_>, kernel: bool) -> Result<(), SettingsError> {
        let (tp, spec) = (self.tp, block.spec);
        if tp == 1 {
            return Ok(());
        }
        if !kernel {
            let problem = "devices of a tensor-parallel deployment share Kronecker pairs alone: use transforms: pairs and W4A4, or leave \
                           out tp";
            return Err(self.conflict("tp", problem.into()));
        }
        for (what, found) in [("heads", spec.heads), ("inputs of down", spec.intermediate)] {
            if !found.is_multiple_of(tp) {
                return Err(
                    self.conflict("tp", format!("{tp} devices cannot have equal parts of {found} {what}"))
                );
            }
        }
        Ok(())
    }

    /// Features of a site that one device has.
    fn part(&self, block: &BlockPlan<'_>, site: Site) -> usize {
        block.spec.site_width(site) / if is_cut(site) { self.tp } else { 1 }
    }

    /// The linears whose inputs are quantised in parts, and in how many.
    pub(super) fn shards(&self, shape: &FlatShape, scheme: &FlatScheme) -> BTreeMap<LinearId, usize> {
        let linears = shape.block.linears.iter().map(|linear| linear.id);
        let cut = linears.filter(|id| shape.shards_at(id.site()) > 1 && scheme.plain_at(id.site()).is_none());
        cut.filter(|id| scheme.activations_at(id.site()).is_some())
            .map(|id| (id, shape.shards_at(id.site())))
            .collect()
    }

    /// What the authors' program has no case for.
    fn check_official(&self, block: &BlockPlan<'_>, kernel: bool) -> Result<(), SettingsError> {
        let spec = block.spec;
        if kernel {
            let problem = "official has a matrix across heads before o, and the kernel takes pairs alone: use variant: stable or exact";
            return Err(self.unsupported("variant", problem.into()));
        }
        if spec.heads * spec.head_dim != spec.hidden {
            let problem = format!(
                "official takes heads to be hidden / heads wide, and here {} heads of {} stand beside {} features: use variant: stable or \
                 exact",
                spec.heads, spec.head_dim, spec.hidden
            );
            return Err(self.unsupported("variant", problem));
        }
        Ok(())
    }

    /// Linears may differ where a kernel runs each input on its own, and there by input; elsewhere nothing may.
    fn check_alike(
        &self,
        block: &BlockPlan<'_>,
        spec: &BlockSpec,
        by_input: bool,
    ) -> Result<(), SettingsError> {
        let first = |id: LinearId| {
            let mut alike = spec.linears.iter().filter(|other| !by_input || other.id.site() == id.site());
            alike.next()
        };
        let differs = spec.linears.iter().find_map(|linear| {
            let first = first(linear.id)?;
            (self.scheme_at(block, Some(first.id)) != self.scheme_at(block, Some(linear.id)))
                .then_some((first, linear))
        });
        let Some((one, other)) = differs else { return Ok(()) };
        let problem = format!(
            "it trains a block as a whole, and in {} {} and {} are quantised differently: write overrides and ignores for {}",
            block.spec.block_prefix(block.index),
            one.module,
            other.module,
            if by_input { "all linears of an input" } else { "whole blocks" }
        );
        Err(self.conflict("", problem))
    }

    /// Whether the linears of a site of so many features have a pair.
    fn is_paired(&self, kernel: PairKernel, main: LinearScheme, own: LinearScheme, features: usize) -> bool {
        own == main && (self.unpaired == Unpaired::Refuse || kernel.sides(features).is_ok())
    }

    /// What rounds a linear whose input has no pair, where it gets eight bits.
    pub(super) fn rounding(&self, block: &BlockPlan<'_>, id: LinearId) -> Option<&dyn Rounding> {
        let (kernel, main) = self.kernel(block)?;
        let wide = self.wide.as_deref().filter(|_| self.unpaired == Unpaired::W8a8)?;
        let own = self.scheme_at(block, Some(id));
        let unpaired = own == main && kernel.sides(self.part(block, id.site())).is_err();
        unpaired.then_some(wide)
    }

    /// What the person should know of linears without a pair.
    pub(super) fn notices(&self, block: &BlockPlan<'_>) -> Vec<String> {
        let Some((kernel, main)) = self.kernel(block) else {
            let idle = "unpaired changes nothing, because no input has to have a pair";
            return if self.unpaired == Unpaired::Refuse { Vec::new() } else { vec![idle.to_owned()] };
        };
        let notice = |site: &Site| {
            let (spec, features) = (block.spec.block(block.index), self.part(block, *site));
            let own = self.scheme_at(block, spec.at(*site).first().copied());
            let why = kernel.sides(features).err()?;
            let bits = own.weight.filter(|_| !self.is_paired(kernel, main, own, features))?.bits.get();
            let modules: Vec<&str> = spec.at(*site).iter().map(|id| block.spec.layout.module(*id)).collect();
            Some(format!("{}: no transform, {bits}-bit weights, because {why}", modules.join(", ")))
        };
        Site::ALL.iter().filter_map(notice).collect()
    }

    /// Storage of a linear of a block as the recipe has it; float where there is none.
    fn scheme_at(&self, block: &BlockPlan<'_>, id: Option<LinearId>) -> LinearScheme {
        let own = id.and_then(|id| Some(self.unlearned(id, *block.scheme.get(&id)?)));
        own.unwrap_or_default()
    }

    /// A scheme without what the plan says of clip ratios and parts once it has asked: a block must look alike before and after.
    fn unlearned(&self, id: LinearId, mut scheme: LinearScheme) -> LinearScheme {
        if let Some(input) = &mut scheme.input {
            if input.clip_ratio.fixed().is_none() {
                input.clip_ratio = Clipping::NONE;
            }
            if self.tp > 1 && is_cut(id.site()) && input.shards == self.tp {
                input.shards = 1;
            }
        }
        scheme
    }

    /// The cache that is trained; one of static scales is left to calibration where there is no matrix for its keys anyway.
    fn cache(&self, block: &BlockPlan<'_>, kernel: bool) -> Result<Option<(Bits, bool)>, SettingsError> {
        let Some(kv) = block.kv else { return Ok(None) };
        if kernel && kv.is_static() && !kv.before_rope {
            return Ok(None);
        }
        if kv.is_static() || kv.before_rope || clips(kv.clip_ratio) {
            let problem = "it learns a cache with a scale per token and head, keys behind rope: use kv_cache: { granularity: \
                           token_head, before_rope: false, clip_ratio: 1.0 }";
            return Err(self.conflict("scheme", problem.into()));
        }
        self.symmetry("kv_cache", kv.bits, kv.rule).map(Some)
    }

    /// The quantisers of a site without transforms.
    fn plain(&self, own: LinearScheme) -> Result<PlainSite, SettingsError> {
        let weights = own.weight.map(|weight| self.weight_bits(weight)).transpose()?;
        let input = own.input.map(|input| self.input(input)).transpose()?;
        let weights = weights.map(|bits| StraightThrough::weights(bits, true)).transpose();
        let activations =
            input.map(|(bits, symmetric)| StraightThrough::activations(bits, symmetric)).transpose();
        let wrong = |error: quant_rotate::RotateError| self.conflict("scheme", error.to_string());
        Ok(PlainSite { weights: weights.map_err(wrong)?, activations: activations.map_err(wrong)? })
    }

    fn weight_bits(&self, weight: WeightScheme) -> Result<Bits, SettingsError> {
        if weight.group.is_some() || !weight.symmetric {
            let problem = "it learns how the rows of symmetric weights are clipped, one scale per row: use no group and no one-bit weights";
            return Err(self.conflict("scheme", problem.into()));
        }
        Ok(weight.bits)
    }

    fn input(&self, input: InputScheme) -> Result<(Bits, bool), SettingsError> {
        if !input.dynamic || clips(input.clip_ratio) || input.shards != 1 {
            let problem = "it trains with dynamic scales of whole tokens and learns their clipping: use activations: { dynamic: true, \
                           clip_ratio: 1.0 }";
            return Err(self.conflict("scheme", problem.into()));
        }
        self.symmetry("activations", input.bits, input.rule)
    }

    fn symmetry(&self, section: &str, bits: Bits, rule: ActRule) -> Result<(Bits, bool), SettingsError> {
        match rule {
            ActRule::Asymmetric => Ok((bits, false)),
            ActRule::Symmetric => Ok((bits, true)),
            ActRule::SymmetricFull => {
                let problem = format!(
                    "{section} of this format are scaled by the full symmetric range, which it does not train for: export to dequantized"
                );
                Err(self.unsupported("scheme", problem))
            }
        }
    }
}

/// Whether a recipe clips what is to be learned.
fn clips(ratio: Clipping) -> bool {
    ratio.fixed().is_some() && ratio != Clipping::NONE
}
