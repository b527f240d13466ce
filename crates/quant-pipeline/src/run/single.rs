//! One block of a float model, quantised as if no other were.

use super::stream::ActivationStream;
use super::{Activations, MemorySink, Run, RunOptions, RunState};
use crate::PipelineError;
use crate::events::Events;
use crate::layout::Layout;
use crate::plan::Plan;
use crate::report::RunReport;
use quant_graph::BlockParams;
use quant_methods::FloatStream;
use quant_model::RowStore;

/// Quantises block `index` as a run by `plan` would, had it left the blocks before alone: both streams are what the float model
/// makes of the sample, which is laid out as `layout` says and stands at the input of the block in `float`.
///
/// # Errors
/// As [`run`](super::run).
pub(crate) fn quantize_single(
    (plan, layout): (&Plan, &Layout),
    index: usize,
    block: BlockParams,
    float: &RowStore,
    events: &mut dyn Events,
    options: &RunOptions,
) -> Result<(BlockParams, RunReport), PipelineError> {
    let mut nowhere = MemorySink::default();
    let place = (plan, layout.clone());
    let mut run = Run::new(place, RunState::default(), None, &mut nowhere, events, options);
    let copied = || {
        let mut copy = run.store(plan.spec.hidden)?;
        layout.copy(float, &mut copy)?;
        Ok::<_, PipelineError>(ActivationStream::new(copy))
    };
    let wanted = &plan.streams;
    let anew = wanted.together == Some(FloatStream::Block);
    let mut streams = Activations {
        float: wanted.float.then(copied).transpose()?,
        deployed: wanted.deployed.then(copied).transpose()?,
        beside: anew.then(|| run.store(plan.spec.hidden)).transpose()?.map(ActivationStream::new),
    };
    let finished = run.quantize(index, block, Vec::new(), &mut streams)?;
    Ok((finished, run.state.report))
}
