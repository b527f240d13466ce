//! Which tensor goes where: shards, headers and offsets, fixed before the first byte is written.
//!
//! A safetensors header precedes the data and holds every offset, so streaming needs all names, dtypes and shapes in
//! advance. Since offsets are then known, tensors may arrive in any order and the bytes of the output do not depend
//! on that order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::dtype::tensor_bytes;
use crate::error::{CheckpointError, HeaderError, Result};
use crate::header::{MAX_HEADER_BYTES, check_name};

/// Default limit of a shard, in bytes of tensor data: 5 GB, as `save_pretrained` has it.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDecl {
    /// Full name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, row-major.
    pub shape: Vec<usize>,
}

impl TensorDecl {
    /// A tensor `name` of `dtype` and `shape`.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }
}

/// How shard files are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardNaming {
    prefix: String,
    always_numbered: bool,
}

impl ShardNaming {
    /// Hugging Face's names: `model.safetensors` alone when one file is enough, else
    /// `model-00001-of-0000n.safetensors` with `model.safetensors.index.json`.
    #[must_use]
    pub fn hugging_face() -> Self {
        Self::plain_when_single("model")
    }

    /// msmodelslim's names: always `quant_model_weights-00001-of-0000n.safetensors` with
    /// `quant_model_weights.safetensors.index.json`, even for one shard.
    #[must_use]
    pub fn msmodelslim() -> Self {
        Self { prefix: "quant_model_weights".to_owned(), always_numbered: true }
    }

    /// `{prefix}.safetensors` when one file is enough, else numbered shards with an index.
    pub fn plain_when_single(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), always_numbered: false }
    }

    fn shard(&self, number: usize, count: usize) -> String {
        if count == 1 && !self.always_numbered {
            format!("{}.safetensors", self.prefix)
        } else {
            format!("{}-{number:05}-of-{count:05}.safetensors", self.prefix)
        }
    }

    fn index(&self, count: usize) -> Option<String> {
        (count > 1 || self.always_numbered).then(|| format!("{}.safetensors.index.json", self.prefix))
    }
}

/// A shard file of a plan.
#[derive(Debug, Clone)]
pub struct PlannedShard {
    /// File name.
    pub file: String,
    /// Size of the whole file in bytes.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Length field and JSON header, padded with spaces to a multiple of 8.
    pub(crate) header: Vec<u8>,
}

/// Where a tensor goes.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) spec: TensorDecl,
    pub(crate) shard: usize,
    /// Bytes in the file, counted from its start.
    pub(crate) range: Range<u64>,
}

/// A complete layout of the weights of an output folder.
#[derive(Debug, Clone)]
pub struct ShardPlan {
    pub(crate) shards: Vec<PlannedShard>,
    pub(crate) places: BTreeMap<String, Place>,
    /// Names of the tensors as they were declared.
    order: Vec<String>,
    pub(crate) index: Option<(String, Vec<u8>)>,
    total_bytes: u64,
}

impl ShardPlan {
    /// Packs `tensors`, in the given order, into shards of at most `max_shard_bytes` of data (a larger tensor gets a
    /// shard of its own), called by `naming`.
    ///
    /// Inside a shard, wider dtypes come first (else the declared order): then every tensor starts at a multiple of
    /// its element size although no padding is allowed between tensors, which loaders that reinterpret the file in
    /// place need.
    ///
    /// # Errors
    /// [`CheckpointError::PlanViolation`] for a name given twice; [`HeaderError::BadTensorName`],
    /// [`HeaderError::SizeOverflow`], [`HeaderError::FractionalBytes`], [`HeaderError::TooLarge`]
    /// for what the format cannot hold.
    pub fn new(tensors: Vec<TensorDecl>, naming: &ShardNaming, max_shard_bytes: u64) -> Result<Self> {
        let mut plan =
            Self::shards_of(tensors, max_shard_bytes, |number, count| naming.shard(number, count))?;
        plan.index = naming.index(plan.shards.len()).map(|name| (name, plan.index_bytes(None)));
        Ok(plan)
    }

