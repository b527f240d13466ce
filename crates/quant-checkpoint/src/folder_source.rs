//! Any model folder, float or quantised, as a stream of blocks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ndarray::{Array1, Array2};
use quant_core::FloatType;
use quant_graph::{
    BlockFrame, BlockParams, BlockSource, BoxError, ModelSpec, Outer, RowVisitor, Rows, SourceError,
    TableVisitor,
};
use serde_json::Value;

use crate::error::{CheckpointError, Result};
use crate::formats::{
    self, Decoder, Format, Formats, faults, float_dtype, plain_expected, read_plain_block, visit_plain_block,
};
use crate::hash::TensorHash;
use crate::source::Checkpoint;

/// A [`BlockSource`] over a folder: a float checkpoint, or any format of [`Formats`] with its activation and cache
/// quantisers applied. Reads one block at a time; every tensor of the folder is accounted for when it is opened.
#[derive(Debug)]
pub struct FolderSource {
    checkpoint: Checkpoint,
    spec: ModelSpec,
    format: Option<&'static dyn Format>,
    decoder: Option<Box<dyn Decoder>>,
    hashes: InputHashes,
    hashing: bool,
}

/// Hashes of input tensors, gathered by a source and seen by whoever holds a clone.
#[derive(Debug, Clone, Default)]
pub struct InputHashes(Arc<Mutex<BTreeMap<String, TensorHash>>>);

