//! A quantised weight matrix: unsigned levels, and one scale and zero level per row and group.

use crate::codec::{Bytes, Codec, bad_tag};
use crate::convention::level_byte;
use crate::range::all_finite;
use crate::{Bits, ClipSearch, CoreError, FloatType, Grid, QParams, Real, Widths};
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, Slice};
use std::ops::Range;

/// How the columns of a matrix are divided into groups that share parameters within a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// One group: a scale per output channel.
    Channel,
    /// Consecutive groups of this many columns; the last one may be shorter.
    Size(usize),
    /// An explicit group per column (act-order with dynamic groups, `g_idx` of the formats).
    Index {
        /// Columns per group.
        size: usize,
        /// Group of every column, `[in]`.
        of_column: Vec<u32>,
    },
}

impl Groups {
    /// From a scheme's group size, where none means per channel.
    #[must_use]
    pub fn from_size(size: Option<usize>) -> Self {
        size.map_or(Self::Channel, Self::Size)
    }
    /// Number of groups in a row of `columns`.
    #[must_use]
    pub fn count(&self, columns: usize) -> usize {
        match self {
            Self::Channel => 1,
            Self::Size(size) | Self::Index { size, .. } => columns.div_ceil((*size).max(1)).max(1),
        }
    }
    /// Columns per group; `columns` itself per channel.
    #[must_use]
    pub fn size(&self, columns: usize) -> usize {
        match self {
            Self::Channel => columns.max(1),
            Self::Size(size) | Self::Index { size, .. } => (*size).max(1),
        }
    }
    /// Checks an explicit index: one entry per column, every group among those a row has.
    ///
    /// # Errors
    /// [`CoreError::Shape`].
    pub fn check(&self, columns: usize) -> Result<(), CoreError> {
        let Self::Index { of_column, .. } = self else { return Ok(()) };
        let wrong = |expected, found| Err(CoreError::Shape { what: "group index", expected, found });
        if of_column.len() != columns {
            return wrong(format!("{columns} entries"), format!("{} entries", of_column.len()));
        }
        let count = self.count(columns);
        match of_column.iter().find(|&&g| g as usize >= count) {
            Some(bad) => wrong(format!("groups 0..{count}"), format!("group {bad}")),
            None => Ok(()),
        }
    }
    /// The group of a column.
    #[must_use]
    #[inline(always)]
    pub fn of(&self, column: usize) -> usize {
        match self {
            Self::Channel => 0,
            Self::Size(size) => column / (*size).max(1),
            Self::Index { of_column, .. } => of_column[column] as usize,
        }
    }
}

impl Codec for Groups {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Channel => out.push(0),
            Self::Size(size) => {
                out.push(1);
                size.encode(out);
            }
            Self::Index { size, of_column } => {
                out.push(2);
                size.encode(out);
                of_column.encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Channel),
            1 => Ok(Self::Size(usize::decode(from)?)),
            2 => Ok(Self::Index { size: usize::decode(from)?, of_column: Vec::decode(from)? }),
            tag => bad_tag("groups of columns", tag),
        }
    }
}

/// In which order the columns of a weight were rounded, and what that does to its groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActOrder {
    /// Columns as they stand.
    #[default]
    None,
    /// By decreasing Hessian diagonal; groups are consecutive original columns with parameters fixed beforehand, so
    /// nothing needs to be stored.
    Static,
    /// By decreasing Hessian diagonal; groups are consecutive positions of that order, so a group index per column must be
    /// stored.
    Dynamic,
}

impl ActOrder {
    /// Whether columns are permuted while they are rounded.
    #[must_use]
    pub fn permutes(self) -> bool {
        self != Self::None
    }
}

/// `Ŵ[i, j] = scale[i, g(j)] · (level[i, j] − zero[i, g(j)])`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedMatrix {
    widths: Widths,
    levels: Array2<u8>,
    scales: Array2<f32>,
    zeros: Array2<f32>,
    groups: Groups,
}

/// Some rows of a [`QuantizedMatrix`], to be filled.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// Levels, `[rows, in]`: at most [`Bits::max_level`] of their group.
    pub levels: ArrayViewMut2<'a, u8>,
    /// Scales, `[rows, groups]`.
    pub scales: ArrayViewMut2<'a, f32>,
    /// Zero levels, `[rows, groups]`.
    pub zeros: ArrayViewMut2<'a, f32>,
}