    /// The first part of a layout of which the rest is known only when this is written: its names count the one shard that will come, and it
    /// has no index. [`ShardPlan::rest`] makes the other part.
    ///
    /// ```
    /// use quant_checkpoint::{Dtype, ShardNaming, ShardPlan, TensorDecl};
    ///
    /// let naming = ShardNaming::hugging_face();
    /// let first = ShardPlan::first_part(vec![TensorDecl::new("a", Dtype::U8, [4])], &naming, 100)?;
    /// let rest = first.rest(vec![TensorDecl::new("b", Dtype::U8, [2])], &naming)?;
    /// assert_eq!(first.file_of("a"), Some("model-00001-of-00002.safetensors"));
    /// assert_eq!(rest.file_of("b"), Some("model-00002-of-00002.safetensors"));
    /// assert_eq!((first.index_file(), rest.index_file()), (None, Some("model.safetensors.index.json")));
    /// # Ok::<(), quant_checkpoint::CheckpointError>(())
    /// ```
    ///
    /// # Errors
    /// As [`ShardPlan::new`].
    pub fn first_part(tensors: Vec<TensorDecl>, naming: &ShardNaming, max_shard_bytes: u64) -> Result<Self> {
        Self::shards_of(tensors, max_shard_bytes, |number, count| naming.shard(number, count + 1))
    }

    /// What comes behind [a first part](ShardPlan::first_part): one shard with these tensors, and the index of both parts.
    ///
    /// # Errors
    /// As [`ShardPlan::new`], also for a name that the first part has.
    pub fn rest(&self, tensors: Vec<TensorDecl>, naming: &ShardNaming) -> Result<Self> {
        if let Some(twice) = tensors.iter().find(|tensor| self.places.contains_key(&tensor.name)) {
            let (tensor, detail) = (twice.name.clone(), "declared twice".to_owned());
            return Err(CheckpointError::PlanViolation { tensor, detail });
        }
        let count = self.shards.len() + 1;
        let mut plan = Self::shards_of(tensors, u64::MAX, |_, _| naming.shard(count, count))?;
        plan.index = naming.index(count).map(|name| (name, plan.index_bytes(Some(self))));
        Ok(plan)
    }

