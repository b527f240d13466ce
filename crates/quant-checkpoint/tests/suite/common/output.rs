//! Small output folders, and a disk that fills up.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quant_checkpoint::{
    CheckpointError, DEFAULT_SHARD_BYTES, Disk, Dtype, Finished, OutputFolder, OutputOptions, ShardNaming,
    ShardPlan, Storage, StorageFile, TensorDecl,
};

pub(crate) fn force() -> OutputOptions {
    OutputOptions { force: true, ..OutputOptions::default() }
}

pub(crate) fn plan(tensors: &[(&str, Dtype, &[usize])], max: u64) -> ShardPlan {
    let specs = tensors.iter().map(|(n, d, s)| TensorDecl::new(*n, *d, *s)).collect();
    ShardPlan::new(specs, &ShardNaming::hugging_face(), max).unwrap()
}

/// A complete small output: one tensor, a configuration and a manifest that makes it ours.
pub(crate) fn write_small(
    dir: &Path,
    options: &OutputOptions,
    value: u8,
) -> Result<Finished, CheckpointError> {
    let mut out = OutputFolder::create(dir, options)?;
    out.begin_weights(plan(&[("w", Dtype::U8, &[4])], DEFAULT_SHARD_BYTES))?;
    out.tensor("w", Dtype::U8, &[4], &[value; 4])?;
    out.end_weights()?;
    out.write_file("config.json", b"{}")?;
    out.write_file("manifest.json", br#"{"tool": "ptq 0.0.0", "output": {}}"#)?;
    out.finish()
}

/// A disk that has room for a number of bytes and then fails as a full one does.
#[derive(Debug)]
pub(crate) struct TinyDisk {
    room: Arc<AtomicU64>,
}

impl TinyDisk {
    pub(crate) fn new(room: u64) -> Self {
        Self { room: Arc::new(AtomicU64::new(room)) }
    }
}

#[derive(Debug)]
struct TinyFile {
    file: Box<dyn StorageFile>,
    room: Arc<AtomicU64>,
}

impl Storage for TinyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(TinyFile { file: Disk.create(path)?, room: Arc::clone(&self.room) }))
    }

    fn free_bytes(&self, _: &Path) -> Option<u64> {
        Some(self.room.load(Ordering::Relaxed))
    }
}

impl StorageFile for TinyFile {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let taken = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes.len() as u64));
        match taken {
            Ok(_) => self.file.write_all_at(bytes, offset),
            Err(_) => Err(io::Error::from_raw_os_error(28)), // ENOSPC
        }
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.file.truncate(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}
