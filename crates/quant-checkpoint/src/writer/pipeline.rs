//! The thread that hashes and writes while the caller computes.
//!
//! Bytes travel in buffers: pieces of at most [`PIECE_BYTES`], which come back to be filled again, and whole tensors whose
//! owner has given them away, which are freed as soon as they are written. At most [`IN_FLIGHT`] bytes are on their way, or [`LEVELS_IN_FLIGHT`] with levels (or one tensor, if it is larger), so the memory of the writer is bounded whatever it writes. The first failure ends the thread; the caller
//! meets it at its next call.
//!
//! The journal is written by the same thread in the same order, so that a record follows the tensors it speaks of: those
//! are synced first, then the record is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::error::{CheckpointError, Result};
use crate::hash::{Hasher, TensorHash};
use crate::writer::journal::{self, Kind};
use crate::writer::log::{Log, Segment};
use crate::writer::storage::{Storage, StorageFile};

/// Bytes of one piece.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Bytes of a shard after which the disk is waited for, so that it works while blocks are computed and little is left for the
/// end.
const SYNC_BYTES: u64 = 64 << 20;
/// Bytes on their way at most: enough to hash and write while the next block is read, little beside a block.
pub(crate) const IN_FLIGHT: usize = 32 << 20;
/// The same with levels that became bytes where they lay: waiting, they take no more than their block did.
const LEVELS_IN_FLIGHT: usize = 64 << 20;

/// Where the writer's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WriteStats {
    /// Bytes written to weight files, headers included.
    pub bytes: u64,
    /// Seconds of handing bytes to the operating system.
    pub write_s: f64,
    /// Seconds of hashing tensors.
    pub hash_s: f64,
    /// Seconds of waiting for the disk (`fsync` of files and folders).
    pub fsync_s: f64,
    /// Seconds for which the caller waited for the writer: zero when computing hides hashing and writing.
    pub wait_s: f64,
    /// Bytes written to the journal.
    pub journal_bytes: u64,
    /// Seconds of writing the journal, of its checksums, and of waiting until it and what it speaks of are on the disk.
    pub journal_s: f64,
}

/// What the thread is told.
enum Order {
    /// Create a shard and write its header.
    Open { shard: usize, path: PathBuf, header: Vec<u8> },
    /// The next pieces belong to this tensor, at this position.
    Tensor { shard: usize, offset: u64 },
    /// Bytes of the current tensor.
    Piece(Vec<u8>),
    /// The current tensor is complete.
    Done { name: String },
    /// All tensors of a shard are complete: sync and close it.
    Close { shard: usize },
    /// The journal goes on in a new file, in which everything is said anew.
    Segment(PathBuf),
    /// A frame of the journal.
    Frame(Kind, Vec<u8>),
    /// Make everything so far durable, and close the record that says so.
    Commit,
}

/// What comes back of a piece: how long it was, and its buffer if that can be filled again.
struct Written {
    bytes: usize,
    buffer: Option<Vec<u8>>,
}

/// What the thread leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) hashes: BTreeMap<String, TensorHash>,
    pub(crate) stats: WriteStats,
}

/// The caller's end.
#[derive(Debug)]
pub(crate) struct Pipeline {
    orders: Option<Sender<Order>>,
    back: Receiver<Written>,
    /// One message for every record that is on the disk.
    committed: Receiver<()>,
    /// Records on their way there.
    uncommitted: usize,
    /// Bytes sent and not known to be written.
    in_flight: usize,
    /// A buffer to be filled again.
    spare: Vec<u8>,
    thread: Option<JoinHandle<Result<Outcome>>>,
    wait_s: f64,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Order")
    }
}

/// Where the thread goes on.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// The tensors that are on the disk.
    pub(crate) hashes: BTreeMap<String, TensorHash>,
    /// The journal's segment, and how many of its bytes are believed.
    pub(crate) journal: Option<(PathBuf, u64)>,
}

