//! Where the output folder may lie, and its unfinished sibling.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::OutputOptions;
use super::paths::{sibling, sync_dir};
use super::swap::{self, Fate, Leftover};
use crate::error::{CheckpointError, Result};
use crate::manifest::Manifest;
use crate::marker::{MARKER, MARKER_TEXT};

/// Final and working folders, both absolute, plus the locked marker.
#[derive(Debug)]
pub(super) struct Workplace {
    pub(super) target: PathBuf,
    pub(super) partial: PathBuf,
    /// What becomes of the folder that stands at the target now.
    fate: Option<Fate>,
    /// The marker. Held open because the lock lives as long as the handle; a killed process loses it.
    marker: File,
    /// Parents that did not exist, outermost first.
    created: Created,
}

impl Workplace {
    /// Checks `dir` and creates its unfinished sibling with the marker in it. What an earlier run left when it was
    /// killed is put in order first.
    pub(super) fn prepare(dir: &Path, options: &OutputOptions) -> Result<Self> {
        let (target, partial) = apart(dir, &options.inputs)?;
        swap::recover(&target, &partial)?;
        let fate = check_target(&target, options.force)?;
        check_room(&target, options)?;
        let mut created = Created::default();
        if let Some(parent) = target.parent() {
            created.create_all(parent)?;
        }
        let marker = claim(&partial)?;
        Ok(Self { target, partial, fate, marker, created })
    }

    /// Removes the unfinished folder and the parents made for it, as far as that works.
    pub(super) fn abandon(&mut self) {
        let _ = swap::remove_marked(&self.partial);
        self.created.remove();
    }

    /// Turns the complete, synced unfinished folder into the output. Returns when that is on the disk, with what was
    /// left of the folder it replaces.
    pub(super) fn commit(&mut self) -> Result<Option<Leftover>> {
        let leftover = swap::commit(&self.target, &self.partial, self.fate, &mut self.marker)?;
        self.created.keep();
        Ok(leftover)
    }
}

/// Checks `dir` without creating anything.
pub(super) fn check(dir: &Path, options: &OutputOptions) -> Result<()> {
    let (target, _) = apart(dir, &options.inputs)?;
    check_target(&target, options.force)?;
    check_room(&target, options)
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
/// complete, so its space does not count.
fn check_room(target: &Path, options: &OutputOptions) -> Result<()> {
    let Some(folder) = target.ancestors().skip(1).find(|a| a.is_dir()) else { return Ok(()) };
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(folder, access).map_err(|e| CheckpointError::write(folder, e.into()))?;
    match options.storage.free_bytes(folder) {
        Some(free) if free < options.space => {
            Err(CheckpointError::NoSpace { path: folder.to_path_buf(), needed: options.space, free })
        }
        _ => Ok(()),
    }
}

/// Folders made on the way to the output; removed again, while they are empty, unless kept.
#[derive(Debug, Default)]
struct Created(Vec<PathBuf>);

impl Created {
    fn create_all(&mut self, dir: &Path) -> Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|d| d.symlink_metadata().is_err()).collect();
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Ok(()) => self.0.push(dir.to_owned()),
                // Made by someone else meanwhile.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(CheckpointError::write(dir, e)),
            }
        }
        Ok(())
    }
    fn keep(&mut self) {
        self.0.clear();
    }
    fn remove(&mut self) {
        while let Some(dir) = self.0.pop() {
            // Fails, as it should, once something else lies in it.
            let _ = fs::remove_dir(dir);
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

/// Creates the unfinished folder with a locked marker. One left by a killed run is replaced, one in use is not.
fn claim(partial: &Path) -> Result<File> {
    let fail = |e| CheckpointError::write(partial, e);
    let marker = partial.join(MARKER);
    let busy = || CheckpointError::OutputBusy { path: partial.to_path_buf() };
    if partial.symlink_metadata().is_ok() {
        if !partial.is_dir() || partial.is_symlink() {
            return Err(CheckpointError::BadOutput {
                path: partial.to_path_buf(),
                reason: "its working folder exists already and is not a folder; remove it",
            });
        }
        match File::open(&marker) {
            // Held until the folder is removed, so that of two runs only one takes it over.
            Ok(old) => {
                if matches!(old.try_lock(), Err(fs::TryLockError::WouldBlock)) {
                    return Err(busy());
                }
                swap::remove_marked(partial).map_err(fail)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::remove_dir(partial) {
                Ok(()) => {}
                Err(_) => {
                    return Err(CheckpointError::BadOutput {
                        path: partial.to_path_buf(),
                        reason: "its working folder exists already and holds no marker of ours; remove it",
                    });
                }
            },
            Err(e) => return Err(fail(e)),
        }
    }
    fs::create_dir(partial).map_err(fail)?;
    let mut file = File::create_new(&marker).map_err(|e| CheckpointError::write(&marker, e))?;
    if matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) {
        return Err(busy());
    }
    let written = file.write_all(MARKER_TEXT.as_bytes()).and_then(|()| file.sync_all());
    if let Err(e) = written {
        let _ = fs::remove_dir_all(partial);
        return Err(CheckpointError::write(&marker, e));
    }
    sync_dir(partial)?;
    Ok(file)
}