    /// The index of this layout, and of what was written before it.
    fn index_bytes(&self, before: Option<&Self>) -> Vec<u8> {
        let parts = || before.into_iter().chain([self]);
        let total: u64 = parts().map(|part| part.total_bytes).sum();
        let files = |part: &'_ Self| {
            let file = |name: &String| part.file_of(name).unwrap_or_default().to_owned();
            part.order.iter().map(|name| (name.clone(), Value::String(file(name)))).collect::<Vec<_>>()
        };
        let weight_map: Map<String, Value> = parts().flat_map(files).collect();
        let document = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        // `{:#}` on a Value cannot fail, unlike the serialiser's own signature.
        format!("{document:#}\n").into_bytes()
    }

    /// The shards of tensors, called by `name` of a number from 1 and how many there are; without an index.
    fn shards_of(
        tensors: Vec<TensorDecl>,
        max_shard_bytes: u64,
        name: impl Fn(usize, usize) -> String,
    ) -> Result<Self> {
        let mut groups: Vec<Vec<(TensorDecl, u64)>> = vec![Vec::new()];
        let mut filled = 0_u64;
        for spec in tensors {
            check_name("output", &spec.name)?;
            let bytes = tensor_bytes("output", &spec.name, spec.dtype, &spec.shape)?;
            let next = filled.saturating_add(bytes);
            let start_new = next > max_shard_bytes && groups.last().is_some_and(|g| !g.is_empty());
            if start_new {
                groups.push(Vec::new());
            }
            filled = if start_new { bytes } else { next };
            if let Some(group) = groups.last_mut() {
                group.push((spec, bytes));
            }
        }

        let count = groups.len();
        let mut order = Vec::new();
        let mut places = BTreeMap::new();
        let mut shards = Vec::with_capacity(count);
        let mut total_bytes = 0_u64;
        for (shard, mut group) in groups.into_iter().enumerate() {
            let file = name(shard + 1, count);
            order.extend(group.iter().map(|(spec, _)| spec.name.clone()));
            group.sort_by_key(|(spec, _)| std::cmp::Reverse(spec.dtype.bitsize()));
            let header = header_bytes(&file, &group)?;
            let tensors = group.len();
            let mut at = header.len() as u64;
            for (spec, bytes) in group {
                let end = at.checked_add(bytes).ok_or_else(|| HeaderError::SizeOverflow {
                    file: file.clone(),
                    tensor: spec.name.clone(),
                    dtype: spec.dtype,
                    shape: spec.shape.clone(),
                })?;
                total_bytes += bytes;
                match places.entry(spec.name.clone()) {
                    Entry::Vacant(slot) => slot.insert(Place { spec, shard, range: at..end }),
                    Entry::Occupied(_) => {
                        return Err(CheckpointError::PlanViolation {
                            tensor: spec.name,
                            detail: "declared twice".to_owned(),
                        });
                    }
                };
                at = end;
            }
            shards.push(PlannedShard { file, bytes: at, tensors, header });
        }
        Ok(Self { shards, places, order, index: None, total_bytes })
    }

    /// The shard files, in order.
    #[must_use]
    pub fn shards(&self) -> &[PlannedShard] {
        &self.shards
    }

    /// Name of the index file, if these names have one.
    #[must_use]
    pub fn index_file(&self) -> Option<&str> {
        self.index.as_ref().map(|(name, _)| name.as_str())
    }

    /// Bytes of tensor data, as `metadata.total_size` states.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The file a tensor goes to.
    #[must_use]
    pub fn file_of(&self, tensor: &str) -> Option<&str> {
        self.places.get(tensor).map(|p| self.shards[p.shard].file.as_str())
    }
}

