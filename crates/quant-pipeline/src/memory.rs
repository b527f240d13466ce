//! Predicting the peak of resident memory from a plan.

mod tables;

use crate::layout::Layout;
use crate::plan::{MEASURED, Plan};
use quant_checkpoint::tensors_at_once;
use quant_graph::{BlockSpec, Site, StageSpec};
use quant_kernels::PreparedWeight;
use quant_methods::{Gathered, Learner, Workspace};
use quant_model::{RopeTables, attention_workspace_bytes, forward_memory, training_memory};
use serde::Serialize;

/// Resident memory besides what is counted below: code, thread stacks, tables, small vectors.
pub(crate) const BASE: u64 = 7 << 20;
/// The same for what streams of activations need beside it: more code, rotary tables, small temporaries.
pub(crate) const STREAMS: u64 = 8 << 20;
/// Pieces of a weight between the file and its levels: bytes, floats, and the rows being measured.
pub(crate) const READING: u64 = 16 << 20;
/// For each further tensor that is read at once: two waves of 4 MiB, or two of 2 MiB and their floats.
const READING_MORE: u64 = 8 << 20;
/// Bytes on their way to the writer at most, but for levels, which take what their block did.
const QUEUE: u64 = 32 << 20;
/// Packed operands of one product at most.
const PACKED: u64 = 18 << 20;
/// Arrays from this size on have pages of their own; smaller ones leave holes in the heap when they go.
const HEAP: u64 = 32 << 20;
/// What a thread holds besides its tasks: the used part of its stack and of its own heap.
pub(crate) const THREAD: u64 = 512 << 10;
/// Rows of a weight that a thread measures at a time.
const MEASURED_ROWS: u64 = crate::run::MEASURED_ROWS as u64;
/// A measured peak is at most this many hundredths of the predicted one.
const TOLERANCE: u64 = 15;
/// Bytes of an f32.
pub(crate) const F32: u64 = 4;
/// Bytes of a bfloat16.
const BF16: u64 = 2;

/// Predicted memory of a run, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    /// Program, threads, tables, token ids, read buffers.
    pub base: u64,
    /// Freed memory that the allocator keeps within a block, because smaller arrays come and go in many orders and every
    /// thread has a heap of its own.
    pub retained: u64,
    /// Rows in memory while activations are on disk.
    pub spilled: u64,
    /// What repeating a factorisation in f64 takes beyond the peak, should one fail in f32.
    pub retry: u64,
    /// The most that is resident besides activations of all tokens, and in which phase.
    pub phases: Vec<PhaseMemory>,
}

/// One phase of the work on a block.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseMemory {
    /// What is going on.
    pub phase: &'static str,
    /// Weights of the block in whatever form they are.
    pub weights: u64,
    /// Hessian, factor, solver workspace.
    pub solver: u64,
    /// Temporaries of one chunk of tokens.
    pub chunk: u64,
    /// Activations of all calibration tokens; these can be spilled.
    pub activations: u64,
}

/// The most that is measured where this is predicted.
pub(crate) fn bound(peak: u64) -> u64 {
    peak + peak * TOLERANCE / 100
}

impl PhaseMemory {
    fn fixed(&self) -> u64 {
        self.weights + self.solver + self.chunk
    }
}

impl MemoryPlan {
    /// The predicted peak, with activations in memory or on disk.
    #[must_use]
    pub fn peak(&self, spill: bool) -> u64 {
        let of = |p: &PhaseMemory| p.fixed() + if spill { self.spilled } else { p.activations };
        self.base + self.retained + self.phases.iter().map(of).max().unwrap_or(0)
    }
    /// The peak that a run does not exceed: the predicted one and 15 % more. This is what a budget is compared with.
    #[must_use]
    pub fn bound(&self, spill: bool) -> u64 {
        bound(self.peak(spill))
    }
    /// Bytes on disk while activations are there.
    #[must_use]
    pub fn spilled_to_disk(&self) -> u64 {
        self.phases.iter().map(|p| p.activations).max().unwrap_or(0)
    }
    /// What would lower the peak.
    #[must_use]
    pub fn advice(&self) -> String {
        let largest = self.phases.iter().max_by_key(|p| p.fixed());
        match largest {
            Some(p) if p.solver > p.weights && p.solver > p.chunk => {
                "the factorisation of the widest input is the largest part: leave down_proj to rtn or ignore it".into()
            }
            Some(p) if p.chunk > p.weights => "shorten the sequences with --max-seq-len".into(),
            _ => "one block must fit in memory".into(),
        }
    }
}

