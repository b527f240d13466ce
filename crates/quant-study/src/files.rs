//! Files that are whole or not there, and folders that one process works in.

use crate::StudyError;
use serde::de::DeserializeOwned;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Name of the file that a process holds while it works in a folder.
const LOCK: &str = ".lock";

/// A folder that is worked on by this process, until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

impl Lock {
    /// Takes the lock of a folder, which is made if there is none.
    pub(crate) fn take(folder: &Path) -> Result<Self, StudyError> {
        std::fs::create_dir_all(folder).map_err(StudyError::io(folder))?;
        let path = folder.join(LOCK);
        let file = File::create(&path).map_err(StudyError::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StudyError::Locked { path: folder.to_owned() }),
            Err(TryLockError::Error(error)) => Err(StudyError::io(path)(error)),
        }
    }
}

/// Writes a file that is there in whole or not at all, whatever happens meanwhile.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StudyError> {
    write_by(path, bytes, &path.with_extension("part"))
}

/// The same in a folder that another process may be writing the same file in: neither takes away what the other has begun.
pub(crate) fn write_beside_others(path: &Path, bytes: &[u8]) -> Result<(), StudyError> {
    write_by(path, bytes, &path.with_extension(format!("{}.part", std::process::id())))
}

fn write_by(path: &Path, bytes: &[u8], part: &Path) -> Result<(), StudyError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(part)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(part, path)
    };
    write().map_err(StudyError::io(path))
}

/// What a file of JSON holds; none where there is no file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StudyError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| StudyError::Journal {
            path: path.to_owned(),
            line: error.line(),
            reason: error.to_string(),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StudyError::io(path)(error)),
    }
}

/// A name as that of a folder.
pub(crate) fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.+".contains(c) { c } else { '_' };
    let slug: String = name.chars().map(plain).collect();
    // What is no name of a folder in its own right.
    if slug.chars().all(|c| c == '.') { format!("_{slug}") } else { slug }
}

/// Checks that there is no folder yet, or one whose files are all of names that `own` knows: what somebody else keeps in it would be
/// overwritten. `what` is what it might have held.
pub(crate) fn check_own(path: &Path, own: impl Fn(&str) -> bool, what: &str) -> Result<(), StudyError> {
    let give = "give another --output";
    if !path.exists() {
        return Ok(());
    }
    if !path.is_dir() {
        return Err(StudyError::Usage(format!("{}: it exists and is not a folder; {give}", path.display())));
    }
    for entry in std::fs::read_dir(path).map_err(StudyError::io(path))? {
        let name = entry.map_err(StudyError::io(path))?.file_name();
        let known = |name: &str| name == LOCK || name.ends_with(".part") || own(name);
        if !name.to_str().is_some_and(known) {
            return Err(StudyError::Usage(format!(
                "{}: it holds {} and no {what}; {give}",
                path.display(),
                name.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let open = |at: &Path| check_own(at, |name| name == "mine", "study");
        let new = folder.path().join("a/b");
        open(&new).unwrap();
        assert!(!new.exists());
        std::fs::create_dir_all(&new).unwrap();
        for name in [LOCK, "mine", "x.part"] {
            std::fs::write(new.join(name), "").unwrap();
        }
        open(&new).unwrap();
        std::fs::write(new.join("config.json"), "").unwrap();
        let told = open(&new).unwrap_err().to_string();
        assert!(told.ends_with("it holds config.json and no study; give another --output"), "{told}");
        let told = open(&new.join("mine")).unwrap_err().to_string();
        assert!(told.ends_with("it exists and is not a folder; give another --output"), "{told}");
    }
}
