//! Predicting the peak of resident memory from a plan.

use crate::plan::Plan;
use crate::store::Layout;
use quant_graph::{Role, Site};
use serde::Serialize;

/// Resident memory of the program before it does anything: code, allocator, thread stacks, tokenizer.
const BASE: u64 = 24 << 20;

/// Predicted memory of a run, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    /// Program and tables.
    pub base: u64,
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

impl PhaseMemory {
    fn fixed(&self) -> u64 {
        self.weights + self.solver + self.chunk
    }
}

impl MemoryPlan {
    /// The predicted peak, with activations in memory or on disk.
    #[must_use]
    pub fn peak(&self, spill: bool) -> u64 {
        let of = |p: &PhaseMemory| p.fixed() + if spill { 0 } else { p.activations };
        self.base + self.phases.iter().map(of).max().unwrap_or(0)
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

/// Predicts the memory of a run on calibration sequences of these lengths.
#[must_use]
pub fn predict(plan: &Plan, lengths: &[usize], threads: usize) -> MemoryPlan {
    let spec = &plan.spec;
    let layout = Layout::new(lengths.iter().copied());
    let (tokens, chunk) = (layout.rows() as u64, layout.largest_chunk() as u64);
    let f32s = |n: u64| 4 * n;
    let linear = |role: Role| {
        let l = spec.linear(role);
        (l.outputs * l.inputs) as u64
    };
    let block = spec.block_parameters() as u64;
    let largest = Role::ALL.into_iter().map(linear).max().unwrap_or(0);
    let width = |site: Site| spec.site_width(site) as u64;
    let mut phases = Vec::new();
    // Reading converts the largest tensor while its bytes are held; writing encodes the block while it is held in levels.
    phases.push(PhaseMemory {
        phase: "read",
        weights: f32s(block) + 2 * largest,
        solver: 0,
        chunk: 0,
        activations: 0,
    });
    let needs = plan.needs;
    if !needs.quantized_stream() {
        let rounding = f32s(block) + 2 * largest + f32s(2 * largest);
        phases.push(PhaseMemory { phase: "round", weights: rounding, solver: 0, chunk: 0, activations: 0 });
    }
    let streams = u64::from(needs.channel_max) + u64::from(needs.quantized_stream());
    let residual = f32s(tokens * spec.hidden as u64) * streams;
    // The widest step of a chunk: two copies of the MLP activations, or queries with the scores of a tile.
    let step = f32s(chunk * (2 * width(Site::MlpActivation) + 2 * spec.hidden as u64));
    if needs.channel_max {
        let weights = 2 * f32s(block);
        phases.push(PhaseMemory {
            phase: "float statistics",
            weights,
            solver: 0,
            chunk: step,
            activations: residual,
        });
    }
    if needs.quantized_stream() {
        let mut done = 0;
        for site in Site::ALL {
            let roles = site.stage().linears;
            let stage: u64 = roles.iter().map(|r| linear(*r)).sum();
            let n = width(site);
            let hessian = if plan.blocks.iter().enumerate().any(|(i, _)| plan.hessian_at(i, site)) {
                let workspace = quant_hessian::workspace_bytes(n as usize, quant_kernels::Par::new(threads)) as u64;
                2 * f32s(n * n) + workspace
            } else {
                0
            };
            let stored = match site {
                Site::AttentionInput | Site::MlpInput => 0,
                Site::AttentionOutput | Site::MlpActivation => f32s(tokens * n),
            };
            let pending = f32s(block) - f32s(done);
            phases.push(PhaseMemory {
                phase: "round",
                weights: pending + done + f32s(stage),
                solver: hessian,
                chunk: 0,
                activations: residual + stored,
            });
            done += stage;
        }
    }
    MemoryPlan { base: BASE, phases }
}