/// Predicts the memory of a run on calibration sequences of these lengths, cut from a text of that many bytes (0 for token
/// ids).
///
/// The peak is that of a run whose f32 factorisations hold: an f64 repetition, which follows a failed one, takes
/// [`MemoryPlan::retry`] more.
#[must_use]
pub fn predict(plan: &Plan, lengths: &[usize], text_bytes: u64, threads: usize) -> MemoryPlan {
    let layout = Layout::new(lengths.iter().copied());
    let sizes = Sizes::new(plan, &layout);
    let calibration = plan.streams.calibration();
    let mut phases = Vec::new();
    if text_bytes > 0 {
        let chunk = quant_data::tokenising_bytes(text_bytes);
        phases.push(PhaseMemory { chunk, activations: 0, ..sizes.phase("tokenise") });
    }
    if calibration || plan.recipe.rewrites() {
        // Reading converts a tensor wave by wave; the floats of the whole block stay.
        phases.push(PhaseMemory { weights: F32 * sizes.block + sizes.in_flight(), ..sizes.phase("read") });
    }
    if plan.streams.float {
        phases.push(PhaseMemory {
            weights: (F32 + sizes.prepared) * sizes.block,
            solver: sizes.stages.iter().map(|s| s.float).sum(),
            chunk: sizes.step,
            ..sizes.phase("float statistics")
        });
    }
    let runs = plan.recipe.transforms().iter().filter(|t| t.runs_block());
    for transform in runs {
        phases.push(PhaseMemory {
            weights: (F32 + sizes.prepared) * sizes.block,
            solver: sizes.stages.iter().map(|s| s.float).sum::<u64>()
                + transform.workspace(&sizes.spec, layout.rows()),
            ..sizes.phase(transform.method().id)
        });
    }
    if let Some(learner) = plan.recipe.learner() {
        phases.push(learner_phase(plan, learner, &layout, &sizes));
    }
    if plan.streams.deployed {
        if !plan.true_sequential() {
            phases.push(PhaseMemory {
                weights: (F32 + sizes.prepared) * sizes.block,
                solver: sizes.stages.iter().map(|s| s.float + s.deployed).sum(),
                chunk: sizes.step + F32 * sizes.chunk * plan.spec.hidden as u64 + sizes.beside,
                ..sizes.phase("statistics of the float block")
            });
        }
        let mut done = 0;
        for at in 0..sizes.stages.len() {
            stage_phases(&sizes, at, &mut done, &mut phases);
        }
    } else {
        // Every weight gives up its floats, or never has them, for levels a quarter their size.
        // Of a block that is rewritten without data nothing is read any more while it is rounded.
        let beside = if calibration || !plan.recipe.rewrites() { sizes.in_flight() } else { 0 };
        let weights = sizes.floats_alone + sizes.levels + beside;
        let solver = sizes.stages.iter().map(|s| s.float).sum::<u64>()
            + sizes.stages.iter().map(|s| s.workspace.prepared.max(s.workspace.prepare)).max().unwrap_or(0);
        phases.push(PhaseMemory { weights, solver, ..sizes.phase("round") });
    }
    // A part of the block before, and levels beside their encoded form or, where they become it, what else of that block lags.
    let weights = sizes.levels + sizes.encoded + sizes.in_flight() / 4;
    phases.push(PhaseMemory { weights, ..sizes.phase("write") });
    phases.extend(tables::phases(plan, &layout.starts, sizes.chunk, threads as u64));
    MemoryPlan {
        base: BASE
            + THREAD * threads as u64
            + if calibration { STREAMS + sizes.tables } else { 0 }
            + (3 * F32 * sizes.largest).min(READING)
            + (tensors_at_once(threads) as u64 - 1) * READING_MORE,
        // Of what passed through a stage half finds a hole that fits (measured, as the quarter of what a search leaves).
        retained: match &plan.streams {
            streams if streams.deployed => sizes.passing_through() / 2 + sizes.of_threads(threads),
            streams if streams.calibration() => {
                let searches = plan.recipe.transforms().iter().any(|t| t.runs_block());
                let left = if searches { sizes.passing_through() / 4 } else { 0 };
                left + sizes.of_threads(threads)
            }
            _ => 0,
        },
        spilled: sizes.spilled,
        retry: sizes
            .stages
            .iter()
            .map(|s| s.workspace.retry)
            .chain([tables::retry(plan, layout.rows())])
            .max()
            .unwrap_or(0),
        phases,
    }
}

