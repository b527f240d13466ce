//! Output folders that appear complete or not at all.
//!
//! Everything is written into a sibling `<output>.partial`, which carries the marker file [`MARKER`] from its first
//! moment. Weight shards are streamed by a thread that hashes and writes while the caller computes; every file is
//! synced; the index of the shards comes last. [`OutputFolder::finish`] then renames the folder into place and removes
//! the marker. A swap that was begun by a run that is killed is finished by the next run.
//!
//! A caller that keeps a journal ([`OutputFolder::record`], [`OutputFolder::commit`]) leaves, from the first record on, a folder
//! that can be gone on with, whether the run fails, is stopped or is killed. Without a record a run that fails removes its
//! unfinished folder, and a run that is killed leaves one that readers of this crate refuse and the next run replaces.

mod journal;
mod log;
mod options;
mod paths;
mod pipeline;
mod place;
mod plan;
mod resume;
mod storage;
mod swap;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use safetensors::Dtype;

pub use self::journal::{Identity, Kept};
pub use self::options::{Finished, OutputOptions, Unfinished, WrittenFile};
pub use self::pipeline::WriteStats;
pub use self::plan::{DEFAULT_SHARD_BYTES, PlannedShard, ShardNaming, ShardPlan, TensorDecl};
pub use self::resume::Resumable;
pub use self::storage::{Disk, Storage, StorageFile};
pub use self::swap::Leftover;

use self::paths::sync_dir;
use self::pipeline::{Outcome, PIECE_BYTES, Pipeline};
use self::place::Workplace;
use self::resume::TakenUp;
use crate::error::{CheckpointError, Result};
use crate::hash::TensorHash;
use crate::json::open_regular;
use crate::marker::{JOURNAL, MARKER};
use crate::source::Checkpoint;

/// The weights being written.
#[derive(Debug)]
struct Weights {
    plan: ShardPlan,
    pipeline: Pipeline,
    /// Tensors that have not arrived yet.
    missing: BTreeSet<String>,
    /// Tensors of each shard that have not arrived yet.
    left: Vec<usize>,
    opened: Vec<bool>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    name: String,
    shard: usize,
    /// Bytes still to come.
    left: u64,
}

/// An output folder under construction. Dropped without [`OutputFolder::finish`], it leaves nothing behind, unless its journal has
/// a record.
#[derive(Debug)]
pub struct OutputFolder {
    place: Workplace,
    storage: Arc<dyn Storage>,
    identity: Identity,
    /// What an earlier run left to go on with.
    kept: Option<Kept>,
    /// Number of the journal's next segment.
    segment: u32,
    /// Whether there is something to go on with.
    resumable: Arc<AtomicBool>,
    files: Vec<WrittenFile>,
    names: BTreeSet<String>,
    weights: Option<Box<Weights>>,
    indices: Vec<(String, Vec<u8>)>,
    hashes: BTreeMap<String, TensorHash>,
    stats: WriteStats,
    committed: bool,
}

impl OutputFolder {
    /// Starts an output folder at `dir`. Nothing exists at `dir` itself before [`OutputFolder::finish`].
    ///
    /// # Errors
    /// [`CheckpointError::OutputExists`] when `dir` holds something and `force` is off; [`CheckpointError::BadOutput`]
    /// for a file, a mount point, a git repository or the current folder; [`CheckpointError::OutputTouchesInput`];
    /// [`CheckpointError::OutputBusy`] when another process is writing the same output; [`CheckpointError::Unfinished`],
    /// [`CheckpointError::OtherJob`] and [`CheckpointError::DamagedJournal`] where an earlier run left its work, as
    /// [`OutputOptions::unfinished`] says; [`CheckpointError::NoSpace`]; [`CheckpointError::Write`].
    pub fn create(dir: impl AsRef<Path>, options: &OutputOptions) -> Result<Self> {
        let (place, kept) = Workplace::prepare(dir.as_ref(), options)?;
        Ok(Self {
            place,
            storage: Arc::clone(&options.storage),
            identity: options.identity.clone(),
            segment: kept.as_ref().map_or(0, |kept| kept.number.saturating_add(1)),
            resumable: Arc::new(AtomicBool::new(kept.is_some())),
            kept,
            files: Vec::new(),
            names: BTreeSet::from([MARKER.to_owned(), JOURNAL.to_owned()]),
            weights: None,
            indices: Vec::new(),
            hashes: BTreeMap::new(),
            stats: WriteStats::default(),
            committed: false,
        })
    }

