//! What a plan will give and take, from shapes alone: bits, bytes, time.

use crate::plan::Plan;
use crate::prepare::PreparedJob;
use crate::recipe::Recipe;
use ndarray::Array2;
use quant_graph::{BlockSpec, LinearSpec, ModelScheme, ModelSpec, Role};
use quant_kernels::{Compute, Par, PreparedWeight};
use quant_methods::FloatStream;
use serde::Serialize;
use std::time::Instant;

/// Bytes per second and thread at which rows are read, rounded, hashed and written (measured on Zen 4 and Zen 5).
pub(crate) const BYTES_PER_SECOND: f64 = 0.35e9;
/// Share of the product rate that the column loops of a solver reach (measured).
const COLUMNS: f64 = 0.78;
/// Share of the product rate that is left for products beside norms, attention and copies.
pub(crate) const FORWARD: f64 = 0.85;

/// What a job is expected to give and take.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Forecast {
    /// Stored bits per weight over all linears of the blocks, scales, zeros and indices included.
    pub bits_per_weight: f64,
    /// Bytes of the weight files.
    pub output_bytes: u64,
    /// The same two if every block falls back to more bits; none where none can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst: Option<StoredSize>,
    /// Seconds on this machine, from the rate of one product that was tried; good to a factor of about 1.5.
    pub seconds: f64,
}

/// How much a folder stores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StoredSize {
    /// Bits per weight over all linears of the blocks.
    pub bits_per_weight: f64,
    /// Bytes of the weight files.
    pub output_bytes: u64,
}

impl Forecast {
    /// Of a job that was prepared, on this many threads.
    #[must_use]
    pub fn new(prepared: &PreparedJob, threads: usize) -> Self {
        let PreparedJob { folder, plan, tokens, disk, .. } = prepared;
        let lengths: Vec<usize> = tokens.iter().flat_map(|t| t.sequences.iter().map(Vec::len)).collect();
        let moved = (folder.checkpoint.total_bytes() + disk.weights) as f64;
        let computing = operations(plan, &lengths).seconds(&plan.recipe, threads);
        Self {
            bits_per_weight: plan.bits_per_weight(),
            output_bytes: disk.weights,
            // The plan has seen to it that the tensors are the same.
            worst: plan
                .worst_bits_per_weight()
                .map(|bits_per_weight| StoredSize { bits_per_weight, output_bytes: disk.weights }),
            seconds: computing + moved / (2.0 * BYTES_PER_SECOND * threads.min(4) as f64),
        }
    }
}

impl Forecast {
    /// Of a plan for a model that is known by its shape alone, calibrated with sequences of these lengths. Tables outside the blocks are
    /// counted as they are stored.
    #[must_use]
    pub fn of_shape(plan: &Plan, lengths: &[usize], threads: usize) -> Self {
        let spec = &plan.spec;
        let blocks = (spec.layers * spec.block_parameters()) as f64;
        let tables = (2 * spec.vocab * spec.hidden) as f64 * plan.norm_type.size() as f64;
        let bits_per_weight = plan.bits_per_weight();
        let bytes = |bits_per_weight: f64| (blocks * bits_per_weight / 8.0 + tables) as u64;
        let output_bytes = bytes(bits_per_weight);
        let calibrated = plan.streams.calibration();
        let computing =
            if calibrated { operations(plan, lengths).seconds(&plan.recipe, threads) } else { 0.0 };
        let moved = blocks * plan.norm_type.size() as f64 + output_bytes as f64;
        Self {
            bits_per_weight,
            output_bytes,
            worst: plan
                .worst_bits_per_weight()
                .map(|bits_per_weight| StoredSize { bits_per_weight, output_bytes: bytes(bits_per_weight) }),
            seconds: computing + moved / (2.0 * BYTES_PER_SECOND * threads.min(4) as f64),
        }
    }
}

impl Forecast {
    /// Seconds that so many tokens take through a whole model on this machine, its head included, from the rate of one product that is
    /// tried; good to a factor of about 1.5 where products weigh, which they do not in tiny models.
    #[must_use]
    pub fn seconds_of_tokens(spec: &ModelSpec, tokens: usize, compute: Compute, threads: usize) -> f64 {
        let weights = spec.layers * spec.block_parameters() + spec.vocab * spec.hidden;
        2.0 * weights as f64 * tokens as f64 / (FORWARD * product_rate(compute, Par::new(threads)))
    }
}

