//! What an analysis takes, from shapes alone.

use super::job::Sample;
use super::keys::KeyProbe;
use super::observe::Observer;
use crate::eval_memory::EvalMemory;
use crate::forecast::{BYTES_PER_SECOND, FORWARD, attention, operations, product_rate};
use crate::layout::Layout;
use crate::memory::{self, F32, bound};
use crate::plan::Plan;
use quant_eval::CHUNK;
use quant_kernels::Par;
use serde::{Deserialize, Serialize};

/// Bytes of a position of one stream while its logits come panel by panel.
const CARRIED: u64 = 160;

/// What an analysis is expected to take; known before any weight is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnalysisCost {
    /// Reads of a block, of whichever model: each of the model once, once more beside a transform of the whole model, and each of a
    /// finished output once.
    pub block_reads: usize,
    /// Bytes of all weights that are read.
    pub read_bytes: u64,
    /// Times that the whole sample goes through a block: about half the square of their number, since behind each of them there is
    /// one stream more.
    pub block_passes: usize,
    /// Seconds on this machine, from the rate of one product that was tried; good to a factor of about 1.5 where products weigh, which
    /// they do not in tiny models.
    pub seconds: f64,
    /// Predicted peak memory in bytes.
    pub memory: u64,
    /// Whether activations are on disk to stay within the budget.
    pub spilled: bool,
    /// Bytes of the activations that are.
    pub disk: u64,
}

impl AnalysisCost {
    /// What [`PreparedAnalysis::activations`](super::PreparedAnalysis::activations) of a finished output takes, which need not be there
    /// yet: `bytes` are those of the weights of the model and of the output.
    #[must_use]
    pub fn of_activations(plan: &Plan, sample: Sample, threads: usize, bytes: [u64; 2]) -> Self {
        let tokens = sample.tokens.min(plan.spec.max_position_embeddings);
        let layout = Layout::new(std::iter::repeat_n(tokens, sample.sequences));
        Shape { plan, layout: &layout, text: 0, threads, finished: true, bytes }.of_activations()
    }
}

/// What the cost depends on.
pub(super) struct Shape<'a> {
    pub(super) plan: &'a Plan,
    pub(super) layout: &'a Layout,
    /// Bytes of the text that the sample is cut from.
    pub(super) text: usize,
    pub(super) threads: usize,
    /// Whether the quantised blocks are read instead of made.
    pub(super) finished: bool,
    /// Bytes of the weights of the model, and of the finished output.
    pub(super) bytes: [u64; 2],
}

