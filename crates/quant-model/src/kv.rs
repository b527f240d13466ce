//! The cache of keys and values, as an argument of the block's forward.

use ndarray::{Array2, ArrayView2, Axis, concatenate};
use quant_kernels::Element;

/// Keys and values of one sequence in one block. The block hands over those of its new tokens, after rope and after the
/// cache's quantiser, and attends over all that are there. A quantiser before rope has worked on the keys before they were
/// rotated: a deployment caches its codes and rotates what it reads, with the same result.
pub trait KvStore<T> {
    /// Tokens that are there; the next ones stand at the positions after them.
    fn past(&self) -> usize;
    /// Takes in the keys and values of the next tokens, both `[tokens, kv_heads · head_dim]`.
    fn extend(&mut self, keys: Array2<T>, values: Array2<T>);
    /// All keys, `[past, kv_heads · head_dim]`.
    fn keys(&self) -> ArrayView2<'_, T>;
    /// All values, `[past, kv_heads · head_dim]`.
    fn values(&self) -> ArrayView2<'_, T>;
}

/// A cache in memory, empty at first.
#[derive(Clone, Debug)]
pub struct KvCache<T> {
    keys: Array2<T>,
    values: Array2<T>,
}

impl<T: Element> KvCache<T> {
    /// A cache without tokens.
    #[must_use]
    pub fn new() -> Self {
        Self { keys: Array2::zeros((0, 0)), values: Array2::zeros((0, 0)) }
    }
}

impl<T: Element> Default for KvCache<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Element> KvStore<T> for KvCache<T> {
    fn past(&self) -> usize {
        self.keys.nrows()
    }
    fn extend(&mut self, keys: Array2<T>, values: Array2<T>) {
        for (kept, new) in [(&mut self.keys, keys), (&mut self.values, values)] {
            // The first tokens bring the width, and are kept as they came.
            let joined =
                if kept.is_empty() { Ok(new) } else { concatenate(Axis(0), &[kept.view(), new.view()]) };
            if let Ok(joined) = joined {
                *kept = joined;
            }
        }
    }
    fn keys(&self) -> ArrayView2<'_, T> {
        self.keys.view()
    }
    fn values(&self) -> ArrayView2<'_, T> {
        self.values.view()
    }
}
