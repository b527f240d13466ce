//! The numbers of a model on their way between reader, model, methods and writer.

use crate::{BoxError, LinearId, ModelSpec, Norm, Online, Outer, SourceError};
use ndarray::{Array1, Array2, ArrayView2};
use quant_core::{ActQuant, BinaryMatrix, FloatType, KvQuant, QuantizedMatrix, Real};
use std::{collections::BTreeMap, ops::Range};

/// The weight of a linear.
#[derive(Clone, Debug, PartialEq)]
pub enum LinearWeight {
    /// Float, `[out, in]`.
    Float(Array2<f32>),
    /// Integer levels with their groups.
    Quantized(QuantizedMatrix),
    /// Binary codes with a residual for salient columns.
    Binary(BinaryMatrix),
}

impl LinearWeight {
    /// `(out, in)`.
    #[must_use]
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::Float(w) => w.dim(),
            Self::Quantized(q) => q.dim(),
            Self::Binary(b) => b.dim(),
        }
    }
    /// The values a deployment multiplies with, `[out, in]`.
    #[must_use]
    pub fn into_values(self) -> Array2<f32> {
        match self {
            Self::Float(w) => w,
            Self::Quantized(q) => q.dequantize(),
            Self::Binary(b) => b.dequantize(),
        }
    }
    /// Writes row `row` of those values into `out` `[in]`.
    ///
    /// # Panics
    /// If `out` has another length or there is no such row.
    #[inline(always)]
    pub fn write_row<T: Real>(&self, row: usize, out: &mut [T]) {
        match self {
            Self::Float(w) => {
                assert_eq!(out.len(), w.ncols(), "a row of this weight has {} columns", w.ncols());
                out.iter_mut().zip(w.row(row)).for_each(|(to, &from)| *to = T::from_f32(from));
            }
            Self::Quantized(q) => q.dequantize_row(row, out),
            Self::Binary(b) => b.dequantize_row(row, out),
        }
    }
    /// Bits of its stored form, with floats and scales of `scale`: levels, scales, zeros, masks, and whatever index tells which
    /// column belongs where and how wide a group is.
    #[must_use]
    pub fn storage_bits(&self, scale: FloatType) -> u64 {
        let float_bits = 8 * scale.size();
        match self {
            Self::Float(w) => (w.len() * float_bits) as u64,
            Self::Quantized(q) => q.storage_bits(float_bits),
            Self::Binary(b) => b.storage_bits(float_bits),
        }
    }
    /// [`Self::storage_bits`] for each of its weights.
    #[must_use]
    pub fn bits_per_weight(&self, scale: FloatType) -> f64 {
        let (outputs, inputs) = self.dim();
        self.storage_bits(scale) as f64 / (outputs * inputs).max(1) as f64
    }
    /// Its integer levels, if it has some.
    #[must_use]
    pub fn quantized(&self) -> Option<&QuantizedMatrix> {
        match self {
            Self::Float(_) | Self::Binary(_) => None,
            Self::Quantized(q) => Some(q),
        }
    }
    /// Whether it is as it came, not rounded.
    #[must_use]
    pub fn is_float(&self) -> bool {
        matches!(self, Self::Float(_))
    }
}

/// A linear: weight, bias, and what happens to its input first.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearParams {
    /// The weight, `[out, in]`.
    pub weight: LinearWeight,
    /// The bias, `[out]`, added in float after the product.
    pub bias: Option<Array1<f32>>,
    /// Quantisation of the input.
    pub input: Option<ActQuant>,
}

/// One decoder block, float or quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockParams {
    /// Its linears.
    pub linears: BTreeMap<LinearId, LinearParams>,
    /// Its norm weights.
    pub norms: BTreeMap<Norm, Array1<f32>>,
    /// What it multiplies activations by while the model runs.
    pub online: Online,
    /// Quantisation of its KV cache.
    pub kv: Option<KvQuant>,
}

/// Rows of a table (embedding or head).
pub type Rows = Range<usize>;

/// A block without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockFrame {
    /// Its norm weights.
    pub norms: BTreeMap<Norm, Array1<f32>>,
    /// The biases of its linears, `[out]`.
    pub biases: BTreeMap<LinearId, Array1<f32>>,
    /// What it multiplies activations by while the model runs.
    pub online: Online,
}

