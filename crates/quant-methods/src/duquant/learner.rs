//! DuQuant as a modifier of a recipe.

use super::METHOD;
use super::fit::{Fitting, PASSES};
use super::record::Record;
use super::settings::DuQuantLearner;
use crate::{
    BlockPlan, Diary, Learned, LearnedScheme, Learner, Lesson, LessonReport, Method, MethodError,
    SettingsError, Stream, Transform, float_weights,
};
use quant_core::codec::{decoded, encoded};
use quant_core::{AxisShape, OnlineShape};
use quant_graph::{BlockParams, LinearScheme, LinearSpec, OnlineScheme, Site};
use quant_kernels::Par;
use std::sync::Arc;

impl DuQuantLearner {
    /// The sites of a block with anything to quantise, and their features.
    fn sites(plan: &BlockPlan<'_>) -> Vec<(Site, usize)> {
        let quantised =
            |id: &quant_graph::LinearId| plan.scheme.get(id).is_some_and(|s: &LinearScheme| !s.is_float());
        let block = plan.spec.block(plan.index);
        let stages = block.stages.iter().filter(|stage| stage.linears.iter().any(quantised));
        stages.map(|stage| (stage.site, stage.width)).collect()
    }

    /// The transform of an input of so many features.
    fn shape(&self, width: usize) -> OnlineShape {
        let axes = [AxisShape::Identity(width / self.block), AxisShape::Dense(self.block)];
        OnlineShape::new(axes).and_permuted(axes)
    }

    fn conflict(&self, key: &str, problem: String) -> SettingsError {
        SettingsError::Conflict { path: format!("{}.{key}", self.path), problem }
    }

    /// The largest block up to the one asked for that divides all of these features.
    fn possible(&self, sites: &[(Site, usize)]) -> Option<usize> {
        let divides = |block: &usize| sites.iter().all(|(_, width)| width.is_multiple_of(*block));
        (2..=self.block).rev().find(divides)
    }
}

impl Learner for DuQuantLearner {
    fn method(&self) -> &'static Method {
        &METHOD
    }

    fn describe(&self) -> String {
        let Self { smoothing, block, steps, seed, .. } = self;
        format!("blocks of {block}, {steps} steps, {}, seed {seed}", smoothing.describe())
    }

    fn plan(&self, block: &BlockPlan<'_>) -> Result<Option<LearnedScheme>, SettingsError> {
        let sites = Self::sites(block);
        if let Some((site, width)) = sites.iter().find(|(_, width)| !width.is_multiple_of(self.block)) {
            let other = match self.possible(&sites) {
                Some(other) => format!("use block: {other}"),
                None => "leave these linears float, or use quarot".to_owned(),
            };
            let problem = format!("{} does not divide the {width} features of {site:?}; {other}", self.block);
            return Err(self.conflict("block", problem));
        }
        if sites.is_empty() {
            return Ok(None);
        }
        if let Some((site, _)) = sites.iter().find(|(site, _)| block.online.sites.contains_key(site)) {
            let problem = format!(
                "quarot multiplies {site:?} while the model runs already; leave that to one of the two: give quarot no r4 among its \
                 rotations and cross_head: \"off\""
            );
            return Err(self.conflict("block", problem));
        }
        self.smoothing.check(&block.spec.block(block.index)).map_err(|error| match error {
            SettingsError::Conflict { problem, .. } => self.conflict("pairs", problem),
            other => other,
        })?;
        let online = sites.iter().map(|(site, width)| (*site, self.shape(*width))).collect();
        let online = OnlineScheme { sites: online, pair: None };
        let cache = "keys are quantised as they are, since duquant has no transform for them; quarot: { rotations: [r2, r3], cross_head: \
                     \"off\" } before it rotates keys and values";
        let bare = block.kv.filter(|_| block.online.pair.is_none());
        let notices = bare.iter().map(|_| cache.to_owned()).collect();
        Ok(Some(LearnedScheme { online, notices, ..LearnedScheme::default() }))
    }

    fn inputs(&self) -> Stream {
        Stream::Float
    }

    fn batch(&self) -> Option<usize> {
        None
    }

    fn workspace(&self, block: &BlockPlan<'_>, tokens: usize, batch: usize) -> u64 {
        const F32: u64 = 4;
        let spec = block.spec.block(block.index);
        let sites = Self::sites(block);
        let width: usize = sites.iter().map(|(_, width)| width).sum();
        let widest = sites.iter().map(|(_, width)| *width).max().unwrap_or(0);
        let weights: usize = spec.linears.iter().map(LinearSpec::weights).sum();
        let largest = spec.linears.iter().map(LinearSpec::weights).max().unwrap_or(0);
        let sample = self.tokens.min(tokens);
        // Twice as many tokens before the loudest are chosen, or the chosen with a copy that is turned and what it becomes; inputs of a
        // site with their factors taken out, and rotated.
        let fitting = 2 * sample * width + 3 * sample * widest + 2 * batch * widest;
        // Behind that, rounded weights, one of them in f64 before and behind each of three steps.
        let measuring = weights + 8 * largest;
        (fitting.max(measuring) + 2 * tokens * block.spec.hidden) as u64 * F32
    }

    fn passes(&self) -> f64 {
        PASSES as f64
    }

    fn operations(&self, block: &BlockPlan<'_>, tokens: usize) -> f64 {
        let width: usize = Self::sites(block).iter().map(|(_, width)| width).sum();
        let product = 2.0 * self.tokens.min(tokens) as f64 * width as f64 * self.block as f64;
        2.0 * self.steps as f64 * product
    }

    fn untrained(&self) -> Arc<dyn Learner> {
        Arc::new(Self { steps: 0, ..self.clone() })
    }

    fn learn(
        &self,
        params: &BlockParams,
        lesson: &Lesson<'_>,
        diary: &mut dyn Diary,
    ) -> Result<Learned, MethodError> {
        let float = float_weights(params)?;
        let (spec, sites) = (lesson.plan.spec.block(lesson.plan.index), Self::sites(&lesson.plan));
        let fitting = Fitting { learner: self, lesson, spec: &spec, sites: &sites, float: &float };
        let (record, target) = fitting.record(diary)?;
        let [before, after] = fitting.errors(&record, &target)?;
        let worse = format!(
            "its transforms cost more than they gain: rounded to nearest without them its relative error is {before:.3e}"
        );
        let alarms = if after > before { vec![worse] } else { Vec::new() };
        let report = LessonReport { before, after, alarms, ..LessonReport::default() };
        Ok(Learned { record: encoded(&record), report })
    }

    fn apply(
        &self,
        record: &[u8],
        block: BlockParams,
        plan: &BlockPlan<'_>,
        par: Par,
    ) -> Result<BlockParams, MethodError> {
        decoded::<Record>(record)?.apply(block, plan, par)
    }
}