impl QuantizedMatrix {
    /// Checks that the parts fit together: shapes, group indices, level range. `widths` is one [`Bits`] for all levels, or
    /// [`Widths::PerGroup`].
    ///
    /// # Errors
    /// [`CoreError::Shape`] naming the part.
    pub fn new(
        widths: impl Into<Widths>,
        levels: Array2<u8>,
        scales: Array2<f32>,
        zeros: Array2<f32>,
        groups: Groups,
    ) -> Result<Self, CoreError> {
        let (out, columns) = levels.dim();
        let expected = (out, groups.count(columns));
        for (what, found) in [("weight scales", scales.dim()), ("weight zero points", zeros.dim())] {
            if found != expected {
                return Err(CoreError::Shape {
                    what,
                    expected: format!("{expected:?} for levels {:?}", levels.dim()),
                    found: format!("{found:?}"),
                });
            }
        }
        groups.check(columns)?;
        let widths = widths.into();
        widths.check(levels.view(), groups.count(columns), |column| groups.of(column))?;
        Ok(Self { widths, levels, scales, zeros, groups })
    }

    /// A matrix `(out, in)` whose rows are still to be filled, in consecutive groups of that many columns or whole channels:
    /// levels and zeros are 0, scales 1.
    #[must_use]
    pub fn unfilled(bits: Bits, (out, columns): (usize, usize), group: Option<usize>) -> Self {
        let groups = Groups::from_size(group);
        let count = groups.count(columns);
        let (scales, zeros) = (Array2::ones((out, count)), Array2::zeros((out, count)));
        let levels = Array2::zeros((out, columns));
        Self { widths: bits.into(), levels, scales, zeros, groups }
    }
    /// Lets `fill` write rows `rows`, and checks the levels it leaves. A level above the top of the bit width is refused, and
    /// those rows are then zero levels.
    ///
    /// # Errors
    /// [`CoreError::Shape`] for such a level.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn fill_rows<R>(
        &mut self,
        rows: Range<usize>,
        fill: impl FnOnce(RowsMut<'_>) -> R,
    ) -> Result<R, CoreError> {
        let span = Slice::from(rows);
        let result = fill(RowsMut {
            levels: self.levels.slice_axis_mut(Axis(0), span),
            scales: self.scales.slice_axis_mut(Axis(0), span),
            zeros: self.zeros.slice_axis_mut(Axis(0), span),
        });
        let mut levels = self.levels.slice_axis_mut(Axis(0), span);
        let (groups, count) = (&self.groups, self.scales.ncols());
        let checked = self.widths.check(levels.view(), count, |column| groups.of(column));
        if checked.is_err() {
            levels.fill(0);
        }
        checked.map(|()| result)
    }
    /// The parts, in the order in which [`Self::new`] takes and checks them.
    #[must_use]
    pub fn into_parts(self) -> (Widths, Array2<u8>, Array2<f32>, Array2<f32>, Groups) {
        (self.widths, self.levels, self.scales, self.zeros, self.groups)
    }
    /// Bit width of the levels, the largest where groups differ.
    #[must_use]
    #[inline(always)]
    pub fn bits(&self) -> Bits {
        self.widths.largest()
    }
    /// Bit widths of the groups.
    #[must_use]
    pub fn widths(&self) -> &Widths {
        &self.widths
    }
    /// Unsigned levels `0..2^bits` of their group, `[out, in]`.
    #[must_use]
    #[inline(always)]
    pub fn levels(&self) -> &Array2<u8> {
        &self.levels
    }
    /// Positive scales, `[out, groups]`, already rounded to the type the target's loader holds them in.
    #[must_use]
    #[inline(always)]
    pub fn scales(&self) -> &Array2<f32> {
        &self.scales
    }
    /// Zero levels, `[out, groups]`; integer-valued except under the binary rule.
    #[must_use]
    #[inline(always)]
    pub fn zeros(&self) -> &Array2<f32> {
        &self.zeros
    }
    /// Which columns share parameters.
    #[must_use]
    #[inline(always)]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }
    /// `(out, in)`.
    #[must_use]
    pub fn dim(&self) -> (usize, usize) {
        self.levels.dim()
    }
    /// Parameters of a row's group.
    #[must_use]
    #[inline(always)]
    pub fn params(&self, row: usize, group: usize) -> QParams {
        QParams { scale: self.scales[(row, group)], zero: self.zeros[(row, group)] }
    }
    /// Whether every zero level is `2^(b−1)`, so that a symmetric format can hold the matrix.
    #[must_use]
    pub fn is_symmetric(&self) -> bool {
        self.zeros_are(|zero, bits| zero == bits.mid_level())
    }
    /// Whether every zero level is an integer in `0..2^b`; false only under the binary rule.
    #[must_use]
    pub fn has_integer_zeros(&self) -> bool {
        self.zeros_are(is_level)
    }
    /// Whether something holds for all zero levels and the widths of their groups.
    fn zeros_are(&self, holds: impl Fn(f32, Bits) -> bool) -> bool {
        let mut columns = self.zeros.columns().into_iter().enumerate();
        columns.all(|(g, zeros)| zeros.iter().all(|&zero| holds(zero, self.widths.of(g))))
    }
    /// Writes one dequantised row into `out` `[in]`, in f32 arithmetic whatever it is stored as.
    ///
    /// # Panics
    /// If `out` has another length.
    #[inline(always)]
    pub fn dequantize_row<T: Real>(&self, row: usize, out: &mut [T]) {
        let columns = self.levels.ncols();
        assert_eq!(out.len(), columns, "a row of this matrix has {columns} columns");
        let levels = self.levels.row(row);
        let value = |params: QParams, level: u8| T::from_f32(params.value(f32::from(level)));
        match (levels.as_slice(), &self.groups) {
            (Some(levels), Groups::Channel | Groups::Size(_)) => {
                let size = self.groups.size(columns);
                for (g, (out, levels)) in out.chunks_mut(size).zip(levels.chunks(size)).enumerate() {
                    let params = self.params(row, g);
                    for (to, &level) in out.iter_mut().zip(levels) {
                        *to = value(params, level);
                    }
                }
            }
            _ => {
                for (column, (to, &level)) in out.iter_mut().zip(levels).enumerate() {
                    *to = value(self.params(row, self.groups.of(column)), level);
                }
            }
        }
    }
    /// The dequantised matrix `[out, in]`.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        let mut out = Array2::zeros(self.dim());
        let columns = out.ncols().max(1);
        for (row, target) in out.as_slice_mut().into_iter().flat_map(|s| s.chunks_mut(columns)).enumerate() {
            self.dequantize_row(row, target);
        }
        out
    }
    /// Stored bits per weight: levels, scales of `scale_bits` each, zeros where not symmetric, group index.
    ///
    /// A zero takes the width of a level, under the binary rule, where it is no integer, that of a scale.
    #[must_use]
    pub fn bits_per_weight(&self, scale_bits: usize) -> f64 {
        let (out, columns) = self.dim();
        self.storage_bits(scale_bits) as f64 / (out * columns).max(1) as f64
    }
    /// Bits of its stored form: levels, scales of `scale_bits`, zeros, and the group of every column and the width of every group
    /// where those have to be told.
    #[must_use]
    pub fn storage_bits(&self, scale_bits: usize) -> u64 {
        let (out, columns) = self.dim();
        let symmetric = self.is_symmetric();
        // Where one width rules, zeros are kept in one way; groups of one bit among others keep theirs as numbers.
        let one_way = self.widths.per_group().is_none().then(|| self.has_integer_zeros());
        let of_group = |(g, zeros): (usize, ArrayView1<'_, f32>)| {
            let bits = self.widths.of(g);
            let integer = one_way.unwrap_or_else(|| zeros.iter().all(|&zero| is_level(zero, bits)));
            let zero_bits = match (symmetric, integer) {
                (true, _) => 0,
                (false, true) => bits.get() as usize,
                (false, false) => scale_bits,
            };
            (out * (scale_bits + zero_bits)) as u64
        };
        let params: u64 = self.zeros.columns().into_iter().enumerate().map(of_group).sum();
        let index = if matches!(self.groups, Groups::Index { .. }) { 32 * columns as u64 } else { 0 };
        let row = self.widths.row_bits(columns, |column| self.groups.of(column));
        out as u64 * row + params + index + self.widths.own_bits()
    }
}

