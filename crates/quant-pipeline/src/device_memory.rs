//! What a run asks of the memory of a processor, told before anything is run.

use crate::PipelineError;
use crate::execution::{CodedLinear, Executable};
use crate::open::OpenFolder;
use quant_core::operators::{CacheDemand, Demand, Processor};
use quant_core::{CoreError, KvGranularity, ProcessorProblem};
use quant_graph::ModelSpec;
use quant_kernels::PAGE;
use quant_model::Request;
use std::ops::Range;

/// Codes of a weight lie in tiles so wide and so high at most.
const TILE: usize = 32;

impl CodedLinear {
    fn codes(&self) -> u64 {
        let all = self.outputs.next_multiple_of(TILE) * self.inputs.next_multiple_of(TILE);
        (if self.packed { all.div_ceil(2) } else { all }) as u64
    }
    /// Scale and zero level of each group, and a bias.
    fn parameters(&self) -> u64 {
        (self.outputs * (self.groups + 1) * size_of::<f32>()) as u64
    }
    /// Of so many tokens: numbers and what becomes of them, or codes of the input and results.
    fn step(&self, rows: usize) -> u64 {
        let quantised = 3 * self.inputs + size_of::<f32>();
        let multiplied = 2 * self.inputs + 2 * self.outputs + size_of::<f32>();
        (rows * quantised.max(multiplied)) as u64
    }
}

/// Of weights of some blocks at a time, with steps of so many tokens.
fn demand(executable: &Executable, spec: &ModelSpec, blocks: Range<usize>, rows: usize) -> Demand {
    let mut demand = Demand::default();
    for linear in blocks.flat_map(|block| executable.coded(spec, block)) {
        demand.weights += linear.codes();
        demand.largest = demand.largest.max(linear.codes());
        demand.parameters += linear.parameters();
        demand.step = demand.step.max(linear.step(rows));
    }
    demand
}

/// Tells a processor what an evaluation asks of it: one block at a time, on sequences of at most `longest` tokens.
///
/// # Errors
/// [`CoreError::Processor`] where its memory does not hold that; folders that cannot be read.
pub fn expect_evaluation(
    folder: &OpenFolder,
    longest: usize,
    processor: Option<&dyn Processor>,
) -> Result<(), PipelineError> {
    let Some(processor) = processor else { return Ok(()) };
    let executable = Executable::of(folder)?;
    let blocks =
        (0..folder.spec.layers).map(|block| demand(&executable, &folder.spec, block..block + 1, longest));
    let most = blocks.reduce(|a, b| Demand {
        weights: a.weights.max(b.weights),
        largest: a.largest.max(b.largest),
        parameters: a.parameters.max(b.parameters),
        step: a.step.max(b.step),
        caches: None,
    });
    Ok(processor.expect(&most.unwrap_or_default())?)
}

/// Tells a processor what texts ask of it, `batch` of them at a time and `rows` tokens in a pass, and gives the pages that it has room for: no
/// more than `most`, and as many as the longest text needs.
///
/// # Errors
/// As [`expect_evaluation`].
pub(crate) fn pages_on(
    processor: &dyn Processor,
    executable: &Executable,
    spec: &ModelSpec,
    rows: usize,
    pages: [usize; 2],
) -> Result<usize, PipelineError> {
    let of_channels = executable.kv().is_some_and(|kv| {
        let fixed = |of| matches!(of, KvGranularity::ChannelStatic);
        !kv.before_rope && fixed(kv.keys) && fixed(kv.values)
    });
    let all = demand(executable, spec, 0..spec.layers, rows);
    let with = |pages: usize| Demand {
        caches: of_channels.then_some(CacheDemand {
            blocks: spec.layers,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            page: PAGE,
            pages,
        }),
        ..all
    };
    let fits = |pages: usize| match processor.expect(&with(pages)) {
        Ok(()) => Ok(true),
        Err(CoreError::Processor { kind: ProcessorProblem::Memory, .. }) => Ok(false),
        Err(error) => Err(error),
    };
    let [least, most] = pages;
    if most <= least || fits(most)? {
        processor.expect(&with(most.max(least)))?;
        return Ok(most.max(least));
    }
    // With room for some of the texts alone the others wait.
    processor.expect(&with(least))?;
    let (mut some, mut too_many) = (least, most);
    while too_many - some > 1 {
        let middle = some.midpoint(too_many);
        if fits(middle)? {
            some = middle;
        } else {
            too_many = middle;
        }
    }
    processor.expect(&with(some))?;
    Ok(some)
}

/// Tells a processor what texts ask of it, `batch` of them at a time.
///
/// # Errors
/// As [`expect_evaluation`], where its memory does not hold all of them.
pub fn expect_generation(
    folder: &OpenFolder,
    requests: &[Request],
    batch: usize,
    processor: Option<&dyn Processor>,
) -> Result<(), PipelineError> {
    let Some(processor) = processor else { return Ok(()) };
    let mut pages: Vec<usize> = requests.iter().map(Request::pages).collect();
    pages.sort_unstable_by(|a, b| b.cmp(a));
    let most = pages.iter().take(batch.max(1)).sum();
    let rows = requests.iter().map(|request| request.prompt.len()).sum::<usize>().max(batch);
    pages_on(processor, &Executable::of(folder)?, &folder.spec, rows, [most, most]).map(drop)
}
