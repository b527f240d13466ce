//! AWQ as a modifier of a recipe: the searches over the edges of a block, and what is folded where.

use super::rounds::Rounds;
use super::{ID, Loss, METHOD, Target, search_targets};
use crate::folding::fold;
use crate::{
    BlockContext, HeadTie, Method, MethodError, Modifier, Need, Scaled, Settings, SettingsError,
    SiteStatistics, Spacing, Statistic, Stream, Transform, WeightSettings,
};
use ndarray::{Array1, ArrayView2};
use quant_core::{Convention, Variant};
use quant_graph::{BlockParams, BlockSpec, EdgeSource, LinearId, LinearWeight, Part, ScaleEdge, Site};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tokens the published clip search looks at, at least.
const CLIP_TOKENS: usize = 512;

/// The modifier of a section.
pub(super) fn build(settings: &Settings) -> Result<Modifier, SettingsError> {
    let conflict = |key: &str, problem: &str| SettingsError::Conflict {
        path: format!("{}.{key}", settings.path()),
        problem: problem.into(),
    };
    let variant: Variant = settings.word("variant")?.unwrap_or_default();
    let official = variant == Variant::Official;
    let (gqa, tokens) = (settings.bool("gqa")?, settings.integer_or_all("search_tokens")?);
    if official && gqa {
        return Err(conflict(
            "gqa",
            "the official code has no scales of o under grouped-query attention; use variant: exact",
        ));
    }
    if official && settings.given("search_tokens").is_some() && tokens != usize::MAX {
        return Err(conflict(
            "search_tokens",
            "the official code searches on all tokens; use variant: exact",
        ));
    }
    let tokens = if official { usize::MAX } else { tokens };
    let transform = Awq { n_grid: settings.integer("n_grid")?, tokens, gqa, variant };
    let mut modifier = Modifier::transform(transform);
    if settings.given("scheme").is_none() {
        let given = |key: &&str| settings.given(key).is_some();
        if let Some(key) = ["symmetric", "convention", "clip", "input_shards"].iter().find(|key| given(key)) {
            let problem =
                "it says how AWQ rounds, and without a scheme AWQ only scales; give a scheme or drop it";
            return Err(conflict(key, problem));
        }
        return Ok(modifier);
    }
    let weights = WeightSettings::read_without_clip(settings, Convention::QAwq, Convention::QAwq)?;
    let spacing = if official {
        Spacing::AtLeast(CLIP_TOKENS)
    } else {
        Spacing::AtMost(if tokens == usize::MAX { CLIP_TOKENS } else { tokens })
    };
    let clip = settings.bool("clip")?.then_some(spacing);
    modifier.rounding = Some(Arc::new(Rounds { weights, clip }));
    Ok(modifier)
}

/// The search for scales over the edges of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Awq {
    /// Ratios tried.
    pub n_grid: usize,
    /// Calibration tokens looked at; [`usize::MAX`] is all.
    pub tokens: usize,
    /// Whether o takes scales under grouped-query attention.
    pub gqa: bool,
    /// `official` leaves o alone wherever v has another shape.
    pub variant: Variant,
}

impl Awq {
    /// Whether an edge is searched.
    fn takes(&self, block: &BlockSpec, edge: &ScaleEdge) -> bool {
        let EdgeSource::Rows { linear, .. } = edge.from else { return true };
        if edge.to != Site::AttentionOutput {
            return true;
        }
        match self.variant {
            // One stored matrix for values that has the shape of o's.
            Variant::Official => {
                let shape = |id| block.linear(id).map(quant_graph::LinearSpec::shape);
                let fed = block.at(edge.to).first().copied();
                linear == LinearId::V && fed.is_some_and(|o| shape(o) == shape(linear))
            }
            Variant::Exact => edge.heads.is_none() || self.gqa,
        }
    }
    /// What is run to measure a candidate for the linears at a site; none where they are a unit by themselves.
    fn part(site: Site) -> Option<Part> {
        match site {
            Site::AttentionInput => Some(Part::Attention),
            Site::MlpInput => Some(Part::Mlp),
            Site::AttentionOutput | Site::MlpActivation => None,
        }
    }
    /// What the error of a candidate at a site is measured on.
    fn measured_on(&self, site: Site) -> Statistic {
        match site {
            Site::AttentionInput => Statistic::Sequences { tokens: self.tokens },
            // All tokens of a linear unit are in their Gram matrix.
            Site::AttentionOutput | Site::MlpActivation if self.tokens == usize::MAX => Statistic::Gram,
            _ => Statistic::Sample(Spacing::AtMost(self.tokens)),
        }
    }
}

/// The scales found for an edge.
struct Found {
    edge: ScaleEdge,
    scales: Array1<f32>,
}