impl Plan {
    /// Stored bits per weight over all linears of the blocks, as the report of the run will have it.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        self.bits_of(&self.scheme)
    }

    /// The same if every block falls back to more bits; none where none can.
    #[must_use]
    pub fn worst_bits_per_weight(&self) -> Option<f64> {
        let can = self.fallbacks.iter().any(Option::is_some);
        can.then(|| self.bits_of(&self.scheme_with(|_| true)))
    }

    fn bits_of(&self, scheme: &ModelScheme) -> f64 {
        let float = 8.0 * self.norm_type.size() as f64;
        let (mut bits, mut weights) = (0.0, 0.0);
        for (index, schemes) in scheme.blocks.iter().enumerate() {
            for linear in self.spec.block(index).linears {
                let weight = schemes.get(&linear.id).and_then(|scheme| scheme.weight);
                let each =
                    weight.map_or(float, |w| w.bits_per_weight(linear.shape(), 8 * self.scale_type.size()));
                let size = linear.weights() as f64;
                (bits, weights) = (bits + each * size, weights + size);
            }
        }
        bits / f64::max(weights, 1.0)
    }
}

/// Floating-point operations of calibration and rounding, each weighted by how far below the rate of a product it runs.
pub(crate) struct Operations {
    /// In the arithmetic of products.
    products: f64,
    /// In that of statistics.
    statistics: f64,
}

impl Operations {
    pub(crate) fn all(&self) -> f64 {
        self.products + self.statistics
    }

    /// How long they take on this machine.
    pub(crate) fn seconds(&self, recipe: &Recipe, threads: usize) -> f64 {
        let in_time = |operations: f64, compute| {
            if operations > 0.0 { operations / product_rate(compute, Par::new(threads)) } else { 0.0 }
        };
        if recipe.statistics() == recipe.compute() {
            return in_time(self.all(), recipe.compute());
        }
        in_time(self.products, recipe.compute()) + in_time(self.statistics, recipe.statistics())
    }
}

/// The operations of a plan for sequences of these lengths.
pub(crate) fn operations(plan: &Plan, lengths: &[usize]) -> Operations {
    let spec = &plan.spec;
    let tokens = lengths.iter().sum::<usize>();
    // The float stream passes a block once more where it is looked at before the transforms and goes on behind them.
    let looked_at = || spec.block(0).stages.iter().any(|stage| !plan.needs_at(0, stage).float.is_empty());
    let again = usize::from(plan.streams.deployed && !plan.true_sequential())
        + usize::from(plan.streams.together == Some(FloatStream::Model) && looked_at());
    let once = 2.0 * tokens as f64 * spec.block_parameters() as f64 + attention(spec, lengths);
    let forward = (plan.streams.count() + again) as f64 * once;
    let (mut all, mut statistics) = (spec.layers as f64 * forward / FORWARD, 0.0);
    for index in 0..spec.layers {
        let block = plan.block(index);
        all += cache_passes(plan) * cache_pass(&block, tokens) / FORWARD;
        for transform in plan.recipe.transforms() {
            all += transform.operations(&block, tokens) / FORWARD;
        }
        if let Some(learner) = plan.recipe.learner().filter(|_| plan.learns(index)) {
            all += learner.passes() * once / FORWARD;
            all += plan.block_plan(index).map_or(0.0, |block| learner.operations(&block, tokens)) / FORWARD;
        }
        for stage in &block.stages {
            let needs = plan.needs_at(index, stage);
            let gathered =
                needs.float.iter().chain(&needs.deployed).map(|s| s.operations(tokens, stage.width));
            statistics += gathered.sum::<f64>();
            for group in plan.sharing(index, stage) {
                let mut shared = 0.0_f64;
                for linear in group.iter().filter_map(|id| block.linear(*id)) {
                    let Some(solver) = plan.blocks[index][&linear.id].solver() else { continue };
                    let of = solver.operations(linear.shape(), tokens);
                    shared = shared.max(of.prepare);
                    all += of.round / COLUMNS;
                }
                all += shared;
            }
        }
    }
    statistics += plan.needs_of_head().iter().map(|s| s.operations(tokens, spec.hidden)).sum::<f64>();
    for table in plan.tables.values() {
        let of = table.solver.operations((spec.vocab, spec.hidden), tokens);
        all += of.prepare + of.round / COLUMNS;
    }
    Operations { products: all, statistics }
}

