//! Reading tensors: positioned reads in pieces, conversion and hashing on the bytes just read.
//!
//! A floating tensor is read in *waves* of a few MiB. The pieces of a wave are read and converted in parallel while
//! the previous wave is hashed, so the transient memory of a read is two waves of 4 MiB whatever the size of the tensor, and
//! the bytes pass through the cache once. Pieces have a fixed size: nothing depends on the number of threads.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Pod;
use ndarray::{Array1, Array2, ArrayD, ArrayView2, IxDyn};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::convert::{Float, first_non_finite, to_f32};
use crate::error::{CheckpointError, Result};
use crate::hash::{Hasher, TensorHash};
use crate::scratch::{ReadStats, timed, zeroed};
use crate::source::{Checkpoint, TensorInfo, shape_mismatch};
use crate::waves::Waves;

/// Bytes read and converted by one task: small enough for the second-level cache.
const PIECE_BYTES: usize = 512 << 10;
/// Bytes of one wave.
// Two of these are resident during a read.
const WAVE_BYTES: usize = 8 * PIECE_BYTES;
/// Bytes of the rows that are visited together: with their floats, their levels and the bytes being hashed well inside a
/// third-level cache.
const VISIT_BYTES: usize = 4 * PIECE_BYTES;
/// The height of a visit is a multiple of this, so that rows can be worked on in tiles.
const VISIT_ROWS: usize = 64;

impl Checkpoint {
    /// Totals of all reads so far, from all threads.
    #[must_use]
    pub fn read_stats(&self) -> ReadStats {
        let seconds = |c: &AtomicU64| c.load(Ordering::Relaxed) as f64 * 1e-9;
        ReadStats {
            bytes: self.counters.bytes.load(Ordering::Relaxed),
            read_s: seconds(&self.counters.read_ns),
            hash_s: seconds(&self.counters.hash_ns),
        }
    }