impl Transform for Awq {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn describe(&self) -> String {
        let tokens = if self.tokens == usize::MAX { "all".to_owned() } else { self.tokens.to_string() };
        format!("{} ratios on {tokens} tokens", self.n_grid)
    }
    fn needs(&self, block: &BlockSpec) -> Vec<Need> {
        let edges = block.edges.iter().filter(|edge| self.takes(block, edge));
        let need = |edge: &ScaleEdge| {
            let of = |statistic| Need { site: edge.to, stream: Stream::Float, statistic };
            [of(Statistic::ChannelMeanAbs), of(self.measured_on(edge.to))]
        };
        edges.flat_map(need).collect()
    }
    fn runs_block(&self) -> bool {
        true
    }
    fn only_scales(&self) -> bool {
        true
    }
    fn workspace(&self, block: &BlockSpec, tokens: usize) -> u64 {
        const F32: usize = size_of::<f32>();
        let tokens = tokens.min(self.tokens);
        let of = |stage: &quant_graph::StageSpec| {
            let linears = stage.linears.iter().filter_map(|id| block.linear(*id));
            let (weights, outputs) = linears.fold((0, 0), |(w, o), l| (w + l.weights(), o + l.outputs));
            match Self::part(stage.site) {
                // Substituted weights as floats and ready for products; the outputs of the part and what is inside it.
                Some(_) => F32 * (2 * weights + tokens * (2 * outputs + 3 * stage.width)),
                None => F32 * 2 * stage.width * tokens.min(stage.width),
            }
        };
        block.stages.iter().map(of).max().unwrap_or(0) as u64
    }
    fn operations(&self, block: &BlockSpec, tokens: usize) -> f64 {
        let tokens = tokens.min(self.tokens) as f64;
        let candidates = self.n_grid as f64 + 1.0;
        let of = |edge: &ScaleEdge| {
            let part = Self::part(edge.to);
            // The part's output linear is run with every candidate too.
            let next = match part {
                Some(Part::Attention) => Some(Site::AttentionOutput),
                Some(Part::Mlp) => Some(Site::MlpActivation),
                None => None,
            };
            let sites = [Some(edge.to), next];
            let ids = sites.into_iter().flatten().flat_map(|site| block.at(site));
            let weights: usize =
                ids.filter_map(|id| block.linear(*id)).map(quant_graph::LinearSpec::weights).sum();
            2.0 * candidates * tokens * weights as f64
        };
        block.edges.iter().filter(|edge| self.takes(block, edge)).map(of).sum()
    }
    fn apply(
        &self,
        block: &mut BlockParams,
        statistics: &BTreeMap<Site, SiteStatistics>,
        context: BlockContext<'_>,
    ) -> Result<Scaled, MethodError> {
        // Every search sees the block as it was; what they found is folded in afterwards.
        let mut found = Vec::new();
        for edge in context.block.edges.iter().filter(|edge| self.takes(context.block, edge)) {
            found.extend(self.search(*edge, block, statistics, &context)?);
        }
        let mut scaled = Scaled::new();
        for Found { edge, scales } in found {
            scaled.insert(edge.to, fold(ID, &edge, scales, block, &context)?);
        }
        Ok(scaled)
    }
}

impl Awq {
    fn search(
        &self,
        edge: ScaleEdge,
        block: &BlockParams,
        statistics: &BTreeMap<Site, SiteStatistics>,
        context: &BlockContext<'_>,
    ) -> Result<Option<Found>, MethodError> {
        let missing = |what| MethodError::missing(ID, what);
        // Linears that stay float are exact whatever the scales are.
        let mut ids = Vec::new();
        let mut targets = Vec::new();
        for id in context.block.at(edge.to) {
            let linear = block.linears.get(id).map(|l| &l.weight);
            if let (Some(LinearWeight::Float(weight)), Some(&(grid, group))) = (linear, context.grids.get(id))
            {
                ids.push(*id);
                targets.push(Target { weight: weight.view(), grid, group });
            }
        }
        if targets.is_empty() {
            return Ok(None);
        }
        let seen = &statistics.get(&edge.to).ok_or_else(|| missing("statistics of a site"))?.float;
        let means = seen.channel_means().ok_or_else(|| missing("mean activations"))?.means();
        let tie = HeadTie::of(&edge, means.len());
        let run = (self.n_grid, tie);
        let found = match (Self::part(edge.to), self.measured_on(edge.to)) {
            (Some(part), statistic) => {
                let forward = context.forward.ok_or_else(|| missing("a runnable block"))?;
                let whole;
                let (x, starts) = match statistic {
                    Statistic::Sequences { tokens } => {
                        let kept = seen.sequences(tokens).ok_or_else(|| missing("sampled sequences"))?;
                        (kept.view(), kept.starts())
                    }
                    Statistic::Sample(spacing) => {
                        let x = seen.sample(spacing).ok_or_else(|| missing("sampled tokens"))?;
                        whole = [0, x.nrows()];
                        (x, &whole[..])
                    }
                    _ => return Err(missing("sampled tokens")),
                };
                let run_part = |weights: &[ArrayView2<'_, f32>], par| {
                    let with = ids.iter().copied().zip(weights.iter().copied()).collect();
                    Ok(forward.part(part, x, starts, &with, context.work.on(par))?)
                };
                search_targets(run, means.view(), &targets, Loss::Forward(&run_part), context.work)?
            }
            (None, Statistic::Gram) => {
                let gram = seen.gram().ok_or_else(|| missing("second moments"))?;
                let loss = Loss::Gram { gram: gram.moments(), tokens: gram.tokens() };
                search_targets(run, means.view(), &targets, loss, context.work)?
            }
            (None, Statistic::Sample(spacing)) => {
                let x = seen.sample(spacing).ok_or_else(|| missing("sampled tokens"))?;
                search_targets(run, means.view(), &targets, Loss::Tokens(x), context.work)?
            }
            _ => return Err(missing("sampled tokens")),
        };
        Ok(Some(Found { edge, scales: found.scales }))
    }
}
