//! What a run knows when it is done, as data.

use crate::plan::Plan;
use quant_core::codec_of_fields;
use quant_graph::KvScheme;
use quant_hessian::FactorReport;
use quant_methods::{Fallback, LessonReport, Solver};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// One quantised linear, or a table outside the blocks.
#[derive(Clone, Debug, Serialize)]
pub struct LinearReport {
    /// Full module name.
    pub module: String,
    /// Block it belongs to; none of embedding and head.
    pub block: Option<usize>,
    /// Registry id of the rounding; none was left float.
    pub method: Option<Cow<'static, str>>,
    /// `W4A16g32` and so on, without the cache.
    pub scheme: String,
    /// Stored bits per weight, scales and zero points included.
    pub bits_per_weight: f64,
    /// `‖Ŵ − W‖ / ‖W‖` (Frobenius), after any transform.
    pub weight_error: f64,
    /// `‖Q(X)Ŵᵀ − XWᵀ‖ / ‖XWᵀ‖` on a sample of calibration tokens; none where no activations were carried.
    pub output_error: Option<f64>,
    /// `½ Σ ((w − q)/U_ii)²` of second-order methods.
    pub loss: Option<f64>,
    /// What else the method said of it, by names of its own.
    #[serde(skip_serializing_if = "Named::is_empty")]
    pub figures: Named,
    /// Bytes of its stored form, bit by bit.
    pub stored_bytes: u64,
    /// Bit width of every group of columns, where they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_bits: Option<Vec<u32>>,
    /// Salient columns of every block of binary codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salient_columns: Option<Vec<usize>>,
    /// Seconds spent on the rounding of this linear.
    pub seconds: f64,
}

codec_of_fields!(LinearReport {
    module,
    block,
    method,
    scheme,
    bits_per_weight,
    weight_error,
    output_error,
    loss,
    figures,
    stored_bytes,
    group_bits,
    salient_columns,
    seconds
});

/// The factorisation behind the linears of one stage, or the head.
#[derive(Clone, Debug, Serialize)]
pub struct StageFactor {
    /// Block; none of the head.
    pub block: Option<usize>,
    /// First linear of the stage.
    pub module: String,
    /// Dampings tried, residuals, dead columns.
    pub factor: FactorReport,
}

codec_of_fields!(StageFactor { block, module, factor });

/// How hard the keys of a block are to quantise, on the first chunk of calibration tokens and where the cache takes them:
/// behind rope, or before it and without their bias.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CacheReport {
    /// Block.
    pub block: usize,
    /// `max |k| / median |k|`.
    pub key_outliers: f64,
    /// `10 log₁₀(Σk² / Σ(k̂ − k)²)`; none where nothing is lost.
    pub key_snr_db: Option<f64>,
}

codec_of_fields!(CacheReport { block, key_outliers, key_snr_db });

impl CacheReport {
    /// Above this ratio a few channels take the range of all others along.
    const OUTLIERS: f64 = 100.0;
    /// Below this signal-to-noise ratio, in decibels, a tenth of the signal is noise.
    const SNR_DB: f64 = 10.0;

    /// Whether attention over these keys is in danger.
    #[must_use]
    pub fn is_hard(&self) -> bool {
        self.key_outliers > Self::OUTLIERS || self.key_snr_db.is_some_and(|snr| snr < Self::SNR_DB)
    }
}

/// Numbers by name.
pub type Named = BTreeMap<Cow<'static, str>, f64>;

/// Seconds by kind of work, wall clock.
pub type Seconds = Named;

/// A block that a method trained in.
#[derive(Clone, Debug, Serialize)]
pub struct BlockLesson {
    /// The block.
    pub block: usize,
    /// How it went.
    #[serde(flatten)]
    pub lesson: LessonReport,
}

codec_of_fields!(BlockLesson { block, lesson });

/// A finished run over the blocks.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunReport {
    /// Every linear, in execution order, then embedding and head where they are quantised.
    pub linears: Vec<LinearReport>,
    /// Every factorisation.
    pub factors: Vec<StageFactor>,
    /// The keys of every block, where the cache is quantised and activations were carried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<CacheReport>,
    /// Every block that was trained in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lessons: Vec<BlockLesson>,
    /// Where the time went.
    pub seconds: Seconds,
    /// Calibration tokens that went through every block; 0 without calibration.
    pub calibration_tokens: usize,
}

