//! All streams through all blocks, each block read once.

use super::finished::Finished;
use super::keys::{KeyError, KeyProbe};
use super::observe::{Observed, Observer, unquantised};
use super::report::{BlockAnalysis, LinearAnalysis};
use crate::PipelineError;
use crate::events::{Event, Events};
use crate::layout::Layout;
use crate::plan::Plan;
use crate::report::LinearReport;
use crate::run::{RunOptions, quantize_single};
use crate::streams::Carrier;
use quant_checkpoint::FolderSource;
use quant_graph::{BlockParams, BlockSource};
use quant_kernels::return_freed_memory;
use quant_model::{Block, RowStore};
use std::time::Instant;

/// Where quantised blocks are from.
pub(super) enum Quantised {
    /// The recipe makes them.
    Recipe,
    /// A finished output has them.
    Folder(Box<(FolderSource, Finished)>),
}

impl Quantised {
    pub(super) fn folder(finished: Finished) -> Result<Self, PipelineError> {
        let source = finished.folder.source()?;
        Ok(Self::Folder(Box::new((source, finished))))
    }
}

/// A float block on the way to the quantised one, and what made it.
type Rewritten = Vec<(String, BlockParams)>;

/// Keeps what transforms make of a block, and passes everything else on.
struct Watch<'e> {
    events: &'e mut dyn Events,
    untrained: bool,
    rewritten: Rewritten,
}

impl Events for Watch<'_> {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Rewritten { by, block } => {
                let after = if self.untrained { format!("{by} (untrained)") } else { by.to_owned() };
                self.rewritten.push((after, unquantised(block.clone())));
            }
            other => self.events.event(other),
        }
    }
    fn cancelled(&self) -> bool {
        self.events.cancelled()
    }
}

