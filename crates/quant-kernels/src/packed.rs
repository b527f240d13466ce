//! A weight of few bits that stays packed while it is multiplied with floats.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_core::QuantizedMatrix;

use crate::arch::{self, MAX_PANELS, MAX_TOKENS};
use crate::panels::{LANES, LevelPanels, Row};
use crate::{Level, Par, product, tasks};

/// A quantised weight `[out, in]` with its levels in 4 bits each (up to 4 bits) or 8, and its scales and zero levels as f32: the
/// executed form of W4A16 and W8A16, of which no float matrix is ever made. Or a weight of bf16 numbers, as most models are
/// published, in 16 bits each ([`PackedWeight::of_bf16`]).
///
/// Products are those with the dequantised weight in f32, **bit for bit those of
/// [`PreparedWeight`](crate::PreparedWeight)** with [`Compute::F32`](crate::Compute::F32), for any number of tokens, threads and any
/// instruction set: a weight is `scale * (level - zero)`, and its products are summed in the same order. Up to 8
/// tokens (16 of bf16 numbers) read every level once and multiply it where it was unpacked; more tokens take the tiles of a float product, for
/// which levels become floats panel by panel.
///
/// ```
/// use quant_core::matrix::round_matrix;
/// use quant_core::{Grid, Groups};
/// use quant_kernels::ndarray::Array2;
/// use quant_kernels::{Compute, PackedWeight, Par, PreparedWeight};
///
/// let weight = Array2::from_shape_fn((40, 256), |(i, j)| ((i * 37 + j * 11) % 101) as f32 / 50.0 - 1.0);
/// let rounded = round_matrix(&Grid::int4_asym(), None, Groups::Size(128), weight.view())?;
/// let packed = PackedWeight::new(&rounded, Par::Seq);
/// // Half a byte for each weight, scales and zeros, and rows up to a multiple of 32.
/// assert_eq!(packed.bytes(), 64 * 256 / 2 + 64 * 2 * 8);
///
/// let x = Array2::from_shape_fn((3, 256), |(i, j)| ((i * 31 + j * 7) % 53) as f32 * 0.1 - 2.6);
/// let mut y = Array2::zeros((3, 40));
/// packed.forward_into(x.view(), None, y.view_mut(), Par::Seq);
/// let floats = PreparedWeight::new(rounded.dequantize().view(), Compute::F32, Par::Seq);
/// assert_eq!(y, floats.forward(x.view(), None, Par::Seq));
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PackedWeight {
    panels: LevelPanels,
    plain: bool,
    level: Level,
}

/// Bytes of levels below which another thread costs more than it gives.
const SEQUENTIAL_BYTES: usize = 64 << 10;
/// Parts of a weight per thread, so that a slow one delays nobody.
const PARTS_A_THREAD: usize = 4;

impl PackedWeight {
    /// Packs the levels of `matrix` for the best level of this machine.
    #[must_use]
    pub fn new(matrix: &QuantizedMatrix, par: Par) -> Self {
        Self::for_level(Level::detect(), matrix, par)
    }

    /// Packs the levels of `matrix` for products with the instructions of a level: results do not depend on it.
    #[must_use]
    pub fn for_level(level: Level, matrix: &QuantizedMatrix, par: Par) -> Self {
        let panels = LevelPanels::new(matrix, par);
        let plain = arch::zeros_are_plain(&panels);
        Self { panels, plain, level }
    }

    /// Packs the weight `(out, in)` whose row `i` is what `fill(i, row)` writes into `row` `[in]`, as bf16: half the bytes of its
    /// f32 form, and the same bits of every product. None if a number is not one of bf16; then rows may not all have been asked for.
    ///
    /// ```
    /// use quant_kernels::{PackedWeight, Par};
    ///
    /// let halves = PackedWeight::of_bf16((64, 256), Par::Seq, |i, row| row.fill(i as f32 / 2.0));
    /// assert_eq!(halves.map(|weight| weight.bytes()), Some(2 * 64 * 256));
    /// // A third is no bf16 number.
    /// assert!(PackedWeight::of_bf16((64, 256), Par::Seq, |_, row| row.fill(1.0 / 3.0)).is_none());
    /// ```
    #[must_use]
    pub fn of_bf16(shape: (usize, usize), par: Par, fill: impl Fn(usize, &mut [f32]) + Sync) -> Option<Self> {
        Self::of_bf16_for_level(Level::detect(), shape, par, fill)
    }

