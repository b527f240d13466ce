//! Any model folder, float or quantised, as a stream of blocks.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2};
use quant_graph::{BlockFrame, BlockParams, BlockSource, BoxError, ModelSpec, RowVisitor, Rows};
use serde_json::Value;

use crate::error::{CheckpointError, Result};
use crate::formats::{self, FORMATS, Format, account, plain_expected, read_plain_block, visit_plain_block};
use crate::hash::TensorHash;
use crate::source::Checkpoint;

/// A [`BlockSource`] over a folder: a float checkpoint, or any format of [`FORMATS`] with its activation and cache
/// quantisers applied. Reads one block at a time; every tensor of the folder is accounted for when it is opened.
#[derive(Debug)]
pub struct FolderSource {
    checkpoint: Checkpoint,
    spec: ModelSpec,
    format: Option<&'static dyn Format>,
    hashes: BTreeMap<String, TensorHash>,
    hashing: bool,
}

impl FolderSource {
    /// Checks that the folder holds exactly the tensors of `spec` in its format, with the right types and shapes.
    /// Tensors that hold nothing a loader needs ([`ModelSpec::is_ignorable`]) are passed over.
    ///
    /// # Errors
    /// [`CheckpointError::NoSuchTensor`], [`CheckpointError::UnexpectedTensor`], [`CheckpointError::ShapeMismatch`],
    /// [`CheckpointError::DtypeMismatch`]; [`CheckpointError::BadFormat`] and [`CheckpointError::Unsupported`] for the
    /// description of a quantised folder; [`CheckpointError::ForeignQuantization`] for GPTQ, AWQ and others.
    pub fn open(checkpoint: Checkpoint, spec: ModelSpec) -> Result<Self> {
        let format = formats::detect(&checkpoint);
        refuse_foreign(&checkpoint, format)?;
        let expected = match format {
            Some(format) => format.expected(&checkpoint, &spec)?,
            None => plain_expected(&spec),
        };
        account(&checkpoint, &spec, &expected)?;
        Ok(Self { checkpoint, spec, format, hashes: BTreeMap::new(), hashing: true })
    }

    /// Reads without hashing, where nothing will ask for [`FolderSource::input_hashes`].
    #[must_use]
    pub fn without_hashes(mut self) -> Self {
        self.hashing = false;
        self
    }

    /// The folder.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Its format; none for a float checkpoint.
    #[must_use]
    pub fn format(&self) -> Option<&'static dyn Format> {
        self.format
    }

    /// SHA-256 of the stored bytes of every tensor read whole so far (blocks and final norm). Float tensors are hashed
    /// in the pass that reads them; a block read twice is hashed once. The embedding and the head are read by rows and
    /// so are not among them.
    #[must_use]
    pub fn input_hashes(&self) -> &BTreeMap<String, TensorHash> {
        &self.hashes
    }

    /// Gives the folder back with the hashes gathered.
    #[must_use]
    pub fn into_parts(self) -> (Checkpoint, BTreeMap<String, TensorHash>) {
        (self.checkpoint, self.hashes)
    }

    /// The table that holds the head.
    fn head_name(&self) -> &'static str {
        if self.spec.tied { ModelSpec::EMBEDDING } else { ModelSpec::HEAD }
    }

    /// The prefix of a block's tensors, and whether they are still to be hashed.
    fn begin(&self, index: usize) -> Result<(String, bool)> {
        if index >= self.spec.layers {
            return Err(CheckpointError::NoSuchTensor {
                path: self.checkpoint.path().to_path_buf(),
                tensor: self.spec.block_prefix(index),
            });
        }
        let prefix = format!("{}.", self.spec.block_prefix(index));
        let new = self.hashing && !self.hashes.keys().any(|name| name.starts_with(&prefix));
        Ok((prefix, new))
    }

    fn read(&mut self, index: usize) -> Result<BlockParams> {
        let (prefix, new) = self.begin(index)?;
        let Some(format) = self.format else {
            return read_plain_block(&self.checkpoint, &self.spec, index, new.then_some(&mut self.hashes));
        };
        if new {
            let names = self.checkpoint.tensors().map(|t| t.name.clone()).filter(|n| n.starts_with(&prefix));
            for name in names.collect::<Vec<_>>() {
                let hash = self.checkpoint.sha256(&name)?;
                self.hashes.insert(name, hash);
            }
        }
        format.decode(&self.checkpoint, &self.spec, index)
    }
}

/// Refuses a folder whose configuration announces a quantisation no format here claims.
pub(crate) fn refuse_foreign(checkpoint: &Checkpoint, format: Option<&'static dyn Format>) -> Result<()> {
    let Some(section) = checkpoint.config().get("quantization_config").filter(|s| !s.is_null()) else {
        return Ok(());
    };
    if format.is_some() {
        return Ok(());
    }
    Err(CheckpointError::ForeignQuantization {
        path: checkpoint.path().to_path_buf(),
        found: section.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method").to_owned(),
        readable: FORMATS.iter().map(|f| f.id()).collect::<Vec<_>>().join(", "),
    })
}

impl BlockSource for FolderSource {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn block(&mut self, index: usize) -> Result<BlockParams, BoxError> {
        Ok(self.read(index)?)
    }
    fn block_by_rows(&mut self, index: usize, visit: &mut RowVisitor<'_>) -> Result<BlockFrame, BoxError> {
        if self.format.is_some() {
            return quant_graph::visit_whole_weights(self.block(index)?, visit);
        }
        let (_, new) = self.begin(index)?;
        visit_plain_block(&self.checkpoint, &self.spec, index, new.then_some(&mut self.hashes), visit)
    }
    fn embed(&mut self, ids: &[u32]) -> Result<Array2<f32>, BoxError> {
        Ok(self.checkpoint.read_row_gather(ModelSpec::EMBEDDING, ids)?)
    }
    fn final_norm(&mut self) -> Result<Array1<f32>, BoxError> {
        if !self.hashing {
            return Ok(self.checkpoint.read_vector_f32(ModelSpec::FINAL_NORM)?);
        }
        let (values, hash) = self.checkpoint.read_vector_f32_hashed(ModelSpec::FINAL_NORM)?;
        self.hashes.insert(ModelSpec::FINAL_NORM.to_owned(), hash);
        Ok(values)
    }
    fn head(&mut self, rows: Rows) -> Result<Array2<f32>, BoxError> {
        Ok(self.checkpoint.read_rows_f32(self.head_name(), rows)?)
    }
}