impl InputHashes {
    /// All so far.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, TensorHash> {
        self.lock().clone()
    }

    /// Adds some.
    pub fn extend(&self, hashes: impl IntoIterator<Item = (String, TensorHash)>) {
        self.lock().extend(hashes);
    }

    fn has_any(&self, prefix: &str) -> bool {
        self.lock().keys().any(|name| name.starts_with(prefix))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, TensorHash>> {
        // Nothing panics between two changes of the map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FolderSource {
    /// Checks the tensors, as [`check_tensors`] does.
    ///
    /// # Errors
    /// As [`check_tensors`].
    pub fn open(checkpoint: Checkpoint, spec: ModelSpec) -> Result<Self> {
        Self::open_with(checkpoint, spec, &Formats::default())
    }

    /// The same for a folder of one of `formats`.
    ///
    /// # Errors
    /// As [`check_tensors`].
    pub fn open_with(checkpoint: Checkpoint, spec: ModelSpec, formats: &Formats) -> Result<Self> {
        let format = check_tensors_with(&checkpoint, &spec, formats)?;
        let decoder = format.map(|f| f.decoder(&checkpoint, &spec)).transpose()?;
        Ok(Self { checkpoint, spec, format, decoder, hashes: InputHashes::default(), hashing: true })
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

    /// Goes on with the hashes of tensors that were read before; they are shared with the caller.
    #[must_use]
    pub fn with_hashes(mut self, hashes: InputHashes) -> Self {
        self.hashes = hashes;
        self
    }

    /// SHA-256 of the stored bytes of every tensor read whole so far: blocks, final norm, and tables that were visited from
    /// their first row to their last. Float tensors are hashed in the pass that reads them; what is read twice is hashed once.
    #[must_use]
    pub fn input_hashes(&self) -> BTreeMap<String, TensorHash> {
        self.hashes.all()
    }

    /// Gives the folder back with the hashes gathered.
    #[must_use]
    pub fn into_parts(self) -> (Checkpoint, BTreeMap<String, TensorHash>) {
        let hashes = self.hashes.all();
        (self.checkpoint, hashes)
    }

    /// The table that holds the head.
    fn head_name(&self) -> &'static str {
        self.spec.stored_in(Outer::Head).tensor()
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
        let new = self.hashing && !self.hashes.has_any(&prefix);
        Ok((prefix, new))
    }

    fn read(&mut self, index: usize) -> Result<BlockParams> {
        let (prefix, new) = self.begin(index)?;
        let Some(decoder) = &self.decoder else {
            let mut hashes = BTreeMap::new();
            let block = read_plain_block(&self.checkpoint, &self.spec, index, new.then_some(&mut hashes));
            self.hashes.extend(hashes);
            return block;
        };
        if new {
            let names = self.checkpoint.tensors().map(|t| t.name.clone()).filter(|n| n.starts_with(&prefix));
            for name in names.collect::<Vec<_>>() {
                let hash = self.checkpoint.sha256(&name)?;
                self.hashes.extend([(name, hash)]);
            }
        }
        decoder.block(&self.checkpoint, &self.spec, index)
    }

    fn visit(&mut self, index: usize, visit: &RowVisitor<'_>) -> std::result::Result<BlockFrame, BoxError> {
        let (_, new) = self.begin(index)?;
        let mut hashes = BTreeMap::new();
        let frame = visit_plain_block(&self.checkpoint, &self.spec, index, new.then_some(&mut hashes), visit);
        self.hashes.extend(hashes);
        frame
    }

    fn read_final_norm(&mut self) -> Result<Array1<f32>> {
        if !self.hashing {
            return self.checkpoint.read_vector_f32(ModelSpec::FINAL_NORM);
        }
        let (values, hash) = self.checkpoint.read_vector_f32_hashed(ModelSpec::FINAL_NORM)?;
        self.hashes.extend([(ModelSpec::FINAL_NORM.to_owned(), hash)]);
        Ok(values)
    }

    fn visit_table(
        &mut self,
        name: &'static str,
        visit: &mut TableVisitor<'_>,
    ) -> std::result::Result<(), BoxError> {
        let new = self.hashing && !self.hashes.has_any(name);
        self.checkpoint.tensor_shaped(name, &[self.spec.vocab, self.spec.hidden])?;
        let hash = self.checkpoint.visit_rows_f32(name, new, |first, rows| visit(first, rows))?;
        self.hashes.extend(hash.map(|hash| (name.to_owned(), hash)));
        Ok(())
    }

    fn failed(&self, what: impl Into<String>, cause: impl Into<BoxError>) -> SourceError {
        SourceError::new(what, self.checkpoint.path().display(), cause)
    }
}

/// Checks that a folder holds exactly the tensors of `spec` in its format, with the right types and shapes, and gives
/// the format; none is a float checkpoint. Tensors that hold nothing a loader needs ([`ModelSpec::is_ignorable`]) are
/// passed over.
///
/// # Errors
/// [`CheckpointError::ForeignQuantization`] for GPTQ, AWQ and others; [`CheckpointError::BadFormat`] and
/// [`CheckpointError::Unsupported`] for the description of a quantised folder; for one fault of the tensors
/// [`CheckpointError::NoSuchTensor`], [`CheckpointError::UnexpectedTensor`], [`CheckpointError::ShapeMismatch`] or
/// [`CheckpointError::DtypeMismatch`], for several [`CheckpointError::Tensors`].
pub fn check_tensors(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Option<&'static dyn Format>> {
    check_tensors_with(checkpoint, spec, &Formats::default())
}

/// The same for a folder of one of `formats`.
///
/// # Errors
/// As [`check_tensors`].
pub fn check_tensors_with(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    formats: &Formats,
) -> Result<Option<&'static dyn Format>> {
    let format = formats::detect_with(checkpoint, formats);
    if format.is_none() {
        refuse_foreign(checkpoint, formats)?;
    }
    let expected = match format {
        Some(format) => format.expected(checkpoint, spec)?,
        None => plain_expected(spec),
    };
    let mut faults = faults(checkpoint, spec, &expected);
    match faults.len() {
        0 => Ok(format),
        1 => Err(faults.swap_remove(0)),
        _ => Err(CheckpointError::Tensors { path: checkpoint.path().to_path_buf(), faults }),
    }
}

/// Refuses a folder that announces a quantisation no format here claims: in its configuration, or by the names of its
/// tensors alone, as early tools wrote them.
fn refuse_foreign(checkpoint: &Checkpoint, formats: &Formats) -> Result<()> {
    let section = checkpoint.config().get("quantization_config").filter(|s| !s.is_null());
    let found = match section {
        Some(section) => {
            section.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method").to_owned()
        }
        None => match checkpoint.tensors().find(|t| t.name.ends_with(".qweight")) {
            Some(tensor) => format!("gptq or awq ({})", tensor.name),
            None => return Ok(()),
        },
    };
    Err(CheckpointError::ForeignQuantization {
        path: checkpoint.path().to_path_buf(),
        found,
        readable: formats.ids().join(", "),
    })
}

