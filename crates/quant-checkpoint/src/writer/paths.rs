//! What the writer's modules share about paths.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{CheckpointError, Result};

/// Makes a folder's entries durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| CheckpointError::write(dir, e))
}

/// `{path}{suffix}` beside `path`.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
