//! The few file operations the writer needs, behind a trait so that tests can make the disk fail.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Creates the files of an output folder. [`Disk`] is the real one; tests put a disk that fills up in its place.
pub trait Storage: Debug + Send + Sync {
    /// Creates a file that does not exist yet.
    ///
    /// # Errors
    /// The reason given by the operating system; `StorageFull` and `QuotaExceeded` are reported as a full disk.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;

    /// Bytes that may still be written to the file system of the existing folder `dir`; none where nobody knows.
    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let _ = dir;
        None
    }
}

/// A file being written.
pub trait StorageFile: Debug + Send {
    /// Writes all of `bytes` at `offset`, counted from the start of the file.
    ///
    /// # Errors
    /// The reason given by the operating system.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when the file's data and length are on the disk (`fsync`).
    ///
    /// # Errors
    /// The reason given by the operating system.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Storage for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).open(path)?))
    }

    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let system = rustix::fs::statvfs(dir).ok()?;
        // What is free for this user: a part of the blocks may be kept for the administrator. Some network file systems
        // count nothing and say so with a size of zero.
        (system.f_blocks > 0).then(|| system.f_bavail.saturating_mul(system.f_frsize))
    }
}

impl StorageFile for File {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self as &Self, bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}
