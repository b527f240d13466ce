//! The loop over the blocks: the only one that makes a model. Activations flow, methods are called, finished blocks go to a sink.
//!
//! Two streams of activations may be carried. The *float* stream feeds statistics of the unquantised model; the *deployed*
//! stream runs through the blocks with the weights they will be deployed with (activations and cache are rounded only if the
//! recipe says so), so that every block is calibrated on what it will really see. Per block: statistics of the float block from
//! one pass, where a method asks for them; transforms; then stage by stage on the deployed stream the statistics of a stage's
//! input, rounding of the linears fed by it, and the stage itself with the rounded weights, so that each token goes through a
//! block once. Where a statistic looks at both
//! streams at once, the float stream goes through the *transformed* float block in step: its activations are then scaled
//! like those of the deployed stream. It may be that of the float model, or begin anew with the deployed one at every block.

mod cache;
mod keep;
mod learn;
mod lent;
mod linears;
mod measure;
mod memory_sink;
mod observe;
mod outer;
mod single;
mod sink;
mod stages;
mod state;
mod stats;
mod stream;

pub(crate) use learn::TAPES;
pub use lent::SharedStatistics;
pub(crate) use measure::TILE as MEASURED_ROWS;
pub use memory_sink::MemorySink;
pub(crate) use single::quantize_single;
pub use sink::{BlockSink, Keeper};
use state::Reported;
pub use state::RunState;
pub(crate) use state::{of_sink, sink_frame};

use crate::PipelineError;
use crate::events::{Event, Events};
use crate::layout::Layout;
use crate::plan::{LinearPlan, Plan};
use crate::report::{RunReport, Seconds};
use keep::Journal;
use lent::Lent;
use ndarray::{ArrayView2, Axis};
use quant_core::CoreError;
use quant_core::matrix::check_finite;
use quant_data::TokenSet;
use quant_graph::{BlockParams, BlockSource, LinearId};
use quant_kernels::{Par, return_freed_memory, tasks};
use quant_methods::{FloatStream, Stream};
use quant_model::{Precision, RopeTables, RowStore, StageScratch};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use stream::ActivationStream;

/// Settings of a run that do not change its plan.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Threads; the caller runs inside a pool of that size.
    pub par: Par,
    /// Folder for activations that should not stay in memory.
    pub spill: Option<PathBuf>,
    /// To what training rounds the result of every op: what a platform that trains in less than f32 would learn. All else, and
    /// every run of the program, is not concerned.
    pub training: Precision,
    /// Where the statistics of the float stream of other runs are, and where those of this one are left.
    pub statistics: Option<SharedStatistics>,
}

impl RunOptions {
    /// Everything in memory and in full precision.
    #[must_use]
    pub fn new(par: Par) -> Self {
        Self { par, spill: None, training: Precision::Full, statistics: None }
    }
}

/// The activations that a run carries, as far as its plan asks for them.
#[derive(Debug, Default)]
struct Activations {
    /// Those of the float model.
    float: Option<ActivationStream>,
    /// Those of the model as it will be deployed.
    deployed: Option<ActivationStream>,
    /// Those that pass the float weights of each block from the deployed ones at its input.
    beside: Option<ActivationStream>,
}

/// Everything the parts of a run share.
struct Run<'a> {
    plan: &'a Plan,
    layout: Layout,
    rope: RopeTables,
    options: &'a RunOptions,
    /// Everything that going on after a break begins with.
    state: RunState,
    journal: Journal,
    sink: &'a mut dyn BlockSink,
    events: &'a mut dyn Events,
    scratch: StageScratch<f32>,
    /// Statistics of the float stream that another run has gathered, or this one gathers for others.
    lent: Lent,
}

