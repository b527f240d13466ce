//! The fitting of a block: factors of channels, rotations and permutations, and what they are worth.

use super::METHOD;
use super::observe::{Deployed, Loudest, Maxima, Ranking, Scales};
use super::record::{Fitted, Record, turned};
use super::settings::DuQuantLearner;
use crate::smoothquant::tied_factors;
use crate::{BlockPlan, Diary, HeadTie, Lesson, MethodError};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use quant_core::{ActQuant, OnlineTransform};
use quant_graph::{BlockSpec, EffectiveWeight, EffectiveWeights, InputScheme, LinearId, Site, WeightScheme};
use quant_kernels::Par;
use quant_rotate::{DuQuantSettings, StraightThrough, outlier_rotation, zigzag};
use std::collections::BTreeMap;

/// Passes of the float block that [`Fitting::record`] and [`Fitting::errors`] make.
pub(super) const PASSES: usize = 5;

/// A block that is fitted.
pub(super) struct Fitting<'a, 'l, 'w> {
    pub(super) learner: &'a DuQuantLearner,
    pub(super) lesson: &'a Lesson<'l>,
    pub(super) spec: &'a BlockSpec,
    /// The sites that are transformed, with their features.
    pub(super) sites: &'a [(Site, usize)],
    pub(super) float: &'a EffectiveWeights<'w, f32>,
}

