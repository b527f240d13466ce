//! Binary residual codes, the stored form of BiLLM (arXiv 2402.04291): `[out, in]` in blocks of columns.
//!
//! Within a block every weight takes one of four values of its row, told by two bits:
//!
//! | column | first bit | second bit | value |
//! |---|---|---|---|
//! | not salient | sign | membership | `μ ± α` of the small or of the large weights |
//! | salient | sign | sign of the residual | `(μ₁ ± α₁) + (μ₂ ± α₂)` |
//!
//! so a row holds four pairs `(μ, α)` per block, and a block one bit per column that says whether it is salient.

use crate::codec::{Bytes, Codec};
use crate::{CoreError, Real};
use ndarray::{Array2, Array3, ArrayView2};

/// A binary code of the weights of one row that share it: `μ + α·sgn(v − μ)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BinaryCode {
    /// `μ`, the mean.
    pub mean: f32,
    /// `α`, the mean distance from it.
    pub spread: f32,
}

impl BinaryCode {
    /// The code's value for `v`. A stored sign knows no zero: `v = μ` takes the upper value.
    #[must_use]
    #[inline(always)]
    pub fn value(self, upper: bool) -> f32 {
        if upper { self.mean + self.spread } else { self.mean - self.spread }
    }
}

/// The four codes of one row in one block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowCodes {
    /// Of the small weights of columns that are not salient.
    pub small: BinaryCode,
    /// Of the large ones.
    pub large: BinaryCode,
    /// Of salient columns.
    pub salient: BinaryCode,
    /// Of what that code leaves of them.
    pub residual: BinaryCode,
}

/// Numbers of a [`RowCodes`], in their order in the arrays.
const NUMBERS: usize = 8;
/// First bit of a code: the sign.
pub const UPPER: u8 = 1;
/// Second bit of a code: a large weight, or the sign of the residual in a salient column.
pub const SECOND: u8 = 2;

impl RowCodes {
    /// As mean and spread of small, large, salient and residual.
    #[must_use]
    pub fn numbers(&self) -> [f32; NUMBERS] {
        let Self { small, large, salient, residual } = self;
        let mut numbers = [0.0; NUMBERS];
        for (pair, code) in numbers.as_chunks_mut::<2>().0.iter_mut().zip([small, large, salient, residual]) {
            *pair = [code.mean, code.spread];
        }
        numbers
    }
    fn of(numbers: [f32; NUMBERS]) -> Self {
        let code = |i: usize| BinaryCode { mean: numbers[2 * i], spread: numbers[2 * i + 1] };
        Self { small: code(0), large: code(1), salient: code(2), residual: code(3) }
    }
    /// The values of the four codes in a column that is salient, or is not.
    #[must_use]
    #[inline(always)]
    pub fn values(&self, salient: bool) -> [f32; 4] {
        [0, UPPER, SECOND, UPPER | SECOND].map(|code| {
            let (upper, second) = (code & UPPER != 0, code & SECOND != 0);
            match (salient, second) {
                (true, _) => self.salient.value(upper) + self.residual.value(second),
                (false, false) => self.small.value(upper),
                (false, true) => self.large.value(upper),
            }
        })
    }
}

/// A weight in binary residual codes.
///
/// ```
/// use quant_core::binary::{BinaryCode, BinaryMatrix, RowCodes, SECOND, UPPER};
/// use quant_core::ndarray::{Array3, array};
///
/// let code = |mean, spread| BinaryCode { mean, spread };
/// let row = RowCodes { small: code(0.0, 1.0), large: code(0.5, 4.0), salient: code(8.0, 2.0), residual: code(0.0, 0.5) };
/// let codes = array![[0, UPPER | SECOND, UPPER]];
/// let numbers = Array3::from_shape_vec((1, 1, 8), row.numbers().to_vec()).expect("eight numbers");
/// let matrix = BinaryMatrix::new(3, vec![false, false, true], codes, numbers)?;
/// assert_eq!(matrix.dequantize(), array![[-1.0, 4.5, 9.5]]);
/// // Two bits a weight, eight scales a row and block, one bit a column.
/// assert_eq!(matrix.storage_bits(16), 2 * 3 + 8 * 16 + 3);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BinaryMatrix {
    block: usize,
    /// `[in]`.
    salient: Vec<bool>,
    /// `[out, in]`, below 4.
    codes: Array2<u8>,
    /// `[out, blocks, 8]`.
    numbers: Array3<f32>,
}

impl Codec for BinaryMatrix {
    fn encode(&self, out: &mut Vec<u8>) {
        let Self { block, salient, codes, numbers } = self;
        block.encode(out);
        salient.encode(out);
        codes.encode(out);
        numbers.encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        Self::new(usize::decode(from)?, Vec::decode(from)?, Array2::decode(from)?, Array3::decode(from)?)
    }
}

