//! One error type for reading untrusted checkpoints and writing output folders.

mod class;
mod difference;
mod header;

use quant_core::Bytes;
use std::io;
use std::path::PathBuf;

use safetensors::Dtype;

use self::class::some;
pub use self::class::{ErrorClass, Result};
pub use self::difference::Difference;
pub use self::header::HeaderError;

/// Everything that can go wrong while reading a checkpoint or writing an output folder.
///
/// Messages name the file, the tensor, what was expected and what was found. `file` fields hold the name of the
/// file inside its folder, `path` fields the full path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The checkpoint path is not a directory.
    #[error("{path}: not a folder; {hint}")]
    NotAFolder {
        /// Path as given.
        path: PathBuf,
        /// What to pass instead.
        hint: String,
    },
    /// A folder without a model, which is in a folder below it.
    #[error("{path}: no config.json here; {hint}")]
    NotAModel {
        /// Path as given.
        path: PathBuf,
        /// What to pass instead.
        hint: String,
    },
    /// Safetensors under names that no loader looks for.
    #[error(
        "{path}: neither model.safetensors nor model.safetensors.index.json, but {found}; if it is the model, rename it or \
         add the index (an adapter has to be merged into its model first)"
    )]
    UnlistedWeights {
        /// The checkpoint folder.
        path: PathBuf,
        /// The first such file.
        found: String,
    },
    /// Weights of several models under the older names of msmodelslim.
    #[error("{path}: weights of several models ({found}); keep those of one")]
    SeveralWeights {
        /// The checkpoint folder.
        path: PathBuf,
        /// Their prefixes.
        found: String,
    },
    /// A file the format requires is absent.
    #[error("{path}: the file is missing, needed for {role}")]
    MissingFile {
        /// The absent file.
        path: PathBuf,
        /// What the file would have provided.
        role: &'static str,
    },
    /// The path exists but is a folder, a pipe or a device once symbolic links are followed.
    #[error(
        "{path}: expected a regular file, found something else (a folder, pipe, device or dangling link)"
    )]
    NotARegularFile {
        /// The offending path.
        path: PathBuf,
    },
    /// The folder holds weights in another format only.
    #[error(
        "{path}: no safetensors weights, only {found}; convert them with save_pretrained(safe_serialization)"
    )]
    UnsupportedWeights {
        /// The checkpoint folder.
        path: PathBuf,
        /// The first foreign weight file seen.
        found: String,
    },
    /// Both a single weight file and an index that does not mention it are present.
    #[error("{path}: holds {single} and also {index}, which does not list it; remove the one that is stale")]
    AmbiguousWeights {
        /// The checkpoint folder.
        path: PathBuf,
        /// The single weight file.
        single: String,
        /// The index file.
        index: String,
    },
    /// The folder is an output of this program that was never finished.
    #[error("{path}: an unfinished output (it still holds the marker file {marker}); {advice}")]
    PartialOutput {
        /// The unfinished folder.
        path: PathBuf,
        /// Name of the marker file.
        marker: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A file could not be read.
    #[error("{path}: cannot read: {source}")]
    Read {
        /// File being read.
        path: PathBuf,
        /// Reason given by the operating system.
        source: io::Error,
    },
    /// A file that is not what its name says: a pointer of Git-LFS, a web page, text in another encoding.
    #[error("{path}: is {what}; {advice}")]
    ForeignContent {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// How to get the real one.
        advice: String,
    },
    /// A JSON side file is larger than anything legitimate.
    #[error("{file}: {found} bytes of JSON, the limit is {limit}")]
    JsonTooLarge {
        /// File name.
        file: String,
        /// Largest accepted size in bytes.
        limit: u64,
        /// Size found in bytes.
        found: u64,
    },
    /// Not valid JSON, or JSON of the wrong kind.
    #[error("{file}: malformed JSON: {detail}")]
    Json {
        /// File name.
        file: String,
        /// What the parser objected to, with line and column.
        detail: String,
    },
    /// The same key occurs twice in one JSON object, so two readers could see different values.
    #[error("{file}: key {key:?} occurs twice in {scope}")]
    DuplicateKey {
        /// File name.
        file: String,
        /// The object: a tensor's name, or the part of the file.
        scope: String,
        /// The repeated key.
        key: String,
    },
    /// The header of a safetensors file, read or about to be written.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// An index entry is not the plain name of a safetensors file in the folder.
    #[error("{index}: tensor {tensor:?} points at {entry:?}: {reason}")]
    BadIndexEntry {
        /// Index file name.
        index: String,
        /// Tensor name.
        tensor: String,
        /// The file the index names.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A shard named by the index is absent.
    #[error("{index}: shard {shard:?} is missing (needed for tensor {tensor:?})")]
    MissingShard {
        /// Index file name.
        index: String,
        /// The absent shard.
        shard: String,
        /// One tensor that it should hold.
        tensor: String,
    },
    /// The index places a tensor in a shard that does not hold it.
    #[error("{index}: tensor {tensor:?} should be in {shard:?}, which does not hold it")]
    TensorNotInShard {
        /// Index file name.
        index: String,
        /// Shard file name.
        shard: String,
        /// Tensor name.
        tensor: String,
    },
    /// A shard holds a tensor that the index does not place there.
    #[error(
        "{index}: shard {shard:?} holds tensor {tensor:?} ({count} such), which the index does not place there"
    )]
    TensorNotInIndex {
        /// Index file name.
        index: String,
        /// Shard file name.
        shard: String,
        /// First such tensor by name.
        tensor: String,
        /// How many tensors of this shard are not accounted for.
        count: usize,
    },
    /// The checkpoint has no tensor of this name.
    #[error("{path}: no tensor {tensor:?}")]
    NoSuchTensor {
        /// The checkpoint folder or file.
        path: PathBuf,
        /// Name asked for.
        tensor: String,
    },
    /// The tensor has another dtype than the reader can use.
    #[error("{file}: tensor {tensor:?}: expected {expected}, found {found}")]
    DtypeMismatch {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// What was asked for.
        expected: &'static str,
        /// What is stored.
        found: Dtype,
    },
    /// The tensor has another shape than the caller needs.
    #[error("{file}: tensor {tensor:?}: expected {expected}, found shape {found:?}")]
    ShapeMismatch {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// What was asked for.
        expected: String,
        /// Stored shape.
        found: Vec<usize>,
    },
    /// A row outside the matrix was asked for.
    #[error("tensor {tensor:?}: row {row} asked for, it has {rows}")]
    RowOutOfRange {
        /// Tensor name.
        tensor: String,
        /// The row asked for (the end of the range, when a range was asked for).
        row: usize,
        /// Number of rows.
        rows: usize,
    },
    /// A weight is NaN or infinite.
    #[error("{file}: tensor {tensor:?}: element {index:?} is {value}; weights must be finite")]
    NonFinite {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Index of the first such element in row-major order.
        index: Vec<usize>,
        /// Its value.
        value: f32,
    },
    /// An allocation for a tensor failed.
    #[error("tensor {tensor:?}: cannot allocate {}", Bytes(*.bytes))]
    OutOfMemory {
        /// Tensor name.
        tensor: String,
        /// Size asked for.
        bytes: u64,
    },
    /// The output folder exists and is not empty.
    #[error("{path}: exists and is not empty; choose another output or pass --force to replace it")]
    OutputExists {
        /// The output folder.
        path: PathBuf,
    },
    /// The output path is a file, a mount point, the current folder, or otherwise not replaceable.
    #[error("{path}: cannot be the output folder: {reason}")]
    BadOutput {
        /// The output folder.
        path: PathBuf,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The output is the input, or one contains the other.
    #[error("{output}: the output folder must lie apart from the input {input}, which is never touched")]
    OutputTouchesInput {
        /// The output folder.
        output: PathBuf,
        /// The input folder.
        input: PathBuf,
    },
    /// Another process is writing the same output.
    #[error("{path}: another process is writing this output")]
    OutputBusy {
        /// The partial folder that is locked.
        path: PathBuf,
    },
    /// The unfinished output of a run that can go on.
    #[error(
        "{path}: holds the work of a run that was interrupted; --resume goes on with it, --restart throws it away and begins \
         again"
    )]
    Unfinished {
        /// The unfinished folder.
        path: PathBuf,
    },
    /// The unfinished output of another job.
    #[error("{path}: holds the work of another job, which cannot be gone on with: {}; \
             --restart throws it away and begins again", differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    OtherJob {
        /// The unfinished folder.
        path: PathBuf,
        /// Every field that is another.
        differences: Vec<Difference>,
    },
    /// The journal of an unfinished output, or what it speaks of, is not what was written.
    #[error("{path}: {detail}; the work of that run is lost: --restart throws it away and begins again")]
    DamagedJournal {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A finished output that is no longer what was written.
    #[error("{path}: finished before, by the same job, and damaged since: {}; --force makes it anew", faults.join("; "))]
    DamagedOutput {
        /// The output folder.
        path: PathBuf,
        /// What is wrong, at least one.
        faults: Vec<String>,
    },
    /// No space left on the device.
    #[error("{path}: no space left on the disk (or quota reached): {source}")]
    DiskFull {
        /// File being written.
        path: PathBuf,
        /// Reason given by the operating system.
        source: io::Error,
    },
    /// The file system has less room than the output needs, found before anything was written.
    #[error(
        "{path}: its file system has {} free and this output needs {}; free some space or choose another place",
        Bytes(*.free), Bytes(*.needed)
    )]
    NoSpace {
        /// An existing folder on the way to the output.
        path: PathBuf,
        /// Bytes that will be written.
        needed: u64,
        /// Bytes that may still be written.
        free: u64,
    },
    /// A file could not be written.
    #[error("{path}: cannot write: {source}")]
    Write {
        /// File being written.
        path: PathBuf,
        /// Reason given by the operating system.
        source: io::Error,
    },
    /// A file name given to the writer is not a plain relative name, or was written before.
    #[error("output file {name:?}: {reason}")]
    BadOutputName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The writer was called against its own plan. Caused by the calling code, never by a file.
    #[error("output tensor {tensor:?}: {detail}")]
    PlanViolation {
        /// Tensor name.
        tensor: String,
        /// What was expected and what arrived.
        detail: String,
    },
    /// A scheme, or a folder, that a format (or this program's reader of it) cannot hold.
    #[error(transparent)]
    Unsupported(#[from] quant_graph::Unsupported),
    /// The folder is quantised in a format that is not read here.
    #[error("{path}: quantised as {found:?}; start from the float model, or from {readable}")]
    ForeignQuantization {
        /// The folder.
        path: PathBuf,
        /// What its configuration says.
        found: String,
        /// The formats that are read.
        readable: String,
    },
    /// A quantised folder contradicts its own format.
    #[error("{format} folder: {subject}: expected {expected}, found {found}")]
    BadFormat {
        /// Id of the format.
        format: &'static str,
        /// File, module or tensor.
        subject: String,
        /// What the format asks for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A block handed to an encoder is not what its scheme says, or holds a number that the format cannot.
    #[error("cannot encode {subject} as {format}: expected {expected}, found {found}")]
    NotEncodable {
        /// Id of the format.
        format: &'static str,
        /// Module or tensor.
        subject: String,
        /// What can be encoded.
        expected: String,
        /// What arrived.
        found: String,
    },
    /// Tensors that are not those of the model, two or more.
    #[error("{path}: {} tensors do not fit the configuration: {}", faults.len(), some(faults))]
    Tensors {
        /// The folder.
        path: PathBuf,
        /// Every fault.
        faults: Vec<Self>,
    },
    /// A tensor that belongs to no part of the model.
    #[error(
        "{path}: tensor {tensor:?} belongs to no part of this model; is the configuration another model's?"
    )]
    UnexpectedTensor {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

/// The error for what a format cannot hold as it is.
pub(crate) fn not_encodable(
    format: &'static str,
    subject: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::NotEncodable {
        format,
        subject: subject.into(),
        expected: expected.into(),
        found: found.into(),
    }
}

impl CheckpointError {
    /// A part of a folder, `subject`, that is not what its format asks for.
    pub(crate) fn bad_format(
        format: &'static str,
        subject: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::BadFormat { format, subject: subject.into(), expected: expected.into(), found: found.into() }
    }
}