/// The float type in which a folder stores the model: that of most weights of the blocks' linears, or of the blocks'
/// norms where all linears are quantised. None for a folder without either.
#[must_use]
pub fn stored_float_type(checkpoint: &Checkpoint, spec: &ModelSpec) -> Option<FloatType> {
    let most = |names: &mut dyn Iterator<Item = String>| {
        let mut elements = [0_usize; 3];
        for info in names.filter_map(|name| checkpoint.get(&name)) {
            if let Some(at) = TYPES.iter().position(|t| float_dtype(*t) == info.dtype) {
                elements[at] += info.elements();
            }
        }
        (0..TYPES.len()).filter(|at| elements[*at] > 0).max_by_key(|at| elements[*at]).map(|at| TYPES[at])
    };
    const TYPES: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];
    let weights = |i| spec.block(i).linears.into_iter().map(|linear| format!("{}.weight", linear.module));
    let norms =
        (0..spec.layers).flat_map(|i| spec.norms().into_iter().map(move |(norm, _)| spec.norm(i, norm)));
    most(&mut (0..spec.layers).flat_map(weights)).or_else(|| most(&mut norms.into_iter()))
}

/// Whether a tied model that stores a head all the same stores the embedding there; none without such a head. Both
/// tables are read.
///
/// # Errors
/// What reading them can give.
pub fn redundant_head_equals(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Option<bool>> {
    if !spec.tied || checkpoint.get(ModelSpec::HEAD).is_none() {
        return Ok(None);
    }
    // A few MB of each at a time.
    let step = ((4 << 20) / spec.hidden.max(1)).max(1);
    for start in (0..spec.vocab).step_by(step) {
        let rows = start..(start + step).min(spec.vocab);
        let embedding = checkpoint.read_rows_f32(ModelSpec::EMBEDDING, rows.clone())?;
        if checkpoint.read_rows_f32(ModelSpec::HEAD, rows)? != embedding {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

impl BlockSource for FolderSource {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn block(&mut self, index: usize) -> std::result::Result<BlockParams, SourceError> {
        self.read(index).map_err(|e| self.failed(self.spec.block_prefix(index), e))
    }
    fn block_by_rows(
        &mut self,
        index: usize,
        visit: &RowVisitor<'_>,
    ) -> std::result::Result<BlockFrame, SourceError> {
        if self.format.is_some() {
            let block = self.block(index)?;
            return quant_graph::visit_whole_weights(block, visit)
                .map_err(|e| self.failed(self.spec.block_prefix(index), e));
        }
        self.visit(index, visit).map_err(|e| self.failed(self.spec.block_prefix(index), e))
    }
    fn is_stored(&self, what: Outer) -> bool {
        self.checkpoint.get(what.tensor()).is_some()
    }
    fn embed(&mut self, ids: &[u32]) -> std::result::Result<Array2<f32>, SourceError> {
        let rows = self.checkpoint.read_row_gather(ModelSpec::EMBEDDING, ids);
        rows.map_err(|e| self.failed(ModelSpec::EMBEDDING, e))
    }
    fn final_norm(&mut self) -> std::result::Result<Array1<f32>, SourceError> {
        self.read_final_norm().map_err(|e| self.failed(ModelSpec::FINAL_NORM, e))
    }
    fn head(&mut self, rows: Rows) -> std::result::Result<Array2<f32>, SourceError> {
        let rows = self.checkpoint.read_rows_f32(self.head_name(), rows);
        rows.map_err(|e| self.failed(self.head_name(), e))
    }
    fn table_by_rows(
        &mut self,
        table: Outer,
        visit: &mut TableVisitor<'_>,
    ) -> std::result::Result<(), SourceError> {
        let name = self.spec.stored_in(table).tensor();
        self.visit_table(name, visit).map_err(|e| self.failed(name, e))
    }
}