impl Codec for QuantizedMatrix {
    fn encode(&self, out: &mut Vec<u8>) {
        let Self { widths, levels, scales, zeros, groups } = self;
        widths.encode(out);
        levels.encode(out);
        scales.encode(out);
        zeros.encode(out);
        groups.encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        Self::new(
            Widths::decode(from)?,
            Array2::decode(from)?,
            Array2::decode(from)?,
            Array2::decode(from)?,
            Groups::decode(from)?,
        )
    }
}

/// Whether a zero is one of the levels.
fn is_level(zero: f32, bits: Bits) -> bool {
    zero == zero.round_ties_even() && (0.0..=bits.max_level()).contains(&zero)
}

/// Rounds one row to nearest: parameters per consecutive group, then levels. The round-to-nearest of `rtn.md` section 1.
///
/// `row`, `levels` are `[in]`; `scales`, `zeros` are `[groups]`.
#[inline(always)]
pub fn round_row(
    grid: &Grid,
    clip: Option<&ClipSearch>,
    group_size: usize,
    row: &[f32],
    levels: &mut [u8],
    scales: &mut [f32],
    zeros: &mut [f32],
) {
    for (g, (group, out)) in row.chunks(group_size).zip(levels.chunks_mut(group_size)).enumerate() {
        let params = grid.params(group, clip);
        scales[g] = params.scale;
        zeros[g] = params.zero;
        if grid.is_binary() {
            for (level, &w) in out.iter_mut().zip(group) {
                *level = grid.level(w, params) as u8;
            }
        } else {
            let top = grid.bits.max_level();
            for (level, &w) in out.iter_mut().zip(group) {
                *level = level_byte(params.level(w, top));
            }
        }
    }
}