/// Length field and JSON header of a shard whose tensors follow each other in the order of `group`.
fn header_bytes(file: &str, group: &[(TensorDecl, u64)]) -> Result<Vec<u8>> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0_u64;
    for (spec, bytes) in group {
        let end = at.saturating_add(*bytes);
        let entry = json!({"dtype": spec.dtype.to_string(), "shape": spec.shape, "data_offsets": [at, end]});
        header.insert(spec.name.clone(), entry);
        at = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let length = json.len() as u64;
    if length > MAX_HEADER_BYTES {
        return Err(
            HeaderError::TooLarge { file: file.to_owned(), limit: MAX_HEADER_BYTES, found: length }.into()
        );
    }
    let mut out = length.to_le_bytes().to_vec();
    out.extend_from_slice(&json);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorDecl {
        TensorDecl::new(name, dtype, shape)
    }

    #[test]
    fn packs_in_order_and_names_shards() {
        let tensors = || ["a", "b", "c", "d"].map(|n| spec(n, Dtype::U8, &[40])).to_vec();
        let plan = ShardPlan::new(tensors(), &ShardNaming::hugging_face(), 100).unwrap();
        let files: Vec<_> = plan.shards().iter().map(|s| s.file.as_str()).collect();
        assert_eq!(files, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
        assert_eq!(plan.file_of("b"), Some(files[0]));
        assert_eq!(plan.file_of("c"), Some(files[1]));
        assert_eq!((plan.index_file(), plan.total_bytes()), (Some("model.safetensors.index.json"), 160));

        let plan = ShardPlan::new(tensors(), &ShardNaming::hugging_face(), 160).unwrap();
        assert_eq!((plan.shards()[0].file.as_str(), plan.index_file()), ("model.safetensors", None));

        let plan = ShardPlan::new(tensors(), &ShardNaming::msmodelslim(), 160).unwrap();
        assert_eq!(plan.shards()[0].file, "quant_model_weights-00001-of-00001.safetensors");
        assert_eq!(plan.index_file(), Some("quant_model_weights.safetensors.index.json"));
    }

    /// What is known late comes in a shard of its own, and the index has both parts.
    #[test]
    fn a_layout_in_two_parts() {
        let naming = ShardNaming::msmodelslim();
        let tensors = ["a", "b"].map(|n| spec(n, Dtype::U8, &[40])).to_vec();
        let first = ShardPlan::first_part(tensors.clone(), &naming, 50).unwrap();
        let files = |plan: &ShardPlan| plan.shards().iter().map(|s| s.file.clone()).collect::<Vec<_>>();
        let called = |n: usize| format!("quant_model_weights-{n:05}-of-00003.safetensors");
        assert_eq!((files(&first), first.index_file()), (vec![called(1), called(2)], None));
        let rest = first.rest(vec![spec("c", Dtype::U8, &[5])], &naming).unwrap();
        assert_eq!((files(&rest), rest.total_bytes()), (vec![called(3)], 5));
        let (name, bytes) = rest.index.as_ref().unwrap();
        let index: Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(name, "quant_model_weights.safetensors.index.json");
        assert_eq!(index["metadata"]["total_size"], 85);
        let map = index["weight_map"].as_object().unwrap();
        assert_eq!(
            map.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap().to_owned())).collect::<Vec<_>>(),
            [("a", called(1)), ("b", called(2)), ("c", called(3)),]
        );
        assert!(first.rest(tensors, &naming).is_err());
    }

    #[test]
    fn a_tensor_beyond_the_limit_gets_its_own_shard() {
        let tensors = vec![
            spec("a", Dtype::U8, &[10]),
            spec("big", Dtype::U8, &[500]),
            spec("c", Dtype::U8, &[10]),
            spec("d", Dtype::U8, &[10]),
        ];
        let plan = ShardPlan::new(tensors, &ShardNaming::hugging_face(), 100).unwrap();
        assert_eq!(plan.shards().iter().map(|s| s.tensors).collect::<Vec<_>>(), [1, 1, 2]);
    }

    #[test]
    fn every_tensor_is_aligned_whatever_the_order() {
        let tensors = vec![
            spec("bytes", Dtype::I8, &[3]),
            spec("half", Dtype::BF16, &[1]),
            spec("scale", Dtype::F32, &[1]),
            spec("shape", Dtype::I64, &[2]),
            spec("byte", Dtype::U8, &[1]),
        ];
        let plan = ShardPlan::new(tensors, &ShardNaming::hugging_face(), 1000).unwrap();
        for (name, place) in &plan.places {
            assert_eq!(place.range.start * 8 % place.spec.dtype.bitsize() as u64, 0, "{name}");
        }
    }

    #[test]
    fn impossible_plans_are_refused() {
        let twice = vec![spec("a", Dtype::U8, &[1]), spec("a", Dtype::I8, &[1])];
        let naming = ShardNaming::hugging_face();
        assert!(matches!(
            ShardPlan::new(twice.clone(), &naming, 1),
            Err(CheckpointError::PlanViolation { tensor, .. }) if tensor == "a"
        ));
        assert!(matches!(ShardPlan::new(twice, &naming, 100), Err(CheckpointError::PlanViolation { .. })));
        let nameless = vec![spec("", Dtype::U8, &[1])];
        assert!(matches!(
            ShardPlan::new(nameless, &naming, 1),
            Err(CheckpointError::Header(HeaderError::BadTensorName { .. }))
        ));
        let huge = vec![spec("a", Dtype::F64, &[usize::MAX, 2])];
        assert!(matches!(
            ShardPlan::new(huge, &naming, 1),
            Err(CheckpointError::Header(HeaderError::SizeOverflow { .. }))
        ));
        let sum = vec![spec("a", Dtype::U8, &[usize::MAX - 7]), spec("b", Dtype::U8, &[usize::MAX - 7])];
        assert!(matches!(
            ShardPlan::new(sum, &naming, u64::MAX),
            Err(CheckpointError::Header(HeaderError::SizeOverflow { .. }))
        ));
    }
}
