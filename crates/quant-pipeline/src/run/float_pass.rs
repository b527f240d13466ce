//! The float stream: channel maxima for transforms, gathered while the unquantised model runs.

use super::Run;
use super::stages::add;
use crate::PipelineError;
use crate::store::Store;
use crate::views;
use ndarray::Array2;
use quant_core::ChannelMaxima;
use quant_graph::{BlockParams, Role, SCALE_EDGES, Site};
use quant_kernels::vectorized;
use quant_methods::smoothquant;
use std::collections::BTreeMap;
use std::time::Instant;

/// Largest `|x|` per channel at the sites of the scale edges, `[features]`.
pub(super) type SiteMaxima = BTreeMap<Site, ChannelMaxima>;

impl Run<'_> {
    /// Runs the float block over the float stream, advancing it, and returns the channel maxima.
    pub(super) fn float_pass(
        &mut self,
        index: usize,
        params: &BlockParams,
        stream: &mut Store,
    ) -> Result<SiteMaxima, PipelineError> {
        let started = Instant::now();
        self.phase("float statistics")?;
        let spec = &self.plan.spec;
        let last = index + 1 == spec.layers;
        let block = self.float_block(index, params)?;
        let mut maxima: SiteMaxima = SCALE_EDGES
            .iter()
            .map(|edge| (edge.site, ChannelMaxima::new(spec.site_width(edge.site))))
            .collect();
        let par = self.par();
        let at = format!("the output of float block {index}");
        let mut wide = std::mem::take(&mut self.wide);
        for chunk in &self.layout.chunks {
            self.go_on()?;
            let rows = self.layout.rows_of(chunk);
            stream.modify(rows.clone(), |mut h| {
                let x = block.attention_input(h.view(), par)?;
                update(&mut maxima, Site::AttentionInput, &x);
                let mut a = Array2::zeros((rows.len(), spec.query_width()));
                self.attend(&block, chunk, x.view(), a.view_mut(), None)?;
                add(h.view_mut(), block.attention_output(a.view(), par)?.view(), par);
                let x = block.mlp_input(h.view(), par)?;
                update(&mut maxima, Site::MlpInput, &x);
                if last {
                    return Ok(());
                }
                let mut m = views::scratch(&mut wide.gated, (rows.len(), spec.intermediate));
                block.mlp_activation_into(x.view(), m.view_mut(), &mut wide.up, par)?;
                add(h.view_mut(), block.mlp_output(m.view(), par)?.view(), par);
                self.check_finite(h.view(), rows.start, &at)
            })?;
        }
        self.wide = wide;
        self.spent("float statistics", started);
        Ok(maxima)
    }

    /// Folds SmoothQuant's scales into the block.
    pub(super) fn smooth(
        &mut self,
        index: usize,
        block: &mut BlockParams,
        maxima: &SiteMaxima,
    ) -> Result<(), PipelineError> {
        let Some(settings) = self.plan.recipe.smoothquant else { return Ok(()) };
        let started = Instant::now();
        self.phase("smoothquant")?;
        for edge in &SCALE_EDGES {
            let roles = edge.site.stage().linears;
            // Nothing to gain where the linears stay float.
            if roles.iter().all(|role| self.plan.blocks[index][role].scheme.is_float()) {
                continue;
            }
            let at = || self.plan.spec.norm(index, edge.norm);
            let mut weights: Vec<&mut Array2<f32>> = Vec::new();
            for (role, linear) in &mut block.linears {
                if let (true, quant_graph::LinearWeight::Float(w)) =
                    (roles.contains(role), &mut linear.weight)
                {
                    weights.push(w);
                }
            }
            let views: Vec<_> = weights.iter().map(|w| w.view()).collect();
            let factors = smoothquant::factors(&settings, maxima[&edge.site].view(), &views)
                .map_err(PipelineError::method(at()))?;
            drop(views);
            if let Some(norm) = block.norms.get_mut(&edge.norm) {
                smoothquant::apply(factors.view(), norm, &mut weights, self.plan.norm_type)
                    .map_err(PipelineError::method(at()))?;
            }
        }
        debug_assert!(
            Role::ALL.iter().all(|r| block.linears.contains_key(r)),
            "a source hands out whole blocks"
        );
        self.spent("smoothquant", started);
        Ok(())
    }
}

fn update(maxima: &mut SiteMaxima, site: Site, x: &Array2<f32>) {
    if let Some(max) = maxima.get_mut(&site) {
        vectorized(
            #[inline(always)]
            || max.observe(x.view()),
        );
    }
}