impl Fitting<'_, '_, '_> {
    /// Factors, rotations and permutations of all sites, and the output of the float block.
    pub(super) fn record(&self, diary: &mut dyn Diary) -> Result<(Record, Array2<f32>), MethodError> {
        let Lesson { training, starts, par, .. } = *self.lesson;
        let x = || self.lesson.x.reborrow();
        let all = 2 + 2 * self.sites.len();
        let mut step = |done| diary.step(done, all).map_err(MethodError::Diary);
        let mut maxima = Maxima::of(self.sites.iter().copied());
        let target = training.forward(x(), starts, self.float, &mut maxima, par)?;
        let maxima = finite(maxima.of)?;
        step(1)?;
        let scales = self.scales(&maxima)?;
        let ranking = |&(site, width): &(Site, usize)| (site, Ranking::new(self.learner.tokens, width));
        let mut loudest = Loudest { scales: &scales, of: self.sites.iter().map(ranking).collect() };
        training.forward(x(), starts, self.float, &mut loudest, par)?;
        let mut samples = BTreeMap::new();
        for (at, (site, ranking)) in loudest.of.into_iter().enumerate() {
            let mut sample = ranking.into_rows();
            let settings = self.settings(site);
            let first = outlier_rotation(&mut sample, &settings, "first", par)?.mapv(|v| v as f32);
            samples.insert(site, (sample, first));
            step(2 + at)?;
        }
        let mut behind = Maxima::of(self.sites.iter().copied());
        behind.scales = Some(&scales);
        behind.rotations = samples.iter().map(|(site, (_, first))| (*site, first.view())).collect();
        training.forward(x(), starts, self.float, &mut behind, par)?;
        let behind = finite(behind.of)?;
        let mut sites = BTreeMap::new();
        for (at, (site, (sample, first))) in samples.into_iter().enumerate() {
            let settings = self.settings(site);
            let order = zigzag(&behind[&site].to_vec(), settings.block)?;
            let mut sample = sample.select(Axis(1), &order);
            let second = outlier_rotation(&mut sample, &settings, "second", par)?.mapv(|v| v as f32);
            // A row is far narrower than a u32 counts.
            let order = order.into_iter().map(|from| from as u32).collect();
            sites.insert(site, Fitted { first, order, second });
            step(2 + self.sites.len() + at)?;
        }
        Ok((Record { scales, sites }, target))
    }

    fn settings(&self, site: Site) -> DuQuantSettings {
        let BlockPlan { spec, index, .. } = self.lesson.plan;
        let DuQuantLearner { smoothing, block, steps, seed, .. } = self.learner;
        DuQuantSettings {
            block: *block,
            steps: *steps,
            variant: smoothing.scales.variant,
            seed: *seed,
            name: format!("{}.{site:?}", spec.block_prefix(index)),
        }
    }

    /// The factors of the sites that are transformed, along the edges that take them in.
    fn scales(&self, maxima: &BTreeMap<Site, Array1<f32>>) -> Result<Scales, MethodError> {
        let smoothing = &self.learner.smoothing;
        let mut scales = Scales::new();
        for edge in smoothing.edges(self.spec) {
            let Some(maxima) = maxima.get(&edge.to) else { continue };
            let fed = self.spec.at(edge.to).iter();
            let weights: Vec<ArrayView2<'_, f32>> =
                fed.filter_map(|id| Some(self.float.get(id)?.weight.reborrow())).collect();
            let tie = HeadTie::of(edge, maxima.len());
            scales.insert(edge.to, tied_factors(&smoothing.scales, tie, maxima.view(), &weights)?);
        }
        Ok(scales)
    }

    /// The relative errors of the block without transforms and with them: weights rounded to nearest by the scheme, inputs quantised by
    /// it, against `target`, the output of the float block. The cache stays float. Factors in the rows of v and up change no level of
    /// theirs, and are left out.
    pub(super) fn errors(&self, record: &Record, target: &Array2<f32>) -> Result<[f64; 2], MethodError> {
        let none = Record { scales: Scales::new(), sites: BTreeMap::new() };
        let error = |record: &Record| {
            let mut transforms = BTreeMap::new();
            for (site, fitted) in &record.sites {
                transforms.insert(*site, fitted.transform()?.online()?);
            }
            self.error(record, &transforms, target)
        };
        Ok([error(&none)?, error(record)?])
    }

    fn error(
        &self,
        record: &Record,
        transforms: &BTreeMap<Site, OnlineTransform>,
        target: &Array2<f32>,
    ) -> Result<f64, MethodError> {
        let Lesson { plan, training, starts, par, .. } = *self.lesson;
        let mut weights = BTreeMap::new();
        for (id, own) in self.float {
            let mut weight = own.weight.to_owned();
            if let Some(scales) = record.scales.get(&id.site()) {
                weight.rows_mut().into_iter().for_each(|mut row| row *= scales);
            }
            if let Some(fitted) = record.sites.get(&id.site()) {
                weight = turned(&fitted.transform()?, &weight, par)?;
            }
            let scheme = plan.scheme.get(id).and_then(|scheme| scheme.weight);
            let weight = scheme.map_or(Ok(weight.clone()), |scheme| rounded(&weight, scheme, par))?;
            weights.insert(*id, (weight, own.bias.map(|bias| bias.to_owned())));
        }
        let with = weights.iter().map(|(id, (weight, bias))| {
            (*id, EffectiveWeight { weight: weight.view(), bias: bias.as_ref().map(|bias| bias.view()) })
        });
        let input = |id: &LinearId| {
            let scheme: InputScheme = plan.scheme.get(id)?.input?;
            Some((*id, scheme.dynamic()?))
        };
        let inputs: BTreeMap<LinearId, ActQuant> = self.float.keys().filter_map(input).collect();
        let mut deployed = Deployed { scales: &record.scales, transforms, inputs };
        let x = self.lesson.x.reborrow();
        let y = training.forward(x, starts, &with.collect(), &mut deployed, par)?;
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let lost = square(&mut y.iter().zip(target).map(|(y, t)| f64::from(*y) - f64::from(*t)));
        Ok(lost / square(&mut target.iter().map(|t| f64::from(*t))).max(f64::MIN_POSITIVE))
    }
}

/// A weight rounded to nearest; as it is where its scheme has no integer levels of one width.
fn rounded(weight: &Array2<f32>, scheme: WeightScheme, par: Par) -> Result<Array2<f32>, MethodError> {
    let Ok(quantiser) = StraightThrough::weights(scheme.bits, scheme.symmetric) else {
        return Ok(weight.clone());
    };
    let columns = weight.ncols();
    let group = scheme.group.filter(|group| columns.is_multiple_of(*group)).unwrap_or(columns);
    Ok(quantiser.forward(weight.view(), group, None, par)?)
}

/// Refuses maxima that are no numbers.
fn finite(maxima: BTreeMap<Site, Array1<f32>>) -> Result<BTreeMap<Site, Array1<f32>>, MethodError> {
    let all = maxima.values().flat_map(|of| of.iter().copied().enumerate());
    match all.into_iter().find(|(_, value)| !value.is_finite()) {
        None => Ok(maxima),
        Some((channel, value)) => {
            Err(MethodError::NotFinite { method: METHOD.id, what: "the activation maximum", channel, value })
        }
    }
}
