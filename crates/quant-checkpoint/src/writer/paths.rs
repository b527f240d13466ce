//! What the writer's modules share about paths.

use std::path::{Path, PathBuf};

use super::storage::Storage;
use crate::error::{CheckpointError, Result};

/// Makes a folder's entries durable.
pub(super) fn sync_dir(storage: &dyn Storage, dir: &Path) -> Result<()> {
    storage.sync_dir(dir).map_err(|e| CheckpointError::write(dir, e))
}

/// `{path}{suffix}` beside `path`.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