    /// As [`PackedWeight::of_bf16`], for products with the instructions of a level: results do not depend on it.
    #[must_use]
    pub fn of_bf16_for_level(
        level: Level,
        shape: (usize, usize),
        par: Par,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Option<Self> {
        let panels = LevelPanels::of_bf16(shape, par, fill)?;
        Some(Self { panels, plain: true, level })
    }

    /// Number of output features.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.panels.outputs()
    }

    /// Number of input features.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.panels.inputs()
    }

    /// Bits in which a level is stored, 4 or 8, or 16 of a bf16 number.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.panels.bits()
    }

    /// Bytes of memory it holds: levels, scales and zeros of as many rows as are a multiple of 32.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// The most tokens that are multiplied where weights are unpacked. Levels cost more to unpack, once for eight tokens: tiles take
    /// over earlier.
    fn few_tokens(&self) -> usize {
        if self.bits() == 16 { MAX_TOKENS } else { 8 }
    }

    /// `dst = x W^T + bias` for `x` `[tokens, in]`, `bias` `[out]` and `dst` `[tokens, out]`, whose old content is not read; any
    /// strides.
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    pub fn forward_into(
        &self,
        x: ArrayView2<'_, f32>,
        bias: Option<ArrayView1<'_, f32>>,
        mut dst: ArrayViewMut2<'_, f32>,
        par: Par,
    ) {
        product::check_shapes(dst.dim(), x.dim(), (self.in_features(), self.out_features()));
        if x.nrows() > self.few_tokens() {
            let accumulate = product::fill_with_bias(&mut dst, bias);
            arch::product_levels(self.level, dst, accumulate, x, &self.panels, self.plain, par);
            return;
        }
        if let Some(bias) = bias {
            assert_eq!(
                bias.len(),
                dst.ncols(),
                "bias [out] must have as many elements as the weight has rows"
            );
        }
        if dst.is_empty() {
            return;
        }
        let x = x.as_standard_layout();
        let x: Vec<&[f32]> = x.rows().into_iter().filter_map(|row| row.to_slice()).collect();
        let par = if self.bytes() < SEQUENTIAL_BYTES { Par::Seq } else { par };
        let parts = if par == Par::Seq { 1 } else { PARTS_A_THREAD * par.threads() };
        let panels = self.panels.count().div_ceil(parts);
        let chunks = dst.axis_chunks_iter_mut(Axis(1), panels * LANES).enumerate();
        tasks::for_each(chunks, par, |(part, mut dst)| {
            let mut totals = [Row([0.0_f32; LANES]); MAX_TOKENS * MAX_PANELS];
            for (i, mut dst) in dst.axis_chunks_iter_mut(Axis(1), MAX_PANELS * LANES).enumerate() {
                let panel = part * panels + i * MAX_PANELS;
                let count = dst.ncols().div_ceil(LANES);
                let totals = &mut totals[..x.len() * count];
                if let Some(bias) = bias {
                    let first = panel * LANES;
                    let bias = bias.slice_axis(Axis(0), Slice::from(first..first + dst.ncols()));
                    for totals in totals.chunks_exact_mut(count) {
                        totals
                            .iter_mut()
                            .flat_map(|row| &mut row.0)
                            .zip(bias)
                            .for_each(|(to, &from)| *to = from);
                    }
                }
                arch::decode(self.level, &self.panels, self.plain, panel, &x, bias.is_some(), totals);
                for (mut dst, totals) in dst.rows_mut().into_iter().zip(totals.chunks_exact(count)) {
                    dst.iter_mut()
                        .zip(totals.iter().flat_map(|row| &row.0))
                        .for_each(|(to, from)| *to = *from);
                }
            }
        });
    }
}
