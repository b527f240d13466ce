//! Where the output folder may lie, its unfinished sibling, and the swap at the end.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use crate::error::{CheckpointError, Result};

/// Name of the file that marks a folder as unfinished. It is the first file written and the last one removed.
pub const MARKER: &str = "INCOMPLETE";

const MARKER_TEXT: &str = "This folder is an unfinished output of a quantisation run. Do not load it. It is replaced \
                           by the next run with the same output, and may be deleted when no run is active.\n";

/// Final and working folders, both absolute, plus the locked marker.
#[derive(Debug)]
pub(super) struct Workplace {
    pub(super) target: PathBuf,
    pub(super) partial: PathBuf,
    replace: bool,
    /// Held open because the lock lives as long as the handle; a killed process loses it.
    _lock: File,
}

impl Workplace {
    /// Checks `dir` and creates its unfinished sibling with the marker in it.
    pub(super) fn prepare(dir: &Path, force: bool, inputs: &[PathBuf]) -> Result<Self> {
        let target = resolve(dir)?;
        for input in inputs {
            let real = fs::canonicalize(input).map_err(|e| CheckpointError::read(input, e))?;
            if real.starts_with(&target) || target.starts_with(&real) {
                return Err(CheckpointError::OutputTouchesInput { output: target, input: real });
            }
        }
        let replace = check_target(&target, force)?;
        let partial = sibling(&target, ".partial");
        let lock = claim(&partial)?;
        Ok(Self { target, partial, replace, _lock: lock })
    }

    /// Removes the unfinished folder, as far as that works.
    pub(super) fn abandon(&self) {
        let _ = fs::remove_dir_all(&self.partial);
    }

    /// Turns the complete, synced unfinished folder into the output. Returns when the swap is on the disk, with the
    /// path of the replaced folder if that could not be deleted.
    pub(super) fn commit(&self) -> Result<Option<PathBuf>> {
        let marker = self.partial.join(MARKER);
        fs::remove_file(&marker).map_err(|e| CheckpointError::write(&marker, e))?;
        sync_dir(&self.partial)?;
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| CheckpointError::write(to, e));
        if self.replace {
            // A folder that is not empty cannot be replaced in one step; should the second step fail, the first is
            // undone.
            let old = unused_sibling(&self.target);
            rename(&self.target, &old)?;
            if let Err(e) = rename(&self.partial, &self.target) {
                let _ = fs::rename(&old, &self.target);
                return Err(e);
            }
            sync_parent(&self.target)?;
            // The new output stands; a leftover is worth a remark, not a failure.
            Ok(fs::remove_dir_all(&old).is_err().then_some(old))
        } else {
            rename(&self.partial, &self.target)?;
            sync_parent(&self.target)?;
            Ok(None)
        }
    }
}

/// Makes a folder's entries durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| CheckpointError::write(dir, e))
}

fn sync_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// The absolute path of the output with links resolved, whether or not it exists; missing parents are created.
fn resolve(dir: &Path) -> Result<PathBuf> {
    if let Ok(real) = fs::canonicalize(dir) {
        return Ok(real);
    }
    let refuse = |reason| Err(CheckpointError::BadOutput { path: dir.to_path_buf(), reason });
    if dir.is_symlink() {
        return refuse("it is a symbolic link that leads nowhere");
    }
    let Some(Component::Normal(name)) = dir.components().next_back() else {
        return refuse("it has no name");
    };
    let parent = match dir.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|e| CheckpointError::write(parent, e))?;
    let parent = fs::canonicalize(parent).map_err(|e| CheckpointError::write(parent, e))?;
    Ok(parent.join(name))
}

/// Decides whether the target may be written. Returns whether something must be moved out of the way at the end.
fn check_target(target: &Path, force: bool) -> Result<bool> {
    let refuse = |reason| Err(CheckpointError::BadOutput { path: target.to_path_buf(), reason });
    let meta = match fs::metadata(target) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
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
        return Ok(false); // `rename` replaces an empty folder in one step
    }
    if !force {
        return Err(CheckpointError::OutputExists { path: target.to_path_buf() });
    }
    if target.join(".git").exists() {
        return refuse("it is a git repository, which is never deleted");
    }
    Ok(true)
}

/// Creates the unfinished folder with a locked marker. One left by a killed run is replaced, one in use is not.
fn claim(partial: &Path) -> Result<File> {
    let fail = |e| CheckpointError::write(partial, e);
    let marker = partial.join(MARKER);
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
                    return Err(CheckpointError::OutputBusy { path: partial.to_path_buf() });
                }
                fs::remove_dir_all(partial).map_err(fail)?;
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
        return Err(CheckpointError::OutputBusy { path: partial.to_path_buf() });
    }
    let written = file.write_all(MARKER_TEXT.as_bytes()).and_then(|()| file.sync_all());
    if let Err(e) = written {
        let _ = fs::remove_dir_all(partial);
        return Err(CheckpointError::write(&marker, e));
    }
    sync_dir(partial)?;
    Ok(file)
}

/// `{path}{suffix}` beside `path`.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A name for the old output that nothing has yet.
fn unused_sibling(path: &Path) -> PathBuf {
    let pid = std::process::id();
    let mut number = 0_u32;
    loop {
        let candidate = sibling(path, &format!(".old-{pid}-{number}"));
        if candidate.symlink_metadata().is_err() {
            return candidate;
        }
        number += 1;
    }
}
