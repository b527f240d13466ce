//! A disk that stops at some operation, and remembers what it has promised.

use quant_checkpoint::{Disk, Storage, StorageFile};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A real folder that takes so many operations and then none, as if the process or the machine had stopped there: of a write
/// that comes too late half is done, of anything else nothing.
///
/// It knows what was synced: the bytes of files by [`StorageFile::sync`], names (also those of renames and removals) by
/// [`Storage::sync_dir`]. [`CutDisk::after_power_cut`] gives the folder as it is when all else is lost.
#[derive(Debug, Clone)]
pub struct CutDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    root: PathBuf,
    /// Where removed things go, so that no number of a file is used twice.
    gone: PathBuf,
    operations: usize,
    cut: usize,
    /// Of every folder, by its number: the names that are durable, and the numbers they stand for.
    names: BTreeMap<u64, BTreeMap<OsString, u64>>,
    /// Of every file, by its number: the bytes that are durable.
    bytes: BTreeMap<u64, Vec<u8>>,
}

impl CutDisk {
    /// The folder `disk` inside `work`, which is created if it is not there; everything in it is durable. The operation
    /// with number `cut`, from 0, is the first that is not done.
    #[must_use]
    pub fn new(work: &Path, cut: usize) -> Self {
        let (root, gone) = (work.join("disk"), work.join("gone"));
        fs::create_dir_all(&root).expect("a folder for the disk");
        fs::create_dir_all(&gone).expect("a folder for what is removed");
        let mut state =
            State { root, gone, operations: 0, cut, names: BTreeMap::new(), bytes: BTreeMap::new() };
        state.remember(&state.root.clone());
        Self(Arc::new(Mutex::new(state)))
    }
    /// Its folder.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.state().root.clone()
    }
    /// Whether an operation came too late.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let state = self.state();
        state.operations > state.cut
    }
    /// Writes what is durable into the folder `into`, which is created.
    pub fn after_power_cut(&self, into: &Path) {
        let state = self.state();
        state.restore(number(&state.root).expect("the disk"), into);
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Does an operation, unless it comes too late.
    fn operate<T>(&self, operation: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        state.count()?;
        operation(&mut state)
    }
}

fn number(path: &Path) -> io::Result<u64> {
    Ok(path.symlink_metadata()?.ino())
}

impl State {
    fn count(&mut self) -> io::Result<()> {
        // The first that is too late is counted, no other.
        self.operations = self.operations.min(self.cut) + 1;
        if self.operations > self.cut { Err(io::Error::other("the disk was cut off")) } else { Ok(()) }
    }
    /// Takes a folder and all below it as durable.
    fn remember(&mut self, dir: &Path) {
        self.sync_names(dir).expect("the names of a folder");
        for entry in fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                self.remember(&path);
            } else {
                let content = fs::read(&path).expect("a file");
                self.bytes.insert(number(&path).expect("a file"), content);
            }
        }
    }
    fn sync_names(&mut self, dir: &Path) -> io::Result<()> {
        let entries = fs::read_dir(dir)?.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), entry.metadata()?.ino()))
        });
        let entries = entries.collect::<io::Result<_>>()?;
        self.names.insert(number(dir)?, entries);
        Ok(())
    }
    fn restore(&self, folder: u64, into: &Path) {
        fs::create_dir(into).expect("a new folder");
        for (name, at) in self.names.get(&folder).into_iter().flatten() {
            let path = into.join(name);
            // A folder that was never synced is durable by its name alone, as an empty one.
            if self.names.contains_key(at) || self.is_folder(*at) {
                self.restore(*at, &path);
            } else {
                fs::write(path, self.bytes.get(at).map_or(&[][..], Vec::as_slice)).expect("a file");
            }
        }
    }
    fn is_folder(&self, wanted: u64) -> bool {
        let mut folders = vec![self.root.clone(), self.gone.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    if entry.metadata().is_ok_and(|m| m.ino() == wanted) {
                        return true;
                    }
                    folders.push(entry.path());
                }
            }
        }
        false
    }
    fn bury(&self, path: &Path) -> io::Result<()> {
        fs::rename(path, self.gone.join(format!("{}", number(path)?)))
    }
}

#[derive(Debug)]
struct CutFile {
    disk: CutDisk,
    path: PathBuf,
    file: Box<dyn StorageFile>,
}

impl Storage for CutDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let file = self.operate(|_| Disk.create(path))?;
        Ok(Box::new(CutFile { disk: self.clone(), path: path.to_owned(), file }))
    }
    fn reopen(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let file = self.operate(|_| Disk.reopen(path))?;
        Ok(Box::new(CutFile { disk: self.clone(), path: path.to_owned(), file }))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(|_| Disk.create_dir(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(|_| Disk.rename(from, to))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.operate(|state| state.bury(path))
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(|_| Disk.remove_dir(path))
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.operate(|state| state.bury(path))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(|state| state.sync_names(path))
    }
}

impl StorageFile for CutFile {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let Self { disk, file, .. } = self;
        let before = disk.is_cut();
        match disk.operate(|_| file.write_all_at(bytes, offset)) {
            Err(error) if !before && disk.is_cut() => {
                file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
                Err(error)
            }
            done => done,
        }
    }
    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        let file = &mut self.file;
        self.disk.operate(|_| file.truncate(bytes))
    }
    fn sync(&mut self) -> io::Result<()> {
        let Self { disk, path, .. } = self;
        disk.operate(|state| {
            // A file that was moved or removed since it was opened is not written any more here.
            let content = fs::read(&*path)?;
            state.bytes.insert(number(path)?, content);
            Ok(())
        })
    }
}
