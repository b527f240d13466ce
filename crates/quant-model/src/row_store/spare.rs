//! Memory of rows that are copied again and again.

use bytemuck::Zeroable;
use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

/// Memory to be used again: fresh pages cost more than the numbers written to them.
#[derive(Debug, Default)]
pub(super) struct Spare<N>(Mutex<Vec<N>>);

impl<N: Zeroable + Clone> Spare<N> {
    /// Memory of `length` numbers, old ones; new memory where somebody else has what there is.
    pub(super) fn take(&self, length: usize) -> Vec<N> {
        let mut memory = self.replace(Vec::new());
        memory.resize(length, N::zeroed());
        memory
    }
    pub(super) fn give_back(&self, memory: Vec<N>) {
        self.replace(memory);
    }
    /// Frees what there is.
    pub(super) fn free(&self) {
        self.replace(Vec::new());
    }
    fn replace(&self, memory: Vec<N>) -> Vec<N> {
        std::mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), memory)
    }
}

/// Rows of a [`RowStore`](crate::RowStore), `[rows, features]`: borrowed from its memory, or a copy whose memory the store uses again
/// for the next. To be used as the array it is.
#[derive(Debug)]
pub struct StoredRows<'a> {
    rows: CowArray<'a, f32, Ix2>,
    spare: Option<&'a Spare<f32>>,
}

impl<'a> StoredRows<'a> {
    pub(super) fn copied(rows: Array2<f32>, spare: &'a Spare<f32>) -> Self {
        Self { rows: rows.into(), spare: Some(spare) }
    }
    /// The rows as an array of its own; the store makes new memory for the next ones.
    #[must_use]
    pub fn into_owned(mut self) -> Array2<f32> {
        self.take().into_owned()
    }
    fn take(&mut self) -> CowArray<'a, f32, Ix2> {
        std::mem::replace(&mut self.rows, Array2::default((0, 0)).into())
    }
}

impl<'a> Deref for StoredRows<'a> {
    type Target = CowArray<'a, f32, Ix2>;
    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

/// Rows that are in no store.
impl From<Array2<f32>> for StoredRows<'_> {
    fn from(rows: Array2<f32>) -> Self {
        Self { rows: rows.into(), spare: None }
    }
}

impl<'a> From<ArrayView2<'a, f32>> for StoredRows<'a> {
    fn from(rows: ArrayView2<'a, f32>) -> Self {
        Self { rows: rows.into(), spare: None }
    }
}

impl Drop for StoredRows<'_> {
    fn drop(&mut self) {
        if let Some(spare) = self.spare
            && !self.rows.is_empty()
        {
            spare.give_back(self.take().into_owned().into_raw_vec_and_offset().0);
        }
    }
}
