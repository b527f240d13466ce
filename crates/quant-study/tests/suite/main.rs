//! Tasks and studies against models whose answers are known.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod likelihoods;
mod programs;
mod study;
mod tasks;

use std::path::{Path, PathBuf};

/// The model of the repository.
fn tiny_reasoner() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner")
}

/// A file or folder of the reference data, where there is any.
fn shared(name: &str) -> Option<PathBuf> {
    let found = quant_testkit::shared_dir().map(|folder| folder.join(name)).filter(|path| path.exists());
    if found.is_none() {
        quant_testkit::skipped(format!("no {name}"));
    }
    found
}
