//! Tensor tables: one list says what is declared, encoded, expected and checked.

use std::collections::{BTreeMap, BTreeSet};

use quant_core::KvSide;
use quant_graph::{LinearId, LinearSpec, ModelSpec, Norm};
use safetensors::Dtype;

use crate::error::CheckpointError;
use crate::formats::TensorDecl;
use crate::formats::bytes::float_dtype;
use crate::source::Checkpoint;

/// The types a float tensor may have.
pub(crate) const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];

/// What a tensor of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A tensor of a linear, by what follows the module name.
    Linear(LinearId, &'static str),
    /// A norm weight.
    Norm(Norm),
    /// Static cache scales.
    KvScale(KvSide),
    /// Static cache offsets.
    KvOffset(KvSide),
}

/// A tensor of a block.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) decl: TensorDecl,
    pub(crate) item: Item,
}

/// A tensor of a linear.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) suffix: &'static str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl Part {
    pub(crate) fn new(suffix: &'static str, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { suffix, dtype, shape: shape.into() }
    }
    /// As a slot of a block.
    pub(crate) fn slot(self, linear: &LinearSpec) -> Slot {
        let decl = TensorDecl::new(format!("{}.{}", linear.module, self.suffix), self.dtype, self.shape);
        Slot { decl, item: Item::Linear(linear.id, self.suffix) }
    }
}

/// A norm of a block.
pub(crate) fn norm_slot(spec: &ModelSpec, index: usize, norm: Norm, width: usize, dtype: Dtype) -> Slot {
    Slot { decl: TensorDecl::new(spec.norm(index, norm), dtype, [width]), item: Item::Norm(norm) }
}

/// The tensors outside the blocks with the types they have in the input (the model's own where it does not say).
pub(crate) fn outer_decls(spec: &ModelSpec, dtype: &dyn Fn(&str) -> Option<Dtype>) -> Vec<TensorDecl> {
    let declare = |t: quant_graph::TensorSpec| {
        let dtype = dtype(&t.name).unwrap_or(float_dtype(spec.dtype));
        TensorDecl::new(t.name, dtype, t.shape)
    };
    spec.outer_tensors().into_iter().map(declare).collect()
}

/// A tensor that a folder must or may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Full name.
    pub name: String,
    /// Accepted element types.
    pub dtypes: &'static [Dtype],
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// A second shape that loaders take for the same: a scalar for one value, a column for a row.
    pub other_shape: Option<Vec<usize>>,
    /// Whether it may be absent.
    pub optional: bool,
}

impl ExpectedTensor {
    /// One that must be there.
    pub(crate) fn required(name: impl Into<String>, dtypes: &'static [Dtype], shape: &[usize]) -> Self {
        Self { name: name.into(), dtypes, shape: shape.to_vec(), other_shape: None, optional: false }
    }
    /// One that may be there.
    pub(crate) fn optional(name: impl Into<String>, dtypes: &'static [Dtype], shape: &[usize]) -> Self {
        Self { optional: true, ..Self::required(name, dtypes, shape) }
    }
    /// From a slot; float tensors may have any float type, as every loader converts them.
    pub(crate) fn of(decl: &TensorDecl) -> Self {
        let dtypes: &'static [Dtype] = match decl.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => FLOATS,
            Dtype::I8 => &[Dtype::I8],
            Dtype::I32 => &[Dtype::I32],
            Dtype::I64 => &[Dtype::I64],
            _ => &[],
        };
        let scalar = (decl.shape == [1]).then(Vec::new);
        Self { other_shape: scalar, ..Self::required(decl.name.clone(), dtypes, &decl.shape) }
    }
}

/// Embedding, final norm and head. A tied checkpoint may carry the head too.
pub(crate) fn outer_expected(spec: &ModelSpec) -> Vec<ExpectedTensor> {
    let mut expected: Vec<_> = spec
        .outer_tensors()
        .into_iter()
        .map(|t| ExpectedTensor::required(t.name, FLOATS, &t.shape))
        .collect();
    if spec.tied {
        expected.push(ExpectedTensor::optional(ModelSpec::HEAD, FLOATS, &[spec.vocab, spec.hidden]));
    }
    expected
}

/// All tensors of a float checkpoint.
pub(crate) fn plain_expected(spec: &ModelSpec) -> Vec<ExpectedTensor> {
    let block =
        |i| spec.block_tensors(i).into_iter().map(|t| ExpectedTensor::required(t.name, FLOATS, &t.shape));
    (0..spec.layers).flat_map(block).chain(outer_expected(spec)).collect()
}

/// The name of a list of types, for messages.
pub(crate) fn dtype_list(dtypes: &[Dtype]) -> &'static str {
    match dtypes {
        [Dtype::I8] => "I8",
        [Dtype::I8, Dtype::I32] => "I8 or I32",
        [Dtype::I8, ..] => "I8, or F32, F16 or BF16 of whole numbers",
        [Dtype::I32] => "I32",
        [Dtype::I64] => "I64",
        [Dtype::F32] => "F32",
        _ => "F32, F16 or BF16",
    }
}

/// All faults of the list of tensors: absent, of another type or shape, or not expected.
pub(crate) fn faults(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    expected: &[ExpectedTensor],
) -> Vec<CheckpointError> {
    let mut faults = Vec::new();
    for e in expected {
        let Some(info) = checkpoint.get(&e.name) else {
            if !e.optional {
                faults.push(CheckpointError::NoSuchTensor {
                    path: checkpoint.path().to_path_buf(),
                    tensor: e.name.clone(),
                });
            }
            continue;
        };
        if !e.dtypes.contains(&info.dtype) {
            faults.push(CheckpointError::DtypeMismatch {
                file: info.file.to_string(),
                tensor: e.name.clone(),
                expected: dtype_list(e.dtypes),
                found: info.dtype,
            });
        } else if info.shape != e.shape && Some(&info.shape) != e.other_shape.as_ref() {
            faults.push(CheckpointError::ShapeMismatch {
                file: info.file.to_string(),
                tensor: e.name.clone(),
                expected: format!("shape {:?}", e.shape),
                found: info.shape.clone(),
            });
        }
    }
    let known: BTreeSet<&str> = expected.iter().map(|e| e.name.as_str()).collect();
    let extra =
        checkpoint.tensors().filter(|t| !known.contains(t.name.as_str()) && !spec.is_ignorable(&t.name));
    faults.extend(extra.map(|t| CheckpointError::UnexpectedTensor {
        path: checkpoint.path().to_path_buf(),
        tensor: t.name.clone(),
    }));
    faults
}

/// Modules of all linears of a model with their block and id.
pub(crate) fn modules(spec: &ModelSpec) -> BTreeMap<String, (usize, LinearId)> {
    let block = |i| spec.block(i).linears.into_iter().map(move |linear| (linear.module, (i, linear.id)));
    (0..spec.layers).flat_map(block).collect()
}
