//! Predicting the peak of resident memory from a plan.

use crate::plan::Plan;
use crate::store::Layout;
use quant_graph::{Role, Site};
use quant_hessian::FactorSettings;
use serde::Serialize;

/// Resident memory besides what is counted below: code, thread stacks, the writer's queue, read buffers.
const BASE: u64 = 32 << 20;
/// Most that the allocator keeps of freed chunk temporaries.
const RETAINED: u64 = 96 << 20;
/// Bytes of an f32.
const F32: u64 = 4;

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
    let linear = |role: Role| {
        let l = spec.linear(role);
        (l.outputs * l.inputs) as u64
    };
    let block = spec.block_parameters() as u64;
    let largest = Role::ALL.into_iter().map(linear).max().unwrap_or(0);
    let width = |site: Site| spec.site_width(site) as u64;
    let hidden = spec.hidden as u64;
    // Reading converts the largest tensor while its bytes are held.
    let read = PhaseMemory {
        phase: "read",
        weights: F32 * block + 2 * largest,
        solver: 0,
        chunk: 0,
        activations: 0,
    };
    let mut phases = vec![read];
    let needs = plan.needs;
    if !needs.quantized_stream() {
        // Every linear gives up its floats for levels a quarter their size.
        let weights = F32 * block + largest;
        phases.push(PhaseMemory { phase: "round", weights, solver: 0, chunk: 0, activations: 0 });
    }
    let streams = u64::from(needs.channel_max) + u64::from(needs.quantized_stream());
    let residual = F32 * tokens * hidden * streams;
    // The widest step of a chunk: gate, up and the packed operand of the next product, beside the residual rows.
    let step = F32 * chunk * (3 * width(Site::MlpActivation) + 2 * hidden);
    if needs.channel_max {
        let weights = 2 * F32 * block;
        phases.push(PhaseMemory {
            phase: "float statistics",
            weights,
            solver: 0,
            chunk: step,
            activations: residual,
        });
    }
    if needs.quantized_stream() {
        let hessian = |site: Site| {
            let n = width(site);
            let used = (0..spec.layers).any(|i| plan.hessian_at(i, site));
            // Only the lower triangle is touched.
            if used { F32 * n * n / 2 } else { 0 }
        };
        // Without true-sequential all Hessians wait for the end of the float pass.
        let waiting = |site: Site| -> u64 {
            let later = Site::ALL.into_iter().filter(|s| *s > site);
            if plan.true_sequential() { 0 } else { later.map(hessian).sum() }
        };
        let mut done = 0;
        for site in Site::ALL {
            let stage: u64 = site.stage().linears.iter().map(|r| linear(*r)).sum();
            let h = hessian(site);
            let input = match site {
                Site::AttentionInput | Site::MlpInput => 0,
                Site::AttentionOutput | Site::MlpActivation => F32 * tokens * width(site),
            };
            let precision = plan.recipe.rounding.factor;
            let settings = FactorSettings { precision, ..FactorSettings::default() };
            let factor = quant_hessian::Factor::peak_bytes(spec.site_width(site), &settings) as u64;
            let pending = F32 * (block - done);
            let gram_scratch = F32 * chunk * width(site);
            phases.push(PhaseMemory {
                phase: "factor",
                weights: pending + done,
                solver: if h > 0 { factor } else { 0 } + waiting(site),
                chunk: gram_scratch,
                activations: residual + input,
            });
            let workspace =
                quant_hessian::workspace_bytes(spec.site_width(site), quant_kernels::Par::new(threads))
                    as u64;
            phases.push(PhaseMemory {
                phase: "round",
                weights: pending + done + stage + 2 * F32 * largest.min(stage),
                solver: if h > 0 { h + workspace } else { 0 } + waiting(site),
                chunk: 0,
                activations: residual + input,
            });
            done += stage;
            let output = match site {
                Site::AttentionInput => F32 * tokens * width(Site::AttentionOutput),
                Site::MlpInput => F32 * tokens * width(Site::MlpActivation),
                _ => 0,
            };
            phases.push(PhaseMemory {
                phase: "forward",
                weights: F32 * (block - done) + done + F32 * stage,
                solver: waiting(site),
                chunk: step,
                activations: residual + input + output,
            });
        }
    }
    let retained = if needs.calibration() { step.min(RETAINED) } else { 0 };
    MemoryPlan { base: BASE + retained, phases }
}