    /// A tensor's bytes as stored.
    ///
    /// # Errors
    /// [`CheckpointError::NoSuchTensor`], [`CheckpointError::Read`], [`CheckpointError::OutOfMemory`].
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.read_pods(self.tensor(name)?)
    }

    /// Hands a tensor's bytes to `visit` in order, in pieces of at most 512 KiB, for tensors too large to hold.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], and the first error of `visit`.
    pub fn for_each_piece(&self, name: &str, mut visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let info = self.tensor(name)?;
        let mut buffer =
            zeroed::<u8>(name, PIECE_BYTES.min(usize::try_from(info.bytes()).unwrap_or(PIECE_BYTES)))?;
        let mut at = info.range.start;
        while at < info.range.end {
            let len = (info.range.end - at).min(PIECE_BYTES as u64);
            let piece = &mut buffer[..usize::try_from(len).unwrap_or(PIECE_BYTES)];
            timed(&self.counters.read_ns, || self.read_at(info, at, piece))?;
            visit(piece)?;
            at += len;
        }
        Ok(())
    }

    /// As [`Checkpoint::for_each_piece`], refusing a floating tensor that holds a NaN or infinity before the piece with it
    /// is handed over.
    pub(crate) fn for_each_finite_piece(
        &self,
        name: &str,
        mut visit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let info = self.tensor(name)?;
        let Some(kind) = Float::from_dtype(info.dtype) else { return self.for_each_piece(name, visit) };
        let mut before = 0;
        self.for_each_piece(name, |piece| {
            if let Some((at, value)) = first_non_finite(kind, piece) {
                return Err(non_finite(info, before + at, value));
            }
            before += piece.len() / kind.bytes();
            visit(piece)
        })
    }

    /// SHA-256 of a tensor's bytes as stored, read in pieces.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn sha256(&self, name: &str) -> Result<TensorHash> {
        let mut hasher = Hasher::default();
        self.for_each_piece(name, |piece| {
            timed(&self.counters.hash_ns, || hasher.update(piece));
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    /// A tensor of any shape as f32. f32, f16 and bf16 are accepted; each value is exact.
    ///
    /// # Errors
    /// As [`Checkpoint::read`]; [`CheckpointError::DtypeMismatch`] for another dtype, [`CheckpointError::NonFinite`]
    /// for the first NaN or infinity.
    pub fn read_f32(&self, name: &str) -> Result<ArrayD<f32>> {
        let info = self.tensor(name)?;
        let values = self.read_floats(info, 0..info.elements(), false)?.0;
        shaped(info, values)
    }

    /// A matrix `[rows, columns]` as f32.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`]; [`CheckpointError::ShapeMismatch`] if it is not a matrix.
    pub fn read_matrix_f32(&self, name: &str) -> Result<Array2<f32>> {
        let info = self.tensor(name)?;
        let (rows, columns) = matrix_shape(info)?;
        matrix(info, rows, columns, self.read_floats(info, 0..info.elements(), false)?.0)
    }

    /// A matrix as f32, with the SHA-256 of the same bytes.
    ///
    /// # Errors
    /// As [`Checkpoint::read_matrix_f32`].
    pub fn read_matrix_f32_hashed(&self, name: &str) -> Result<(Array2<f32>, TensorHash)> {
        let info = self.tensor(name)?;
        let (rows, columns) = matrix_shape(info)?;
        let (values, hash) = self.read_floats(info, 0..info.elements(), true)?;
        Ok((matrix(info, rows, columns, values)?, hashed(hash)))
    }

    /// Hands a matrix `[rows, columns]` as f32 to `visit`, some rows at a time and in order, with the index of the first;
    /// returns the SHA-256 of its bytes if asked. Rows are converted into the same few MiB again and again, and hashed
    /// while the next are read and visited.
    ///
    /// # Errors
    /// As [`Checkpoint::read_matrix_f32`], and the first error of `visit`.
    pub fn visit_rows_f32<E: From<CheckpointError> + Send>(
        &self,
        name: &str,
        hash: bool,
        mut visit: impl FnMut(usize, ArrayView2<'_, f32>) -> std::result::Result<(), E> + Send,
    ) -> std::result::Result<Option<TensorHash>, E> {
        let info = self.tensor(name)?;
        let (rows, columns) = matrix_shape(info)?;
        let kind = float_kind(info)?;
        let row_bytes = (columns * kind.bytes()).max(1);
        let height = (VISIT_BYTES / row_bytes).next_multiple_of(VISIT_ROWS).min(rows.max(1));
        let mut floats = zeroed::<f32>(&info.name, height * columns)?;
        let mut waves = Waves::new(self, height * row_bytes, hash);
        for first in (0..rows).step_by(height) {
            let count = height.min(rows - first);
            let values = &mut floats[..count * columns];
            waves.next(count * row_bytes, |bytes| {
                timed(&self.counters.read_ns, || self.load_wave(info, kind, first * columns, bytes, values))?;
                let rows = ArrayView2::from_shape((count, columns), values)
                    .map_err(|_| shape_mismatch(info, "a matrix".to_owned()))?;
                visit(first, rows)
            })?;
        }
        Ok(waves.finish())
    }

    /// A vector `[n]` as f32.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`]; [`CheckpointError::ShapeMismatch`] if it is not a vector.
    pub fn read_vector_f32(&self, name: &str) -> Result<Array1<f32>> {
        let info = self.tensor(name)?;
        vector_shape(info)?;
        Ok(Array1::from_vec(self.read_floats(info, 0..info.elements(), false)?.0))
    }

    /// A vector as f32, with the SHA-256 of the same bytes.
    ///
    /// # Errors
    /// As [`Checkpoint::read_vector_f32`].
    pub fn read_vector_f32_hashed(&self, name: &str) -> Result<(Array1<f32>, TensorHash)> {
        let info = self.tensor(name)?;
        vector_shape(info)?;
        let (values, hash) = self.read_floats(info, 0..info.elements(), true)?;
        Ok((Array1::from_vec(values), hashed(hash)))
    }

    /// Rows `rows` of a matrix as f32 `[rows.len(), columns]`; only these rows are read.
    ///
    /// # Errors
    /// As [`Checkpoint::read_matrix_f32`]; [`CheckpointError::RowOutOfRange`]. The index in a
    /// [`CheckpointError::NonFinite`] counts from the first row of the tensor.
    pub fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Array2<f32>> {
        let info = self.tensor(name)?;
        let (total, columns) = matrix_shape(info)?;
        check_rows(info, &rows, total)?;
        let values = self.read_floats(info, rows.start * columns..rows.end * columns, false)?.0;
        matrix(info, rows.len(), columns, values)
    }

    /// Rows of a matrix by number, in the order asked for, as f32 `[ids.len(), columns]`: the embedding of tokens.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows_f32`].
    pub fn read_row_gather(&self, name: &str, ids: &[u32]) -> Result<Array2<f32>> {
        let info = self.tensor(name)?;
        let (rows, columns) = matrix_shape(info)?;
        let kind = float_kind(info)?;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(CheckpointError::RowOutOfRange { tensor: info.name.clone(), row: id as usize, rows });
        }
        let len = ids
            .len()
            .checked_mul(columns)
            .ok_or_else(|| CheckpointError::OutOfMemory { tensor: info.name.clone(), bytes: u64::MAX })?;
        let mut out = zeroed::<f32>(name, len)?;
        let row_bytes = columns * kind.bytes();
        let load = |buffer: &mut Vec<u64>, (&id, row): (&u32, &mut [f32])| -> Result<()> {
            let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(buffer)[..row_bytes];
            self.read_at(info, info.range.start + u64::from(id) * row_bytes as u64, bytes)?;
            match to_f32(kind, bytes, row) {
                Some(at) => Err(non_finite(info, id as usize * columns + at, row[at])),
                None => Ok(()),
            }
        };
        let failed = timed(&self.counters.read_ns, || {
            ids.par_iter()
                .zip(out.par_chunks_mut(columns.max(1)))
                .map_init(|| vec![0_u64; row_bytes.div_ceil(8)], load)
                .find_first(Result::is_err)
        });
        match failed {
            Some(Err(e)) => Err(e),
            _ => matrix(info, ids.len(), columns, out),
        }
    }

    /// An `I8` tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::read`]; [`CheckpointError::DtypeMismatch`].
    pub fn read_i8(&self, name: &str) -> Result<ArrayD<i8>> {
        self.read_exact_dtype(name, Dtype::I8, "I8")
    }

    /// An `I32` tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::read_i8`].
    pub fn read_i32(&self, name: &str) -> Result<ArrayD<i32>> {
        self.read_exact_dtype(name, Dtype::I32, "I32")
    }

    /// An `I64` tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::read_i8`].
    pub fn read_i64(&self, name: &str) -> Result<ArrayD<i64>> {
        self.read_exact_dtype(name, Dtype::I64, "I64")
    }

    fn read_exact_dtype<T: Pod>(
        &self,
        name: &str,
        dtype: Dtype,
        expected: &'static str,
    ) -> Result<ArrayD<T>> {
        let info = self.tensor(name)?;
        if info.dtype != dtype {
            return Err(dtype_mismatch(info, expected));
        }
        shaped(info, self.read_pods::<T>(info)?)
    }

    /// The whole tensor as elements of `T`, whose size divides the tensor's (the caller checked the dtype).
    fn read_pods<T: Pod>(&self, info: &TensorInfo) -> Result<Vec<T>> {
        let len = usize::try_from(info.bytes()).unwrap_or(usize::MAX) / size_of::<T>();
        let mut out = zeroed::<T>(&info.name, len)?;
        timed(&self.counters.read_ns, || {
            self.read_at(info, info.range.start, bytemuck::cast_slice_mut(&mut out))
        })?;
        Ok(out)
    }

    /// Elements `elements` (row-major positions) of a floating tensor, in new memory, and the hash of their bytes.
    fn read_floats(
        &self,
        info: &TensorInfo,
        elements: Range<usize>,
        hash: bool,
    ) -> Result<(Vec<f32>, Option<TensorHash>)> {
        let kind = float_kind(info)?;
        let mut out = zeroed::<f32>(&info.name, elements.len())?;
        let hash = self.fill_floats(info, kind, elements.start, &mut out, hash)?;
        Ok((out, hash))
    }

    /// Fills `out` with elements from position `start` on, wave by wave; each wave is hashed while the next is read.
    fn fill_floats(
        &self,
        info: &TensorInfo,
        kind: Float,
        start: usize,
        out: &mut [f32],
        hash: bool,
    ) -> Result<Option<TensorHash>> {
        let wave_elements = WAVE_BYTES / kind.bytes();
        let mut waves = Waves::new(self, out.len().min(wave_elements) * kind.bytes(), hash);
        for (wave, values) in out.chunks_mut(wave_elements).enumerate() {
            let first = start + wave * wave_elements;
            waves.next(values.len() * kind.bytes(), |bytes| {
                timed(&self.counters.read_ns, || self.load_wave(info, kind, first, bytes, values))
            })?;
        }
        Ok(waves.finish())
    }

    /// Reads and converts one wave in parallel pieces. `first` is the position of `values[0]` in the tensor.
    fn load_wave(
        &self,
        info: &TensorInfo,
        kind: Float,
        first: usize,
        bytes: &mut [u8],
        values: &mut [f32],
    ) -> Result<()> {
        let piece_elements = PIECE_BYTES / kind.bytes();
        let load = |(i, (bytes, values)): (usize, (&mut [u8], &mut [f32]))| {
            let at = first + i * piece_elements;
            self.read_at(info, info.range.start + (at * kind.bytes()) as u64, bytes)?;
            match to_f32(kind, bytes, values) {
                Some(bad) => Err(non_finite(info, at + bad, values[bad])),
                None => Ok(()),
            }
        };
        if values.len() <= piece_elements {
            return load((0, (bytes, values)));
        }
        let pieces = bytes.par_chunks_mut(PIECE_BYTES).zip(values.par_chunks_mut(piece_elements)).enumerate();
        pieces.map(load).find_first(Result::is_err).unwrap_or(Ok(()))
    }

    fn read_at(&self, info: &TensorInfo, offset: u64, out: &mut [u8]) -> Result<()> {
        let shard = &self.shards[info.shard];
        shard.file.read_exact_at(out, offset).map_err(|e| CheckpointError::read(&shard.path, e))?;
        self.counters.bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// The hash of a read that was asked for one.
#[expect(clippy::expect_used, reason = "`Waves` hashes when it is told to")]
fn hashed(hash: Option<TensorHash>) -> TensorHash {
    hash.expect("a hash was asked for")
}

fn float_kind(info: &TensorInfo) -> Result<Float> {
    Float::from_dtype(info.dtype).ok_or_else(|| dtype_mismatch(info, "F32, F16 or BF16"))
}

fn dtype_mismatch(info: &TensorInfo, expected: &'static str) -> CheckpointError {
    CheckpointError::DtypeMismatch {
        file: info.file.to_string(),
        tensor: info.name.clone(),
        expected,
        found: info.dtype,
    }
}

/// The error for a NaN or infinity at row-major position `flat`.
fn non_finite(info: &TensorInfo, flat: usize, value: f32) -> CheckpointError {
    let mut rest = flat;
    let mut index: Vec<usize> = Vec::with_capacity(info.shape.len());
    for &d in info.shape.iter().rev() {
        index.push(rest % d.max(1));
        rest /= d.max(1);
    }
    index.reverse();
    CheckpointError::NonFinite { file: info.file.to_string(), tensor: info.name.clone(), index, value }
}

fn matrix_shape(info: &TensorInfo) -> Result<(usize, usize)> {
    match info.shape[..] {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(shape_mismatch(info, "a matrix".to_owned())),
    }
}

fn vector_shape(info: &TensorInfo) -> Result<()> {
    if info.shape.len() == 1 { Ok(()) } else { Err(shape_mismatch(info, "a vector".to_owned())) }
}

fn check_rows(info: &TensorInfo, rows: &Range<usize>, total: usize) -> Result<()> {
    if rows.start > rows.end || rows.end > total {
        return Err(CheckpointError::RowOutOfRange {
            tensor: info.name.clone(),
            row: rows.end.max(rows.start),
            rows: total,
        });
    }
    Ok(())
}

fn shaped<T>(info: &TensorInfo, values: Vec<T>) -> Result<ArrayD<T>> {
    ArrayD::from_shape_vec(IxDyn(&info.shape), values)
        .map_err(|e| shape_mismatch(info, format!("a shape ndarray can hold ({e})")))
}

fn matrix<T>(info: &TensorInfo, rows: usize, columns: usize, values: Vec<T>) -> Result<Array2<T>> {
    Array2::from_shape_vec((rows, columns), values)
        .map_err(|e| shape_mismatch(info, format!("a shape ndarray can hold ({e})")))
}
