//! What going on after a break costs: how often the streams of activations are written, and the disk that takes.

use crate::plan::{LinearPlan, Plan};
use quant_graph::StageSpec;
use serde::Serialize;

/// Bytes per second that a disk takes beside everything else, carefully.
const DISK: f64 = 200e6;
/// Floating-point operations per second of a forward pass, carefully.
const FORWARD: f64 = 50e9;
/// Bytes of a journal besides numbers, for a linear: its report, the hashes of its tensors.
const WORDS: u64 = 4 << 10;

/// How a run keeps what it takes to go on.
///
/// Behind a block the streams can be written, or the block can be passed again from an earlier boundary, with its rounded
/// weights, which then stay in the journal. Writing at every k-th of L blocks costs `(L/k)·w`, and a break makes `k/2` passes
/// of cost `f` necessary on the mean, so the cheapest k is `√(2·L·w/f)` (Young, "A first order approximation to the optimum
/// checkpoint interval", CACM 17, 1974), for one break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Keeping {
    /// Blocks from one writing of the streams to the next.
    pub every: usize,
    /// Bytes of the journal at most, the streams included.
    pub bytes: u64,
}

impl Keeping {
    /// Of a plan on so many calibration tokens.
    #[must_use]
    pub fn new(plan: &Plan, tokens: usize) -> Self {
        let spec = &plan.spec;
        let streams = plan.streams.count() as u64;
        let rows = 4 * streams * (tokens * spec.hidden) as u64;
        let weights = spec.block_parameters() as u64;
        let write = rows as f64 / DISK;
        let again = 2.0 * (tokens as u64 * weights * streams) as f64 / FORWARD;
        let ratio = if again > 0.0 { write / again } else { 0.0 };
        let every = (2.0 * spec.layers as f64 * ratio).sqrt().round() as usize;
        let every = every.clamp(1, spec.layers.max(1));
        // Levels, scales and zeros of groups of 16 at the least.
        let block = weights + weights / 2;
        let linears = plan.scheme.linears().count() as u64;
        let blocks = if plan.paid() { every as u64 * block } else { 0 };
        // The segment before goes when the next one is on the disk.
        let bytes = 2 * (rows + WORDS * linears) + blocks;
        Self { every, bytes: if plan.streams.calibration() { bytes } else { 2 * WORDS * linears } }
    }
}

impl Plan {
    /// Whether statistics or a search are paid for in rounding a stage.
    #[must_use]
    pub fn paid_stage(&self, block: usize, stage: &StageSpec) -> bool {
        let planned = stage.linears.iter().filter_map(|id| self.blocks.get(block)?.get(id));
        planned.filter_map(LinearPlan::solver).any(|solver| !solver.needs().is_empty())
    }
    /// Whether anything in a block is paid for: a stage, or the search of a transform. What its stages become is then kept as
    /// soon as it is there.
    #[must_use]
    pub fn paid_block(&self, block: usize) -> bool {
        let spec = self.block(block);
        let searches = self.recipe.transforms().iter().any(|t| t.operations(&spec, 1) > 0.0);
        searches || self.learns(block) || spec.stages.iter().any(|stage| self.paid_stage(block, stage))
    }
    /// Whether anything in the model is, the head included.
    #[must_use]
    pub fn paid(&self) -> bool {
        self.tables.values().any(|table| !table.solver.needs().is_empty())
            || (0..self.spec.layers).any(|block| self.paid_block(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recipe;
    use quant_model::model_spec;
    use serde_json::json;

    fn plan(modifiers: &str, hidden: usize) -> Plan {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": 3 * hidden,
            "num_hidden_layers": 32, "num_attention_heads": 4, "vocab_size": 64,
        });
        let recipe = Recipe::parse(&format!("version: 1\nmodifiers: [{modifiers}]\n")).unwrap();
        Plan::new(&recipe, &model_spec(&config).unwrap()).unwrap()
    }

    #[test]
    fn what_is_paid_for_is_kept_at_once() {
        let paid = |modifiers: &str| {
            let plan = plan(modifiers, 64);
            let stages = plan.spec.block(0).stages;
            (plan.paid(), plan.paid_block(0), stages.iter().all(|stage| plan.paid_stage(0, stage)))
        };
        assert_eq!(paid("gptq: { scheme: W4A16 }"), (true, true, true));
        assert_eq!(paid("rtn: { scheme: W8A8 }"), (false, false, false));
        assert_eq!(paid("smoothquant: {}, rtn: { scheme: W8A8 }"), (false, false, false));
        assert_eq!(paid("awq: {}, rtn: { scheme: W4A16 }"), (true, true, false));
        assert_eq!(paid("awq: { scheme: W4A16g32 }"), (true, true, true));
    }

    /// A wide block costs more to pass again than its activations cost to write; a narrow one less.
    #[test]
    fn streams_are_written_where_that_is_cheaper() {
        let every = |hidden| Keeping::new(&plan("gptq: { scheme: W4A16 }", hidden), 1000).every;
        assert_eq!(every(4096), 1);
        assert!(every(64) > 1 && every(64) <= 32);
        assert_eq!(Keeping::new(&plan("rtn: { scheme: W8A8 }", 64), 0).every, 1);
        let bytes = |modifiers: &str| Keeping::new(&plan(modifiers, 4096), 1000).bytes;
        // Both streams, twice.
        let stream = 4 * 1000 * 4096;
        assert_eq!(bytes("gptaq: { scheme: W4A16 }") - bytes("gptq: { scheme: W4A16 }"), 2 * stream);
    }
}