/// What a learner holds in the block where it is most.
fn learner_phase(plan: &Plan, learner: &dyn Learner, layout: &Layout, sizes: &Sizes<'_>) -> PhaseMemory {
    let mut lengths: Vec<usize> = layout.lengths().collect();
    let (batch, held, chunk, before) = if let Some(batch) = learner.batch() {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.truncate(batch);
        let step = training_memory::<f32>(&plan.spec, &lengths, Some(crate::run::TAPES));
        (lengths.iter().sum(), step.tape + step.gradients, step.working, 0)
    } else {
        let forward = forward_memory::<f32>(&plan.spec, &lengths);
        // It begins while the block before is on its way to the writer, or what that took is still in the heap: 412 to 497 MB were measured of
        // a job whose blocks are 60 MB encoded.
        (forward.tokens, 0, forward.working, sizes.encoded)
    };
    let inside = |index| Some(learner.workspace(&plan.block_plan(index)?, layout.rows(), batch));
    let inside: u64 = (0..plan.spec.layers).filter_map(inside).max().unwrap_or(0);
    PhaseMemory {
        weights: F32 * sizes.block * learner.window() as u64 + before,
        solver: inside + held as u64,
        chunk: chunk as u64,
        ..sizes.phase(learner.method().id)
    }
}

/// The phases of one stage on the deployed stream. `done` counts the weights rounded so far.
fn stage_phases(sizes: &Sizes<'_>, at: usize, done: &mut u64, phases: &mut Vec<PhaseMemory>) {
    let stage = &sizes.stages[at];
    let after = &sizes.stages[at + 1..];
    let waiting: u64 =
        after.iter().map(|s| s.float + if sizes.plan.true_sequential() { 0 } else { s.deployed }).sum();
    let held = |done: u64| F32 * (sizes.block - done) + done;
    if stage.workspace.prepare > 0 {
        let packed = F32 * sizes.chunk * stage.width;
        phases.push(PhaseMemory {
            weights: held(*done),
            solver: stage.workspace.prepare + stage.copied + waiting,
            chunk: packed.min(PACKED),
            ..sizes.phase("factor")
        });
    }
    // The linear at work has its floats and its levels at once; it is measured after it was rounded.
    phases.push(PhaseMemory {
        weights: held(*done) + stage.largest,
        solver: stage.workspace.prepared
            + stage.workspace.weight
            + stage.copied
            + stage.sampled()
            + stage.float
            + waiting,
        ..sizes.phase("round")
    });
    if sizes.plan.streams.together.is_some() {
        // The float stream goes through the stage before its floats are gone.
        phases.push(PhaseMemory {
            weights: held(*done) + sizes.prepared * stage.weights,
            solver: stage.float + stage.deployed + waiting,
            chunk: sizes.step,
            ..sizes.phase("float forward")
        });
    }
    *done += stage.weights;
    if at == 0 && sizes.plan.cache_ahead().is_some() {
        // The norm of a chunk, and what the linears that hold k and v make of it, together and taken apart.
        let (spec, plan) = (&sizes.spec, &sizes.plan.spec);
        let outputs: usize =
            spec.stages[at].linears.iter().filter_map(|id| Some(spec.linear(*id)?.outputs)).sum();
        let columns = (plan.hidden + outputs + 2 * plan.kv_width()) as u64;
        phases.push(PhaseMemory {
            weights: held(*done) + sizes.prepared * stage.weights,
            solver: waiting,
            chunk: F32 * sizes.chunk * columns,
            ..sizes.phase("cache ranges")
        });
    }
    // The linears are on their way to the journal.
    let kept = if stage.kept { stage.weights.min(QUEUE) } else { 0 };
    phases.push(PhaseMemory {
        weights: held(*done) + sizes.prepared * stage.weights + kept,
        solver: waiting,
        chunk: sizes.step,
        ..sizes.phase("forward")
    });
}

