//! The quantised stream through one block, stage by stage.

use super::Run;
use super::stats::{InputStats, KvMaxima, dynamic_kv};
use crate::PipelineError;

use crate::views;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2};
use quant_core::KvGranularity;
use quant_graph::{BlockParams, Site};
use quant_kernels::Par;
use quant_model::{Block, KvObserver, RowStore};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

/// The activations of all tokens inside a block.
struct Inside<'a> {
    /// Residual stream, `[tokens, hidden]`.
    residual: &'a mut RowStore,
    wide: Wide,
}

/// The wide activations inside a block. They keep their memory from block to block: fresh pages cost more than the
/// numbers written to them.
#[derive(Debug, Default)]
pub(super) struct Wide {
    /// Input of o, `[tokens, heads · head_dim]`.
    attended: Option<RowStore>,
    /// Input of down, `[tokens, intermediate]`.
    activated: Option<RowStore>,
    /// What up computes of one chunk.
    pub(super) up: Vec<f32>,
    /// Input of down of one chunk, where not all of it is kept.
    pub(super) gated: Vec<f32>,
}

impl Run<'_> {
    /// Quantises a block on the quantised stream and advances the stream through the result.
    pub(super) fn quantize_in_stream(
        &mut self,
        index: usize,
        params: BlockParams,
        residual: &mut RowStore,
    ) -> Result<BlockParams, PipelineError> {
        let mut pending = params;
        let mut finished = BTreeMap::new();
        let mut kv = dynamic_kv(self.plan.scheme.kv);
        let kv_static = self.plan.scheme.kv.filter(|k| k.granularity == KvGranularity::ChannelStatic);
        let norms = pending.norms.clone();
        let mut block = self.block_without_linears(index, &pending)?;

        let mut ahead = if self.plan.true_sequential() {
            BTreeMap::new()
        } else {
            self.statistics_of_float_block(index, &pending, residual)?
        };
        let mut inside = Inside { residual, wide: std::mem::take(&mut self.wide) };
        for site in Site::ALL {
            let stats = match ahead.remove(&site) {
                Some(stats) => stats,
                None => self.statistics(index, site, &block, &inside)?,
            };
            for (role, mut linear) in self.round_stage(index, site, &mut pending, stats)? {
                // Calibration quantises inputs only if the recipe says so.
                let input = linear.input;
                linear.input = input.filter(|_| self.plan.recipe.activations().in_calibration);
                block.set_linear(role, &linear, self.par())?;
                linear.input = input;
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
        self.wide = inside.wide;
        Ok(BlockParams { linears: finished, norms, kv })
    }

    /// A block whose linears are still to be set.
    fn block_without_linears(&self, index: usize, params: &BlockParams) -> Result<Block<f32>, PipelineError> {
        let empty = BlockParams { linears: BTreeMap::new(), norms: params.norms.clone(), kv: None };
        Ok(Block::new(&self.plan.spec, index, empty, self.plan.recipe.compute(), self.par())?)
    }

    /// The block as it was read, its floats borrowed.
    pub(super) fn float_block(
        &self,
        index: usize,
        params: &BlockParams,
    ) -> Result<Block<f32>, PipelineError> {
        let mut block = self.block_without_linears(index, params)?;
        for (&role, linear) in &params.linears {
            block.set_linear(role, linear, self.par())?;
        }
        Ok(block)
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
        chunk: &Range<usize>,
    ) -> Result<CowArray<'s, f32, Ix2>, PipelineError> {
        let rows = self.layout.rows_of(chunk);
        let stored = |store: &'s Option<RowStore>| match store {
            Some(store) => Ok(store.read(rows.clone())?),
            None => Ok(Array2::zeros((0, 0)).into()),
        };
        let par = self.par();
        match site {
            Site::AttentionInput => {
                Ok(block.attention_input(inside.residual.read(rows)?.view(), par)?.into())
            }
            Site::AttentionOutput => stored(&inside.wide.attended),
            Site::MlpInput => Ok(block.mlp_input(inside.residual.read(rows)?.view(), par)?.into()),
            Site::MlpActivation => stored(&inside.wide.activated),
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
        let par = self.par();
        let at = format!("block {index}, after {site:?}");
        let mut wide = match site {
            Site::AttentionInput => {
                Some(self.wide_store(inside.wide.attended.take(), Site::AttentionOutput)?)
            }
            Site::MlpInput => Some(self.wide_store(inside.wide.activated.take(), Site::MlpActivation)?),
            Site::AttentionOutput | Site::MlpActivation => None,
        };
        let mut up = std::mem::take(&mut inside.wide.up);
        for chunk in &self.layout.chunks {
            self.go_on()?;
            let rows = self.layout.rows_of(chunk);
            if let Some(store) = &mut wide {
                let x = self.input(site, block, inside, chunk)?;
                store.overwrite(rows.clone(), |mut out| {
                    if site == Site::MlpInput {
                        block.mlp_activation_into(x.view(), out.view_mut(), &mut up, par)?;
                    } else {
                        self.attend(block, chunk, x.view(), out.view_mut(), reborrow(&mut observer))?;
                    }
                    self.check_finite(out.view(), rows.start, &at)
                })?;
                continue;
            }
            let y = {
                let x = self.input(site, block, inside, chunk)?;
                match site {
                    Site::AttentionOutput => block.attention_output(x.view(), par)?,
                    _ => block.mlp_output(x.view(), par)?,
                }
            };
            inside.residual.modify(rows.clone(), |mut h| {
                add(h.view_mut(), y.view(), par);
                self.check_finite(h.view(), rows.start, &at)
            })?;
        }
        inside.wide.up = up;
        match site {
            Site::AttentionInput => inside.wide.attended = wide,
            Site::MlpInput => inside.wide.activated = wide,
            Site::AttentionOutput | Site::MlpActivation => {}
        }
        self.spent("forward", started);
        Ok(())
    }

    /// The store of an earlier block, or a new one.
    fn wide_store(&self, kept: Option<RowStore>, site: Site) -> Result<RowStore, PipelineError> {
        kept.map_or_else(|| self.store(self.plan.spec.site_width(site)), Ok)
    }

    /// Attention of every sequence of a chunk, each alone.
    pub(super) fn attend(
        &self,
        block: &Block<f32>,
        chunk: &Range<usize>,
        x: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
        mut observer: Option<&mut dyn KvObserver<f32>>,
    ) -> Result<(), PipelineError> {
        let first = self.layout.starts[chunk.start];
        for sequence in chunk.clone() {
            let rows = self.layout.starts[sequence] - first..self.layout.starts[sequence + 1] - first;
            let rope = self.rope.table(rows.len());
            let (x, out) = (views::rows(&x, rows.clone()), views::rows_mut(&mut out, rows));
            block.attention_into(x, rope, reborrow(&mut observer), out, self.par())?;
        }
        Ok(())
    }

    /// Statistics of all stages from one pass through the unquantised block (`true_sequential: false`).
    fn statistics_of_float_block(
        &mut self,
        index: usize,
        params: &BlockParams,
        residual: &mut RowStore,
    ) -> Result<BTreeMap<Site, InputStats>, PipelineError> {
        let block = self.float_block(index, params)?;
        // The stream itself must stay at the block's input: the quantised block runs over it afterwards.
        let mut copy = self.copy_of(residual)?;
        let mut inside = Inside { residual: &mut copy, wide: std::mem::take(&mut self.wide) };
        let mut all = BTreeMap::new();
        for site in Site::ALL {
            all.insert(site, self.statistics(index, site, &block, &inside)?);
            if site != Site::MlpActivation {
                self.advance(index, site, &block, &mut inside, None)?;
            }
        }
        self.wide = inside.wide;
        Ok(all)
    }
}

/// A trait object for a shorter while; its lifetime does not shrink inside an `Option` by itself.
fn reborrow<'o>(observer: &'o mut Option<&mut dyn KvObserver<f32>>) -> Option<&'o mut dyn KvObserver<f32>> {
    match observer {
        Some(observer) => Some(&mut **observer),
        None => None,
    }
}

/// `h += y`, rows in parallel.
pub(super) fn add(mut h: ArrayViewMut2<'_, f32>, y: ArrayView2<'_, f32>, par: Par) {
    const ROWS: usize = 64;
    if par == Par::Seq {
        h += &y;
        return;
    }
    let pairs: Vec<_> =
        h.axis_chunks_iter_mut(Axis(0), ROWS).zip(y.axis_chunks_iter(Axis(0), ROWS)).collect();
    pairs.into_par_iter().for_each(|(mut h, y)| h += &y);
}
