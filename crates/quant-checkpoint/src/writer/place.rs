//! Where the output folder may lie, and its unfinished sibling.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::OutputFolder;
use super::journal::Kept;
use super::options::{OutputOptions, Unfinished};
use super::paths::{sibling, sync_dir};
use super::storage::Storage;
use super::swap::{self, Fate, Leftover};
use crate::error::{CheckpointError, Result};
use crate::manifest::Manifest;
use crate::marker::{MARKER, MARKER_TEXT};

/// Final and working folders, both absolute, plus the locked marker.
#[derive(Debug)]
pub(super) struct Workplace {
    pub(super) target: PathBuf,
    pub(super) partial: PathBuf,
    storage: Arc<dyn Storage>,
    /// What becomes of the folder that stands at the target now.
    fate: Option<Fate>,
    /// The marker. Held open because the lock lives as long as the handle; a killed process loses it.
    _lock: File,
    /// Parents that did not exist, outermost first.
    created: Created,
}

impl Workplace {
    /// Checks `dir` and creates its unfinished sibling with the marker in it, or takes over the one that is there with what
    /// it knows. A swap in which an earlier run was killed is finished first.
    pub(super) fn prepare(dir: &Path, options: &OutputOptions) -> Result<(Self, Option<Kept>)> {
        let storage = Arc::clone(&options.storage);
        let (target, partial) = apart(dir, &options.inputs)?;
        swap::recover(&*storage, &target, &partial)?;
        let fate = check_target(&target, options.force)?;
        let left = left_over(&partial, options)?;
        check_room(&target, options, left.as_ref().and_then(|l| l.kept.as_ref()).map(|_| &*partial))?;
        let mut created = Created { storage: Arc::clone(&storage), folders: Vec::new() };
        if let Some(parent) = target.parent() {
            created.create_all(parent)?;
        }
        let (lock, kept) = match left {
            Some(LeftOver { lock: Some(lock), kept: Some(kept) }) => (lock, Some(kept)),
            // Its lock is held until the folder is removed, so that of two runs only one takes it over.
            Some(_held) => {
                clear(&*storage, &partial)?;
                (claim(&*storage, &partial)?, None)
            }
            None => (claim(&*storage, &partial)?, None),
        };
        Ok((Self { target, partial, storage, fate, _lock: lock, created }, kept))
    }

    /// Removes the unfinished folder and the parents made for it, as far as that works.
    pub(super) fn abandon(&mut self) {
        let _ = swap::remove_marked(&*self.storage, &self.partial);
        self.created.remove();
    }

    /// Leaves the unfinished folder where it is.
    pub(super) fn keep(&mut self) {
        self.created.keep();
    }

    /// Turns the complete, synced unfinished folder into the output. Returns when that is on the disk, with what was
    /// left of the folder it replaces.
    pub(super) fn commit(&mut self) -> Result<Option<Leftover>> {
        let leftover = swap::commit(&*self.storage, &self.target, &self.partial, self.fate)?;
        self.created.keep();
        Ok(leftover)
    }
}

impl OutputFolder {
    /// What [`OutputFolder::create`] would say about `dir`, as far as that can be told without creating anything.
    ///
    /// # Errors
    /// As [`OutputFolder::create`].
    pub fn check(dir: impl AsRef<Path>, options: &OutputOptions) -> Result<()> {
        let (target, partial) = apart(dir.as_ref(), &options.inputs)?;
        check_target(&target, options.force)?;
        let left = left_over(&partial, options)?;
        check_room(&target, options, left.and_then(|l| l.kept).map(|_| &*partial))
    }

    /// The absolute path of the output, and the unfinished folder that an earlier run to it left.
    ///
    /// # Errors
    /// As [`OutputFolder::create`], of the place alone.
    pub fn places(dir: impl AsRef<Path>, options: &OutputOptions) -> Result<(PathBuf, Option<PathBuf>)> {
        let (target, partial) = apart(dir.as_ref(), &options.inputs)?;
        let unfinished = swap::is_marked(&partial);
        Ok((target, unfinished.then_some(partial)))
    }

