//! The memory of quantising embedding and head, which come some rows at a time.

use super::{F32, PhaseMemory, QUEUE};
use crate::plan::Plan;
use quant_graph::Outer;
use quant_methods::Gathered;

/// Weights of a table that are there at a time: two MiB of a checkpoint in 16 bits.
const PIECE: u64 = 1 << 20;
/// Bytes of each of them: as read, as float, its level, its rounded value, and that on its way to the writer.
const PIECE_BYTES: u64 = 4 + F32 + 1 + F32 + F32;

/// What repeating a factorisation in wider numbers takes beyond.
pub(super) fn retry(plan: &Plan, tokens: usize) -> u64 {
    let shape = (plan.spec.vocab, plan.spec.hidden);
    plan.tables.values().map(|table| table.solver.workspace(shape, tokens).retry).max().unwrap_or(0)
}

/// The phases behind the blocks, on sequences that begin at these rows and pass in chunks of that many.
pub(super) fn phases(plan: &Plan, starts: &[usize], chunk: u64, threads: u64) -> Vec<PhaseMemory> {
    let (vocab, hidden) = (plan.spec.vocab, plan.spec.hidden);
    let tokens = starts.last().copied().unwrap_or(0);
    let needs = plan.needs_of_head();
    let gathered = Gathered::bytes(&needs, hidden, starts) as u64;
    let mut phases = Vec::new();
    let mut phase = |phase, weights, solver, chunk, activations| {
        phases.push(PhaseMemory { phase, weights, solver, chunk, activations });
    };
    if !needs.is_empty() {
        let (tokens, width) = (tokens as u64, hidden as u64);
        phase("statistics of the head", 0, gathered, 2 * F32 * chunk * width, F32 * tokens * width);
    }
    for (&table, planned) in &plan.tables {
        let workspace = planned.solver.workspace((vocab, hidden), tokens);
        // The statistics of the head wait while the embedding is rounded, and become what its solver prepares.
        let waiting = if table == Outer::Embedding { gathered } else { 0 };
        if workspace.prepare > 0 {
            phase("factor of a table", 0, workspace.prepare + waiting, 0, 0);
        }
        let weights = (vocab * hidden) as u64;
        // With a writer that lags as far as it may (69 MB measured, of a job; 43 MB with one that keeps up).
        let held = PIECE_BYTES * weights.min(PIECE) + (F32 * weights).min(QUEUE);
        let solver = workspace.prepared + workspace.weight + workspace.thread * threads + waiting;
        phase("round a table", held, solver, 0, 0);
    }
    phases
}
