//! What a job needs of the disk.

use crate::PipelineError;
use crate::keeping::Keeping;
use crate::open::OpenFolder;
use crate::plan::Plan;
use quant_checkpoint::{DEFAULT_SHARD_BYTES, ShardPlan, TensorDecl, side_files};
use quant_graph::{ModelSpec, Outer};
use serde::Serialize;

/// Disk a job needs, in bytes, all of it on the file system of the output.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DiskPlan {
    /// The files of weights, to the byte.
    pub weights: u64,
    /// Everything else in the finished folder: copied files as they are, reports and descriptions generously.
    pub files: u64,
    /// Activations, while the job runs.
    pub spilled: u64,
    /// What it takes to go on after a break, while the job runs.
    pub journal: u64,
}

impl DiskPlan {
    /// Of the output of a plan for a folder.
    ///
    /// # Errors
    /// An output whose header no safetensors file can hold; a folder that cannot be listed.
    pub(crate) fn new(
        folder: &OpenFolder,
        plan: &Plan,
        spilled: u64,
        keeping: Keeping,
    ) -> Result<Self, PipelineError> {
        /// One linear in report, manifest and description together.
        const WORDS: u64 = 8 << 10;
        let dir = folder.checkpoint.path();
        let copied = side_files(dir)?.copied;
        let copied = copied.into_iter().filter_map(|name| dir.join(name).metadata().ok()).map(|m| m.len());
        let linears = plan.scheme.linears().count() as u64;
        Ok(Self {
            weights: shard_plan(folder, plan)?.shards().iter().map(|s| s.bytes).sum(),
            files: copied.sum::<u64>() + WORDS * (linears + 16),
            spilled,
            journal: keeping.bytes,
        })
    }
    /// The most that is needed at once.
    #[must_use]
    pub fn peak(&self) -> u64 {
        [self.files, self.spilled, self.journal].into_iter().fold(self.weights, u64::saturating_add)
    }
}

/// The files of weights that a plan writes.
pub(crate) fn shard_plan(folder: &OpenFolder, plan: &Plan) -> Result<ShardPlan, PipelineError> {
    Ok(ShardPlan::new(declared(folder, plan), &plan.recipe.format().naming(), DEFAULT_SHARD_BYTES)?)
}

/// The tensors that a plan writes.
pub(crate) fn declared(folder: &OpenFolder, plan: &Plan) -> Vec<TensorDecl> {
    // A head that is tied no more comes from the embedding.
    let head = plan.spec.stored_in(Outer::Head).tensor();
    let stored = |name: &str| folder.checkpoint.get(if name == ModelSpec::HEAD { head } else { name });
    let dtype = |name: &str| stored(name).map(|t| t.dtype);
    plan.recipe.format().declare(&plan.stored, &plan.scheme, &dtype)
}