    /// Finishes the swap of an earlier run to `dir` that was killed in it, and gives the absolute path of the output.
    ///
    /// # Errors
    /// As [`OutputFolder::create`], of the place alone.
    pub fn recover(dir: impl AsRef<Path>, options: &OutputOptions) -> Result<PathBuf> {
        let (target, partial) = apart(dir.as_ref(), &options.inputs)?;
        swap::recover(&*options.storage, &target, &partial)?;
        Ok(target)
    }
}

/// Output and unfinished folder, which have nothing to do with any input.
fn apart(dir: &Path, inputs: &[PathBuf]) -> Result<(PathBuf, PathBuf)> {
    let target = resolve(dir)?;
    let partial = sibling(&target, ".partial");
    for input in inputs {
        let real = fs::canonicalize(input).map_err(|e| CheckpointError::read(input, e))?;
        let touches = |place: &PathBuf| real.starts_with(place) || place.starts_with(&real);
        if [&target, &partial].into_iter().any(touches) {
            return Err(CheckpointError::OutputTouchesInput { output: target, input: real });
        }
    }
    Ok((target, partial))
}

/// Refuses a place where nothing may be created, or not enough. The folder that is replaced stays until the new one is
/// complete, so its space does not count; what an unfinished folder that is gone on with has taken is not taken again.
fn check_room(target: &Path, options: &OutputOptions, resumed: Option<&Path>) -> Result<()> {
    let Some(folder) = target.ancestors().skip(1).find(|a| a.is_dir()) else { return Ok(()) };
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(folder, access).map_err(|e| CheckpointError::write(folder, e.into()))?;
    let needed = options.space.saturating_sub(resumed.map_or(0, taken));
    match options.storage.free_bytes(folder) {
        Some(free) if free < needed => {
            Err(CheckpointError::NoSpace { path: folder.to_path_buf(), needed, free })
        }
        _ => Ok(()),
    }
}

/// Bytes of the disk that the files in a folder take, as far as they can be counted.
fn taken(dir: &Path) -> u64 {
    const SECTOR: u64 = 512;
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => taken(&entry.path()),
        Ok(meta) => meta.blocks() * SECTOR,
        Err(_) => 0,
    };
    entries.map(of).sum()
}

/// Folders made on the way to the output; removed again, while they are empty, unless kept.
#[derive(Debug)]
struct Created {
    storage: Arc<dyn Storage>,
    folders: Vec<PathBuf>,
}

impl Created {
    fn create_all(&mut self, dir: &Path) -> Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|d| d.symlink_metadata().is_err()).collect();
        for dir in missing.into_iter().rev() {
            match self.storage.create_dir(dir) {
                Ok(()) => self.folders.push(dir.to_owned()),
                // Made by someone else meanwhile.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(CheckpointError::write(dir, e)),
            }
        }
        Ok(())
    }
    fn keep(&mut self) {
        self.folders.clear();
    }
    fn remove(&mut self) {
        while let Some(dir) = self.folders.pop() {
            // Fails, as it should, once something else lies in it.
            let _ = self.storage.remove_dir(&dir);
        }
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The absolute path of the output with links resolved, whether or not it exists. Nothing is created.
fn resolve(dir: &Path) -> Result<PathBuf> {
    let refuse = |reason| Err(CheckpointError::BadOutput { path: dir.to_path_buf(), reason });
    let mut missing = Vec::new();
    let mut existing = dir;
    let mut real = loop {
        if existing.as_os_str().is_empty() {
            existing = Path::new(".");
        }
        match fs::canonicalize(existing) {
            Ok(real) => break real,
            Err(_) if existing.is_symlink() => return refuse("a symbolic link on the way leads nowhere"),
            Err(_) => {}
        }
        match (existing.components().next_back(), existing.parent()) {
            (Some(Component::Normal(name)), Some(parent)) => {
                missing.push(name);
                existing = parent;
            }
            _ => return refuse("it has no name"),
        }
    };
    if !missing.is_empty() && !real.is_dir() {
        return refuse("a part of its path is a file");
    }
    real.extend(missing.into_iter().rev());
    Ok(real)
}

/// Decides whether the target may be written, and what happens to a folder that stands there.
fn check_target(target: &Path, force: bool) -> Result<Option<Fate>> {
    let refuse = |reason| Err(CheckpointError::BadOutput { path: target.to_path_buf(), reason });
    let meta = match fs::metadata(target) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(CheckpointError::write(target, e)),
    };
    if !meta.is_dir() {
        return refuse("it exists and is not a folder");
    }
    let Some(parent) = target.parent() else { return refuse("it is the root of the file system") };
    let parent_meta = fs::metadata(parent).map_err(|e| CheckpointError::write(parent, e))?;
    if parent_meta.dev() != meta.dev() {
        return refuse("it is a mount point, which cannot be replaced atomically; name a folder inside it");
    }
    if std::env::current_dir().is_ok_and(|cwd| cwd.starts_with(target)) {
        return refuse("it contains the current folder");
    }
    let empty = fs::read_dir(target).map_err(|e| CheckpointError::write(target, e))?.next().is_none();
    if empty {
        return Ok(None); // `rename` replaces an empty folder in one step
    }
    if !force {
        return Err(CheckpointError::OutputExists { path: target.to_path_buf() });
    }
    if target.join(".git").exists() {
        return refuse("it is a git repository, which is never replaced");
    }
    let ours = swap::is_marked(target) || Manifest::read(target).is_ok_and(|m| m.is_some());
    Ok(Some(if ours { Fate::Delete } else { Fate::Keep }))
}