impl Pipeline {
    /// `kept` is set as soon as there is something to go on with.
    pub(crate) fn start(
        storage: Arc<dyn Storage>,
        folder: &Path,
        begun: Begun,
        kept: Arc<AtomicBool>,
    ) -> Result<Self> {
        let (orders, incoming) = channel();
        let (done, back) = channel();
        let (acknowledge, committed) = channel();
        let resumed = begun.journal.is_some();
        let mut log = Log { segment: None, old: Vec::new(), unsaid: Vec::new(), kept, acknowledge };
        if let Some((path, end)) = begun.journal {
            log.reopen(&*storage, path, end)?;
        }
        let outcome = Outcome { hashes: begun.hashes, stats: WriteStats::default() };
        let folder_of = folder.to_path_buf();
        let thread = std::thread::Builder::new()
            .name("weight-writer".to_owned())
            .spawn(move || {
                let (folder, open) = (folder_of, BTreeMap::new());
                Worker { storage, folder, back: done, open, outcome, log, resumed, new_names: false }
                    .run(&incoming)
            })
            .map_err(|e| CheckpointError::write(folder, e))?;
        Ok(Self {
            orders: Some(orders),
            back,
            committed,
            uncommitted: 0,
            in_flight: 0,
            spare: Vec::new(),
            thread: Some(thread),
            wait_s: 0.0,
        })
    }

    /// Begins a segment of the journal in this file.
    pub(crate) fn segment(&mut self, path: PathBuf) -> Result<()> {
        self.send(Order::Segment(path))
    }

    /// Adds a frame to the record that is being written.
    pub(crate) fn frame(&mut self, kind: Kind, content: Vec<u8>) -> Result<()> {
        self.make_room(content.len(), IN_FLIGHT)?;
        self.in_flight += content.len();
        self.send(Order::Frame(kind, content))
    }

    /// Closes the record; it is on the disk when [`Pipeline::settle`] returns.
    pub(crate) fn commit(&mut self) -> Result<()> {
        self.uncommitted += 1;
        self.send(Order::Commit)
    }

    /// Waits until every record is on the disk.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let start = Instant::now();
        while self.uncommitted > 0 {
            if self.committed.recv().is_err() {
                return Err(self.failure());
            }
            self.uncommitted -= 1;
        }
        self.wait_s += start.elapsed().as_secs_f64();
        Ok(())
    }

    pub(crate) fn open(&mut self, shard: usize, path: PathBuf, header: Vec<u8>) -> Result<()> {
        self.send(Order::Open { shard, path, header })
    }

    pub(crate) fn tensor(&mut self, shard: usize, offset: u64) -> Result<()> {
        self.send(Order::Tensor { shard, offset })
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.make_room(piece.len(), IN_FLIGHT)?;
            let mut buffer = std::mem::take(&mut self.spare);
            buffer.clear();
            buffer.extend_from_slice(piece);
            self.piece(buffer)?;
        }
        Ok(())
    }

    /// [`Pipeline::bytes`] without a copy; `levels` says that they are those of a weight.
    pub(crate) fn owned(&mut self, bytes: Vec<u8>, levels: bool) -> Result<()> {
        self.make_room(bytes.len(), if levels { LEVELS_IN_FLIGHT } else { IN_FLIGHT })?;
        self.piece(bytes)
    }

    fn piece(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.in_flight += bytes.len();
        self.send(Order::Piece(bytes))
    }

    pub(crate) fn done(&mut self, name: String) -> Result<()> {
        self.send(Order::Done { name })
    }

    pub(crate) fn close(&mut self, shard: usize) -> Result<()> {
        self.send(Order::Close { shard })
    }

    /// Waits until everything is written and returns hashes and times.
    pub(crate) fn finish(mut self) -> Result<Outcome> {
        let start = Instant::now();
        let mut outcome = self.join()?;
        outcome.stats.wait_s = self.wait_s + start.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// Waits until `bytes` more may be on their way, `most` in all.
    fn make_room(&mut self, bytes: usize, most: usize) -> Result<()> {
        while let Ok(written) = self.back.try_recv() {
            self.came_back(written);
        }
        while self.in_flight > 0 && self.in_flight + bytes > most {
            let start = Instant::now();
            let written = self.back.recv();
            self.wait_s += start.elapsed().as_secs_f64();
            match written {
                Ok(written) => self.came_back(written),
                Err(_) => return Err(self.failure()),
            }
        }
        Ok(())
    }

    fn came_back(&mut self, written: Written) {
        self.in_flight -= written.bytes;
        self.spare = written.buffer.unwrap_or_else(|| std::mem::take(&mut self.spare));
    }

    fn send(&mut self, order: Order) -> Result<()> {
        let Some(orders) = &self.orders else { return Err(stopped()) };
        if orders.send(order).is_err() { Err(self.failure()) } else { Ok(()) }
    }

    /// The error with which the thread ended.
    fn failure(&mut self) -> CheckpointError {
        self.join().err().unwrap_or_else(stopped)
    }

    fn join(&mut self) -> Result<Outcome> {
        self.orders = None; // the thread ends when nobody can send any more
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Err(stopped()),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // An error here was or will be reported by the call that caused the drop.
            let _ = thread.join();
        }
    }
}