/// How often keys and values of all tokens are computed for the ranges of the cache alone: with the weights as they will be
/// deployed and, where statistics come from the float block and attention is to see the cache, with those.
fn cache_passes(plan: &Plan) -> f64 {
    let provisional = plan.cache_in_calibration() && !plan.true_sequential();
    plan.cache_ahead().map_or(0.0, |_| if provisional { 2.0 } else { 1.0 })
}

/// Operations of the linears that make keys and values.
fn cache_pass(block: &BlockSpec, tokens: usize) -> f64 {
    let entries = |l: &&LinearSpec| l.parts.iter().any(|(role, _)| matches!(role, Role::K | Role::V));
    block.linears.iter().filter(entries).map(|l| 2.0 * tokens as f64 * l.weights() as f64).sum()
}

/// Scores and their products with values, causal: half of all pairs.
pub(crate) fn attention(spec: &ModelSpec, lengths: &[usize]) -> f64 {
    let pairs: f64 = lengths.iter().map(|&n| (n as f64).powi(2) / 2.0).sum();
    4.0 * pairs * spec.query_width() as f64
}

/// Operations per second of a product of this machine, from one that takes some hundredths of a second.
pub(crate) fn product_rate(compute: Compute, par: Par) -> f64 {
    const TOKENS: usize = 512;
    const WIDTH: usize = 1024;
    let filled =
        |rows: usize| Array2::from_shape_fn((rows, WIDTH), |(i, j)| ((i * 31 + j * 17) % 61) as f32 - 30.0);
    let (weight, x) = (PreparedWeight::new(filled(WIDTH).view(), compute, par), filled(TOKENS));
    let mut out = Array2::zeros((TOKENS, WIDTH));
    let mut try_one = || {
        let started = Instant::now();
        weight.forward_into(x.view(), None, out.view_mut(), par);
        started.elapsed().as_secs_f64()
    };
    let best = (0..4).map(|_| try_one()).fold(f64::INFINITY, f64::min);
    2.0 * (TOKENS * WIDTH * WIDTH) as f64 / best.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass over k and v is 2 · tokens · weights of both, in every block.
    #[test]
    fn passes_for_the_cache_are_counted() {
        for (architecture, outputs) in [("Qwen2ForCausalLM", 32), ("Phi3ForCausalLM", 64)] {
            let spec = quant_model::model_spec(&serde_json::json!({
                "architectures": [architecture], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
            }))
            .unwrap();
            let of = |sequential: bool, in_calibration: bool, kv: &str| {
                let recipe = Recipe::parse(&format!(
                    "version: 1\nmodifiers: [gptq: {{ scheme: W4A16KV4, true_sequential: {sequential} }}]\n\
                     activations: {{ in_calibration: {in_calibration} }}\nkv_cache: {{ {kv} }}\n"
                ));
                operations(&Plan::new(&recipe.unwrap(), &spec).unwrap(), &[40, 60]).all()
            };
            let pass = 2.0 * 2.0 * 100.0 * f64::from(32 * outputs) / FORWARD;
            for (sequential, in_calibration, kv, passes) in [
                (true, false, "granularity: channel_static", 0.0),
                (true, true, "granularity: channel_static", 1.0),
                (false, true, "granularity: channel_static", 2.0),
                (true, true, "granularity: token_head", 0.0),
                (true, false, "before_rope: true", 1.0),
                (false, false, "before_rope: true", 1.0),
                (false, true, "before_rope: true", 2.0),
            ] {
                let without = of(sequential, false, "granularity: token_head");
                let found = (of(sequential, in_calibration, kv) - without) / pass;
                assert!(
                    (found - passes).abs() < 1e-6,
                    "{architecture} {sequential} {in_calibration} {kv}: {found}"
                );
            }
        }
    }
}