/// A stage in bytes, the most over all blocks; its linears in weights.
struct Stage {
    width: u64,
    /// Weights of its linears, and of the largest.
    weights: u64,
    largest: u64,
    /// What is gathered of the two streams.
    float: u64,
    deployed: u64,
    /// What is kept of both for the next method, where several prepare something of their own.
    copied: u64,
    /// What its solver holds.
    workspace: Workspace,
    /// Whether its linears go to the journal as soon as they are rounded.
    kept: bool,
}

impl Stage {
    fn new(plan: &Plan, spec: &BlockSpec, stage: &StageSpec, starts: &[usize]) -> Self {
        let linears = || stage.linears.iter().filter_map(|id| spec.linear(*id)).map(|l| l.weights() as u64);
        let (mut float, mut deployed, mut workspace) = (0, 0, Workspace::default());
        let mut several = false;
        for (index, block) in plan.blocks.iter().enumerate() {
            let needs = plan.needs_at(index, stage);
            float = float.max(Gathered::bytes(&needs.float, stage.width, starts) as u64);
            deployed = deployed.max(Gathered::bytes(&needs.deployed, stage.width, starts) as u64);
            let preparing = plan.sharing(index, stage).into_iter().filter(|group| {
                let solver = group.first().and_then(|id| block.get(id)?.solver());
                solver.is_some_and(|s| !s.sharing_key().is_empty())
            });
            several |= preparing.count() > 1;
            for solver in stage.linears.iter().filter_map(|id| Some((*id, block.get(id)?.solver()?))) {
                let Some(linear) = spec.linear(solver.0) else { continue };
                let one = solver.1.workspace(linear.shape(), starts.last().copied().unwrap_or(0));
                workspace = Workspace {
                    prepare: workspace.prepare.max(one.prepare),
                    retry: workspace.retry.max(one.retry),
                    prepared: workspace.prepared.max(one.prepared),
                    weight: workspace.weight.max(one.weight),
                    thread: workspace.thread.max(one.thread),
                };
            }
        }
        Self {
            width: stage.width as u64,
            weights: linears().sum(),
            largest: linears().max().unwrap_or(0),
            float,
            deployed,
            copied: if several { float + deployed } else { 0 },
            workspace,
            kept: plan.paid(),
        }
    }
    /// The sampled tokens on which a linear is measured: as they came, in float and quantised.
    fn sampled(&self) -> u64 {
        4 * F32 * MEASURED.count(usize::MAX) as u64 * self.width
    }
}

/// What the phases are made of, in bytes; linears and blocks in weights.
struct Sizes<'a> {
    plan: &'a Plan,
    spec: BlockSpec,
    stages: Vec<Stage>,
    /// Weights of a block, and of its largest linear.
    block: u64,
    largest: u64,
    /// Levels of a block, or floats of linears that stay float.
    levels: u64,
    /// Floats that are there when no activations are: of the whole block if it was transformed.
    floats_alone: u64,
    /// The encoded tensors of a block.
    encoded: u64,
    /// Bytes of a weight that is ready for products.
    prepared: u64,
    /// Tokens of the largest chunk.
    chunk: u64,
    /// Temporaries of a chunk.
    step: u64,
    /// A chunk of the float stream at all sites, where both streams are looked at in one pass.
    beside: u64,
    /// Tokens of the longest sequence.
    longest: usize,
    /// Rotary tables and token ids.
    tables: u64,
    /// All activations of all tokens.
    activations: u64,
    /// What is in memory instead when they are on disk.
    spilled: u64,
}

