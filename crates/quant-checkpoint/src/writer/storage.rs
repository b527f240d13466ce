//! The file operations the writer needs, behind a trait so that tests can make the disk fail, forget, or stop.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// Every change that an output folder makes on a disk. [`Disk`] is the real one; tests put one in its place that fills up, or
/// that stops at some operation and forgets what was not synced.
pub trait Storage: Debug + Send + Sync {
    /// Creates a file that does not exist yet.
    ///
    /// # Errors
    /// The reason given by the operating system; `StorageFull` and `QuotaExceeded` are reported as a full disk.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;

    /// Opens a file to be written further, with what it holds; one that is not there is created.
    ///
    /// # Errors
    /// The reason given by the operating system, as for the following.
    fn reopen(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create(true).truncate(false).open(path)?))
    }

    /// Creates a folder that does not exist yet.
    ///
    /// # Errors
    /// See [`Storage::reopen`].
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    /// Moves a file or folder.
    ///
    /// # Errors
    /// See [`Storage::reopen`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// See [`Storage::reopen`].
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// See [`Storage::reopen`].
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    /// Removes a folder with all in it.
    ///
    /// # Errors
    /// See [`Storage::reopen`].
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    /// Returns when the names in a folder are on the disk.
    ///
    /// # Errors
    /// See [`Storage::reopen`].
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

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

    /// Cuts the file off behind its first `bytes`.
    ///
    /// # Errors
    /// The reason given by the operating system.
    fn truncate(&mut self, bytes: u64) -> io::Result<()>;

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

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}