/// Quantises every block of `source` by the plan and hands it to `sink`. A sink with a [`Keeper`] is told the state of the run
/// on the way, and a run goes on from the state that the keeper has from before.
///
/// # Errors
/// Missing calibration data, unreadable blocks, activations that overflow, factorisations that fail, a sink that cannot
/// write, a kept state that makes no sense.
pub fn run(
    plan: &Plan,
    source: &mut dyn BlockSource,
    calibration: Option<&TokenSet>,
    sink: &mut dyn BlockSink,
    events: &mut dyn Events,
    options: &RunOptions,
) -> Result<RunReport, PipelineError> {
    check_calibration(plan, calibration)?;
    let tokens = calibration.filter(|_| plan.streams.calibration());
    let layout = Layout::new(tokens.iter().flat_map(|t| t.sequences.iter().map(Vec::len)));
    let spec = &plan.spec;
    let (mut state, mut resumed) = (RunState::default(), None);
    if let Some(keeper) = sink.keeper().filter(|keeper| keeper.frames() > 0) {
        state = RunState::read(keeper, plan.recipe.registry(), spec.layers)?;
        resumed = Some(state.reported());
        events.event(Event::Resumed { index: state.closed, of: spec.layers });
    }
    state.report.calibration_tokens = layout.rows();
    for index in (0..spec.layers).filter(|index| state.report.fell_back(*index)) {
        sink.fell_back(index);
    }
    let mut run = Run::new((plan, layout), state, resumed, sink, events, options);
    let mut rewritten;
    let source = match plan.recipe.model_transform() {
        Some(model) => {
            rewritten = model.fuse(source, options.par)?;
            &mut *rewritten
        }
        None => source,
    };
    run.lend(tokens);
    let mut streams = run.streams(source, tokens)?;
    for index in run.state.from..spec.layers {
        let began = Instant::now();
        if plan.streams.calibration() {
            // What the block before left: its arrays came and went in many orders.
            return_freed_memory();
        }
        run.events.event(Event::Block { index, of: spec.layers });
        let finished = if let Some(pending) = linears::row_by_row(plan, index) {
            run.quantize_by_rows(index, source, pending)?
        } else {
            run.phase("read")?;
            let block = source.block(index)?;
            let ahead = run.window(index).map(|index| source.block(index)).collect::<Result<_, _>>()?;
            run.spent("read", began);
            run.quantize(index, block, ahead, &mut streams)?
        };
        if index < run.state.closed {
            // The sink has it from before: only the streams had to come by.
            continue;
        }
        let started = Instant::now();
        run.phase("write")?;
        run.keep_rest(index, &finished)?;
        run.sink.block(index, finished)?;
        run.spent("write", started);
        run.keep_block(index, &streams)?;
        run.events.event(Event::BlockDone { index, of: spec.layers, seconds: began.elapsed().as_secs_f64() });
    }
    let deployed = streams.deployed.take().map(|stream| stream.residual);
    drop(streams);
    run.leave();
    run.outer(source, deployed)?;
    Ok(run.state.report)
}

/// Refuses a plan that needs calibration data and has none.
pub(crate) fn check_calibration(plan: &Plan, calibration: Option<&TokenSet>) -> Result<(), PipelineError> {
    if !plan.streams.calibration() || calibration.is_some() {
        return Ok(());
    }
    Err(PipelineError::Usage(format!(
        "this recipe needs calibration data ({}): give --calibration FILE or FILE.safetensors:TENSOR",
        plan.streams.reasons.join(", ")
    )))
}

impl<'a> Run<'a> {
    fn new(
        (plan, layout): (&'a Plan, Layout),
        state: RunState,
        resumed: Option<Reported>,
        sink: &'a mut dyn BlockSink,
        events: &'a mut dyn Events,
        options: &'a RunOptions,
    ) -> Self {
        Self {
            plan,
            rope: RopeTables::new(&plan.spec, layout.lengths()),
            options,
            journal: Journal::new(plan, layout.rows(), resumed),
            state,
            layout,
            sink,
            events,
            scratch: StageScratch::default(),
            lent: Lent::default(),
        }
    }
}

impl<'a> Run<'a> {
    /// The linears of a block as they are to be stored: what its training was repaired by is known.
    fn linears(&self, index: usize) -> &'a BTreeMap<LinearId, LinearPlan> {
        self.plan.linears(index, self.state.report.fell_back(index))
    }
}

