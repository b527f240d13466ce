//! Training of pieces of a block before it is rounded.

use super::keep::Journal;
use super::sink::BlockSink;
use super::state::{RunState, lesson_frame};
use super::stream::ActivationStream;
use super::{Run, add_seconds};
use crate::PipelineError;
use crate::events::{Event, Events};
use crate::report::BlockLesson;
use quant_graph::{BlockParams, BoxError, EffectiveWeights};
use quant_methods::{Diary, Learner, Lesson, MethodError, Stream, float_weights};
use quant_model::{BlockTrainer, BlockWindow};
use std::ops::Range;
use std::time::Instant;

/// Tapes of a training step that are kept beside each other; those of more are made again.
pub(crate) const TAPES: usize = 2 << 30;

/// The diary of a training: what the person sees of it and what survives a break.
struct RunDiary<'r> {
    index: usize,
    last: Option<Vec<u8>>,
    state: &'r RunState,
    journal: &'r mut Journal,
    sink: &'r mut dyn BlockSink,
    events: &'r mut dyn Events,
    /// The error behind what the learner was told.
    failed: Option<PipelineError>,
}

impl RunDiary<'_> {
    fn told(&mut self, result: Result<(), PipelineError>) -> Result<(), BoxError> {
        result.map_err(|error| {
            let words = error.to_string();
            self.failed = Some(error);
            words.into()
        })
    }
}

impl Diary for RunDiary<'_> {
    fn last(&self) -> Option<&[u8]> {
        self.last.as_deref()
    }
    fn step(&mut self, done: usize, of: usize) -> Result<(), BoxError> {
        self.events.event(Event::Step { done, of });
        let stop = if self.events.cancelled() { Err(PipelineError::Interrupted) } else { Ok(()) };
        self.told(stop)
    }
    fn keep(&mut self, state: &dyn Fn() -> Vec<u8>) -> Result<(), BoxError> {
        let Some(keeper) = self.sink.keeper() else { return Ok(()) };
        let frame = || lesson_frame(self.index, false, &state());
        let kept = self.journal.keep_training(keeper, self.state, frame);
        self.told(kept)
    }
}

impl Run<'_> {
    /// The blocks behind one that its learner looks through, if it is to be trained.
    pub(super) fn window(&self, index: usize) -> Range<usize> {
        let learner = self.plan.recipe.learner();
        let learner = learner.filter(|_| self.plan.learns(index) && !self.state.has_learned(index));
        let blocks = learner.map_or(1, Learner::window);
        index + 1..(index + blocks).min(self.plan.spec.layers)
    }

    /// Trains in a float block on the stream at its input that its learner asks for, where the plan says so, and gives the record
    /// of what was learned.
    pub(super) fn learn(
        &mut self,
        index: usize,
        (params, ahead): (&BlockParams, Vec<BlockParams>),
        float: &ActivationStream,
        deployed: Option<&ActivationStream>,
    ) -> Result<Option<Vec<u8>>, PipelineError> {
        let plan = self.plan;
        let (Some(learner), Some(block_plan)) = (plan.recipe.learner(), plan.block_plan(index)) else {
            return Ok(None);
        };
        let mut last = None;
        if let Some(keeper) = self.sink.keeper() {
            if let Some(record) = self.state.lesson(keeper, index, true)? {
                return Ok(Some(record));
            }
            last = self.state.lesson(keeper, index, false)?;
        }
        self.settle()?;
        self.phase(learner.method().id)?;
        let started = Instant::now();
        let block = self.block_without_linears(index, params)?;
        let behind = ahead.iter().zip(index + 1..);
        let behind = behind.map(|(params, at)| self.block_without_linears(at, params));
        let behind = behind.collect::<Result<Vec<_>, _>>()?;
        let rows = 0..self.layout.rows();
        let deployed = deployed.filter(|_| learner.inputs() == Stream::Deployed);
        let deployed = deployed.map(|stream| stream.residual.read(rows.clone())).transpose()?;
        let float = float.residual.read(rows)?;
        let (par, precision) = (self.options.par, self.options.training);
        let Self { rope, layout, state, journal, sink, events, .. } = &mut *self;
        let rope = |length| rope.table(length);
        let trainer = |block, weights| {
            let trainer = BlockTrainer::new(block, &rope, weights);
            trainer.map(|trainer| trainer.with_memory(TAPES).with_precision(precision))
        };
        let mut frozen = Vec::new();
        for (block, params) in behind.iter().zip(&ahead) {
            let weights =
                float_weights(params).map_err(PipelineError::method(plan.spec.block_prefix(index)))?;
            frozen.push(trainer(block, weights)?);
        }
        let trainer = BlockWindow::new(trainer(&block, EffectiveWeights::new())?, frozen);
        let lesson = Lesson {
            plan: block_plan,
            training: &trainer,
            x: deployed.as_ref().unwrap_or(&float).view(),
            float: deployed.is_some().then(|| float.view()),
            starts: &layout.starts,
            par,
        };
        let mut diary =
            RunDiary { index, last, state, journal, sink: &mut **sink, events: &mut **events, failed: None };
        let learned = learner.learn(params, &lesson, &mut diary);
        let learned = match (learned, diary.failed) {
            (Err(MethodError::Diary(_)), Some(error)) => return Err(error),
            (learned, _) => learned.map_err(PipelineError::method(plan.spec.block_prefix(index)))?,
        };
        drop((trainer, float, deployed));
        self.state.report.lessons.push(BlockLesson { block: index, lesson: learned.report });
        if self.state.report.fell_back(index) {
            self.sink.fell_back(index);
        }
        add_seconds(&mut self.state.report.seconds, learner.method().id, started.elapsed());
        self.keep_lesson(index, &learned.record)?;
        Ok(Some(learned.record))
    }

    /// The block rewritten by what was learned in it.
    pub(super) fn apply_learned(
        &mut self,
        index: usize,
        record: &[u8],
        block: BlockParams,
    ) -> Result<BlockParams, PipelineError> {
        let (Some(learner), Some(plan)) = (self.plan.recipe.learner(), self.plan.block_plan(index)) else {
            return Ok(block);
        };
        let applied = learner.apply(record, block, &plan, self.par());
        let applied = applied.map_err(PipelineError::method(self.plan.spec.block_prefix(index)))?;
        self.events.event(Event::Rewritten { by: learner.method().id, block: &applied });
        Ok(applied)
    }
}
