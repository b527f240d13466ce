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
    pub(crate) fn take(folder: &Path) -> Result<Self, StudyError> {
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
