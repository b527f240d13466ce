//! What reading needs besides the file: counters, checked allocation, buffers used again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytemuck::Pod;

use crate::at_once::tensors_at_once;
use crate::error::{CheckpointError, Result};

/// Totals of all reads of a checkpoint so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ReadStats {
    /// Bytes read from disk (or the page cache).
    pub bytes: u64,
    /// Wall seconds of reading and converting, summed over calls.
    pub read_s: f64,
    /// Wall seconds of hashing, summed over calls; hashing runs beside reading when there is a second core.
    pub hash_s: f64,
}

/// Wave buffers waiting to be used again: fresh memory costs more than the read itself on some machines.
#[derive(Debug, Default)]
pub(crate) struct WavePool(Mutex<Vec<Vec<u64>>>);

impl WavePool {
    /// A buffer of at least `bytes`.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u64> {
        let mut buffer = self.lock().pop().unwrap_or_default();
        let words = bytes.div_ceil(8);
        if buffer.len() < words {
            // Not `resize`: the old contents are worth nothing.
            buffer = vec![0; words];
        }
        buffer
    }

    pub(crate) fn give_back(&self, buffer: Vec<u64>) {
        let mut pool = self.lock();
        // Two buffers for each of the concurrent readers; more would be memory nobody counts on.
        if !buffer.is_empty() && pool.len() < 2 * tensors_at_once(rayon::current_num_threads()) {
            pool.push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u64>>> {
        // A poisoned pool only holds scratch memory.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes: AtomicU64,
    pub(crate) read_ns: AtomicU64,
    pub(crate) hash_ns: AtomicU64,
}

/// Runs `work` and adds its duration to `counter`.
pub(crate) fn timed<T>(counter: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = work();
    counter.fetch_add(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    out
}

/// A zeroed vector, or an error instead of an abort when the memory is not there. Pages are touched only when
/// written, because the zeroing is the allocator's.
pub(crate) fn zeroed<T: Pod>(tensor: &str, len: usize) -> Result<Vec<T>> {
    // The request is tried first and released at once: `vec!` would abort the process.
    Vec::<T>::new().try_reserve_exact(len).map_err(|_| CheckpointError::OutOfMemory {
        tensor: tensor.to_owned(),
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
    })?;
    Ok(vec![T::zeroed(); len])
}