/// An unfinished folder that is there already.
struct LeftOver {
    /// Its marker, locked; none where it has none.
    lock: Option<File>,
    /// What can be gone on with.
    kept: Option<Kept>,
}

/// Looks at the unfinished folder of an earlier run. One that lives is refused, and so is work that the options say nothing of
/// or that is another job's.
fn left_over(partial: &Path, options: &OutputOptions) -> Result<Option<LeftOver>> {
    if partial.symlink_metadata().is_err() {
        return Ok(None);
    }
    if !partial.is_dir() || partial.is_symlink() {
        return Err(CheckpointError::BadOutput {
            path: partial.to_path_buf(),
            reason: "its working folder exists already and is not a folder; remove it",
        });
    }
    let lock = match File::open(partial.join(MARKER)) {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(LeftOver { lock: None, kept: None }));
        }
        Err(e) => return Err(CheckpointError::read(partial, e)),
    };
    if matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
        return Err(CheckpointError::OutputBusy { path: partial.to_path_buf() });
    }
    let kept = match options.unfinished {
        Unfinished::Discard => None,
        Unfinished::Refuse => match Kept::find(partial) {
            // What cannot be read might be worth something all the same.
            Ok(Some(_)) | Err(_) => {
                return Err(CheckpointError::Unfinished { path: partial.to_path_buf() });
            }
            Ok(None) => None,
        },
        Unfinished::Resume => Kept::find(partial)?,
    };
    if let Some(kept) = &kept {
        kept.check(&options.identity)?;
    }
    Ok(Some(LeftOver { lock: Some(lock), kept }))
}

/// Removes an unfinished folder that nobody goes on with.
fn clear(storage: &dyn Storage, partial: &Path) -> Result<()> {
    if partial.join(MARKER).symlink_metadata().is_ok() {
        return swap::remove_marked(storage, partial).map_err(|e| CheckpointError::write(partial, e));
    }
    storage.remove_dir(partial).map_err(|_| CheckpointError::BadOutput {
        path: partial.to_path_buf(),
        reason: "its working folder exists already and holds no marker of ours; remove it",
    })
}

/// Creates the unfinished folder with a locked marker.
fn claim(storage: &dyn Storage, partial: &Path) -> Result<File> {
    storage.create_dir(partial).map_err(|e| CheckpointError::write(partial, e))?;
    let marker = partial.join(MARKER);
    let mark = || -> io::Result<File> {
        let mut file = storage.create(&marker)?;
        let lock = File::open(&marker)?;
        if matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        file.write_all_at(MARKER_TEXT.as_bytes(), 0)?;
        file.sync()?;
        Ok(lock)
    };
    let lock = match mark() {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            return Err(CheckpointError::OutputBusy { path: partial.to_path_buf() });
        }
        Err(e) => {
            let _ = storage.remove_dir_all(partial);
            return Err(CheckpointError::write(&marker, e));
        }
    };
    sync_dir(storage, partial)?;
    if let Some(parent) = partial.parent() {
        sync_dir(storage, parent)?;
    }
    Ok(lock)
}