impl Shape<'_> {
    fn whole(&self) -> usize {
        usize::from(self.plan.recipe.model_transform().is_some())
    }

    /// Float blocks whose activations are looked at besides that of the model.
    fn rewritten(&self) -> usize {
        let recipe = &self.plan.recipe;
        let by_recipe = recipe.transforms().len() + usize::from(recipe.learner().is_some());
        if self.finished { 1 } else { by_recipe }
    }

    /// Peak memory, with all activations in memory or on disk.
    fn memory(&self, spilled: bool) -> u64 {
        let (plan, layout) = (self.plan, self.layout);
        let lengths: Vec<usize> = layout.lengths().collect();
        let compute = plan.recipe.compute();
        let eval = EvalMemory::new(&[(&plan.spec, true)], &lengths, self.text, compute, self.threads);
        let (encode, score) = eval.models.first().map_or((0, 0), |model| (model.encode, model.score));
        let run = memory::predict(plan, &lengths, self.text as u64, self.threads);
        let block = F32 * plan.spec.block_parameters() as u64;
        let kept = block * (1 + self.rewritten()) as u64;
        let quantise = if self.finished { 0 } else { run.peak(spilled) + kept };
        let [observer, observing] = Observer::bytes(&plan.spec, plan.scheme.kv.is_some());
        let observers = (1 + self.rewritten()) as u64 * observer + observing;
        let pass = eval.base + run.retained + kept + encode + observers;
        let text = eval.base + eval.text;
        // Of a stream on disk the positions that meet the head.
        let read = if spilled { layout.rows().min(CHUNK) * plan.spec.hidden } else { 0 } as u64;
        let score =
            eval.base + score + F32 * read + CARRIED * (layout.rows().min(CHUNK) * plan.spec.layers) as u64;
        let tables = plan.scheme.kv.map_or(0, |_| KeyProbe::bytes(&plan.spec, layout.longest()));
        // A chunk of the stream that is being worked on, and of its copy.
        let held = 2 * F32 * (layout.largest_chunk() * plan.spec.hidden) as u64;
        let streams = if spilled { held } else { self.streams() };
        quantise.max(pass).max(score).max(text) + tables + streams
    }

    /// Bytes of all streams: of the float model, as it was before a transform of the whole of it, and of each quantised block.
    fn streams(&self) -> u64 {
        let streams = self.plan.spec.layers + 1 + self.whole();
        F32 * (streams * self.layout.rows() * self.plan.spec.hidden) as u64
    }

    /// The least budget that is kept for certain, with activations in memory or on disk.
    pub(super) fn bound(&self, spilled: bool) -> u64 {
        bound(self.memory(spilled))
    }

    /// Seconds of so many passes through a block, and of reading.
    fn seconds(&self, passes: usize, others: f64) -> f64 {
        let (plan, spec) = (self.plan, &self.plan.spec);
        let lengths: Vec<usize> = self.layout.lengths().collect();
        let once =
            2.0 * self.layout.rows() as f64 * spec.block_parameters() as f64 + attention(spec, &lengths);
        let rate = product_rate(plan.recipe.compute(), Par::new(self.threads));
        let reading = self.read_bytes() as f64 / (2.0 * BYTES_PER_SECOND * self.threads.min(4) as f64);
        (passes as f64 * once / FORWARD + others) / rate + reading
    }

    fn read_bytes(&self) -> u64 {
        (1 + self.whole() as u64) * self.bytes[0] + self.bytes[1]
    }

    /// Reads of a block.
    fn block_reads(&self) -> usize {
        self.plan.spec.layers * (1 + self.whole() + usize::from(self.finished))
    }

    /// What looking at activations alone takes, with all of them in memory: they are few.
    fn of_activations(&self) -> AnalysisCost {
        let (plan, layout) = (self.plan, self.layout);
        let block_passes = plan.spec.layers * (1 + self.rewritten() + self.whole());
        let lengths: Vec<usize> = layout.lengths().collect();
        let compute = plan.recipe.compute();
        let eval = EvalMemory::new(&[(&plan.spec, true)], &lengths, self.text, compute, self.threads);
        let encode = eval.models.first().map_or(0, |model| model.encode);
        let block = F32 * plan.spec.block_parameters() as u64;
        let [observer, observing] = Observer::bytes(&plan.spec, plan.scheme.kv.is_some());
        let forms = 1 + self.rewritten() as u64;
        // That of the float model, its copy, and that of it before a transform of the whole.
        let streams = F32 * ((2 + self.whole()) * layout.rows() * plan.spec.hidden) as u64;
        AnalysisCost {
            block_reads: self.block_reads(),
            read_bytes: self.read_bytes(),
            block_passes,
            seconds: self.seconds(block_passes, 0.0),
            memory: eval.base + encode + forms * (block + observer) + observing + streams,
            spilled: false,
            disk: 0,
        }
    }

    pub(super) fn cost(&self, spilled: bool) -> AnalysisCost {
        let (plan, spec) = (self.plan, &self.plan.spec);
        let lengths: Vec<usize> = self.layout.lengths().collect();
        let (tokens, layers) = (self.layout.rows(), spec.layers);
        let own = layers * (2 + self.rewritten() + self.whole()) + layers * (layers - 1) / 2;
        let head = 2.0 * (tokens * (layers + 1)) as f64 * (spec.vocab * spec.hidden) as f64;
        let quantising = || operations(plan, &lengths).seconds(&plan.recipe, self.threads);
        let seconds = self.seconds(own, head) + if self.finished { 0.0 } else { quantising() };
        let quantising = if self.finished { 0 } else { plan.streams.count() * layers };
        AnalysisCost {
            block_reads: self.block_reads(),
            read_bytes: self.read_bytes(),
            block_passes: own + quantising,
            seconds,
            memory: self.memory(spilled),
            spilled,
            disk: if spilled { self.streams() } else { 0 },
        }
    }
}
