//! Predicting the peak of resident memory of an evaluation, and choosing what goes to disk.

use crate::PipelineError;
use crate::memory::{BASE, F32, READING, STREAMS, THREAD, bound};
use quant_checkpoint::{CheckpointError, Disk, Storage};
use quant_core::Bytes;
use quant_eval::{CHUNK, panel_bytes};
use quant_graph::ModelSpec;
use quant_kernels::{Compute, PreparedWeight};
use quant_model::{MLP_ROWS, RopeTables, attention_workspace_bytes, spilled_rows_at_once};
use serde::Serialize;
use std::path::Path;

/// Rows of the head that are read and prepared at a time.
const PANEL: u64 = 2048;
/// Bytes of a token: its id, its target, its scores.
const TOKEN: u64 = 80;
/// Bytes of a position whose sums are being carried from panel to panel.
const CARRIED: u64 = 160;

/// Predicted memory of an evaluation, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct EvalMemory {
    /// Program, threads, tables, token ids, scores, read buffers.
    pub base: u64,
    /// The text while it becomes tokens.
    pub text: u64,
    /// Every model in the order in which they run: the reference first, if there is one.
    pub models: Vec<ModelMemory>,
}

/// What one model of an evaluation takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ModelMemory {
    /// Hidden states of all tokens; these can be on disk.
    pub hidden: u64,
    /// The rows in memory where they are.
    pub held: u64,
    /// One block and what its threads work on.
    pub encode: u64,
    /// A panel of the head and its logits.
    pub score: u64,
}

impl EvalMemory {
    /// Of models of these shapes, each with whether it is stored as floats, the reference first, on sequences of these lengths.
    #[must_use]
    pub fn new(
        specs: &[(&ModelSpec, bool)],
        lengths: &[usize],
        text: usize,
        compute: Compute,
        threads: usize,
    ) -> Self {
        let tokens = lengths.iter().sum::<usize>();
        let tables = specs.iter().map(|(s, _)| RopeTables::bytes(s, lengths.iter().copied()) as u64).max();
        let weights = |s: &ModelSpec| s.block(0).linears.into_iter().map(|l| l.weights() as u64);
        let largest = specs.iter().flat_map(|(s, _)| weights(s)).max().unwrap_or(0);
        // Pieces of a float weight are there as bytes and as floats; levels are read as they are.
        let reading = if specs.iter().any(|(_, is_float)| *is_float) { 3 * F32 * largest } else { largest };
        Self {
            base: BASE
                + STREAMS
                + reading.min(READING)
                + THREAD * threads as u64
                + tables.unwrap_or(0)
                + TOKEN * tokens as u64,
            text: if text > 0 { quant_data::tokenising_bytes(text as u64) } else { 0 },
            models: specs.iter().map(|spec| ModelMemory::new(*spec, lengths, compute, threads)).collect(),
        }
    }
    /// The predicted peak with the hidden states of the first `spilled` models on disk.
    #[must_use]
    pub fn peak(&self, spilled: usize) -> u64 {
        let states = |(i, m): (usize, &ModelMemory)| if i < spilled { m.held } else { m.hidden };
        let kept = |models: usize| self.models.iter().enumerate().take(models).map(states).sum::<u64>();
        let encode = self.models.iter().enumerate().map(|(i, m)| kept(i + 1) + m.encode);
        // Two models are walked side by side, but read one panel after the other.
        let score = kept(self.models.len()) + self.models.iter().map(|m| m.score).sum::<u64>();
        self.base + encode.chain([score, self.text]).max().unwrap_or(0)
    }
    /// How many models must have their hidden states on disk to stay within a budget.
    ///
    /// # Errors
    /// [`PipelineError::Memory`] if not even all of them suffice; [`CheckpointError::NoSpace`] if `folder` has no room.
    pub fn spill(&self, allowed: Option<u64>, folder: &Path) -> Result<usize, PipelineError> {
        let Some(allowed) = allowed else { return Ok(0) };
        let all = self.models.len();
        let Some(spilled) = (0..=all).find(|&n| bound(self.peak(n)) <= allowed) else {
            return Err(PipelineError::Memory {
                needed: Bytes(bound(self.peak(all))),
                allowed: Bytes(allowed),
                advice: "shorten the sequences with --seq-len, or use fewer threads; one block and one panel of the head \
                         must fit in memory"
                    .into(),
            });
        };
        let needed = self.models.iter().take(spilled).map(|m| m.hidden).sum();
        match Disk.free_bytes(folder) {
            Some(free) if free < needed => {
                Err(CheckpointError::NoSpace { path: folder.to_owned(), needed, free }.into())
            }
            _ => Ok(spilled),
        }
    }
}

impl ModelMemory {
    fn new(
        (spec, is_float): (&ModelSpec, bool),
        lengths: &[usize],
        compute: Compute,
        threads: usize,
    ) -> Self {
        let (tokens, hidden) = (lengths.iter().sum::<usize>(), spec.hidden as u64);
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let at_once = if lengths.len() >= threads { threads } else { 1 };
        // A copy of the hidden states and their norm, queries, keys, values and what attention makes of them.
        let widths = 2 * hidden + 2 * (spec.query_width() + spec.kv_width()) as u64;
        // What gate and up compute, and the packed input of down.
        let mlp = (MLP_ROWS.min(longest) as u64) * (2 * hidden + 3 * spec.intermediate as u64);
        // Arrays of a sequence come and go in many orders; its thread's part of the heap keeps a third more.
        let sequence = F32 * (longest as u64 * widths + mlp) * 13 / 10;
        // Threads have a sequence each, or one together.
        let together = threads / at_once.max(1);
        let attention = attention_workspace_bytes(spec.kv_heads, spec.head_dim, longest, together);
        let at_once = at_once as u64;
        let block = spec.block_parameters() as u64;
        let stored = if is_float { F32 } else { 1 };
        let prepared = PreparedWeight::<f32>::element_bytes(compute) as u64;
        let panel = PANEL.min(spec.vocab as u64) * hidden;
        let positions = tokens.min(CHUNK) as u64;
        Self {
            hidden: F32 * tokens as u64 * hidden,
            held: F32 * hidden * (spilled_rows_at_once(lengths, threads).max(tokens.min(CHUNK)) as u64),
            // While it is made ready, a block is there as it was read and as it runs: a linear gives up the first, but its
            // place in the heap fits no other.
            encode: prepared * block + (stored * block).max(at_once * (sequence + attention as u64)),
            score: panel_bytes(tokens, CHUNK, spec.vocab) as u64
                + (F32 + prepared) * panel
                + CARRIED * positions,
        }
    }
}
