//! The float stream: channel maxima for transforms, gathered while the unquantised model runs.

use super::Run;
use super::stages::add;
use crate::PipelineError;
use crate::views;
use ndarray::Array2;
use quant_core::ChannelMaxima;
use quant_graph::{BlockParams, SCALE_EDGES, Site};
use quant_kernels::vectorized;
use quant_methods::{BlockContext, Statistics};
use quant_model::RowStore;
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
        stream: &mut RowStore,
    ) -> Result<Statistics, PipelineError> {
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
        Ok(Statistics { channel_max: maxima })
    }

    /// Rewrites the block by every transform of the recipe.
    pub(super) fn transform(
        &mut self,
        index: usize,
        block: &mut BlockParams,
        statistics: &Statistics,
    ) -> Result<(), PipelineError> {
        let context =
            BlockContext { scheme: &self.plan.scheme.blocks[index], norm_type: self.plan.norm_type };
        for transform in self.plan.recipe.transforms() {
            let started = Instant::now();
            let id = transform.method().id;
            self.phase(id)?;
            let at = self.plan.spec.block_prefix(index);
            transform.apply(block, statistics, context).map_err(PipelineError::method(at))?;
            self.spent(id, started);
        }
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
