//! When a run writes its state down, and how one that goes on takes it up.

use super::observe::BlockStatistics;
use super::sink::Keeper;
use super::state::{
    KnownLinear, Reported, RunState, Transformed, lesson_frame, linear_frame, rows_frame, transformed_frame,
};
use super::stream::ActivationStream;
use super::{Activations, Run};
use crate::PipelineError;
use crate::keeping::Keeping;
use crate::plan::Plan;
use ndarray::{Array1, Array2};
use quant_graph::{BlockParams, LinearId, LinearParams, LinearSpec, LinearWeight, StageSpec};
use quant_methods::{PlannedRounding, Scaled, Stream, scale_weights};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Where nothing but reading and rounding to nearest is lost, the state is written no more often than this.
const SELDOM: Duration = Duration::from_secs(5);

/// What a run remembers of its journal.
pub(super) struct Journal {
    /// How often streams are written.
    keeping: Keeping,
    /// Whether anything is paid for that must not be lost.
    paid: bool,
    /// Whether there is a journal to go on with.
    begun: bool,
    /// Reports that it has.
    known: Reported,
    last: Instant,
}

impl Journal {
    /// `resumed` where there is one already, with so many reports.
    pub(super) fn new(plan: &Plan, tokens: usize, resumed: Option<Reported>) -> Self {
        Self {
            keeping: Keeping::new(plan, tokens),
            paid: plan.paid(),
            begun: resumed.is_some(),
            known: resumed.unwrap_or_default(),
            last: Instant::now(),
        }
    }

    fn add(
        &mut self,
        keeper: &mut dyn Keeper,
        mut frames: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), PipelineError> {
        if !std::mem::replace(&mut self.begun, true) {
            keeper.begin()?;
        }
        frames.try_for_each(|frame| keeper.add(frame))
    }

    /// Closes a record with how far the run has come.
    fn close(&mut self, keeper: &mut dyn Keeper, state: &RunState) -> Result<(), PipelineError> {
        keeper.add(state.progress_frame(self.known))?;
        keeper.commit()?;
        self.known = state.reported();
        self.last = Instant::now();
        Ok(())
    }

    /// Writes down how far a training has come, if the last record is some time ago.
    pub(super) fn keep_training(
        &mut self,
        keeper: &mut dyn Keeper,
        state: &RunState,
        training: impl FnOnce() -> Vec<u8>,
    ) -> Result<(), PipelineError> {
        if self.last.elapsed() < SELDOM {
            return Ok(());
        }
        self.add(keeper, std::iter::once(training()))?;
        self.close(keeper, state)
    }
}

/// Whether a linear is rounded: the weight of one that is not is read again.
fn rounds(plan: &Plan, index: usize, id: LinearId) -> bool {
    plan.blocks.get(index).and_then(|block| block.get(&id)).is_some_and(|linear| linear.rounding.is_some())
}

