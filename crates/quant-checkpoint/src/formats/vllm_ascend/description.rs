//! `quant_model_description.json`: the type of every tensor.

use std::collections::BTreeMap;
use std::path::Path;

use quant_graph::{LinearId, ModelScheme, ModelSpec};
use serde::Serialize as _;
use serde_json::{Map, Value, json};

use super::types::AscendType;
use super::types::c8::C8;
use super::{ID, bad};
use crate::error::{CheckpointError, Result};
use crate::formats::TensorDecl;
use crate::formats::layout::modules;
use crate::json::{LARGE_JSON_BYTES, parse_strict_json, read_json_text};
use crate::listing::list_files;
use crate::source::Checkpoint;

/// Name of the file.
pub(crate) const FILE: &str = "quant_model_description.json";
/// What its name begins with in folders of older msmodelslim (`quant_model_description_w8a8_dynamic.json`).
const OLDER: &str = "quant_model_description_";

/// Top-level keys that are no tensors.
const META: [&str; 9] = [
    "version",
    "model_quant_type",
    "metadata",
    "group_size",
    "optional",
    "kv_cache_type",
    "kv_quant_type",
    "fa_quant_type",
    "reduce_quant_type",
];

/// Types of linears that the loader has and this crate does not read.
const OTHER_TYPES: [&str; 10] = [
    "W4A8_DYNAMIC",
    "W8A8_MXFP8",
    "W4A4_MXFP4",
    "W4A8_MXFP",
    "W4A16_MXFP4",
    "W8A8S",
    "W8A8SC",
    "W16A16S",
    "W16A16SC",
    "FAKQuant",
];

/// The names under which a folder has a description: [`FILE`] if that is there, or else older ones.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    if dir.join(FILE).symlink_metadata().is_ok() {
        return vec![FILE.to_owned()];
    }
    // A folder that cannot be listed is one without; what is asked of it next says so.
    let listed = list_files(dir).unwrap_or_default().into_iter();
    listed.filter(|name| name.starts_with(OLDER) && name.ends_with(".json")).collect()
}

/// Whether a folder has a description, under any of its names.
pub(crate) fn present(dir: &Path) -> bool {
    !names(dir).is_empty()
}

/// A parsed description.
#[derive(Debug)]
pub(crate) struct Description {
    /// Type of every tensor.
    pub(crate) entries: BTreeMap<String, String>,
    /// The other keys.
    pub(crate) meta: Map<String, Value>,
}

impl Description {
    pub(crate) fn exists(checkpoint: &Checkpoint) -> bool {
        present(checkpoint.path())
    }
    /// Reads the file, whichever of its names it has.
    pub(crate) fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let found = names(checkpoint.path());
        let file = match found.as_slice() {
            [] => FILE,
            [file] => file,
            several => return Err(bad("the folder", "one description", several.join(", "))),
        };
        let path = checkpoint.path().join(file);
        let text = read_json_text(&path, file, "the types of the quantised tensors", LARGE_JSON_BYTES)?;
        let Value::Object(object) = parse_strict_json(file, &text)? else {
            return Err(bad(file, "a JSON object", "another value"));
        };
        let (mut entries, mut meta) = (BTreeMap::new(), Map::new());
        for (key, value) in object {
            match value {
                Value::String(kind) if !META.contains(&key.as_str()) => {
                    entries.insert(key, kind);
                }
                value => {
                    meta.insert(key, value);
                }
            }
        }
        Ok(Self { entries, meta })
    }
    /// The type of a linear.
    pub(crate) fn kind(&self, module: &str) -> Result<AscendType> {
        let name = format!("{module}.weight");
        let Some(kind) = self.entries.get(&name) else {
            return Err(bad(FILE, format!("an entry {name}"), "none"));
        };
        AscendType::from_name(kind).ok_or_else(|| {
            if is_loader_type(kind) {
                let types = AscendType::ALL.map(AscendType::name).join(", ");
                let alternatives = format!("types read here are {types} and C8");
                CheckpointError::Unsupported(crate::formats::Unsupported {
                    format: ID,
                    what: format!("{module} of type {kind} in a form this program reads"),
                    alternatives,
                })
            } else {
                bad(format!("{FILE}: {name}"), "a type the loader knows", format!("{kind:?}"))
            }
        })
    }
    /// The types of all linears by module.
    pub(crate) fn kinds(&self, spec: &ModelSpec) -> Result<BTreeMap<String, AscendType>> {
        modules(spec).into_keys().map(|m| Ok((m.clone(), self.kind(&m)?))).collect()
    }
    /// Whether a block's cache is stored in 8 bits: whether its key projection has cache scales.
    pub(crate) fn has_kv(&self, spec: &ModelSpec, index: usize) -> bool {
        let key = format!("{}.kv_cache_scale", spec.module(index, LinearId::K));
        self.entries.get(&key).is_some_and(|kind| kind == C8)
    }
}

/// Whether vLLM-Ascend has a type, whether or not this crate reads it.
pub(crate) fn is_loader_type(name: &str) -> bool {
    AscendType::from_name(name).is_some() || name == C8 || OTHER_TYPES.contains(&name)
}

/// The file for a folder with these tensors.
pub(super) fn write(spec: &ModelSpec, scheme: &ModelScheme, declared: &[TensorDecl]) -> Vec<u8> {
    let modules = modules(spec);
    let kind_of = |name: &str| {
        let (module, suffix) = name.rsplit_once('.')?;
        let (index, role) = modules.get(module)?;
        let kind = AscendType::at(scheme, *index, *role);
        match suffix {
            "kv_cache_scale" | "kv_cache_offset" => Some(C8),
            "bias" => None,
            _ => Some(kind.name()),
        }
    };
    let mut document = Map::new();
    for tensor in declared {
        document
            .insert(tensor.name.clone(), json!(kind_of(&tensor.name).unwrap_or(AscendType::Float.name())));
    }
    // The loader looks the head up even where it is the embedding.
    document.entry(ModelSpec::HEAD).or_insert_with(|| json!(AscendType::Float.name()));
    if scheme.kv.is_some() {
        document.insert("kv_cache_type".to_owned(), json!(C8));
        document.insert("kv_quant_type".to_owned(), json!(C8));
    }
    document.insert("version".to_owned(), json!("1.0.0"));
    document.insert("model_quant_type".to_owned(), json!(model_type(scheme).name()));
    document.insert("metadata".to_owned(), json!({}));
    document.insert("group_size".to_owned(), json!(0));
    document.insert("optional".to_owned(), json!({}));
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // A JSON value always serialises into memory; the compact form stands in for the impossible error.
    if Value::Object(document.clone()).serialize(&mut serializer).is_err() {
        out = Value::Object(document).to_string().into_bytes();
    }
    out.push(b'\n');
    out
}

/// The type most linears have; the first in the order of [`AscendType`] among equals.
fn model_type(scheme: &ModelScheme) -> AscendType {
    let mut counts: BTreeMap<AscendType, usize> = BTreeMap::new();
    for (index, id, _) in scheme.linears() {
        *counts.entry(AscendType::at(scheme, index, id)).or_default() += 1;
    }
    counts.remove(&AscendType::Float);
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map_or(AscendType::Float, |(kind, _)| kind)
}
