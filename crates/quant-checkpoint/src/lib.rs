//! Untrusted safetensors checkpoints in, quantised folders out, verified as their loaders would.
//!
//! **Reading.** [`Checkpoint::open`] checks everything that can be checked without touching the weights: header
//! sizes, repeated keys, dtypes, `shape x dtype`, offsets that tile the file exactly, an index whose entries are
//! plain file names and which agrees with its shards tensor by tensor. Reads then return typed arrays, refuse NaN and
//! infinities, and can hash the bytes on their way.
//!
//! ```
//! use quant_checkpoint::{BlockSource, Checkpoint, FolderSource, read_config};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
//! // What the folder must hold, from its config.json; then the folder, of any format, block by block.
//! let spec = quant_model::model_spec(&read_config(folder)?)?;
//! let mut source = FolderSource::open(Checkpoint::open(folder)?, spec.clone())?;
//! for index in 0..spec.layers {
//!     let block = source.block(index)?;
//!     for (id, linear) in block.linears {
//!         assert_eq!(Some(linear.weight.dim()), spec.linear(index, id).map(|l| l.shape()));
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Writing.** [`OutputFolder`] streams shards laid out by a [`ShardPlan`] into a sibling folder, hashing as it
//! goes, and renames it into place when everything is on the disk.
//!
//! ```
//! use quant_checkpoint::{Checkpoint, Dtype, OutputFolder, OutputOptions};
//! use quant_checkpoint::{DEFAULT_SHARD_BYTES, ShardNaming, ShardPlan, TensorDecl};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let parent = tempfile::tempdir()?;
//! let dir = parent.path().join("model");
//! let plan = ShardPlan::new(
//!     vec![TensorDecl::new("norm.weight", Dtype::F32, [2])],
//!     &ShardNaming::hugging_face(),
//!     DEFAULT_SHARD_BYTES,
//! )?;
//! let mut out = OutputFolder::create(&dir, &OutputOptions::default())?;
//! out.begin_weights(plan)?;
//! out.tensor("norm.weight", Dtype::F32, &[2], &[0, 0, 128, 63, 0, 0, 0, 64])?;
//! out.end_weights()?;
//! out.write_file("config.json", br#"{"model_type": "example"}"#)?;
//! out.finish()?;
//!
//! let model = Checkpoint::open(&dir)?;
//! assert_eq!(model.read_vector_f32("norm.weight")?.to_vec(), [1.0, 2.0]);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod at_once;
mod convert;
mod copy;
mod dtype;
mod error;
mod folder_source;
pub mod formats;
mod hash;
mod header;
mod hints;
mod index;
mod json;
mod listing;
mod manifest;
mod marker;
mod names;
mod read;
mod scratch;
mod source;
pub mod verify;
mod waves;
mod writer;

/// The arrays that reads return.
pub use ndarray;
pub use quant_graph::{BlockParams, BlockSource, ModelSpec, SourceError};
pub use safetensors::Dtype;

pub use crate::at_once::tensors_at_once;
pub use crate::copy::{SideFiles, broken_side_files, is_side_file, side_files};
pub use crate::error::{CheckpointError, Difference, ErrorClass, HeaderError, Result};
pub use crate::folder_source::{
    FolderSource, InputHashes, check_tensors, check_tensors_with, redundant_head_equals, stored_float_type,
};
pub use crate::formats::Formats;
pub use crate::hash::TensorHash;
pub use crate::header::{Header, HeaderEntry, MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME_BYTES};
pub use crate::index::ShardIndex;
pub use crate::json::parse_strict_json;
pub use crate::marker::MARKER;
pub use crate::scratch::ReadStats;
pub use crate::source::{Checkpoint, TensorInfo, read_config};
pub use crate::verify::{
    Rules, Target, TargetVerdict, VerifyReport, judge_plan, open_as_loaded, verify, verify_all,
    verify_all_with, verify_with,
};
pub use crate::writer::{
    DEFAULT_SHARD_BYTES, Disk, Finished, Identity, Kept, Leftover, OutputFolder, OutputOptions, PlannedShard,
    Resumable, ShardNaming, ShardPlan, Storage, StorageFile, TensorDecl, Unfinished, WriteStats, WrittenFile,
};
