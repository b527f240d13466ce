//! The deployed stream through one block, stage by stage.

use super::Run;
use super::observe::BlockStatistics;
use super::stats::dynamic_kv;
use super::stream::ActivationStream;
use crate::PipelineError;
use quant_core::ActQuant;
use quant_graph::{BlockParams, Site, StageSpec};
use quant_kernels::return_freed_memory;
use quant_methods::{Batch, FloatStream, Gathered};
use quant_model::{Block, fake_quantized};
use std::collections::BTreeMap;
use std::time::Instant;

impl Run<'_> {
    /// Quantises a block on the deployed stream and advances the stream through the result. A float stream that is looked at
    /// together with it goes through the float block `params`, as the transforms left it, in step.
    pub(super) fn quantize_in_stream(
        &mut self,
        index: usize,
        params: BlockParams,
        deployed: &mut ActivationStream,
        mut float: Option<&mut ActivationStream>,
        mut statistics: BlockStatistics,
    ) -> Result<BlockParams, PipelineError> {
        let plan = self.plan;
        let mut pending = params;
        let mut finished = BTreeMap::new();
        // That of a learner, if there was one.
        let mut kv = pending.kv.take().or_else(|| dynamic_kv(plan));
        let inputs = self.inputs_in_calibration(index, &pending);
        let (norms, online) = (pending.norms.clone(), pending.online.clone());
        let spec = plan.spec.block(index);
        let last = index + 1 == plan.spec.layers;
        if !plan.true_sequential() {
            let block = self.float_block(index, &pending)?;
            let float = float.take();
            for stage in spec.stages.iter().filter(|stage| !self.state.knows(index, &stage.linears)) {
                let seen = statistics.entry(stage.site).or_default();
                seen.deployed = self.deployed_statistics(index, stage);
            }
            let cached = self.cached_ahead(&block, kv.as_ref(), deployed)?;
            self.observe_ahead(index, (&block, &cached), &inputs, (deployed, float), &mut statistics)?;
        }
        let mut block = self.block_without_linears(index, &pending)?;
        for stage in &spec.stages {
            let site = stage.site;
            let mut seen = statistics.remove(&site).unwrap_or_default();
            if plan.true_sequential() && !self.state.knows(index, &stage.linears) {
                let beside = float.as_deref();
                seen.deployed = self.deployed_statistics(index, stage);
                let input = inputs.get(&site);
                self.look(index, stage, &block, (deployed, beside, input), &mut seen.deployed)?;
            }
            // The output of the last stage of the last block feeds nothing but the head.
            let ends = site == Site::MlpActivation;
            let goes_on = !ends || !last;
            let anew = plan.streams.together == Some(FloatStream::Block);
            if let Some(float) = float.as_deref_mut().filter(|_| goes_on && !(ends && anew)) {
                self.advance_float(index, stage, &pending, float)?;
            }
            for (id, mut linear) in self.finish_stage(index, stage, &mut pending, seen)? {
                // Calibration quantises inputs only if the recipe says so.
                let input = linear.input;
                linear.input = input.filter(|_| plan.recipe.activations().in_calibration);
                block.set_linear(id, &linear, self.par())?;
                linear.input = input;
                finished.insert(id, linear);
            }
            match plan.scheme.kv.filter(|_| site == Site::AttentionInput) {
                Some(scheme) => kv = self.advance_cached(index, scheme, kv, &mut block, deployed)?,
                None if goes_on || !plan.needs_of_head().is_empty() => {
                    deployed.advance(self, index, site, &block, None)?;
                }
                None => {}
            }
            // A stage's float and dequantised weights are of no more use.
            for &id in &stage.linears {
                block.clear_linear(id);
            }
        }
        Ok(BlockParams { linears: finished, norms, online, kv })
    }

    /// A block whose linears are still to be set.
    pub(super) fn block_without_linears(
        &self,
        index: usize,
        params: &BlockParams,
    ) -> Result<Block<f32>, PipelineError> {
        let empty = BlockParams {
            linears: BTreeMap::new(),
            norms: params.norms.clone(),
            online: params.online.clone(),
            kv: None,
        };
        Ok(Block::new(&self.plan.spec, index, empty, self.plan.recipe.compute(), self.par())?)
    }

    /// Gathers what is asked for of a stage's input in the deployed stream, and in the float stream beside it.
    fn look(
        &mut self,
        index: usize,
        stage: &StageSpec,
        block: &Block<f32>,
        (deployed, float, input): (&ActivationStream, Option<&ActivationStream>, Option<&ActQuant>),
        gathered: &mut Gathered,
    ) -> Result<(), PipelineError> {
        self.phase("statistics")?;
        let started = Instant::now();
        // What is gathered and prepared next is large; what the stage before left must not lie beside it.
        return_freed_memory();
        for chunk in &self.layout.chunks {
            self.go_on()?;
            let x = deployed.input(self, stage.site, block, chunk)?;
            // Norms are no linears: both streams are looked at behind the same.
            let beside = float.map(|f| f.input(self, stage.site, block, chunk)).transpose()?;
            let multiplied = input.map(|input| fake_quantized(input, x.view(), self.par()));
            let batch = Batch {
                multiplied: multiplied.as_ref().map(|x| x.view()),
                float: beside.as_ref().map(|x| x.view()),
                ..Batch::new(x.view(), chunk.len())
            };
            self.gather(gathered, &batch, index, stage.site)?;
        }
        for stream in float.into_iter().chain([deployed]) {
            stream.rest();
        }
        self.spent("statistics", started);
        Ok(())
    }

    /// Takes the float stream through one stage of the float block.
    fn advance_float(
        &mut self,
        index: usize,
        stage: &StageSpec,
        params: &BlockParams,
        float: &mut ActivationStream,
    ) -> Result<(), PipelineError> {
        let mut block = self.block_without_linears(index, params)?;
        for id in &stage.linears {
            if let Some(linear) = params.linears.get(id) {
                block.set_linear(*id, linear, self.par())?;
            }
        }
        float.advance(self, index, stage.site, &block, None)
    }
}
