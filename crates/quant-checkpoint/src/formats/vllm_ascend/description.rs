//! `quant_model_description.json`: the type of every tensor.

use std::collections::BTreeMap;
use std::path::Path;

use quant_core::{Bits, FloatType};
use quant_graph::{LinearId, LinearSpec, ModelScheme, ModelSpec};
use safetensors::Dtype;
use serde::Serialize as _;
use serde_json::{Map, Value, json};

pub(crate) use super::C8;
use super::ID;
use crate::error::{CheckpointError, Result};
use crate::formats::TensorDecl;
use crate::formats::block::linear_scheme;
use crate::formats::bytes::float_dtype;
use crate::formats::layout::{Part, modules};
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

/// The type of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AscendType {
    Float,
    /// Static per-tensor input.
    W8A8,
    /// Dynamic per-token input.
    W8A8Dynamic,
    /// Both at once: static on nodes that decode, dynamic on those that prefill.
    W8A8Mix,
    /// Weight only.
    W8A16,
    /// Both in 4 bits, dynamic per-token input.
    W4A4Dynamic,
    /// The same behind a Kronecker pair.
    W4A4FlatQuant,
}

impl AscendType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Float => "FLOAT",
            Self::W8A8 => "W8A8",
            Self::W8A8Dynamic => "W8A8_DYNAMIC",
            Self::W8A8Mix => "W8A8_MIX",
            Self::W8A16 => "W8A16",
            Self::W4A4Dynamic => "W4A4_DYNAMIC",
            Self::W4A4FlatQuant => "W4A4_FLATQUANT_DYNAMIC",
        }
    }
    /// Bits of its weight, and of its input where that is quantised.
    pub(crate) fn bits(self) -> u32 {
        if matches!(self, Self::W4A4Dynamic | Self::W4A4FlatQuant) { 4 } else { 8 }
    }
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }
    const ALL: [Self; 7] = [
        Self::Float,
        Self::W8A8,
        Self::W8A8Dynamic,
        Self::W8A8Mix,
        Self::W8A16,
        Self::W4A4Dynamic,
        Self::W4A4FlatQuant,
    ];
    /// The type that a linear of a supported scheme is written as.
    pub(crate) fn at(scheme: &ModelScheme, index: usize, id: LinearId) -> Self {
        let linear = linear_scheme(scheme, index, id);
        let online = scheme.online.get(index);
        let transformed = online.is_some_and(|online| online.sites.contains_key(&id.site()));
        match (linear.weight, linear.input) {
            (None, _) => Self::Float,
            (Some(_), None) => Self::W8A16,
            (Some(weight), Some(input)) if input.dynamic && weight.bits.get() == 4 => {
                if transformed {
                    Self::W4A4FlatQuant
                } else {
                    Self::W4A4Dynamic
                }
            }
            (Some(_), Some(input)) if input.dynamic => Self::W8A8Dynamic,
            (Some(_), Some(_)) => Self::W8A8,
        }
    }
    pub(crate) fn has_static_input(self) -> bool {
        matches!(self, Self::W8A8 | Self::W8A8Mix)
    }
    /// The tensors of a linear of this type, in msmodelslim's order, but for those of a transform.
    pub(crate) fn parts(self, linear: &LinearSpec, model: FloatType) -> Vec<Part> {
        let (out, columns) = (linear.outputs, linear.inputs);
        let (float, per_channel) = (float_dtype(model), [out, 1]);
        if self == Self::Float {
            let mut parts = vec![Part::new("weight", float, [out, columns])];
            if linear.bias {
                parts.push(Part::new("bias", float, [out]));
            }
            return parts;
        }
        let mut parts = vec![Part::new("weight", Dtype::I8, [out, columns])];
        if self.has_static_input() {
            parts.push(Part::new("quant_bias", Dtype::I32, [out]));
            parts.push(Part::new("input_scale", Dtype::F32, [1]));
            parts.push(Part::new("input_offset", Dtype::F32, [1]));
            parts.push(Part::new("deq_scale", deq_dtype(model), [out]));
        }
        // In a 16-bit model the weight scale is deq_scale / input_scale exactly; in an f32 model that division loses
        // the last bit, so the scale itself is stored too, which the loader accepts.
        if self != Self::W8A8 || model == FloatType::F32 {
            parts.push(Part::new("weight_scale", Dtype::F32, per_channel));
            parts.push(Part::new("weight_offset", Dtype::F32, per_channel));
        }
        if linear.bias {
            parts.push(Part::new("bias", Dtype::F32, [out]));
        }
        parts
    }
}

/// float16 models store the bits of the f32 product in an int64: the layout their matmul operator takes.
pub(crate) fn deq_dtype(model: FloatType) -> Dtype {
    if model == FloatType::F16 { Dtype::I64 } else { Dtype::F32 }
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

pub(crate) fn bad(
    subject: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::BadFormat {
        format: ID,
        subject: subject.into(),
        expected: expected.into(),
        found: found.into(),
    }
}

/// The bit width of a type.
pub(super) fn bits_of(kind: AscendType) -> Result<Bits> {
    Bits::new(kind.bits()).map_err(|e| bad("bits", "1 to 8", e.to_string()))
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
