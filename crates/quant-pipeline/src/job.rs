//! A job and what comes of it.

use crate::recipe::Recipe;
use crate::report::RunReport;
use crate::serving::ServeCommand;
use crate::shared::Shared;
use quant_checkpoint::WriteStats;
use quant_data::CalibrationSpec;
use serde::Serialize;
use std::path::PathBuf;

/// What to quantise, how, and where to.
#[derive(Clone, Debug)]
pub struct QuantizeJob {
    /// Float checkpoint.
    pub model: PathBuf,
    /// What to do.
    pub recipe: Recipe,
    /// Calibration data, if the recipe needs any.
    pub calibration: Option<CalibrationSpec>,
    /// Output folder.
    pub output: PathBuf,
    /// First rows of a tensor, or random windows of a text.
    pub num_samples: Option<usize>,
    /// Tokens per sequence.
    pub max_seq_len: Option<usize>,
    /// Seed of the random windows.
    pub seed: u64,
    /// Threads, at least 1.
    pub threads: usize,
    /// Memory budget in bytes: activations are spilled to disk to keep it.
    pub memory: Option<u64>,
    /// Replace an existing output.
    pub force: bool,
    /// Go on where a run of the same job broke off, if one did. Threads and memory may be others.
    pub resume: bool,
    /// Throw the work of an interrupted run away. Without this or [`Self::resume`] it is refused.
    pub restart: bool,
    /// Devices that a program which loads the output must be able to use by tensor parallelism.
    pub tensor_parallel: Option<usize>,
    /// Write a folder that no program listed for its format loads.
    pub force_unsupported: bool,
    /// What other jobs left that is equal by construction, and where this one leaves it.
    pub shared: Shared,
}

impl QuantizeJob {
    /// A job with everything else as `ptq quantize` has it: no calibration data, seed 0, as many threads as the machine
    /// has, no memory budget, an existing output refused. Set the rest by name:
    ///
    /// ```no_run
    /// use quant_pipeline::{QuantizeJob, Recipe, Silent, quantize};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let recipe = Recipe::from_preset("w8a8-ascend")?;
    /// let job = QuantizeJob { threads: 4, ..QuantizeJob::new("Qwen2.5-7B-Instruct", recipe, "Qwen2.5-7B-w8a8") };
    /// println!("{:.2} bits per weight", quantize(&job, &mut Silent)?.bits_per_weight);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(model: impl Into<PathBuf>, recipe: Recipe, output: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            recipe,
            calibration: None,
            output: output.into(),
            num_samples: None,
            max_seq_len: None,
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: None,
            force: false,
            resume: false,
            restart: false,
            tensor_parallel: None,
            force_unsupported: false,
            shared: Shared::default(),
        }
    }
}

/// A finished job.
#[derive(Clone, Debug, Serialize)]
pub struct QuantizeOutcome {
    /// The output folder.
    #[serde(serialize_with = "crate::shown::path")]
    pub output: PathBuf,
    /// Registry id of the format.
    pub format: &'static str,
    /// Every linear, factorisation and where the time went.
    pub run: RunReport,
    /// Stored bits per weight over all linears of the blocks.
    pub bits_per_weight: f64,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Bytes of the input tensors.
    pub input_bytes: u64,
    /// Bytes of the weight files if the rounded weights lay in them bit by bit and everything else as in the input; none where a
    /// format here packs them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact_bytes: Option<u64>,
    /// Blocks that an earlier run had finished; none where nothing was gone on with.
    pub resumed: Option<usize>,
    /// Whether the output stood there already, made by an earlier run of the same job.
    pub stood: bool,
    /// Wall-clock seconds of everything.
    pub seconds: f64,
    /// Seconds of reading and of hashing what was read; they overlap with the rest and with each other.
    pub read: ReadSeconds,
    /// Seconds of writing, hashing and syncing; they overlap with the rest.
    pub write: WriteSeconds,
    /// Predicted peak memory in bytes.
    pub predicted_memory: u64,
    /// Measured peak memory in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// Whether activations were kept on disk to stay within the memory budget.
    pub spilled: bool,
    /// What calibration data was used.
    pub calibration: Option<String>,
    /// Files of the input that were not copied: neither weights nor on the list of what belongs beside them.
    pub not_copied: Vec<String>,
    /// How to load the output, one line for every program whose rules it keeps.
    pub serve: Vec<ServeCommand>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// Time of reading the blocks.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ReadSeconds {
    /// Reading and converting.
    pub read: f64,
    /// Hashing input tensors.
    pub hash: f64,
}

/// Time of the writing thread.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct WriteSeconds {
    /// Handing bytes to the system.
    pub write: f64,
    /// Hashing output tensors.
    pub hash: f64,
    /// Waiting for the disk to confirm.
    pub fsync: f64,
    /// Writing the journal, and waiting for the disk to confirm it and what it speaks of.
    pub journal: f64,
}

impl From<WriteStats> for WriteSeconds {
    fn from(s: WriteStats) -> Self {
        Self { write: s.write_s, hash: s.hash_s, fsync: s.fsync_s, journal: s.journal_s }
    }
}