impl BinaryMatrix {
    /// Checks that the parts fit together: blocks of `block` columns, whether each column is `salient` `[in]`, `codes`
    /// `[out, in]` of [`UPPER`] and [`SECOND`], and [`RowCodes::numbers`] of every row and block, `[out, blocks, 8]`.
    ///
    /// # Errors
    /// [`CoreError::Shape`] naming the part, [`CoreError::NotFinite`] for a mean or spread that is not finite, with the row and
    /// the block as its column.
    pub fn new(
        block: usize,
        salient: Vec<bool>,
        codes: Array2<u8>,
        numbers: Array3<f32>,
    ) -> Result<Self, CoreError> {
        let (out, columns) = codes.dim();
        let wrong = |what, expected: String, found: String| Err(CoreError::Shape { what, expected, found });
        if block == 0 {
            return wrong("block of binary codes", "at least 1 column".to_owned(), "0".to_owned());
        }
        if salient.len() != columns {
            return wrong("salient columns", format!("{columns} marks"), salient.len().to_string());
        }
        let expected = (out, columns.div_ceil(block), NUMBERS);
        if numbers.dim() != expected {
            let found = format!("{:?}", numbers.dim());
            return wrong("means and spreads of binary codes", format!("{expected:?}"), found);
        }
        if let Some(&bad) = codes.iter().find(|&&code| code > (UPPER | SECOND)) {
            return wrong("binary codes", "0..=3".to_owned(), bad.to_string());
        }
        if let Some(((row, column, _), &value)) = numbers.indexed_iter().find(|(_, v)| !v.is_finite()) {
            return Err(CoreError::NotFinite { value, row, column });
        }
        Ok(Self { block, salient, codes, numbers })
    }
    /// `(out, in)`.
    #[must_use]
    pub fn dim(&self) -> (usize, usize) {
        self.codes.dim()
    }
    /// Columns of a block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }
    /// Whether each column is salient, `[in]`.
    #[must_use]
    pub fn salient(&self) -> &[bool] {
        &self.salient
    }
    /// Codes of [`UPPER`] and [`SECOND`], `[out, in]`.
    #[must_use]
    pub fn codes(&self) -> ArrayView2<'_, u8> {
        self.codes.view()
    }
    /// The codes of a row in a block.
    #[must_use]
    #[inline(always)]
    pub fn row_codes(&self, row: usize, block: usize) -> RowCodes {
        RowCodes::of(std::array::from_fn(|i| self.numbers[(row, block, i)]))
    }
    /// Salient columns of every block, `[blocks]`.
    #[must_use]
    pub fn salient_per_block(&self) -> Vec<usize> {
        self.salient.chunks(self.block).map(|marks| marks.iter().filter(|m| **m).count()).collect()
    }
    /// Writes the values of one row into `out` `[in]`, in f32 arithmetic whatever they are stored as.
    ///
    /// # Panics
    /// If `out` has another length.
    #[inline(always)]
    pub fn dequantize_row<T: Real>(&self, row: usize, out: &mut [T]) {
        let columns = self.codes.ncols();
        assert_eq!(out.len(), columns, "a row of this matrix has {columns} columns");
        let mut codes = self.codes.row(row).into_iter();
        for (block, (out, salient)) in
            out.chunks_mut(self.block).zip(self.salient.chunks(self.block)).enumerate()
        {
            let of_row = self.row_codes(row, block);
            let values = [of_row.values(false), of_row.values(true)];
            for ((to, &salient), &code) in out.iter_mut().zip(salient).zip(codes.by_ref()) {
                *to = T::from_f32(values[usize::from(salient)][usize::from(code & (UPPER | SECOND))]);
            }
        }
    }
    /// The values, `[out, in]`.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        let mut out = Array2::zeros(self.dim());
        let columns = out.ncols().max(1);
        for (row, target) in out.as_slice_mut().into_iter().flat_map(|s| s.chunks_mut(columns)).enumerate() {
            self.dequantize_row(row, target);
        }
        out
    }
    /// Bits of its stored form, with means and spreads of `scale_bits`: see [`storage_bits`].
    #[must_use]
    pub fn storage_bits(&self, scale_bits: usize) -> u64 {
        storage_bits(self.dim(), self.block, scale_bits)
    }
}

/// Bits of a weight `(out, in)` in binary residual codes over blocks of `block` columns: two a weight, whichever columns are
/// salient; eight means and spreads of `scale_bits` a row and block; one a column.
#[must_use]
pub fn storage_bits((out, columns): (usize, usize), block: usize, scale_bits: usize) -> u64 {
    let blocks = columns.div_ceil(block.max(1));
    (2 * out * columns + NUMBERS * scale_bits * out * blocks + columns) as u64
}