/// The error of calls that follow a failure.
fn stopped() -> CheckpointError {
    CheckpointError::PlanViolation {
        tensor: String::new(),
        detail: "the writer stopped at an earlier error".to_owned(),
    }
}

#[derive(Debug)]
struct OpenShard {
    path: PathBuf,
    file: Box<dyn StorageFile>,
    /// Bytes written since it was synced.
    unsynced: u64,
}

impl OpenShard {
    /// Waits until all that was written is on the disk; gives the seconds that took.
    fn sync(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.file.sync().map_err(|e| CheckpointError::write(&self.path, e))?;
        self.unsynced = 0;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Hashes bytes while `work` is done: a whole tensor in a thread of its own, if one is to be had. Gives the seconds of hashing.
fn hash_beside<R>(hasher: &mut Hasher, bytes: &[u8], work: impl FnOnce() -> R) -> (f64, R) {
    let hash = |mut hasher: Hasher| {
        let start = Instant::now();
        hasher.update(bytes);
        (start.elapsed().as_secs_f64(), hasher)
    };
    let begun = hasher.clone();
    let (hashed, done) = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("weight-hasher".to_owned());
        let beside =
            (bytes.len() > PIECE_BYTES).then(|| thread.spawn_scoped(scope, || hash(begun)).ok()).flatten();
        let done = work();
        let hashed =
            beside.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (hashed, done)
    });
    let (seconds, hashed) = hashed.unwrap_or_else(|| hash(std::mem::take(hasher)));
    *hasher = hashed;
    (seconds, done)
}