/// Sees weights some rows at a time: whose they are, the index of the first row, and the rows `[rows, in]`. Those of one weight come in
/// order, one call after the other; different weights may come at once, from several threads.
pub type RowVisitor<'a> = dyn Fn(LinearId, usize, ArrayView2<'_, f32>) -> Result<(), BoxError> + Sync + 'a;

/// Sees a table some rows at a time: the index of the first row, and the rows `[rows, hidden]`.
pub type TableVisitor<'a> = dyn FnMut(usize, ArrayView2<'_, f32>) -> Result<(), BoxError> + Send + 'a;

/// Anything that can hand out a model block by block: a checkpoint on disk, a quantised folder, a model in memory.
pub trait BlockSource: Send {
    /// The shape of the model.
    fn spec(&self) -> &ModelSpec;
    /// The numbers of block `index`.
    ///
    /// # Errors
    /// If they cannot be read or are not what the spec says.
    fn block(&mut self, index: usize) -> Result<BlockParams, SourceError>;
    /// Block `index` with the values of its weights handed to `visit`, the rows of each in order, as many rows and as many weights at a
    /// time as the source likes. A source that can read rows alone never holds a whole weight.
    ///
    /// # Errors
    /// As [`Self::block`], and the error of `visit` for the first weight, in the order of the block, that has one.
    fn block_by_rows(&mut self, index: usize, visit: &RowVisitor<'_>) -> Result<BlockFrame, SourceError> {
        visit_whole_weights(self.block(index)?, visit).map_err(|cause| {
            SourceError::new(self.spec().block_prefix(index), "the rows of a whole block", cause)
        })
    }
    /// Whether a part outside the blocks lies in a checkpoint as it is, so that whoever has that checkpoint may copy its bytes
    /// instead of asking for its numbers.
    fn is_stored(&self, what: Outer) -> bool {
        let _ = what;
        false
    }
    /// Embedding rows of `ids`, `[ids, hidden]`.
    ///
    /// # Errors
    /// If they cannot be read, or an id is outside the vocabulary.
    fn embed(&mut self, ids: &[u32]) -> Result<Array2<f32>, SourceError>;
    /// Weight of the final norm, `[hidden]`.
    ///
    /// # Errors
    /// If it cannot be read.
    fn final_norm(&mut self) -> Result<Array1<f32>, SourceError>;
    /// Rows of the head (the embedding when tied), `[rows, hidden]`.
    ///
    /// # Errors
    /// If they cannot be read.
    fn head(&mut self, rows: Rows) -> Result<Array2<f32>, SourceError>;
    /// A table outside the blocks, some MB of rows at a time and in order.
    ///
    /// # Errors
    /// As [`Self::embed`] and [`Self::head`], and the first error of `visit`.
    fn table_by_rows(&mut self, table: Outer, visit: &mut TableVisitor<'_>) -> Result<(), SourceError> {
        const BYTES: usize = 4 << 20;
        let (vocab, hidden) = (self.spec().vocab, self.spec().hidden);
        let step = (BYTES / (size_of::<f32>() * hidden.max(1))).max(1);
        for first in (0..vocab).step_by(step) {
            let rows = first..(first + step).min(vocab);
            let values = if table == Outer::Head {
                self.head(rows)?
            } else {
                // The vocabulary is bounded when the config is read.
                let ids: Vec<u32> = rows.filter_map(|id| u32::try_from(id).ok()).collect();
                self.embed(&ids)?
            };
            visit(first, values.view()).map_err(|cause| {
                SourceError::new(table.tensor(), format!("the rows from {first} on"), cause)
            })?;
        }
        Ok(())
    }
}

/// Hands the weights of a block in memory to `visit`, all rows of each at once: [`BlockSource::block_by_rows`] for sources
/// that cannot read rows alone.
///
/// # Errors
/// The first error of `visit`.
pub fn visit_whole_weights(block: BlockParams, visit: &RowVisitor<'_>) -> Result<BlockFrame, BoxError> {
    let mut biases = BTreeMap::new();
    for (id, linear) in block.linears {
        visit(id, 0, linear.weight.into_values().view())?;
        biases.extend(linear.bias.map(|bias| (id, bias)));
    }
    Ok(BlockFrame { norms: block.norms, biases, online: block.online })
}
