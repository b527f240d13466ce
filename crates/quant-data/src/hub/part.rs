//! Files that are whole or not there.

use crate::hub_error::HubError;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A file that is written beside its place, and gone unless it is kept.
pub(super) struct Part {
    part: PathBuf,
    path: PathBuf,
}

impl Part {
    /// Begins one; its folders are made.
    pub(super) fn create(path: &Path) -> Result<(Self, File), HubError> {
        let failed = |source| HubError::CannotWrite { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Two processes that fetch the same do not write into one file.
        let part = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file = File::create(&part).map_err(failed)?;
        Ok((Self { part, path: path.to_owned() }, file))
    }

    /// The file that it becomes.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sees to it that what was written is on the disk.
    pub(super) fn sync(&self, file: &File) -> Result<(), HubError> {
        file.sync_all().map_err(|source| HubError::CannotWrite { path: self.path.clone(), source })
    }

    /// Puts it in its place.
    pub(super) fn keep(self) -> Result<(), HubError> {
        std::fs::rename(&self.part, &self.path)
            .map_err(|source| HubError::CannotWrite { path: self.path.clone(), source })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It is not there any more once it is kept.
        std::fs::remove_file(&self.part).ok();
    }
}
