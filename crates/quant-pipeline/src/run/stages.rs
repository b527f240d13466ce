//! The quantised stream through one block, stage by stage.

use super::Run;
use super::stats::{InputStats, KvMaxima, dynamic_kv};
use crate::PipelineError;
use crate::store::Store;
use crate::views;
use ndarray::Array2;
use quant_core::KvGranularity;
use quant_graph::{BlockParams, LinearParams, LinearWeight, Role, Site};
use quant_model::{Block, KvObserver};
use std::collections::BTreeMap;
use std::time::Instant;

/// The activations of all tokens inside a block.
struct Inside<'a> {
    /// Residual stream, `[tokens, hidden]`.
    residual: &'a mut Store,
    /// Input of o, `[tokens, heads · head_dim]`, while it is needed.
    attended: Option<Store>,
    /// Input of down, `[tokens, intermediate]`, while it is needed.
    activated: Option<Store>,
}

impl Run<'_> {
    /// Quantises a block on the quantised stream and advances the stream through the result.
    pub(super) fn quantize_in_stream(
        &mut self,
        index: usize,
        params: BlockParams,
        residual: &mut Store,
    ) -> Result<BlockParams, PipelineError> {
        let mut pending = params;
        let mut finished = BTreeMap::new();
        let mut kv = dynamic_kv(self.plan.scheme.kv);
        let kv_static = self.plan.scheme.kv.filter(|k| k.granularity == KvGranularity::ChannelStatic);
        let norms = pending.norms.clone();
        let empty = BlockParams { linears: BTreeMap::new(), norms: norms.clone(), kv: None };
        let mut block = Block::<f32>::new(&self.plan.spec, index, empty, self.plan.recipe.compute)?;

        let mut ahead = if self.plan.true_sequential() {
            BTreeMap::new()
        } else {
            self.statistics_of_float_block(index, &pending, residual)?
        };
        let mut inside = Inside { residual, attended: None, activated: None };
        for site in Site::ALL {
            let stats = match ahead.remove(&site) {
                Some(stats) => stats,
                None => self.statistics(index, site, &block, &inside)?,
            };
            for (role, linear) in self.round_stage(index, site, &mut pending, stats)? {
                block.set_linear(role, self.as_calibrated(&linear))?;
                finished.insert(role, linear);
            }
            let mut maxima =
                (site == Site::AttentionInput && kv_static.is_some()).then(|| KvMaxima::new(&self.plan.spec));
            // The output of the last stage of the last block feeds nothing here.
            if site != Site::MlpActivation || index + 1 < self.plan.spec.layers {
                let observer = maxima.as_mut().map(|m| m as &mut dyn KvObserver<f32>);
                self.advance(index, site, &block, &mut inside, observer)?;
            }
            if let (Some(maxima), Some(scheme)) = (&maxima, kv_static) {
                kv = Some(maxima.quant(scheme, self.plan.scale_type));
            }
            // A stage's float and dequantised weights are of no more use.
            for &role in site.stage().linears {
                block.clear_linear(role);
            }
        }
        Ok(BlockParams { linears: finished, norms, kv })
    }

    /// A finished linear as calibration runs it: its input quantised only if the recipe says so.
    fn as_calibrated(&self, linear: &LinearParams) -> LinearParams {
        let input = linear.input.filter(|_| self.plan.recipe.activations.in_calibration);
        LinearParams { input, ..linear.clone() }
    }

    /// Statistics of a stage's input over all tokens.
    fn statistics(
        &mut self,
        index: usize,
        site: Site,
        block: &Block<f32>,
        inside: &Inside<'_>,
    ) -> Result<InputStats, PipelineError> {
        self.phase("statistics")?;
        let started = Instant::now();
        let mut stats = InputStats::new(self, index, site);
        let at = format!("block {index}, {site:?}");
        for chunk in &self.layout.chunks {
            self.go_on()?;
            let x = self.input(site, block, inside, chunk)?;
            stats.add(self, x.view(), chunk.len(), &at)?;
        }
        self.spent("statistics", started);
        Ok(stats)
    }

    /// A stage's input for one chunk of sequences, `[rows, features]`.
    fn input<'s>(
        &self,
        site: Site,
        block: &Block<f32>,
        inside: &'s Inside<'_>,
        chunk: &std::ops::Range<usize>,
    ) -> Result<ndarray::CowArray<'s, f32, ndarray::Ix2>, PipelineError> {
        let rows = self.layout.rows_of(chunk);
        let stored = |store: &'s Option<Store>| match store {
            Some(store) => store.read(rows.clone()),
            None => Ok(Array2::zeros((0, 0)).into()),
        };
        let par = self.par();
        match site {
            Site::AttentionInput => {
                Ok(block.attention_input(inside.residual.read(rows)?.view(), par)?.into())
            }
            Site::AttentionOutput => stored(&inside.attended),
            Site::MlpInput => Ok(block.mlp_input(inside.residual.read(rows)?.view(), par)?.into()),
            Site::MlpActivation => stored(&inside.activated),
        }
    }

    /// Runs the linears of a stage over all tokens.
    fn advance(
        &mut self,
        index: usize,
        site: Site,
        block: &Block<f32>,
        inside: &mut Inside<'_>,
        mut observer: Option<&mut dyn KvObserver<f32>>,
    ) -> Result<(), PipelineError> {
        self.phase("forward")?;
        let started = Instant::now();
        let spec = &self.plan.spec;
        let par = self.par();
        let mut out = match site {
            Site::AttentionInput | Site::MlpInput => Some(self.store(match site {
                Site::AttentionInput => spec.query_width(),
                _ => spec.intermediate,
            })?),
            _ => None,
        };
        for chunk in &self.layout.chunks {
            self.go_on()?;
            let rows = self.layout.rows_of(chunk);
            let y = {
                let x = self.input(site, block, inside, chunk)?;
                match site {
                    Site::AttentionInput => self.by_sequence(chunk, spec.query_width(), |rows| {
                        // The reborrow has to be written out: a trait object's lifetime does not shrink inside an Option.
                        #[expect(clippy::manual_map, reason = "map does not shrink the lifetime")]
                        let observer = match &mut observer {
                            Some(o) => Some(&mut **o as &mut dyn KvObserver<f32>),
                            None => None,
                        };
                        Ok(block.attention(views::rows(&x, rows), &self.rope, observer, par)?)
                    })?,
                    Site::AttentionOutput => block.attention_output(x.view(), par)?,
                    Site::MlpInput => block.mlp_activation(x.view(), par)?,
                    Site::MlpActivation => block.mlp_output(x.view(), par)?,
                }
            };
            match &mut out {
                Some(store) => {
                    self.check_finite(&y, rows.start, &format!("block {index}, after {site:?}"))?;
                    store.write(rows.start, y.view())?;
                }
                None => {
                    let mut h = inside.residual.read(rows.clone())?.into_owned();
                    h += &y;
                    self.check_finite(&h, rows.start, &format!("block {index}, after {site:?}"))?;
                    inside.residual.write(rows.start, h.view())?;
                }
            }
        }
        match site {
            Site::AttentionInput => inside.attended = out,
            Site::AttentionOutput => inside.attended = None,
            Site::MlpInput => inside.activated = out,
            Site::MlpActivation => inside.activated = None,
        }
        self.spent("forward", started);
        Ok(())
    }

    /// Statistics of all stages from one pass through the unquantised block (`true_sequential: false`).
    fn statistics_of_float_block(
        &mut self,
        index: usize,
        params: &BlockParams,
        residual: &mut Store,
    ) -> Result<BTreeMap<Site, InputStats>, PipelineError> {
        let block = Block::<f32>::new(&self.plan.spec, index, params.clone(), self.plan.recipe.compute)?;
        // The stream itself must stay at the block's input: the quantised block runs over it afterwards.
        let mut copy = self.store(self.plan.spec.hidden)?;
        for chunk in &self.layout.chunks {
            let rows = self.layout.rows_of(chunk);
            copy.write(rows.start, residual.read(rows)?.view())?;
        }
        let mut inside = Inside { residual: &mut copy, attended: None, activated: None };
        let mut all = BTreeMap::new();
        for site in Site::ALL {
            all.insert(site, self.statistics(index, site, &block, &inside)?);
            if site != Site::MlpActivation {
                self.advance(index, site, &block, &mut inside, None)?;
            }
        }
        debug_assert!(Role::ALL.iter().all(|r| matches!(params.linears[r].weight, LinearWeight::Float(_))));
        Ok(all)
    }
}
