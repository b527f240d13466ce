//! What rounding a linear cost: error of its weight, and of its output on sampled tokens.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_core::{ActQuant, QuantizedMatrix};
use quant_graph::LinearWeight;
use quant_kernels::{Compute, Par, PreparedWeight, tasks, vectorized, views};

/// Rows of a weight measured by one task; a fixed number, so that sums do not depend on the threads.
pub(crate) const TILE: usize = 64;

/// What a weight was rounded to, row by row.
pub(super) trait Stored: Sync {
    /// Writes the values of row `row` into `out` `[in]`.
    fn write_row(&self, row: usize, out: &mut [f32]);
}

impl Stored for QuantizedMatrix {
    #[inline(always)]
    fn write_row(&self, row: usize, out: &mut [f32]) {
        self.dequantize_row(row, out);
    }
}

impl Stored for LinearWeight {
    #[inline(always)]
    fn write_row(&self, row: usize, out: &mut [f32]) {
        Self::write_row(self, row, out);
    }
}

/// Relative errors of one linear.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    /// `‖Ŵ − W‖ / ‖W‖`.
    pub(super) weight: f64,
    /// `‖Q(X)Ŵᵀ − XWᵀ‖ / ‖XWᵀ‖`, where tokens were sampled.
    pub(super) output: Option<f64>,
}

/// Measures a linear `weight` `[out, in]` against what it was rounded to, on sampled inputs `[tokens, in]` that `input`
/// will quantise. Works on tiles of rows, so that the dequantised weight never exists as a whole.
pub(super) fn errors(
    weight: ArrayView2<'_, f32>,
    rounded: Option<&impl Stored>,
    sample: Option<ArrayView2<'_, f32>>,
    input: Option<&ActQuant>,
    par: Par,
) -> Errors {
    let mut measure = Measure::new(sample, input, par);
    measure.rows(0, weight, rounded, par);
    measure.finish()
}

/// The errors of a linear whose weight comes some rows at a time.
#[derive(Default)]
pub(super) struct Measure {
    sample: Option<Sample>,
    total: Sums,
}

impl Measure {
    pub(super) fn new(sample: Option<ArrayView2<'_, f32>>, input: Option<&ActQuant>, par: Par) -> Self {
        Self { sample: sample.map(|x| Sample::new(x, input, par)), total: Sums::default() }
    }

    /// Takes in rows `[rows, in]` of the float weight, the first of which is row `first` of what was `rounded`.
    pub(super) fn rows(
        &mut self,
        first: usize,
        rows: ArrayView2<'_, f32>,
        rounded: Option<&impl Stored>,
        par: Par,
    ) {
        let tile = |buffer: &mut Vec<f32>, (index, rows): (usize, ArrayView2<'_, f32>)| {
            let mut sums = Sums::default();
            let change = rounded.map(|q| change(q, first + index * TILE, rows, buffer, &mut sums.weight));
            if let Some(sample) = &self.sample {
                sums.output = sample.squares(rows, change);
            }
            sums
        };
        let sums = tasks::map_with(rows.axis_chunks_iter(Axis(0), TILE).enumerate(), par, Vec::new, tile);
        self.total = sums.iter().fold(self.total, |a, b| a.plus(b));
    }

    pub(super) fn finish(self) -> Errors {
        Errors { weight: self.total.weight.ratio(), output: self.sample.map(|_| self.total.output.ratio()) }
    }
}

/// Squared norms of a difference and of what it is a difference from.
#[derive(Clone, Copy, Debug, Default)]
struct Squares {
    difference: f64,
    norm: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    weight: Squares,
    output: Squares,
}

impl Squares {
    fn plus(self, other: Self) -> Self {
        Self { difference: self.difference + other.difference, norm: self.norm + other.norm }
    }
    fn ratio(self) -> f64 {
        if self.norm > 0.0 { (self.difference / self.norm).sqrt() } else { 0.0 }
    }
}

impl Sums {
    fn plus(self, other: &Self) -> Self {
        Self { weight: self.weight.plus(other.weight), output: self.output.plus(other.output) }
    }
}

/// `Ŵ − W` of the rows from `first` on, `[rows, in]`, in `buffer`.
fn change<'b>(
    rounded: &impl Stored,
    first: usize,
    rows: ArrayView2<'_, f32>,
    buffer: &'b mut Vec<f32>,
    squares: &mut Squares,
) -> ArrayViewMut2<'b, f32> {
    let mut change = views::scratch(buffer, rows.dim());
    for (i, (w, mut d)) in rows.rows().into_iter().zip(change.rows_mut()).enumerate() {
        if let (Some(w), Some(d)) = (w.to_slice(), d.as_slice_mut()) {
            let of_row = vectorized(
                #[inline(always)]
                || {
                    rounded.write_row(first + i, d);
                    subtract(d, w)
                },
            );
            *squares = squares.plus(of_row);
        }
    }
    change
}

/// `d -= w`, and the squares of both. One pass for each, over rows that stay in the first-level cache: a loop that does all three becomes
/// one number after the other.
#[inline(always)]
fn subtract(d: &mut [f32], w: &[f32]) -> Squares {
    for (d, w) in d.iter_mut().zip(w) {
        *d -= w;
    }
    Squares { difference: squares(d), norm: squares(w) }
}