struct Worker {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    back: Sender<Written>,
    open: BTreeMap<usize, OpenShard>,
    outcome: Outcome,
    log: Log,
    /// Whether shards may be there already.
    resumed: bool,
    /// Whether files were created since the folder was synced.
    new_names: bool,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>) -> Result<Outcome> {
        let mut hasher = Hasher::default();
        let (mut shard, mut offset) = (0, 0);
        while let Ok(order) = orders.recv() {
            match order {
                Order::Open { shard, path, header } => {
                    let file =
                        if self.resumed { self.storage.reopen(&path) } else { self.storage.create(&path) };
                    let file = file.map_err(|e| CheckpointError::write(&path, e))?;
                    self.new_names = true;
                    self.open.insert(shard, OpenShard { path, file, unsynced: 0 });
                    self.write(shard, &header, 0)?;
                }
                Order::Tensor { shard: to, offset: at } => (shard, offset) = (to, at),
                Order::Piece(piece) => {
                    let write = || self.write(shard, &piece, offset);
                    let (seconds, written) = hash_beside(&mut hasher, &piece, write);
                    self.outcome.stats.hash_s += seconds;
                    written?;
                    offset += piece.len() as u64;
                    self.give_back(piece);
                }
                Order::Done { name } => {
                    self.log.unsaid.push(name.clone());
                    self.outcome.hashes.insert(name, std::mem::take(&mut hasher).finish());
                }
                Order::Close { shard } => {
                    if let Some(mut open) = self.open.remove(&shard) {
                        self.outcome.stats.fsync_s += open.sync()?;
                    }
                }
                Order::Segment(path) => self.begin_segment(path)?,
                Order::Frame(kind, content) => {
                    self.frame(kind, &content)?;
                    self.give_back(content);
                }
                Order::Commit => self.commit()?,
            }
        }
        Ok(self.outcome)
    }

    fn give_back(&self, piece: Vec<u8>) {
        let bytes = piece.len();
        // A tensor's memory is not kept: the next one has another size.
        let buffer = (piece.capacity() <= PIECE_BYTES).then_some(piece);
        // Nobody takes spare buffers any more at the very end.
        let _ = self.back.send(Written { bytes, buffer });
    }

    fn begin_segment(&mut self, path: PathBuf) -> Result<()> {
        self.log.old.extend(self.log.segment.take().map(|segment| segment.path));
        let file = self.storage.create(&path).map_err(|e| CheckpointError::write(&path, e))?;
        let mut segment = Segment { path, file, at: 0, new: true };
        segment.write(&journal::MAGIC)?;
        self.log.segment = Some(segment);
        self.log.unsaid = self.outcome.hashes.keys().cloned().collect();
        Ok(())
    }

    fn frame(&mut self, kind: Kind, content: &[u8]) -> Result<()> {
        let start = Instant::now();
        // The folder begins a segment before it sends a frame.
        let Some(segment) = &mut self.log.segment else { return Err(stopped()) };
        self.outcome.stats.journal_bytes += segment.frame(kind, content)?;
        self.outcome.stats.journal_s += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Tensors first, then the record that believes in them, then what it makes worthless goes.
    fn commit(&mut self) -> Result<()> {
        let start = Instant::now();
        for open in self.open.values_mut().filter(|open| open.unsynced > 0) {
            open.sync()?;
        }
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |e| CheckpointError::write(&path, e)
        };
        if std::mem::take(&mut self.new_names) {
            self.storage.sync_dir(&self.folder).map_err(fail(&self.folder))?;
        }
        self.outcome.stats.journal_s += start.elapsed().as_secs_f64();
        let said = journal::tensors_frame(&self.outcome.hashes, &std::mem::take(&mut self.log.unsaid));
        self.frame(Kind::Tensors, &said)?;
        self.frame(Kind::End, &[])?;
        let start = Instant::now();
        let Some(segment) = &mut self.log.segment else { return Err(stopped()) };
        segment.file.sync().map_err(fail(&segment.path))?;
        if std::mem::take(&mut segment.new)
            && let Some(folder) = segment.path.parent()
        {
            self.storage.sync_dir(folder).map_err(fail(folder))?;
        }
        self.log.kept.store(true, Ordering::Release);
        for path in self.log.old.drain(..) {
            self.storage.remove_file(&path).map_err(fail(&path))?;
        }
        self.outcome.stats.journal_s += start.elapsed().as_secs_f64();
        // Whoever does not wait for it any more has an error to report.
        let _ = self.log.acknowledge.send(());
        Ok(())
    }

    fn write(&mut self, shard: usize, bytes: &[u8], offset: u64) -> Result<()> {
        // The folder opens a shard before it sends anything for it.
        let Some(open) = self.open.get_mut(&shard) else { return Err(stopped()) };
        let start = Instant::now();
        open.file.write_all_at(bytes, offset).map_err(|e| CheckpointError::write(&open.path, e))?;
        open.unsynced += bytes.len() as u64;
        self.outcome.stats.write_s += start.elapsed().as_secs_f64();
        self.outcome.stats.bytes += bytes.len() as u64;
        if open.unsynced >= SYNC_BYTES {
            self.outcome.stats.fsync_s += open.sync()?;
        }
        Ok(())
    }
}
