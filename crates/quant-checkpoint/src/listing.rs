//! What a folder holds.

use std::path::Path;

use crate::error::{CheckpointError, Result};

/// Names of the entries of a folder, sorted; names that are not UTF-8 are left out.
pub(crate) fn list_files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| CheckpointError::read(dir, e))? {
        let entry = entry.map_err(|e| CheckpointError::read(dir, e))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