impl Run<'_> {
    fn par(&self) -> Par {
        self.options.par
    }
    /// The streams at the input of the first block: embedded, or as they were kept.
    fn streams(
        &mut self,
        source: &mut dyn BlockSource,
        tokens: Option<&TokenSet>,
    ) -> Result<Activations, PipelineError> {
        let wanted = &self.plan.streams;
        let float = wanted.float && !self.lent.is_known() && self.state.from < self.plan.spec.layers;
        let mut streams = Activations::default();
        let wanted_still = self.state.from < self.plan.spec.layers || self.waits_for_head();
        let Some(tokens) = tokens.filter(|_| wanted_still) else {
            return Ok(streams);
        };
        let started = Instant::now();
        if self.state.from > 0 {
            streams.float = float.then(|| self.known_float(source, tokens)).transpose()?;
            streams.deployed = wanted.deployed.then(|| self.known_stream(Stream::Deployed)).transpose()?;
        } else if float || wanted.deployed {
            let mut embedded = self.store(self.plan.spec.hidden)?;
            self.layout.embed(source, &tokens.sequences, &mut embedded)?;
            if float && wanted.deployed {
                let mut copy = self.store(self.plan.spec.hidden)?;
                self.layout.copy(&embedded, &mut copy)?;
                streams.float = Some(ActivationStream::new(copy));
            }
            if wanted.deployed {
                self.round_embedded(&mut embedded)?;
                streams.deployed = Some(ActivationStream::new(embedded));
            } else {
                streams.float = Some(ActivationStream::new(embedded));
            }
        }
        if wanted.together == Some(FloatStream::Block) {
            streams.beside = Some(ActivationStream::new(self.store(self.plan.spec.hidden)?));
        }
        self.spent("read", started);
        Ok(streams)
    }
    /// Quantises a block whose weights were read whole, with those `ahead` of it that a learner looks through.
    fn quantize(
        &mut self,
        index: usize,
        mut block: BlockParams,
        ahead: Vec<BlockParams>,
        streams: &mut Activations,
    ) -> Result<BlockParams, PipelineError> {
        let (plan, spec) = (self.plan, self.plan.block(index));
        let mut statistics =
            self.known_statistics(index).unwrap_or_else(|| self.float_statistics(index, &spec));
        let mut runner = None;
        let Activations { float, deployed, beside } = streams;
        let mut learned = None;
        if let Some(stream) = float {
            learned = self.learn(index, (&block, ahead), stream, deployed.as_ref())?;
            let whole = self.float_block(index, &block)?;
            let stay = plan.streams.together == Some(FloatStream::Model);
            self.observe(index, &whole, stream, &mut statistics, stay)?;
            self.lent.gathered(index, &statistics);
            // Kept for a transform that runs it, and freed before the floats are rewritten otherwise.
            runner = plan.recipe.transforms().first().filter(|t| t.runs_block()).map(|_| whole);
        }
        self.transform(index, &mut block, runner, &mut statistics)?;
        if let Some(record) = learned {
            block = self.apply_learned(index, &record, block)?;
        }
        match deployed {
            Some(deployed) => {
                let float = match plan.streams.together {
                    None => None,
                    Some(FloatStream::Model) => float.as_mut(),
                    Some(FloatStream::Block) => {
                        if let Some(beside) = beside {
                            self.layout.copy(&deployed.residual, &mut beside.residual)?;
                        }
                        beside.as_mut()
                    }
                };
                self.quantize_in_stream(index, block, deployed, float, statistics)
            }
            None => self.quantize_alone(index, block, statistics),
        }
    }
    /// Announces a part of the work, unless it is not to be done any more.
    fn phase(&mut self, what: &'static str) -> Result<(), PipelineError> {
        self.events.phase(what)
    }
    /// Refuses to go on when the person has asked to stop.
    fn go_on(&self) -> Result<(), PipelineError> {
        self.events.go_on()
    }
    fn spent(&mut self, what: &'static str, since: Instant) {
        add_seconds(&mut self.state.report.seconds, what, since.elapsed());
    }
    /// An activation store for all calibration tokens.
    fn store(&self, width: usize) -> Result<RowStore, PipelineError> {
        Ok(RowStore::new(self.layout.rows(), width, self.options.spill.as_deref(), self.par())?)
    }
    /// A store for the inputs of o or down of all calibration tokens.
    fn store_waiting(&self, width: usize) -> Result<RowStore, PipelineError> {
        let (rows, spill) = (self.layout.rows(), self.options.spill.as_deref());
        Ok(match self.plan.rounds_waiting(rows, self.layout.largest_chunk()) {
            Some(exact) => RowStore::rounded((rows, width), exact, spill, self.par())?,
            None => RowStore::new(rows, width, spill, self.par())?,
        })
    }
    /// Refuses activations that have left the finite numbers, naming the sequence.
    fn check_finite(&self, x: ArrayView2<'_, f32>, first_row: usize, at: &str) -> Result<(), PipelineError> {
        const ROWS: usize = 64;
        let parts = x.axis_chunks_iter(Axis(0), ROWS).enumerate();
        let bad = tasks::try_for_each(parts, self.par(), |(i, rows)| match check_finite(rows) {
            Err(CoreError::NotFinite { row, .. }) => Err(first_row + i * ROWS + row),
            _ => Ok(()),
        });
        bad.map_err(|row| {
            let sequence = self.layout.starts.partition_point(|&start| start <= row).saturating_sub(1);
            PipelineError::NotFinite { at: at.to_owned(), sequence }
        })
    }
}

fn add_seconds(seconds: &mut Seconds, what: &'static str, spent: Duration) {
    *seconds.entry(what.into()).or_default() += spent.as_secs_f64();
}