impl<'a> Sizes<'a> {
    fn new(plan: &'a Plan, layout: &Layout) -> Self {
        let spec = &plan.spec;
        let topology = spec.block(0);
        let (tokens, chunk) = (layout.rows() as u64, layout.largest_chunk() as u64);
        let width = |site: Site| spec.site_width(site) as u64;
        let (hidden, wide) = (spec.hidden as u64, width(Site::MlpActivation));
        let block = spec.block_parameters() as u64;
        let levels = topology.linears.iter().map(|linear| {
            let rounded =
                plan.blocks.first().and_then(|b| b.get(&linear.id)).is_some_and(|l| l.rounding.is_some());
            if rounded { linear.weights() as u64 } else { F32 * linear.weights() as u64 }
        });
        let declared = plan.recipe.format().declare(spec, &plan.scheme, &|_| None);
        let prefix = format!("{}.", spec.block_prefix(0));
        let encoded = declared
            .iter()
            .filter(|t| t.name.starts_with(&prefix))
            .map(|t| (t.shape.iter().product::<usize>() * t.dtype.bitsize()).div_ceil(8) as u64)
            .sum();
        let streams = &plan.streams;
        let residual = F32 * tokens * hidden;
        // The inputs of o and down keep their memory from block to block, of every stream that goes stage by stage.
        let staged =
            u64::from(streams.deployed) + u64::from(streams.together.is_some() && plan.true_sequential());
        let waiting = width(Site::AttentionOutput) + wide;
        let rounded = plan.rounds_waiting(layout.rows(), layout.largest_chunk());
        let inside = match rounded {
            None => staged * F32 * tokens * waiting,
            Some(exact) => waiting * (BF16 * tokens + F32 * tokens.div_ceil(exact as u64)),
        };
        // Whoever reads or writes rounded inputs has a chunk of them in f32; on the way to a file it is there in halves too, and
        // exact rows never are in one.
        let copied = if rounded.is_some() { F32 * chunk * wide } else { 0 };
        let beside_file =
            rounded.map_or(0, |exact| BF16 * chunk * wide + F32 * tokens.div_ceil(exact as u64) * waiting);
        // What up computes stays too, and the input of down where a whole block is passed at once; the rest comes and goes.
        let kept = F32 * chunk * wide * (1 + u64::from(streams.float));
        let heads = (spec.query_width() + 2 * spec.kv_width()) as u64;
        let passing = F32 * chunk * (3 * hidden + heads);
        let transformed = plan.recipe.rewrites();
        Self {
            plan,
            stages: topology
                .stages
                .iter()
                .map(|stage| Stage::new(plan, &topology, stage, &layout.starts))
                .collect(),
            block,
            largest: topology.linears.iter().map(|l| l.weights() as u64).max().unwrap_or(0),
            levels: levels.sum(),
            floats_alone: if transformed { F32 * block } else { 0 },
            encoded,
            prepared: PreparedWeight::<f32>::element_bytes(plan.recipe.compute()) as u64,
            chunk,
            step: kept + passing + copied + (F32 * chunk * wide).min(PACKED),
            beside: if streams.together.is_some() {
                F32 * chunk * Site::ALL.into_iter().map(width).sum::<u64>()
            } else {
                0
            },
            longest: layout.longest(),
            tables: RopeTables::bytes(spec, layout.lengths()) as u64 + F32 * tokens,
            activations: residual * streams.count() as u64 + inside,
            // A training sees all tokens at the input of its block.
            spilled: F32 * chunk * (wide + 2 * hidden)
                + beside_file
                + if plan.recipe.learner().is_some() { residual } else { 0 },
            spec: topology,
        }
    }
    fn phase(&self, phase: &'static str) -> PhaseMemory {
        PhaseMemory { phase, weights: 0, solver: 0, chunk: 0, activations: self.activations }
    }
    /// What is left of the block before on its way to the writer.
    fn in_flight(&self) -> u64 {
        self.encoded.min(QUEUE)
    }
    /// Arrays of a block that live in the heap: floats, levels and encoded forms of its smaller linears, Hessians and factors
    /// of its narrower sites.
    fn passing_through(&self) -> u64 {
        let small = |bytes: u64| if bytes < HEAP { bytes } else { 0 };
        let linears: u64 =
            self.spec.linears.iter().map(|l| l.weights() as u64).map(|n| small(F32 * n) + small(n)).sum();
        let squares = self.stages.iter().filter(|s| s.workspace.prepared > 0);
        let squares: u64 = squares.map(|s| 2 * small(F32 * s.width.pow(2))).sum();
        linears + small(self.encoded) + squares
    }
    /// What threads have held at some time in a block and their parts of the heap keep: tiles of the column loops, of the
    /// measured change and its packed form, of attention.
    fn of_threads(&self, threads: usize) -> u64 {
        let of = |stage: &Stage| stage.workspace.thread + 2 * F32 * MEASURED_ROWS * stage.width;
        let spec = &self.plan.spec;
        let attention = attention_workspace_bytes(spec.kv_heads, spec.head_dim, self.longest, threads);
        self.stages.iter().map(of).max().unwrap_or(0) * threads as u64 + attention as u64
    }
}
