//! What a job needs of the disk.

use crate::PipelineError;
use crate::keeping::Keeping;
use crate::open::OpenFolder;
use crate::plan::Plan;
use quant_checkpoint::{DEFAULT_SHARD_BYTES, ShardPlan, TensorDecl, side_files};
use quant_graph::{ModelScheme, ModelSpec, Outer};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

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
            weights: WeightLayout::new(folder, plan)?.bytes(),
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
///
/// Every tensor has its place before the first block is made, but where a block that falls back to more bits has others: those that only one
/// of the two outcomes has come in a shard of their own behind all blocks. The final norm comes with them, so that it is never empty.
pub(crate) struct WeightLayout {
    /// What is laid out at once.
    pub(crate) first: ShardPlan,
    /// The tensors that come late; empty where everything is laid out at once.
    late: BTreeMap<String, TensorDecl>,
    /// What comes late if no block falls back.
    usual: Option<ShardPlan>,
}

impl WeightLayout {
    pub(crate) fn new(folder: &OpenFolder, plan: &Plan) -> Result<Self, PipelineError> {
        let naming = plan.recipe.format().naming();
        let usual = declared(folder, plan, &plan.scheme);
        let wide = declared(folder, plan, &plan.scheme_with(|_| true));
        let only = |of: &[TensorDecl], other: &[TensorDecl]| -> Vec<TensorDecl> {
            let known: BTreeSet<&str> = other.iter().map(|decl| &*decl.name).collect();
            of.iter().filter(|decl| !known.contains(&*decl.name)).cloned().collect()
        };
        let mut late = [only(&usual, &wide), only(&wide, &usual)].concat();
        if late.is_empty() {
            let first = ShardPlan::new(usual, &naming, DEFAULT_SHARD_BYTES)?;
            return Ok(Self { first, late: BTreeMap::new(), usual: None });
        }
        late.extend(usual.iter().filter(|decl| decl.name == Outer::FinalNorm.tensor()).cloned());
        let late: BTreeMap<String, TensorDecl> =
            late.into_iter().map(|decl| (decl.name.clone(), decl)).collect();
        let (rest, first) = usual.into_iter().partition(|decl| late.contains_key(&decl.name));
        let first = ShardPlan::first_part(first, &naming, DEFAULT_SHARD_BYTES)?;
        let usual = Some(first.rest(rest, &naming)?);
        Ok(Self { first, late, usual })
    }

    /// Whether a tensor comes late, if it comes at all.
    pub(crate) fn is_late(&self, tensor: &str) -> bool {
        self.late.contains_key(tensor)
    }

    /// The layout of those of `declared`, the tensors of the folder, that come late; none where none do.
    pub(crate) fn rest(
        &self,
        plan: &Plan,
        declared: &[TensorDecl],
    ) -> Result<Option<ShardPlan>, PipelineError> {
        if self.late.is_empty() {
            return Ok(None);
        }
        let rest = declared.iter().filter(|decl| self.is_late(&decl.name)).cloned().collect();
        Ok(Some(self.first.rest(rest, &plan.recipe.format().naming())?))
    }

    /// Of all files, if no block falls back.
    fn bytes(&self) -> u64 {
        let shards = self.first.shards().iter().chain(self.usual.iter().flat_map(|rest| rest.shards()));
        shards.map(|shard| shard.bytes).sum()
    }
}

/// The tensors that a plan writes, of blocks stored by a scheme of its.
pub(crate) fn declared(folder: &OpenFolder, plan: &Plan, scheme: &ModelScheme) -> Vec<TensorDecl> {
    // A head that is tied no more comes from the embedding.
    let head = plan.spec.stored_in(Outer::Head).tensor();
    let stored = |name: &str| folder.checkpoint.get(if name == ModelSpec::HEAD { head } else { name });
    let dtype = |name: &str| stored(name).map(|t| t.dtype);
    plan.recipe.format().declare(&plan.stored, scheme, &dtype)
}