/// Rounds a matrix `[out, in]` to nearest, group by group, one value at a time: the specification that the vectorised
/// [`round_row`] and the parallel code are tested against.
///
/// # Errors
/// [`CoreError::NotFinite`] at the first NaN or infinity, [`CoreError::Scale`] at the first scale that is not finite,
/// [`CoreError::Shape`] for a group index that does not fit.
pub fn round_matrix(
    grid: &Grid,
    clip: Option<&ClipSearch>,
    groups: Groups,
    weight: ArrayView2<'_, f32>,
) -> Result<QuantizedMatrix, CoreError> {
    check_finite(weight)?;
    let (out, columns) = weight.dim();
    groups.check(columns)?;
    let mut members = vec![Vec::new(); groups.count(columns)];
    for column in 0..columns {
        members[groups.of(column)].push(column);
    }
    let mut levels = Array2::zeros((out, columns));
    let mut scales = Array2::ones((out, members.len()));
    let mut zeros = Array2::zeros((out, members.len()));
    for i in 0..out {
        for (g, members) in members.iter().enumerate().filter(|(_, members)| !members.is_empty()) {
            let group: Vec<f32> = members.iter().map(|&column| weight[(i, column)]).collect();
            let params = grid.params(&group, clip);
            scales[(i, g)] = params.scale;
            zeros[(i, g)] = params.zero;
            for (&column, &w) in members.iter().zip(&group) {
                levels[(i, column)] = grid.level(w, params) as u8;
            }
        }
    }
    check_scales(scales.view(), grid.scale_type)?;
    QuantizedMatrix::new(grid.bits, levels, scales, zeros, groups)
}

/// Checks scales `[out, groups]` that were rounded to `scale_type`: a range beyond the type's gives an infinite one.
///
/// # Errors
/// [`CoreError::Scale`] naming the first scale that is not finite.
pub fn check_scales(scales: ArrayView2<'_, f32>, scale_type: FloatType) -> Result<(), CoreError> {
    match scales.indexed_iter().find(|(_, scale)| !scale.is_finite()) {
        None => Ok(()),
        Some(((row, group), &scale)) => {
            Err(CoreError::Scale { scale, scale_type: scale_type.name(), row, group })
        }
    }
}

/// # Errors
/// [`CoreError::NotFinite`] naming the first NaN or infinity of a matrix.
#[inline(always)]
pub fn check_finite(values: ArrayView2<'_, f32>) -> Result<(), CoreError> {
    for (row, line) in values.axis_iter(Axis(0)).enumerate() {
        let bad = match line.as_slice() {
            Some(slice) => !all_finite(slice),
            None => line.iter().any(|x| !x.is_finite()),
        };
        if bad && let Some((column, &value)) = line.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(CoreError::NotFinite { value, row, column });
        }
    }
    Ok(())
}
