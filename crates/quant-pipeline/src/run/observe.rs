//! Statistics from one pass of the calibration tokens through a whole block.

use super::Run;
use super::stream::ActivationStream;
use crate::PipelineError;
use crate::events::{Asked, Event};
use ndarray::{Array2, ArrayViewMut2};
use quant_core::ActQuant;
use quant_graph::{BlockParams, BlockSpec, LinearId, Site, StageSpec};
use quant_kernels::Work;
use quant_methods::{Batch, BlockContext, Gathered, SiteStatistics};
use quant_model::{Block, BlockRunner, See, StageScratch, Walk, fake_quantized};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::time::Instant;

/// What is gathered of a block, by site.
pub(super) type BlockStatistics = BTreeMap<Site, SiteStatistics>;

impl Run<'_> {
    /// Room for what is asked for of the float stream at every site of a block.
    pub(super) fn float_statistics(&self, index: usize, spec: &BlockSpec) -> BlockStatistics {
        let room = |stage: &StageSpec| {
            let float =
                Gathered::new(&self.plan.needs_at(index, stage).float, stage.width, &self.layout.starts);
            (stage.site, SiteStatistics { float, ..SiteStatistics::default() })
        };
        spec.stages.iter().map(room).collect()
    }
    /// Room for what is asked for of the deployed stream at one site: made when its tokens come, because second moments are
    /// large.
    pub(super) fn deployed_statistics(&self, index: usize, stage: &StageSpec) -> Gathered {
        Gathered::new(&self.plan.needs_at(index, stage).deployed, stage.width, &self.layout.starts)
    }

    /// The block as it was read, its floats borrowed.
    pub(super) fn float_block(
        &self,
        index: usize,
        params: &BlockParams,
    ) -> Result<Block<f32>, PipelineError> {
        let mut block = self.block_without_linears(index, params)?;
        for (&id, linear) in &params.linears {
            block.set_linear(id, linear, self.par())?;
        }
        Ok(block)
    }

    /// Takes the float stream through a block and gathers what is asked for of it. The stream goes on behind the block, or
    /// with `stay` keeps the block's input.
    pub(super) fn observe(
        &mut self,
        index: usize,
        block: &Block<f32>,
        stream: &mut ActivationStream,
        statistics: &mut BlockStatistics,
        stay: bool,
    ) -> Result<(), PipelineError> {
        let started = Instant::now();
        self.phase("float statistics")?;
        // Behind the last block nobody reads it.
        let stay = stay || index + 1 == self.plan.spec.layers;
        let last = statistics.iter().rev().find(|(_, s)| !s.float.is_empty()).map(|(site, _)| *site);
        if stay && last.is_none() {
            return Ok(());
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        for chunk in &self.layout.chunks {
            self.go_on()?;
            let rows = self.layout.rows_of(chunk);
            let mut pass = |h: ArrayViewMut2<'_, f32>, scratch: &mut StageScratch<f32>| {
                self.walk(index, block, chunk, h, scratch, &mut |site, x| {
                    if let Some(seen) = statistics.get_mut(&site) {
                        self.gather(&mut seen.float, &Batch::new(x, chunk.len()), index, site)?;
                    }
                    Ok(if stay && Some(site) == last {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    })
                })
            };
            if stay {
                let mut copy = stream.residual.read(rows)?.into_owned();
                pass(copy.view_mut(), &mut scratch)?;
            } else {
                stream.residual.modify::<PipelineError>(rows, |h| pass(h, &mut scratch))?;
            }
        }
        self.scratch = scratch;
        self.spent("float statistics", started);
        Ok(())
    }

    /// Statistics of the deployed stream at all sites from one pass through the unquantised block, whose input the stream
    /// keeps (`true_sequential: false`); `cached` is that block with the cache of the deployed stream. Where both streams are
    /// looked at together the float stream goes through first and goes on behind the block.
    pub(super) fn observe_ahead(
        &mut self,
        index: usize,
        (block, cached): (&Block<f32>, &Block<f32>),
        inputs: &BTreeMap<Site, ActQuant>,
        (deployed, mut float): (&ActivationStream, Option<&mut ActivationStream>),
        statistics: &mut BlockStatistics,
    ) -> Result<(), PipelineError> {
        self.phase("statistics")?;
        let started = Instant::now();
        let mut scratch = std::mem::take(&mut self.scratch);
        for chunk in &self.layout.chunks {
            self.go_on()?;
            let rows = self.layout.rows_of(chunk);
            let mut beside: BTreeMap<Site, Array2<f32>> = BTreeMap::new();
            if let Some(float) = &mut float {
                float.residual.modify::<PipelineError>(rows.clone(), |h| {
                    self.walk(index, block, chunk, h, &mut scratch, &mut |site, x| {
                        beside.insert(site, x.to_owned());
                        Ok(ControlFlow::Continue(()))
                    })
                })?;
            }
            let mut copy = deployed.residual.read(rows)?.into_owned();
            self.walk(index, cached, chunk, copy.view_mut(), &mut scratch, &mut |site, x| {
                if let Some(seen) = statistics.get_mut(&site) {
                    let multiplied = inputs.get(&site).map(|input| fake_quantized(input, x, self.par()));
                    let batch = Batch {
                        multiplied: multiplied.as_ref().map(|x| x.view()),
                        float: beside.get(&site).map(|x| x.view()),
                        ..Batch::new(x, chunk.len())
                    };
                    self.gather(&mut seen.deployed, &batch, index, site)?;
                }
                // What down computes is seen by nobody.
                let ends = site == Site::MlpActivation;
                Ok(if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        self.scratch = scratch;
        self.spent("statistics", started);
        Ok(())
    }

    /// One chunk of sequences through a block.
    fn walk(
        &self,
        index: usize,
        block: &Block<f32>,
        chunk: &Range<usize>,
        mut h: ArrayViewMut2<'_, f32>,
        scratch: &mut StageScratch<f32>,
        see: &mut See<'_, f32, PipelineError>,
    ) -> Result<(), PipelineError> {
        let rows = self.layout.rows_of(chunk);
        let rope = &self.rope;
        let table = |length| rope.table(length);
        let walk = Walk { starts: self.layout.starts_of(chunk), rope: &table };
        block.walk(h.view_mut(), &walk, rows.len(), scratch, see, self.par())?;
        self.check_finite(h.view(), rows.start, &format!("the output of float block {index}"))
    }

    /// What quantises the input of each site on its way to the products, where calibration does that: of linears that differ, the
    /// first. `params` has what was learned.
    pub(super) fn inputs_in_calibration(
        &self,
        index: usize,
        params: &BlockParams,
    ) -> BTreeMap<Site, ActQuant> {
        let mut inputs = BTreeMap::new();
        if self.plan.recipe.activations().in_calibration {
            for (id, linear) in self.linears(index) {
                let learned = params.linears.get(id).and_then(|linear| linear.input);
                if let Some(input) = learned.or_else(|| linear.scheme.input?.dynamic()) {
                    inputs.entry(id.site()).or_insert(input);
                }
            }
        }
        inputs
    }

    /// Adds activations to what is gathered of them.
    pub(super) fn gather(
        &self,
        gathered: &mut Gathered,
        batch: &Batch<'_>,
        index: usize,
        site: Site,
    ) -> Result<(), PipelineError> {
        gathered
            .add(batch, self.plan.recipe.statistics(), self.par())
            .map_err(PipelineError::hessian(format!("block {index}, {site:?}")))
    }

    /// Rewrites the block by every transform of the recipe, and says the same of what was gathered of it. `runner` is the
    /// block as it was read, if it is there.
    pub(super) fn transform(
        &mut self,
        index: usize,
        params: &mut BlockParams,
        runner: Option<Block<f32>>,
        statistics: &mut BlockStatistics,
    ) -> Result<(), PipelineError> {
        let plan = self.plan;
        let spec = plan.block(index);
        let planned = plan.blocks[index].iter();
        let grids: BTreeMap<LinearId, _> = planned
            .filter_map(|(id, linear)| {
                let rounding = linear.rounding.as_ref()?;
                Some((*id, (rounding.grid, rounding.weight.group)))
            })
            .collect();
        if plan.recipe.transforms().is_empty() || self.transform_as_known(index, params, statistics)? {
            return Ok(());
        }
        self.settle()?;
        let mut runner = runner;
        let mut done = Vec::new();
        for transform in plan.recipe.transforms() {
            let started = Instant::now();
            let id = transform.method().id;
            self.phase(id)?;
            if transform.runs_block() && runner.is_none() {
                runner = Some(self.float_block(index, params)?);
            }
            let par = self.par();
            let asked = Asked::new(self.events);
            let stop = || asked.stop();
            let running = runner.as_ref().map(|block| BlockRunner { block, rope: &self.rope });
            let context = BlockContext {
                block: &spec,
                scheme: &plan.scheme.blocks[index],
                grids: &grids,
                norm_type: plan.norm_type,
                forward: running.as_ref().map(|r| r as _),
                work: Work::until(par, &stop),
            };
            let at = || PipelineError::method(plan.spec.block_prefix(index));
            let scaled = transform.apply(params, statistics, context).map_err(at())?;
            for (site, factors) in &scaled {
                if let Some(seen) = statistics.get_mut(site) {
                    seen.float.divide(factors.view()).map_err(at())?;
                }
            }
            done.push(scaled);
            self.events.event(Event::Rewritten { by: id, block: params });
            // It computed the same, but its weights are others now.
            runner = None;
            self.spent(id, started);
        }
        self.keep_transformed(index, params, done)
    }
}
