//! The thread that hashes and writes while the caller computes.
//!
//! Bytes travel in buffers: pieces of at most [`PIECE_BYTES`], which come back to be filled again, and whole tensors whose
//! owner has given them away, which are freed as soon as they are written. At most [`IN_FLIGHT`] bytes are on their way (or one tensor, if it
//! is larger), so the memory of the writer is bounded whatever it writes. The first failure ends the thread; the caller
//! meets it at its next call.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::error::{CheckpointError, Result};
use crate::hash::{Hasher, TensorHash};
use crate::writer::storage::{Storage, StorageFile};

/// Bytes of one piece.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Bytes on their way at most: enough to hash and write while the next block is read, little beside a block.
pub(crate) const IN_FLIGHT: usize = 32 << 20;

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

impl Pipeline {
    pub(crate) fn start(storage: Arc<dyn Storage>, folder: &std::path::Path) -> Result<Self> {
        let (orders, incoming) = channel();
        let (done, back) = channel();
        let thread = std::thread::Builder::new()
            .name("weight-writer".to_owned())
            .spawn(move || {
                Worker { storage, back: done, open: BTreeMap::new(), outcome: Outcome::default() }
                    .run(&incoming)
            })
            .map_err(|e| CheckpointError::write(folder, e))?;
        let (in_flight, spare) = (0, Vec::new());
        Ok(Self { orders: Some(orders), back, in_flight, spare, thread: Some(thread), wait_s: 0.0 })
    }

    pub(crate) fn open(&mut self, shard: usize, path: PathBuf, header: Vec<u8>) -> Result<()> {
        self.send(Order::Open { shard, path, header })
    }

    pub(crate) fn tensor(&mut self, shard: usize, offset: u64) -> Result<()> {
        self.send(Order::Tensor { shard, offset })
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.make_room(piece.len())?;
            let mut buffer = std::mem::take(&mut self.spare);
            buffer.clear();
            buffer.extend_from_slice(piece);
            self.piece(buffer)?;
        }
        Ok(())
    }

    /// [`Pipeline::bytes`] without a copy.
    pub(crate) fn owned(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.make_room(bytes.len())?;
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

    /// Waits until `bytes` more may be on their way.
    fn make_room(&mut self, bytes: usize) -> Result<()> {
        while let Ok(written) = self.back.try_recv() {
            self.came_back(written);
        }
        while self.in_flight > 0 && self.in_flight + bytes > IN_FLIGHT {
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
}

struct Worker {
    storage: Arc<dyn Storage>,
    back: Sender<Written>,
    open: BTreeMap<usize, OpenShard>,
    outcome: Outcome,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>) -> Result<Outcome> {
        let mut hasher = Hasher::default();
        let (mut shard, mut offset) = (0, 0);
        while let Ok(order) = orders.recv() {
            match order {
                Order::Open { shard, path, header } => {
                    let file = self.storage.create(&path).map_err(|e| CheckpointError::write(&path, e))?;
                    self.open.insert(shard, OpenShard { path, file });
                    self.write(shard, &header, 0)?;
                }
                Order::Tensor { shard: to, offset: at } => (shard, offset) = (to, at),
                Order::Piece(piece) => {
                    let start = Instant::now();
                    hasher.update(&piece);
                    self.outcome.stats.hash_s += start.elapsed().as_secs_f64();
                    self.write(shard, &piece, offset)?;
                    offset += piece.len() as u64;
                    let bytes = piece.len();
                    // A tensor's memory is not kept: the next one has another size.
                    let buffer = (piece.capacity() <= PIECE_BYTES).then_some(piece);
                    // Nobody takes spare buffers any more at the very end.
                    let _ = self.back.send(Written { bytes, buffer });
                }
                Order::Done { name } => {
                    self.outcome.hashes.insert(name, std::mem::take(&mut hasher).finish());
                }
                Order::Close { shard } => {
                    if let Some(OpenShard { path, mut file }) = self.open.remove(&shard) {
                        let start = Instant::now();
                        file.sync().map_err(|e| CheckpointError::write(&path, e))?;
                        self.outcome.stats.fsync_s += start.elapsed().as_secs_f64();
                    }
                }
            }
        }
        Ok(self.outcome)
    }

    fn write(&mut self, shard: usize, bytes: &[u8], offset: u64) -> Result<()> {
        // The folder opens a shard before it sends anything for it.
        let Some(OpenShard { path, file }) = self.open.get_mut(&shard) else { return Err(stopped()) };
        let start = Instant::now();
        file.write_all_at(bytes, offset).map_err(|e| CheckpointError::write(path, e))?;
        self.outcome.stats.write_s += start.elapsed().as_secs_f64();
        self.outcome.stats.bytes += bytes.len() as u64;
        Ok(())
    }
}