impl Run<'_> {
    /// Waits until everything that was paid for so far is durable: what is paid for next is not to be lost with it.
    pub(super) fn settle(&mut self) -> Result<(), PipelineError> {
        let started = Instant::now();
        match self.sink.keeper() {
            Some(keeper) => keeper.settle()?,
            None => return Ok(()),
        }
        self.spent("journal", started);
        Ok(())
    }

    /// Adds frames to the record that is being made.
    fn add(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> Result<(), PipelineError> {
        match self.sink.keeper() {
            Some(keeper) => self.journal.add(keeper, frames),
            None => Ok(()),
        }
    }

    /// Writes down the frames of one step of a block.
    fn keep(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> Result<(), PipelineError> {
        let started = Instant::now();
        self.add(frames)?;
        self.close_record(started)
    }

    fn close_record(&mut self, started: Instant) -> Result<(), PipelineError> {
        let Some(keeper) = self.sink.keeper() else { return Ok(()) };
        self.journal.close(keeper, &self.state)?;
        self.spent("journal", started);
        Ok(())
    }

    /// Writes down the linears of a stage, if anything in its block is paid for.
    pub(super) fn keep_stage(
        &mut self,
        index: usize,
        linears: &[(LinearId, LinearParams)],
    ) -> Result<(), PipelineError> {
        if !self.plan.paid_block(index) {
            return Ok(());
        }
        let plan = self.plan;
        self.keep(
            linears.iter().map(|(id, linear)| linear_frame(index, *id, linear, rounds(plan, index, *id))),
        )
    }

    /// Writes down what transforms did to a block, by the factors they gave, if anything in it is paid for.
    pub(super) fn keep_transformed(
        &mut self,
        index: usize,
        params: &BlockParams,
        scaled: Vec<Scaled>,
    ) -> Result<(), PipelineError> {
        if !self.plan.paid_block(index) || self.sink.keeper().is_none() {
            return Ok(());
        }
        let only_scales = self.plan.recipe.transforms().iter().all(|t| t.only_scales());
        let weight = |linear: &LinearParams| match &linear.weight {
            LinearWeight::Float(weight) if !only_scales => Some(weight.clone()),
            _ => None,
        };
        let transformed = Transformed {
            scaled,
            norms: params.norms.clone(),
            biases: params.linears.iter().filter_map(|(id, l)| Some((*id, l.bias.clone()?))).collect(),
            weights: params.linears.iter().filter_map(|(id, l)| Some((*id, weight(l)?))).collect(),
        };
        self.keep(std::iter::once(transformed_frame(index, &transformed)))
    }

    /// Writes down what was learned in a block.
    pub(super) fn keep_lesson(&mut self, index: usize, record: &Vec<u8>) -> Result<(), PipelineError> {
        self.keep(std::iter::once(lesson_frame(index, true, record)))
    }

    /// Writes down the linears of a finished block in which nothing was paid for, where its streams have to come by again.
    pub(super) fn keep_rest(&mut self, index: usize, block: &BlockParams) -> Result<(), PipelineError> {
        if self.writes_streams(index) || self.plan.paid_block(index) {
            return Ok(());
        }
        let plan = self.plan;
        self.add(
            block
                .linears
                .iter()
                .map(|(id, linear)| linear_frame(index, *id, linear, rounds(plan, index, *id))),
        )
    }

    /// Writes down that a table is rounded and in the sink's hands, if it was paid for.
    pub(super) fn keep_table(&mut self, planned: &PlannedRounding) -> Result<(), PipelineError> {
        if planned.solver.needs().is_empty() {
            return Ok(());
        }
        self.keep(std::iter::empty())
    }

    /// Whether the streams are written behind a block.
    fn writes_streams(&self, index: usize) -> bool {
        let behind = index + 1;
        behind == self.plan.spec.layers
            || !self.journal.paid
            || behind - self.state.from >= self.journal.keeping.every
    }

    /// Writes down that a block is finished and in the sink's hands.
    pub(super) fn keep_block(&mut self, index: usize, streams: &Activations) -> Result<(), PipelineError> {
        self.state.closed = index + 1;
        let started = Instant::now();
        if self.sink.keeper().is_none() || (!self.journal.paid && self.journal.last.elapsed() < SELDOM) {
            return Ok(());
        }
        if !self.writes_streams(index) {
            return self.keep(std::iter::empty());
        }
        // Behind the last block nobody reads them but the head.
        let goes_on = index + 1 < self.plan.spec.layers || self.waits_for_head();
        self.state.from = index + 1;
        self.journal.known = Reported::default();
        self.journal.begun = true;
        let Some(keeper) = self.sink.keeper() else { return Ok(()) };
        keeper.begin()?;
        for (which, stream) in [(Stream::Float, &streams.float), (Stream::Deployed, &streams.deployed)] {
            let Some(stream) = stream.as_ref().filter(|_| goes_on) else { continue };
            for chunk in &self.layout.chunks {
                let rows = stream.residual.read(self.layout.rows_of(chunk))?;
                keeper.add(rows_frame(which, rows.view()))?;
            }
        }
        self.close_record(started)
    }

    /// The linears of a stage, if they are known from before.
    pub(super) fn known_stage(
        &mut self,
        index: usize,
        stage: &StageSpec,
        pending: &mut BlockParams,
    ) -> Result<Option<Vec<(LinearId, LinearParams)>>, PipelineError> {
        if stage.linears.is_empty() || !self.state.knows(index, &stage.linears) {
            return Ok(None);
        }
        let spec = self.plan.spec.block(index);
        let mut known = Vec::new();
        for &id in &stage.linears {
            let Some(keeper) = self.sink.keeper() else { return Ok(None) };
            let Some(KnownLinear { weight, bias, input }) = self.state.linear(keeper, index, id)? else {
                return Ok(None);
            };
            let as_read = pending.linears.remove(&id);
            let weight = weight.or_else(|| as_read.map(|linear| linear.weight));
            let shape = spec.linear(id).map(LinearSpec::shape);
            let Some(weight) = weight.filter(|weight| Some(weight.dim()) == shape) else {
                return Err(keeper.senseless(format!("a weight of {id} of block {index} that it has not")));
            };
            if bias.as_ref().is_some_and(|bias| bias.len() != weight.dim().0) {
                return Err(keeper.senseless(format!("a bias of {id} of block {index} that it has not")));
            }
            known.push((id, LinearParams { weight, bias, input }));
        }
        Ok(Some(known))
    }

    /// Does to a block and its statistics what transforms are known to have done.
    pub(super) fn transform_as_known(
        &mut self,
        index: usize,
        params: &mut BlockParams,
        statistics: &mut BlockStatistics,
    ) -> Result<bool, PipelineError> {
        let Some(keeper) = self.sink.keeper() else { return Ok(false) };
        let Some(known) = self.state.transformed(keeper, index)? else { return Ok(false) };
        let spec = self.plan.spec.block(index);
        let at = || PipelineError::method(self.plan.spec.block_prefix(index));
        for (site, factors) in known.scaled.iter().flatten() {
            if factors.len() != self.plan.spec.site_width(*site) {
                let found = format!("{} factors at {site:?} of block {index}", factors.len());
                return Err(keeper.senseless(found));
            }
        }
        for scaled in &known.scaled {
            if known.weights.is_empty() {
                scale_weights(params, &spec, scaled).map_err(at())?;
            }
            for (site, factors) in scaled {
                if let Some(seen) = statistics.get_mut(site) {
                    seen.float.divide(factors.view()).map_err(at())?;
                }
            }
        }
        let fits = |norms: &BTreeMap<_, Array1<f32>>| {
            norms.iter().all(|(norm, values)| {
                params.norms.get(norm).is_some_and(|there: &Array1<f32>| there.len() == values.len())
            })
        };
        if !fits(&known.norms) {
            return Err(keeper.senseless(format!("norms of block {index} that are not its own")));
        }
        params.norms.extend(known.norms);
        for (id, bias) in known.biases {
            match params.linears.get_mut(&id).and_then(|linear| linear.bias.as_mut()) {
                Some(there) if there.len() == bias.len() => *there = bias,
                _ => return Err(keeper.senseless(format!("a bias of {id} of block {index} that it has not"))),
            }
        }
        for (id, weight) in known.weights {
            match params.linears.get_mut(&id) {
                Some(linear) if linear.weight.dim() == weight.dim() => {
                    linear.weight = LinearWeight::Float(weight);
                }
                _ => {
                    return Err(
                        keeper.senseless(format!("a weight of {id} of block {index} that it has not"))
                    );
                }
            }
        }
        Ok(true)
    }

    /// The stream at the input of the first block, as it was kept.
    pub(super) fn known_stream(&mut self, which: Stream) -> Result<ActivationStream, PipelineError> {
        let mut store = self.store(self.plan.spec.hidden)?;
        let mut at = 0;
        for &frame in self.state.rows_of(which) {
            let Some(keeper) = self.sink.keeper() else { continue };
            let rows: Array2<f32> = self.state.content(keeper, frame)?;
            let here = at..at + rows.nrows();
            if here.end > self.layout.rows() || rows.ncols() != self.plan.spec.hidden {
                return Err(keeper.senseless(format!("rows {here:?} of {} columns", rows.ncols())));
            }
            at = here.end;
            store.overwrite::<PipelineError>(here, |mut to| {
                to.assign(&rows);
                Ok(())
            })?;
        }
        if at != self.layout.rows()
            && let Some(keeper) = self.sink.keeper()
        {
            return Err(keeper.senseless(format!("{at} rows of a stream that has {}", self.layout.rows())));
        }
        Ok(ActivationStream::new(store))
    }
}