/// `Σ x²`, in lanes of f32 within a row, f64 across rows: six digits are plenty for a report.
#[inline(always)]
fn squares(x: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for l in 0..LANES {
            lanes[l] += x[l] * x[l];
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += x * x;
    }
    lanes.iter().map(|&x| f64::from(x)).sum()
}

/// Sampled tokens, as the right operand of products with tiles of a weight.
struct Sample {
    tokens: usize,
    /// The tokens in float.
    float: PreparedWeight<f32>,
    /// The tokens as the quantised linear sees them, and how far that is from the float ones; none where its input stays
    /// float.
    quantized: Option<(PreparedWeight<f32>, PreparedWeight<f32>)>,
}

impl Sample {
    fn new(x: ArrayView2<'_, f32>, input: Option<&ActQuant>, par: Par) -> Self {
        let prepare = |x: ArrayView2<'_, f32>| PreparedWeight::new(x, Compute::F32, par);
        let quantized = input.map(|quant| {
            let mut seen = x.to_owned();
            vectorized(
                #[inline(always)]
                || quant.fake_quantize(seen.view_mut()),
            );
            let difference = &seen - &x;
            (prepare(seen.view()), prepare(difference.view()))
        });
        Self { tokens: x.nrows(), float: prepare(x), quantized }
    }

    /// Squares of the change of the outputs of some rows of a weight, and of the outputs. The change is
    /// `Q(x)·(ŵ − w) + (Q(x) − x)·w`, which keeps the digits that subtracting two outputs would lose.
    fn squares(&self, rows: ArrayView2<'_, f32>, change: Option<ArrayViewMut2<'_, f32>>) -> Squares {
        let float = self.float.forward(rows, None, Par::Seq);
        let mut out = Array2::zeros((rows.nrows(), self.tokens));
        if let Some(change) = change {
            let seen = self.quantized.as_ref().map_or(&self.float, |(seen, _)| seen);
            seen.forward_into(change.view(), None, out.view_mut(), Par::Seq);
        }
        if let Some((_, difference)) = &self.quantized {
            out += &difference.forward(rows, None, Par::Seq);
        }
        let square = |a: &Array2<f32>| a.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        Squares { difference: square(&out), norm: square(&float) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::{Bits, Convention, FloatType, Grid, Groups, Variant, matrix::round_matrix};

    /// Against the definition in f64, for tiles that do not fill and any number of threads.
    #[test]
    fn errors_are_their_definition() {
        let noise = |rows, columns, seed: usize| {
            Array2::from_shape_fn((rows, columns), |(i, j)| {
                let x = (i * 7919 + j * 104_729 + seed * 31) as f32;
                (x * 0.618).sin() * (x * 0.37).cos()
            })
        };
        let (w, x) = (noise(150, 37, 1), noise(20, 37, 2));
        let bits = Bits::new(4).unwrap();
        let grid = Grid::new(Convention::QAsym, bits, Variant::Exact, FloatType::F32).unwrap();
        let rounded = round_matrix(&grid, None, Groups::Size(16), w.view()).unwrap();
        let input = ActQuant::Dynamic {
            bits,
            rule: quant_core::ActRule::Asymmetric,
            clip_ratio: 1.0.into(),
            shards: 1,
        };
        let wide = |a: &Array2<f32>| a.mapv(f64::from);
        let norm = |a: &Array2<f64>| a.iter().map(|v| v * v).sum::<f64>().sqrt();
        let mut seen = x.clone();
        input.fake_quantize(seen.view_mut());
        let (dq, w64) = (wide(&rounded.dequantize()), wide(&w));
        let y = wide(&x).dot(&w64.t());
        for (rounded, input) in [(Some(&rounded), Some(&input)), (Some(&rounded), None), (None, Some(&input))]
        {
            let weight = if rounded.is_some() { &dq } else { &w64 };
            let x_hat = wide(if input.is_some() { &seen } else { &x });
            let expected =
                (norm(&(weight - &w64)) / norm(&w64), norm(&(x_hat.dot(&weight.t()) - &y)) / norm(&y));
            let got = errors(w.view(), rounded, Some(x.view()), input, Par::Seq);
            assert!((got.weight - expected.0).abs() <= 1e-5 * expected.0, "{got:?} {expected:?}");
            let output = got.output.unwrap();
            assert!((output - expected.1).abs() <= 1e-5 * expected.1, "{got:?} {expected:?}");
            let threaded = errors(w.view(), rounded, Some(x.view()), input, Par::new(3));
            assert_eq!((threaded.weight, threaded.output), (got.weight, got.output));
        }
        let mut in_parts = Measure::new(Some(x.view()), None, Par::Seq);
        for first in [0, 64, 128] {
            let rows = w.slice_axis(Axis(0), ndarray::Slice::from(first..(first + 64).min(150)));
            in_parts.rows(first, rows, Some(&rounded), Par::new(2));
        }
        let whole = errors(w.view(), Some(&rounded), Some(x.view()), None, Par::Seq);
        assert_eq!(in_parts.finish().weight, whole.weight);
        assert_eq!(errors(w.view(), None::<&QuantizedMatrix>, None, None, Par::Seq).output, None);
    }
}