    /// Where the finished folder will be.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.place.target
    }

    /// The unfinished folder.
    #[must_use]
    pub fn partial(&self) -> &Path {
        &self.place.partial
    }

    /// Begins streaming the weights laid out by `plan`.
    ///
    /// # Errors
    /// [`CheckpointError::PlanViolation`] when weights are being written already; [`CheckpointError::BadOutputName`]
    /// when a file of the plan exists already; [`CheckpointError::DamagedJournal`] when the tensors that an earlier run
    /// wrote are not those of the plan or not what its journal says.
    pub fn begin_weights(&mut self, plan: ShardPlan) -> Result<()> {
        if self.weights.is_some() {
            return Err(violation("", "weights are being written already; call end_weights first"));
        }
        for shard in &plan.shards {
            self.reserve(&shard.file)?;
        }
        if let Some(index) = plan.index_file() {
            self.reserve(index)?;
        }
        let begun = resume::take_up(&*self.storage, &self.place.partial, self.kept.as_ref(), &plan)?;
        self.start_weights(plan, begun)
    }

    /// Begins streaming [the rest](ShardPlan::rest) of weights whose first part was written and [ended](Self::end_weights). No record
    /// speaks of these tensors: whoever keeps a journal has them in records of its own until they are written, and a run that goes on
    /// writes them anew.
    ///
    /// # Errors
    /// As [`OutputFolder::begin_weights`].
    pub fn begin_rest(&mut self, rest: ShardPlan) -> Result<()> {
        if self.weights.is_some() {
            return Err(violation("", "weights are being written already; call end_weights first"));
        }
        for file in rest.shards.iter().map(|shard| &*shard.file).chain(rest.index_file()) {
            self.reserve(file)?;
        }
        self.start_weights(rest, TakenUp::default())
    }

    fn start_weights(&mut self, plan: ShardPlan, begun: TakenUp) -> Result<()> {
        let mut weights = Weights {
            missing: plan.places.keys().cloned().collect(),
            left: plan.shards.iter().map(|s| s.tensors).collect(),
            opened: vec![false; plan.shards.len()],
            pipeline: Pipeline::start(
                Arc::clone(&self.storage),
                &self.place.partial,
                begun.pipeline,
                Arc::clone(&self.resumable),
            )?,
            plan,
            current: None,
        };
        for name in begun.tensors {
            if let (Some(place), true) = (weights.plan.places.get(&name), weights.missing.remove(&name)) {
                weights.left[place.shard] -= 1;
                // A shard that is whole is not opened again.
                weights.opened[place.shard] |= weights.left[place.shard] == 0;
            }
        }
        self.weights = Some(Box::new(weights));
        Ok(())
    }

    /// Writes one tensor of the plan. Tensors may come in any order; the output does not depend on it.
    ///
    /// # Errors
    /// As [`OutputFolder::begin_tensor`], [`OutputFolder::write`] and [`OutputFolder::end_tensor`].
    pub fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        self.begin_tensor(name, dtype, shape)?;
        self.write(bytes)?;
        self.end_tensor()
    }

    /// [`OutputFolder::tensor`] of bytes that are given away, which saves a copy.
    ///
    /// # Errors
    /// As [`OutputFolder::tensor`].
    pub fn tensor_owned(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Result<()> {
        self.begin_tensor(name, dtype, shape)?;
        self.accept(bytes.len())?.owned(bytes, dtype == Dtype::I8)?;
        self.end_tensor()
    }

    /// Begins a tensor that is handed over in pieces.
    ///
    /// # Errors
    /// [`CheckpointError::PlanViolation`] when it is not in the plan, was written before, or has another dtype or
    /// shape than planned; [`CheckpointError::DiskFull`] and [`CheckpointError::Write`] from the writing thread.
    pub fn begin_tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<()> {
        let folder = &self.place.partial;
        let weights =
            self.weights.as_deref_mut().ok_or_else(|| violation(name, "begin_weights comes first"))?;
        if let Some(current) = &weights.current {
            return Err(violation(name, format!("tensor {:?} is not finished", current.name)));
        }
        let Some(place) = weights.plan.places.get(name) else {
            return Err(violation(name, "not in the plan"));
        };
        if place.spec.dtype != dtype || place.spec.shape != shape {
            let planned = format!("planned as {} {:?}", place.spec.dtype, place.spec.shape);
            return Err(violation(name, format!("{planned}, arrived as {dtype} {shape:?}")));
        }
        if !weights.missing.remove(name) {
            return Err(violation(name, "written twice"));
        }
        let (shard, range) = (place.shard, place.range.clone());
        if !std::mem::replace(&mut weights.opened[shard], true) {
            let planned = &mut weights.plan.shards[shard];
            let header = std::mem::take(&mut planned.header);
            weights.pipeline.open(shard, folder.join(&planned.file), header)?;
        }
        weights.pipeline.tensor(shard, range.start)?;
        weights.current = Some(Current { name: name.to_owned(), shard, left: range.end - range.start });
        Ok(())
    }

    /// Writes the next bytes of the current tensor (little-endian, row-major).
    ///
    /// # Errors
    /// [`CheckpointError::PlanViolation`] when there is no current tensor or it gets more bytes than planned;
    /// [`CheckpointError::DiskFull`] and [`CheckpointError::Write`] from the writing thread.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.accept(bytes.len())?.bytes(bytes)
    }

    /// Counts the next bytes of the current tensor.
    fn accept(&mut self, bytes: usize) -> Result<&mut Pipeline> {
        let weights = self.weights.as_deref_mut();
        let Some((pipeline, current)) =
            weights.and_then(|w| w.current.as_mut().map(|c| (&mut w.pipeline, c)))
        else {
            return Err(violation("", "begin_tensor comes first"));
        };
        let Some(left) = current.left.checked_sub(bytes as u64) else {
            let detail = format!("{bytes} bytes arrived where {} were left", current.left);
            return Err(violation(&current.name, detail));
        };
        current.left = left;
        Ok(pipeline)
    }

    /// Ends the current tensor.
    ///
    /// # Errors
    /// [`CheckpointError::PlanViolation`] when bytes are missing; [`CheckpointError::DiskFull`] and
    /// [`CheckpointError::Write`] from the writing thread.
    pub fn end_tensor(&mut self) -> Result<()> {
        let weights =
            self.weights.as_deref_mut().ok_or_else(|| violation("", "begin_weights comes first"))?;
        let Some(current) = weights.current.take() else {
            return Err(violation("", "begin_tensor comes first"));
        };
        if current.left != 0 {
            return Err(violation(&current.name, format!("{} bytes are missing", current.left)));
        }
        weights.pipeline.done(current.name)?;
        weights.left[current.shard] -= 1;
        if weights.left[current.shard] == 0 {
            weights.pipeline.close(current.shard)?;
        }
        Ok(())
    }

    /// Copies a tensor of a checkpoint unchanged, in pieces; the plan must declare it with the same dtype and shape.
    /// Its hash is that of the source.
    ///
    /// # Errors
    /// As [`OutputFolder::tensor`] and [`Checkpoint::read`]; [`CheckpointError::NonFinite`] for a NaN or infinity.
    pub fn copy_tensor(&mut self, from: &Checkpoint, source: &str, name: &str) -> Result<()> {
        let info = from.tensor(source)?;
        self.begin_tensor(name, info.dtype, &info.shape)?;
        from.for_each_finite_piece(source, |piece| self.write(piece))?;
        self.end_tensor()
    }

    /// Ends the weights: all shards are complete and synced. Returns the hash of every tensor written so far. The
    /// index, if there is one, is written by [`OutputFolder::finish`], after everything else.
    ///
    /// # Errors
    /// [`CheckpointError::PlanViolation`] when a tensor of the plan never came; [`CheckpointError::DiskFull`] and
    /// [`CheckpointError::Write`] from the writing thread.
    pub fn end_weights(&mut self) -> Result<&BTreeMap<String, TensorHash>> {
        let Some(mut weights) = self.weights.take() else {
            return Err(violation("", "begin_weights comes first"));
        };
        if let Some(current) = &weights.current {
            return Err(violation(&current.name, "not finished"));
        }
        if let Some(name) = weights.missing.first() {
            return Err(violation(
                name,
                format!("planned but never written ({} such)", weights.missing.len()),
            ));
        }
        // A plan without tensors still is one valid, empty file.
        for (shard, planned) in weights.plan.shards.iter_mut().enumerate() {
            if !weights.opened[shard] {
                let header = std::mem::take(&mut planned.header);
                weights.pipeline.open(shard, self.place.partial.join(&planned.file), header)?;
                weights.pipeline.close(shard)?;
            }
        }
        let Weights { plan, pipeline, .. } = *weights;
        let Outcome { hashes, stats } = pipeline.finish()?;
        self.hashes.extend(hashes);
        self.stats.bytes += stats.bytes;
        self.stats.write_s += stats.write_s;
        self.stats.hash_s += stats.hash_s;
        self.stats.fsync_s += stats.fsync_s;
        self.stats.wait_s += stats.wait_s;
        self.stats.journal_bytes += stats.journal_bytes;
        self.stats.journal_s += stats.journal_s;
        self.files.extend(plan.shards.into_iter().map(|s| WrittenFile { name: s.file, bytes: s.bytes }));
        self.indices.extend(plan.index);
        Ok(&self.hashes)
    }

    /// Writes a side file. `name` is relative to the folder, of plain components (`config.json`,
    /// `optional/x.safetensors`).
    ///
    /// # Errors
    /// [`CheckpointError::BadOutputName`] for a name that leaves the folder or was written before;
    /// [`CheckpointError::DiskFull`], [`CheckpointError::Write`].
    pub fn write_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.reserve(name)?;
        self.write_reserved(name, bytes)
    }

    /// Copies a file, byte for byte, to `name`.
    ///
    /// # Errors
    /// As [`OutputFolder::write_file`], and [`CheckpointError::Read`], [`CheckpointError::MissingFile`] or
    /// [`CheckpointError::NotARegularFile`] for the source.
    pub fn copy_file(&mut self, source: &Path, name: &str) -> Result<()> {
        self.reserve(name)?;
        let mut from = open_regular(source, "the copy in the output folder")?;
        let path = self.make_parent(name)?;
        let fail = |e| CheckpointError::write(&path, e);
        let mut to = self.storage.create(&path).map_err(fail)?;
        let mut buffer = vec![0_u8; PIECE_BYTES];
        let mut at = 0_u64;
        loop {
            let read = match from.read(&mut buffer) {
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(CheckpointError::read(source, e)),
            };
            if read == 0 {
                break;
            }
            to.write_all_at(&buffer[..read], at).map_err(fail)?;
            at += read as u64;
        }
        self.sync_file(name, &path, to, at)
    }

    /// Writes the indices, syncs the folder, puts it in its place and removes the marker.
    ///
    /// # Errors
    /// [`CheckpointError::PlanViolation`] when weights were begun and not ended; [`CheckpointError::DiskFull`],
    /// [`CheckpointError::Write`]. After an error the output is as it was before, unless it was the removal of the
    /// marker that failed: then the new folder is in place, marked, and the next run finishes it.
    pub fn finish(mut self) -> Result<Finished> {
        if self.weights.is_some() {
            return Err(violation("", "end_weights comes before finish"));
        }
        for (name, bytes) in std::mem::take(&mut self.indices) {
            self.write_reserved(&name, &bytes)?;
        }
        let start = Instant::now();
        let folders: BTreeSet<PathBuf> = self
            .files
            .iter()
            .filter_map(|f| self.place.partial.join(&f.name).parent().map(Path::to_path_buf))
            .collect();
        folders.iter().try_for_each(|f| sync_dir(&*self.storage, f))?;
        let leftover = self.place.commit()?;
        self.committed = true;
        self.stats.fsync_s += start.elapsed().as_secs_f64();
        Ok(Finished {
            dir: self.place.target.clone(),
            files: std::mem::take(&mut self.files),
            hashes: std::mem::take(&mut self.hashes),
            stats: self.stats,
            leftover,
        })
    }

    /// Claims a file name.
    fn reserve(&mut self, name: &str) -> Result<()> {
        let refuse = |reason| Err(CheckpointError::BadOutputName { name: name.to_owned(), reason });
        let plain = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        let canonical = Path::new(name).components().collect::<PathBuf>();
        if name.is_empty() || !plain || canonical.as_os_str() != name || name.contains(['\\', '\0']) {
            return refuse("must be a relative name of plain components");
        }
        if !self.names.insert(name.to_owned()) {
            return refuse("is written already, or reserved");
        }
        Ok(())
    }

    fn make_parent(&self, name: &str) -> Result<PathBuf> {
        let path = self.place.partial.join(name);
        let above = path.ancestors().skip(1).take_while(|dir| !dir.is_dir()).collect::<Vec<_>>();
        for dir in above.into_iter().rev() {
            self.storage.create_dir(dir).map_err(|e| CheckpointError::write(dir, e))?;
        }
        Ok(path)
    }

    fn write_reserved(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.make_parent(name)?;
        let fail = |e| CheckpointError::write(&path, e);
        let mut file = self.storage.create(&path).map_err(fail)?;
        file.write_all_at(bytes, 0).map_err(fail)?;
        self.sync_file(name, &path, file, bytes.len() as u64)
    }

    fn sync_file(
        &mut self,
        name: &str,
        path: &Path,
        mut file: Box<dyn StorageFile>,
        bytes: u64,
    ) -> Result<()> {
        let start = Instant::now();
        file.sync().map_err(|e| CheckpointError::write(path, e))?;
        self.stats.fsync_s += start.elapsed().as_secs_f64();
        self.files.push(WrittenFile { name: name.to_owned(), bytes });
        Ok(())
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        // The thread first, so that it does not create files in a folder that is being removed.
        self.weights = None;
        if self.committed {
            return;
        }
        if self.resumable.load(Ordering::Acquire) {
            self.place.keep();
        } else {
            self.place.abandon();
        }
    }
}

fn violation(tensor: &str, detail: impl Into<String>) -> CheckpointError {
    CheckpointError::PlanViolation { tensor: tensor.to_owned(), detail: detail.into() }
}
