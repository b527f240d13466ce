//! The arguments that `ptq plan` and `ptq quantize` share: one job, looked at or done.

use super::{Failure, bytes, count, default_threads, threads};
use quant_core::FloatType;
use quant_data::CalibrationSpec;
use quant_graph::WeightSpec;
use quant_pipeline::{QuantizeJob, Recipe, Registry, Shared, read_recipe_with};
use std::collections::BTreeSet;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {
    /// Checkpoint folder (Hugging Face layout); required
    #[arg(long, value_name = "DIR", required_unless_present = "recipe_schema")]
    model: Option<PathBuf>,
    /// Recipe file, or the name of a preset (`ptq list`); required
    #[arg(long, value_name = "FILE|PRESET", required_unless_present = "recipe_schema")]
    recipe: Option<String>,
    /// Text, JSON lines with `text` or `messages`, or token ids FILE.safetensors:TENSOR; needed by most recipes
    #[arg(long, value_name = "FILE[:TENSOR]")]
    calibration: Option<String>,
    /// First rows of a token tensor (default all), or random windows of a text (default 128)
    #[arg(long, value_name = "N", value_parser = count)]
    num_samples: Option<usize>,
    /// Tokens per sequence: rows are cut to it (default: not cut), windows have it (default 2048)
    #[arg(long, value_name = "L", value_parser = count)]
    max_seq_len: Option<usize>,
    /// Seed of the random windows
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Threads (default: all processors); the output does not depend on it
    #[arg(long, value_name = "T", value_parser = threads)]
    threads: Option<usize>,
    /// Memory budget, such as 8GB (default: none), kept by spilling activations to disk; a job that may exceed it is
    /// refused
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Allow an existing output folder to be replaced
    #[arg(long)]
    force: bool,
    /// Go on where the same command broke off, if it did: with other threads and memory if need be
    #[arg(long, conflicts_with = "restart")]
    resume: bool,
    /// Throw away the work of a run that broke off, and begin again
    #[arg(long)]
    restart: bool,
    /// Devices it must load on by tensor parallelism, or nothing is done
    #[arg(long, value_name = "N", value_parser = count)]
    tp: Option<usize>,
    /// Write even what no program listed for the format loads
    #[arg(long)]
    force_unsupported: bool,
    /// Print the result as JSON on stdout
    #[arg(long)]
    pub(super) json: bool,
    /// Print the JSON schema of recipes, with all defaults, and exit
    #[arg(long)]
    pub(super) recipe_schema: bool,
}

impl JobArgs {
    /// The job, with its recipe read.
    pub(super) fn job(&self, output: PathBuf, registry: &Registry) -> Result<QuantizeJob, Failure> {
        let (Some(model), Some(recipe)) = (&self.model, &self.recipe) else {
            return Err(Failure::usage("--model and --recipe are needed"));
        };
        Ok(QuantizeJob {
            model: model.clone(),
            recipe: read_recipe_with(recipe, registry)?,
            calibration: self.calibration.as_deref().map(CalibrationSpec::parse).transpose()?,
            output,
            num_samples: self.num_samples,
            max_seq_len: self.max_seq_len,
            seed: self.seed,
            threads: self.threads.unwrap_or_else(default_threads),
            memory: self.memory,
            force: self.force,
            resume: self.resume,
            restart: self.restart,
            tensor_parallel: self.tp,
            force_unsupported: self.force_unsupported,
            shared: Shared::default(),
        })
    }
}

/// Precisions of the factorisations a recipe asks for, or none if it needs no factorisation.
pub(super) fn factor(recipe: &Recipe) -> Option<String> {
    let overrides = recipe.overrides().iter().map(|(_, rounding)| &**rounding);
    let roundings = std::iter::once(recipe.rounding()).chain(overrides);
    // The same for weights of any width.
    let weight = WeightSpec::table("", (1, 1));
    let planned = roundings.filter_map(|r| r.plan(weight, FloatType::F32).ok().flatten()?.solver.precision());
    let names: BTreeSet<String> = planned.map(|precision| precision.to_string()).collect();
    (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(", "))
}

/// The settings that change numbers without changing the scheme, in words.
pub(super) fn arithmetic(recipe: &Recipe) -> String {
    let factor = factor(recipe).map_or_else(|| "none".to_owned(), |f| format!("in {f}"));
    let (compute, statistics) = (recipe.compute(), recipe.statistics());
    let sums = if statistics == compute { String::new() } else { format!(", statistics in {statistics}") };
    let instructions = recipe.instructions().map(|level| format!(" ({level})")).unwrap_or_default();
    format!("products in {compute}{sums}{instructions}, factorisation {factor}")
}
