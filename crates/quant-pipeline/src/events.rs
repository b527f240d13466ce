//! What a run or an evaluation tells while it works.

use crate::PipelineError;
use crate::report::LinearReport;
use quant_eval::{Phase, Side};
use quant_graph::BlockParams;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

/// One step of a run or an evaluation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run goes on where an earlier one broke off.
    Resumed {
        /// The first block that is not finished.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// Work on a block begins.
    Block {
        /// Its index.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// A part of a work of many parts begins, with its name.
    Part(String),
    /// A part of the work on the current block begins.
    Phase(&'static str),
    /// The current part of the work has come so far.
    Step {
        /// Steps that are done.
        done: usize,
        /// Steps there are.
        of: usize,
    },
    /// A transform or a learner has rewritten the float block that is being worked on.
    Rewritten {
        /// Registry id of the method.
        by: &'static str,
        /// The block, not rounded yet.
        block: &'a BlockParams,
    },
    /// A linear is done.
    Linear(&'a LinearReport),
    /// Everything about a block is done and handed to the sink.
    BlockDone {
        /// Its index.
        index: usize,
        /// How many there are.
        of: usize,
        /// Seconds since the block began.
        seconds: f64,
    },
    /// A part of an evaluation has come so far; the first of a part has `done` 0.
    Evaluated {
        /// What is counted: `reference model, block`, `model, block` or `scored position`.
        what: &'static str,
        /// How many are done.
        done: usize,
        /// How many there are.
        of: usize,
        /// How much of the next one is done, from 0 to 1.
        inside: f64,
    },
    /// Something the person should read.
    Warning(String),
    /// Something about this run that concerns neither data nor output.
    Note(&'static str),
}

impl Event<'_> {
    /// How far an evaluation of `sequences` sequences is; steps of its encoding are sequences through blocks.
    #[must_use]
    pub fn of_phase(phase: Phase, done: usize, of: usize, sequences: usize) -> Self {
        match phase {
            Phase::Encode(role) => Self::Evaluated {
                what: match role {
                    Side::Reference => "reference model, block",
                    Side::Model => "model, block",
                },
                done: done / sequences,
                of: of / sequences,
                inside: (done % sequences) as f64 / sequences as f64,
            },
            Phase::Score => Self::Evaluated { what: "scored position", done, of, inside: 0.0 },
        }
    }
}

/// Receives the steps of a run or an evaluation.
pub trait Events: Send {
    /// One step.
    fn event(&mut self, event: Event<'_>);
    /// Whether the person has asked to stop. It is looked at between the steps of the work; the run then ends with
    /// [`PipelineError::Interrupted`](crate::PipelineError::Interrupted), and what it leaves can be gone on with or is gone.
    fn cancelled(&self) -> bool {
        false
    }
}

impl dyn Events + '_ {
    /// Announces a part of the work, unless it is not to be done any more.
    pub(crate) fn phase(&mut self, what: &'static str) -> Result<(), PipelineError> {
        self.go_on()?;
        self.event(Event::Phase(what));
        Ok(())
    }
    /// Whether to go on, for work that asks in between. Exclusive, so that what asks may be sent to another thread.
    pub fn flow(&mut self) -> ControlFlow<()> {
        if self.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
    /// Refuses to go on when the person has asked to stop.
    pub(crate) fn go_on(&self) -> Result<(), PipelineError> {
        if self.cancelled() { Err(PipelineError::Interrupted) } else { Ok(()) }
    }
}

/// Asks [`Events::cancelled`] from any thread.
pub(crate) struct Asked<'e>(Mutex<&'e mut dyn Events>);

impl<'e> Asked<'e> {
    pub(crate) fn new(events: &'e mut dyn Events) -> Self {
        Self(Mutex::new(events))
    }
    /// Whether the person wants the work to end.
    pub(crate) fn stop(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).cancelled()
    }
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Events for Silent {
    fn event(&mut self, _: Event<'_>) {}
}
