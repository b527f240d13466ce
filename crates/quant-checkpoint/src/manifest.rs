//! `manifest.json`: by which a folder is known as ours, and its tensors as the ones that were written.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{CheckpointError, Result};
use crate::json::{LARGE_JSON_BYTES, parse_strict_json, read_json_text};

const FILE: &str = "manifest.json";

/// The hashes that a finished folder records for its tensors.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// SHA-256 in hex of every tensor of the folder.
    pub(crate) output: BTreeMap<String, String>,
}

impl Manifest {
    /// The manifest of a folder; none if it has none, or one of another program.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON; one of ours without the hashes.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let text = read_json_text(&path, FILE, "the manifest", LARGE_JSON_BYTES)?;
        let value = parse_strict_json(FILE, &text)?;
        if !value.get("tool").and_then(Value::as_str).is_some_and(|tool| tool.starts_with("ptq ")) {
            return Ok(None);
        }
        let bad = |detail: &str| CheckpointError::Json { file: FILE.to_owned(), detail: detail.to_owned() };
        let hashes = |list: &Map<String, Value>| -> Option<BTreeMap<String, String>> {
            list.iter().map(|(name, hash)| Some((name.clone(), hash.as_str()?.to_owned()))).collect()
        };
        let output = value.get("output").and_then(Value::as_object).and_then(hashes);
        let output = output.ok_or_else(|| bad("expected the hashes of all tensors under \"output\""))?;
        Ok(Some(Self { output }))
    }
}
