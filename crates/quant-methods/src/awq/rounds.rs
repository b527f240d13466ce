//! AWQ as the rounding of a recipe: clipped ranges, then round-to-nearest.

use super::{Clip, METHOD, clamp_to, clip_ranges};
use crate::{
    Method, MethodError, Operations, PlannedRounding, Prepared, Rounded, Rounding, SiteStatistics, Solver,
    Spacing, Statistic, Stream, WeightSettings, rtn,
};
use ndarray::{Array2, ArrayView2};
use quant_core::{ActOrder, CoreError, FloatType, Grid};
use quant_graph::{Role, WeightSpec};
use quant_kernels::Work;
use std::sync::Arc;

/// Candidates of the range of a group: `1 − s/20` for `s < 10`.
const N_GRID: usize = 20;
const MAX_SHRINK: f32 = 0.5;

/// The modifier of a recipe.
#[derive(Debug)]
pub(super) struct Rounds {
    pub(super) weights: WeightSettings,
    /// Tokens the clip search looks at; none clips nothing.
    pub(super) clip: Option<Spacing>,
}

impl Rounding for Rounds {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn weights(&self) -> &WeightSettings {
        &self.weights
    }
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError> {
        let stored = self.weights.stored(weight, scale_type, ActOrder::None)?;
        // Queries and keys meet in a product of their own, which the error of one of them says nothing about.
        let paired = weight.parts.iter().any(|(role, _)| matches!(role, Role::Q | Role::K));
        Ok(stored.map(|(grid, weight)| {
            let clip = self.clip.filter(|_| !paired);
            let solver = Arc::new(AwqRounding { grid, group: weight.group, clip });
            PlannedRounding { weight, grid, solver }
        }))
    }
}

/// AWQ on a weight whose scales are in it already: the clip search, and round-to-nearest of what it leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct AwqRounding {
    /// How a group gets its parameters.
    pub grid: Grid,
    /// Columns per group; none is one scale per output channel.
    pub group: Option<usize>,
    /// Which tokens of the float model the clip search looks at; none clips nothing.
    pub clip: Option<Spacing>,
}

impl AwqRounding {
    fn search(&self) -> Clip {
        Clip { n_grid: N_GRID, max_shrink: MAX_SHRINK, grid: self.grid, group: self.group }
    }
}

impl Solver for AwqRounding {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn needs(&self) -> Vec<(Stream, Statistic)> {
        self.clip.map(|spacing| (Stream::Float, Statistic::Sample(spacing))).into_iter().collect()
    }
    fn sharing_key(&self) -> String {
        self.clip.map_or_else(String::new, |spacing| format!("tokens {spacing:?}"))
    }
    fn operations(&self, (outputs, inputs): (usize, usize), _: usize) -> Operations {
        let Some(spacing) = self.clip else { return Operations::default() };
        let candidates = f64::from(MAX_SHRINK) * N_GRID as f64;
        // Differences meet the Gram matrix of a group or the tokens, whichever is smaller.
        let width = self.group.unwrap_or(inputs).min(spacing.count(usize::MAX)) as f64;
        Operations { prepare: 0.0, round: 2.0 * candidates * (outputs * inputs) as f64 * width }
    }
    fn prepare(
        &self,
        statistics: &mut SiteStatistics,
        _: usize,
        _: Work<'_>,
    ) -> Result<Prepared, MethodError> {
        let Some(spacing) = self.clip else { return Ok(Prepared::default()) };
        let missing = || MethodError::missing(METHOD.id, "sampled tokens");
        let tokens = statistics.float.sample(spacing).ok_or_else(missing)?;
        Ok(Prepared::new(tokens.to_owned(), None))
    }
    fn round(
        &self,
        weight: ArrayView2<'_, f32>,
        prepared: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError> {
        let nearest = rtn::Rtn { grid: self.grid, group: self.group, clip: None };
        if self.clip.is_none() {
            return Ok(Rounded::levels(rtn::round(&nearest, weight, work.par)?));
        }
        let tokens = prepared.state::<Array2<f32>>(&METHOD)?;
        let ranges = clip_ranges(&self.search(), weight, tokens.view(), work)?;
        let mut clipped = weight.to_owned();
        clamp_to(clipped.view_mut(), ranges.view(), self.group)?;
        Ok(Rounded::levels(rtn::round(&nearest, clipped.view(), work.par)?))
    }
    fn rows_alone(&self) -> bool {
        true
    }
}