/// One pass of everything over the blocks.
pub(super) struct Pass<'a> {
    plan: &'a Plan,
    layout: &'a Layout,
    options: &'a RunOptions,
    events: &'a mut dyn Events,
    carrier: Carrier<'a>,
    /// Where the cache is quantised.
    probe: Option<KeyProbe>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        layout: &'a Layout,
        options: &'a RunOptions,
        events: &'a mut dyn Events,
    ) -> Self {
        Self {
            plan,
            layout,
            options,
            events,
            carrier: Carrier::new(
                &plan.spec,
                layout,
                plan.recipe.compute(),
                options.spill.as_deref(),
                options.par,
            ),
            probe: plan.scheme.kv.map(|_| KeyProbe::new(&plan.spec, layout)),
        }
    }

    /// What is found of each block, and the streams behind the last one: that of the float model, and of it with each block
    /// quantised. `original` is the model before a transform of the whole of it, where `source` is behind one.
    pub(super) fn run(
        mut self,
        source: &mut dyn BlockSource,
        mut original: Option<&mut dyn BlockSource>,
        by: &mut Quantised,
        sequences: &[Vec<u32>],
    ) -> Result<(Vec<BlockAnalysis>, Vec<RowStore>), PipelineError> {
        let of = self.plan.spec.layers;
        let mut streams = vec![self.carrier.embedded(source, sequences)?];
        let mut before = match &mut original {
            Some(original) => Some(self.carrier.embedded(&mut **original, sequences)?),
            None => None,
        };
        let mut blocks = Vec::with_capacity(of);
        for index in 0..of {
            let began = Instant::now();
            return_freed_memory();
            self.events.event(Event::Block { index, of });
            self.events.phase("read")?;
            let params = source.block(index)?;
            let (finished, rewritten, linears) = self.quantised(index, &params, by, &streams[0])?;
            let mut block = self.one(index, params, (finished, rewritten), &mut streams)?;
            if let (Some(original), Some(stream)) = (&mut original, &mut before) {
                self.before_whole(index, &mut **original, stream, &mut block.activations)?;
            }
            block.linears = linears;
            blocks.push(block);
            self.events.event(Event::BlockDone { index, of, seconds: began.elapsed().as_secs_f64() });
        }
        Ok((blocks, streams))
    }

    /// The activations of each block alone, before and behind what rewrites it, on the stream of the float model: what [`Self::run`] says
    /// of them, with as many passes of the sample through a block as it takes for that.
    pub(super) fn activations(
        mut self,
        source: &mut dyn BlockSource,
        mut original: Option<&mut dyn BlockSource>,
        by: &mut Quantised,
        sequences: &[Vec<u32>],
    ) -> Result<Vec<Vec<Observed>>, PipelineError> {
        let of = self.plan.spec.layers;
        let mut stream = self.carrier.embedded(source, sequences)?;
        let mut before = match &mut original {
            Some(original) => Some(self.carrier.embedded(&mut **original, sequences)?),
            None => None,
        };
        let mut blocks = Vec::with_capacity(of);
        for index in 0..of {
            return_freed_memory();
            self.events.event(Event::Block { index, of });
            self.events.phase("read")?;
            let params = source.block(index)?;
            let (_, rewritten, _) = self.quantised(index, &params, by, &stream)?;
            let behind = self.behind(index, rewritten, &stream)?;
            self.events.phase("statistics")?;
            let mut observer = Observer::new(&self.plan.spec, self.plan.scheme.kv);
            let float = self.carrier.block(index, params)?;
            self.observed(&float, &mut stream, &mut observer)?;
            let mut activations = self.steps(observer, behind);
            if let (Some(original), Some(stream)) = (&mut original, &mut before) {
                self.before_whole(index, &mut **original, stream, &mut activations)?;
            }
            blocks.push(activations);
        }
        Ok(blocks)
    }

    /// Puts what the activations of a block were before a transform of the whole model in front of what they are behind it.
    fn before_whole(
        &mut self,
        index: usize,
        original: &mut dyn BlockSource,
        stream: &mut RowStore,
        activations: &mut Vec<Observed>,
    ) -> Result<(), PipelineError> {
        let params = original.block(index)?;
        let float = self.carrier.block(index, params)?;
        let mut observer = Observer::new(&self.plan.spec, self.plan.scheme.kv);
        self.observed(&float, stream, &mut observer)?;
        let behind = std::mem::take(activations);
        observer.into_steps("float", activations);
        for (known, behind) in activations.iter_mut().zip(behind) {
            known.steps.extend(behind.steps);
        }
        Ok(())
    }

    /// What passes through each form of a block, from a stream that stays where it is.
    fn behind(
        &mut self,
        index: usize,
        rewritten: Rewritten,
        stream: &RowStore,
    ) -> Result<Vec<(String, Observer)>, PipelineError> {
        let mut behind = Vec::new();
        for (after, params) in rewritten {
            self.events.phase("statistics")?;
            let block = self.carrier.block(index, params)?;
            let mut observer = Observer::new(&self.plan.spec, self.plan.scheme.kv);
            let mut copy = self.carrier.copy(stream)?;
            self.observed(&block, &mut copy, &mut observer)?;
            behind.push((after, observer));
        }
        Ok(behind)
    }

    /// What was seen in the float block, and behind each transform.
    fn steps(&self, float: Observer, behind: Vec<(String, Observer)>) -> Vec<Observed> {
        let whole = self.plan.recipe.model_transform().map(|model| model.method().id);
        let mut activations = Vec::new();
        float.into_steps(whole.unwrap_or("float"), &mut activations);
        for (after, observer) in behind {
            observer.into_steps(&after, &mut activations);
        }
        activations
    }

    /// Everything about one block: `streams` go on behind it, and get one more.
    fn one(
        &mut self,
        index: usize,
        params: BlockParams,
        (finished, rewritten): (BlockParams, Rewritten),
        streams: &mut Vec<RowStore>,
    ) -> Result<BlockAnalysis, PipelineError> {
        let behind = self.behind(index, rewritten, &streams[0])?;
        self.events.phase("forward")?;
        let mut alone = self.carrier.copy(&streams[0])?;
        let keys = {
            let quantised = self.carrier.block(index, finished)?;
            let keys = self.keys(&quantised, &streams[0])?;
            self.carrier.advance(&quantised, &mut alone, self.events)?;
            keys
        };
        let mut observer = Observer::new(&self.plan.spec, self.plan.scheme.kv);
        {
            let float = self.carrier.block(index, params)?;
            let (first, others) = streams.split_at_mut(1);
            for stream in others {
                self.carrier.advance(&float, stream, self.events)?;
            }
            self.observed(&float, &mut first[0], &mut observer)?;
        }
        let activations = self.steps(observer, behind);
        let relative_mse = self.relative_mse(&alone, &streams[0])?;
        streams.push(alone);
        let (kl, top1_agreement) = (None, None);
        let linears = Vec::new();
        Ok(BlockAnalysis { block: index, kl, top1_agreement, relative_mse, linears, activations, keys })
    }

    /// A block as it will be deployed, what the float one was on the way there, and what became of its linears.
    fn quantised(
        &mut self,
        index: usize,
        params: &BlockParams,
        by: &mut Quantised,
        float: &RowStore,
    ) -> Result<(BlockParams, Rewritten, Vec<LinearAnalysis>), PipelineError> {
        match by {
            Quantised::Folder(folder) => {
                let (source, finished) = &mut **folder;
                let block = source.block(index)?;
                let seen = vec![("folder".to_owned(), unquantised(block.clone()))];
                Ok((block, seen, finished.linears(&self.plan.spec, index)))
            }
            Quantised::Recipe => {
                let untrained = self.plan.learns(index);
                let mut watch = Watch { events: &mut *self.events, untrained, rewritten: Vec::new() };
                let place = (self.plan, self.layout);
                let made = quantize_single(place, index, params.clone(), float, &mut watch, self.options)?;
                let linears = made.1.linears.iter().map(linear).collect();
                Ok((made.0, watch.rewritten, linears))
            }
        }
    }

    /// Takes a stream through a block and has `observer` see what passes.
    fn observed(
        &mut self,
        block: &Block<f32>,
        stream: &mut RowStore,
        observer: &mut Observer,
    ) -> Result<(), PipelineError> {
        let par = self.options.par;
        let mut watch =
            |site, x: ndarray::ArrayView2<'_, f32>, at: (&[usize], &_)| observer.see(block, site, x, at, par);
        self.carrier.advance_watched(block, stream, self.events, Some(&mut watch))
    }

    /// What the quantiser of the cache does to the keys of a stream, if there is one.
    fn keys(&mut self, block: &Block<f32>, stream: &RowStore) -> Result<Vec<KeyError>, PipelineError> {
        let Some(mut probe) = self.probe.take() else { return Ok(Vec::new()) };
        let par = self.options.par;
        for chunk in &self.layout.chunks {
            self.events.go_on()?;
            let rows = stream.read(self.layout.rows_of(chunk))?;
            let x = block.attention_input(rows.view(), par)?;
            probe.add(block, x.view(), self.layout.starts_of(chunk), par)?;
        }
        let found = probe.finish();
        self.probe = Some(probe);
        Ok(found)
    }

    /// `‖ŷ − y‖² / ‖y‖²`, summed in the order of the rows.
    fn relative_mse(&self, found: &RowStore, expected: &RowStore) -> Result<Option<f64>, PipelineError> {
        let (mut difference, mut norm) = (0.0, 0.0);
        for chunk in &self.layout.chunks {
            let rows = self.layout.rows_of(chunk);
            let (found, expected) = (found.read(rows.clone())?, expected.read(rows)?);
            for (&found, &expected) in found.iter().zip(expected.iter()) {
                let (found, expected) = (f64::from(found), f64::from(expected));
                difference += (found - expected) * (found - expected);
                norm += expected * expected;
            }
        }
        Ok(Some(difference / norm).filter(|error| error.is_finite()))
    }
}

fn linear(report: &LinearReport) -> LinearAnalysis {
    LinearAnalysis {
        module: report.module.clone(),
        scheme: report.scheme.clone(),
        weight_error: report.weight_error,
        relative_mse: report.output_error.map(|error| error * error),
    }
}