impl RunReport {
    /// Whether a block is stored in more bits than planned, because its training could not be repaired.
    #[must_use]
    pub fn fell_back(&self, block: usize) -> bool {
        let mut of_block = self.lessons.iter().filter(|lesson| lesson.block == block);
        of_block.any(|lesson| lesson.lesson.fallback() == Some(Fallback::Bits8))
    }
    /// What the person should know of a cache by `scheme` whose keys are hard to quantise, and what would help.
    #[must_use]
    pub fn cache_warning(&self, scheme: &KvScheme, key_bias: bool) -> Option<String> {
        let hard: Vec<&CacheReport> = self.caches.iter().filter(|c| c.is_hard()).collect();
        let snr = |c: &CacheReport| c.key_snr_db.unwrap_or(f64::INFINITY);
        let worst = hard.iter().min_by(|a, b| snr(a).total_cmp(&snr(b)))?;
        let advice = match (scheme.before_rope, key_bias && !scheme.pre_bias) {
            (_, true) => {
                "kv_cache: { before_rope: true, pre_bias: true } takes their bias off and gives every channel its range"
            }
            (false, false) => "kv_cache: { before_rope: true } gives every channel its range",
            (true, false) => "use more bits for the cache",
        };
        Some(format!(
            "the keys of {} blocks are hard to quantise to {} bits: in block {} the largest is {:.0} times the median, and the \
             signal-to-noise ratio {:.1} dB; {advice}",
            hard.len(),
            scheme.bits.get(),
            worst.block,
            worst.key_outliers,
            snr(worst)
        ))
    }
    /// What the person should know of the training in blocks: of repairs, and of what is still wrong.
    #[must_use]
    pub fn of_lessons(&self) -> Vec<String> {
        let mut told: Vec<String> = Vec::new();
        for BlockLesson { block, lesson } in &self.lessons {
            let error =
                |what: &str| format!("block {block}: {what}; its relative error is {:.3e}", lesson.after);
            if !lesson.alarms.is_empty() {
                told.push(error(&lesson.alarms.join("; ")));
            } else if !lesson.repairs.is_empty() {
                told.push(error(&format!("repaired: {}", lesson.repairs.join("; "))));
            }
        }
        told
    }
    /// What the methods of a plan say of linears that were not rounded as they should be: of each method about the one whose
    /// weight changed most, and how many there are.
    #[must_use]
    pub fn doubts(&self, plan: &Plan) -> Vec<String> {
        let linears = plan.blocks.iter().flat_map(|block| block.values());
        let solvers: BTreeMap<&str, &dyn Solver> =
            linears.filter_map(|l| Some((l.module.as_str(), l.solver()?))).collect();
        let mut doubts: BTreeMap<&str, (usize, &LinearReport, String)> = BTreeMap::new();
        for linear in &self.linears {
            let Some(solver) = solvers.get(linear.module.as_str()) else { continue };
            let Some(says) = solver.doubt(&|name| linear.figures.get(name).copied()) else { continue };
            match doubts.get_mut(solver.method().id) {
                Some((count, worst, said)) => {
                    *count += 1;
                    if linear.weight_error > worst.weight_error {
                        (*worst, *said) = (linear, says);
                    }
                }
                None => {
                    doubts.insert(solver.method().id, (1, linear, says));
                }
            }
        }
        let others = |count| match count {
            1 => String::new(),
            2 => " and one other linear".to_owned(),
            _ => format!(" and {} other linears", count - 1),
        };
        let doubts = doubts.into_values();
        doubts.map(|(count, worst, says)| format!("{}{}: {says}", worst.module, others(count))).collect()
    }
    /// The largest relative error of an output, with its module; none where no activations were carried.
    #[must_use]
    pub fn largest_output_error(&self) -> Option<(f64, &str)> {
        self.largest(|l| l.output_error)
    }
    /// The largest relative error of a rounded weight, with its module.
    #[must_use]
    pub fn largest_weight_error(&self) -> Option<(f64, &str)> {
        self.largest(|l| l.method.as_ref().map(|_| l.weight_error))
    }
    /// At most `count` quantised linears, those with the largest errors first: of outputs where activations were carried,
    /// of weights where none were. Of equal ones the earlier comes first.
    #[must_use]
    pub fn worst(&self, count: usize) -> Vec<&LinearReport> {
        let mut linears: Vec<&LinearReport> = self.linears.iter().filter(|l| l.method.is_some()).collect();
        let error = |l: &LinearReport| l.output_error.unwrap_or(l.weight_error);
        linears.sort_by(|a, b| error(b).total_cmp(&error(a)));
        linears.truncate(count);
        linears
    }
    fn largest(&self, error: impl Fn(&LinearReport) -> Option<f64>) -> Option<(f64, &str)> {
        let errors = self.linears.iter().filter_map(|l| Some((error(l)?, l.module.as_str())));
        errors.max_by(|a, b| a.0.total_cmp(&b.0))
    }
}

/// Peak resident memory of this process so far, in bytes (`VmHWM`), where the system tells.
#[must_use]
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Lets [`peak_memory`] start again from what is resident now, where the system can.
pub fn reset_peak_memory() {
    // Linux: writing 5 to clear_refs resets VmHWM of this process. Elsewhere the peak stays that of the whole process.
    drop(std::fs::write("/proc/self/clear_refs", "5"));
}
