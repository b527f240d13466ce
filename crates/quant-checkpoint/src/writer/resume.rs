//! Going on: the journal of the caller, and what an earlier run left of the weights.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::journal::{Kept, Kind, identity_frame, segment};
use super::paths::sync_dir;
use super::pipeline::{Begun, PIECE_BYTES};
use super::plan::{Place, ShardPlan};
use super::storage::Storage;
use super::{OutputFolder, violation};
use crate::error::{CheckpointError, Result};
use crate::hash::{Hasher, TensorHash};
use crate::marker::{JOURNAL, MARKER};

impl OutputFolder {
    /// What an earlier run left to go on with; none where this one begins.
    #[must_use]
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// Whether an earlier run wrote a tensor, so that it need not come again.
    #[must_use]
    pub fn has(&self, tensor: &str) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.hashes.contains_key(tensor))
    }

    /// Tells, also when the folder is gone, whether what is left of it can be gone on with.
    #[must_use]
    pub fn resumable(&self) -> Resumable {
        Resumable { partial: self.place.partial.clone(), flag: Arc::clone(&self.resumable) }
    }

    /// Begins the journal, or begins it anew: what is recorded from here on is all there is to know, and what was before
    /// goes when the first record is on the disk.
    ///
    /// # Errors
    /// [`CheckpointError::PlanViolation`] when weights were not begun; [`CheckpointError::DiskFull`] and
    /// [`CheckpointError::Write`], also from the writing thread.
    pub fn begin_journal(&mut self) -> Result<()> {
        let folder = self.place.partial.join(JOURNAL);
        if !folder.is_dir() {
            self.storage.create_dir(&folder).map_err(|e| CheckpointError::write(&folder, e))?;
            sync_dir(&*self.storage, &self.place.partial)?;
        }
        let path = segment(&folder, self.segment);
        let weights =
            self.weights.as_deref_mut().ok_or_else(|| violation("", "begin_weights comes first"))?;
        weights.pipeline.segment(path)?;
        weights.pipeline.frame(Kind::Identity, identity_frame(&self.identity))?;
        self.segment = self.segment.saturating_add(1);
        Ok(())
    }

    /// Adds bytes to the record that is being made. Nothing of it is believed before [`OutputFolder::commit`].
    ///
    /// # Errors
    /// As [`OutputFolder::begin_journal`], which comes first.
    pub fn record(&mut self, bytes: Vec<u8>) -> Result<()> {
        let weights =
            self.weights.as_deref_mut().ok_or_else(|| violation("", "begin_weights comes first"))?;
        weights.pipeline.frame(Kind::Data, bytes)
    }

    /// Closes the record. It speaks also of every tensor written so far. The writing thread makes first them and then the
    /// record durable, while the caller goes on.
    ///
    /// # Errors
    /// As [`OutputFolder::record`].
    pub fn commit(&mut self) -> Result<()> {
        let weights =
            self.weights.as_deref_mut().ok_or_else(|| violation("", "begin_weights comes first"))?;
        weights.pipeline.commit()
    }

    /// Waits until every record is on the disk.
    ///
    /// # Errors
    /// [`CheckpointError::DiskFull`] and [`CheckpointError::Write`] from the writing thread.
    pub fn settle(&mut self) -> Result<()> {
        self.weights.as_deref_mut().map_or(Ok(()), |weights| weights.pipeline.settle())
    }
}

/// Whether what is left of an unfinished output can be gone on with.
#[derive(Debug, Clone)]
pub struct Resumable {
    partial: PathBuf,
    flag: Arc<AtomicBool>,
}

impl Resumable {
    /// The unfinished folder, if it can.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.flag.load(Ordering::Acquire).then_some(&*self.partial)
    }
}

/// Where the weights go on.
#[derive(Default)]
pub(super) struct TakenUp {
    pub(super) pipeline: Begun,
    /// The tensors that are on the disk.
    pub(super) tensors: Vec<String>,
}

/// Checks what an earlier run left, and removes what it did not get to believe in.
pub(super) fn take_up(
    storage: &dyn Storage,
    partial: &Path,
    kept: Option<&Kept>,
    plan: &ShardPlan,
) -> Result<TakenUp> {
    let Some(kept) = kept else {
        return Ok(TakenUp { pipeline: Begun::default(), tensors: Vec::new() });
    };
    let mut written: Vec<(&str, &Place, TensorHash)> = Vec::new();
    for (name, hash) in &kept.hashes {
        let place = plan.places.get(name);
        let place =
            place.ok_or_else(|| kept.damaged(format!("it holds tensor {name:?}, which is not planned")))?;
        written.push((name, place, *hash));
    }
    let files: BTreeSet<&OsStr> = plan.shards.iter().map(|shard| OsStr::new(&shard.file)).collect();
    clear(storage, partial, &files)?;
    for path in &kept.worthless {
        storage.remove_file(path).map_err(|e| CheckpointError::write(path, e))?;
    }
    for shard in &plan.shards {
        let path = partial.join(&shard.file);
        if let Ok(meta) = path.symlink_metadata()
            && (!meta.is_file() || meta.len() > shard.bytes)
        {
            let detail = format!("expected a file of at most {} bytes, found {}", shard.bytes, meta.len());
            return Err(CheckpointError::DamagedJournal { path, detail });
        }
    }
    written.par_iter().try_for_each(|(name, place, hash)| {
        let path = partial.join(&plan.shards[place.shard].file);
        match hash_of(&path, place) {
            Ok(found) if found == *hash => Ok(()),
            found => {
                let found = found.map_or_else(|e| e.to_string(), |hash| format!("SHA-256 {hash}"));
                let detail = format!("tensor {name:?}: expected SHA-256 {hash}, found {found}");
                Err(CheckpointError::DamagedJournal { path, detail })
            }
        }
    })?;
    Ok(TakenUp {
        tensors: kept.hashes.keys().cloned().collect(),
        pipeline: Begun { hashes: kept.hashes.clone(), journal: Some((kept.path().to_path_buf(), kept.end)) },
    })
}

/// Removes everything but marker, journal and weights: other files are written at the end, when nothing is left to lose.
fn clear(storage: &dyn Storage, partial: &Path, weights: &BTreeSet<&OsStr>) -> Result<()> {
    let fail = |e| CheckpointError::write(partial, e);
    for entry in fs::read_dir(partial).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        if name == MARKER || name == JOURNAL || weights.contains(&*name) {
            continue;
        }
        let folder = entry.file_type().map_err(fail)?.is_dir();
        let removed =
            if folder { storage.remove_dir_all(&entry.path()) } else { storage.remove_file(&entry.path()) };
        removed.map_err(|e| CheckpointError::write(&entry.path(), e))?;
    }
    Ok(())
}

/// The hash of a tensor's place in a file.
fn hash_of(path: &Path, place: &Place) -> std::io::Result<TensorHash> {
    let file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = place.range.start;
    while at < place.range.end {
        let now = usize::try_from(place.range.end - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        file.read_exact_at(&mut piece[..now], at)?;
        hasher.update(&piece[..now]);
        at += now as u64;
    }
    Ok(hasher.finish())
}
