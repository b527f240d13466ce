//! Two buffers that the bytes of a tensor pass through: one is filled while the other is hashed.

use crate::hash::{Hasher, TensorHash};
use crate::scratch::timed;
use crate::source::Checkpoint;

/// The bytes of one tensor, wave after wave.
pub(crate) struct Waves<'a> {
    checkpoint: &'a Checkpoint,
    capacity: usize,
    current: Vec<u64>,
    previous: Vec<u64>,
    /// Bytes of `previous` that are not hashed yet.
    pending: usize,
    hasher: Option<Hasher>,
}

impl<'a> Waves<'a> {
    /// For waves of at most `capacity` bytes; with `hash`, all bytes are hashed on the way.
    pub(crate) fn new(checkpoint: &'a Checkpoint, capacity: usize, hash: bool) -> Self {
        let current = checkpoint.waves.take(capacity);
        let hasher = hash.then(Hasher::default);
        Self { checkpoint, capacity, current, previous: Vec::new(), pending: 0, hasher }
    }

    /// Has `fill` write the next `bytes` bytes while those of the wave before are hashed. The buffer is aligned to 8 bytes
    /// and holds old ones.
    pub(crate) fn next<E: Send>(
        &mut self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E> + Send,
    ) -> Result<(), E> {
        let buffer = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut self.current)[..bytes];
        let Some(hasher) = &mut self.hasher else { return fill(buffer) };
        if self.pending == 0 {
            fill(buffer)?;
            // Only hashing needs a second buffer.
            self.previous = self.checkpoint.waves.take(self.capacity);
        } else {
            let done = &bytemuck::cast_slice::<u64, u8>(&self.previous)[..self.pending];
            let hash = || timed(&self.checkpoint.counters.hash_ns, || hasher.update(done));
            rayon::join(|| fill(buffer), hash).0?;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.pending = bytes;
        Ok(())
    }

    /// The hash of all bytes, if it was asked for.
    pub(crate) fn finish(mut self) -> Option<TensorHash> {
        let mut hasher = self.hasher.take()?;
        // Nothing follows the last wave that could hide its hashing.
        let done = &bytemuck::cast_slice::<u64, u8>(&self.previous)[..self.pending];
        timed(&self.checkpoint.counters.hash_ns, || hasher.update(done));
        Some(hasher.finish())
    }
}

impl Drop for Waves<'_> {
    fn drop(&mut self) {
        for buffer in [&mut self.current, &mut self.previous] {
            self.checkpoint.waves.give_back(std::mem::take(buffer));
        }
    }
}
