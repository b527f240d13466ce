//! `*.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde_json::Value;

use crate::error::{CheckpointError, Result};
use crate::header::check_name;
use crate::json::parse_strict_json;

/// A checked index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// Tensor name to shard file name; every file name is a plain name.
    pub weight_map: BTreeMap<String, String>,
    /// `metadata.total_size` as stated (bytes of tensor data), when present and an integer. Published checkpoints get
    /// it wrong at times, so it is reported and never relied on.
    pub total_size: Option<u64>,
}

impl ShardIndex {
    /// Checks an index held in memory. `file` is the name that messages show.
    ///
    /// # Errors
    /// [`CheckpointError::Json`] for malformed text or a missing or non-string `weight_map`,
    /// [`CheckpointError::DuplicateKey`] for a repeated key, [`CheckpointError::BadIndexEntry`] for a shard that is
    /// not a plain file name.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let malformed =
            |detail: &str| CheckpointError::Json { file: file.to_owned(), detail: detail.to_owned() };
        let mut document = parse_strict_json(file, bytes)?;
        let total_size = document.pointer("/metadata/total_size").and_then(Value::as_u64);
        let Some(Value::Object(map)) = document.get_mut("weight_map").map(Value::take) else {
            return Err(malformed("expected an object \"weight_map\" of tensor names and file names"));
        };
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in map {
            check_name(file, &tensor)?;
            let Value::String(shard) = shard else {
                return Err(malformed(&format!("weight_map: the file of tensor {tensor:?} is not a string")));
            };
            if let Err(reason) = check_shard_name(&shard) {
                return Err(CheckpointError::BadIndexEntry {
                    index: file.to_owned(),
                    tensor,
                    entry: shard,
                    reason,
                });
            }
            weight_map.insert(tensor, shard);
        }
        Ok(Self { weight_map, total_size })
    }
}

/// Accepts the plain name of a safetensors file and nothing that could leave the folder on any system.
fn check_shard_name(name: &str) -> Result<(), &'static str> {
    if name.contains(['/', '\\', ':']) || name.chars().any(char::is_control) {
        return Err("must be a plain file name, without separators, drive or control characters");
    }
    let mut parts = Path::new(name).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        return Err("must be a plain file name inside the folder");
    }
    if !name.ends_with(".safetensors") {
        return Err("must end in .safetensors");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_only() {
        for good in ["model.safetensors", "model-00001-of-000002.safetensors", "..a.safetensors"] {
            assert_eq!(check_shard_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../model.safetensors",
            "/etc/model.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "C:model.safetensors",
            "model.safetensors/",
            "./model.safetensors",
            "model\0.safetensors",
            "pytorch_model.bin",
        ] {
            assert!(check_shard_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_map_and_size() {
        let text =
            r#"{"metadata": {"total_size": 12}, "weight_map": {"b": "x.safetensors", "a": "y.safetensors"}}"#;
        let index = ShardIndex::parse("i", text.as_bytes()).unwrap();
        assert_eq!(index.total_size, Some(12));
        assert_eq!(index.weight_map["a"], "y.safetensors");
        // Some published indices state the size as a float; it is not relied on.
        let text = r#"{"metadata": {"total_size": 12.0}, "weight_map": {}}"#;
        assert_eq!(ShardIndex::parse("i", text.as_bytes()).unwrap().total_size, None);
    }

    #[test]
    fn wrong_kinds_are_refused() {
        for text in ["[]", "{}", r#"{"weight_map": []}"#, r#"{"weight_map": {"a": 1}}"#, "3"] {
            assert!(
                matches!(ShardIndex::parse("i", text.as_bytes()), Err(CheckpointError::Json { .. })),
                "{text}"
            );
        }
        let twice = r#"{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}"#;
        assert!(matches!(
            ShardIndex::parse("i", twice.as_bytes()),
            Err(CheckpointError::DuplicateKey { scope, .. }) if scope == "weight_map"
        ));
    }
}
