//! Activations as codes, also in the pass that makes the activations.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use quant_core::operators::{DynamicNumerics, QuantizedActivations, StaticNumerics, TokenParams};
use quant_core::{Bits, QParams};

use crate::activation::silu_times;
use crate::norm::{factor_of_squares, norm_factor, norm_row};
use crate::rows::{LANES, add_to_lanes, tree_sum, with_row};
use crate::{Par, tasks, vectorized};

/// Fewer rows than this are not worth another task.
const LEAST_ROWS: usize = 8;

/// Runs `work` on blocks of rows of codes, with the index of each block's first row: one block for each thread.
fn for_codes<R: Send>(
    codes: &mut Array2<i8>,
    par: Par,
    work: impl Fn(usize, ArrayViewMut2<'_, i8>) -> R + Sync,
) -> Vec<R> {
    let block = codes.nrows().div_ceil(par.threads()).max(LEAST_ROWS);
    tasks::map(codes.axis_chunks_iter_mut(Axis(0), block).enumerate(), par, |(i, rows)| work(i * block, rows))
}

/// Fills codes row by row with what `quantise` writes for a row, whose parameters it gives back; rows that come one after the other share
/// what it keeps.
fn quantize_rows<K: Default>(
    numerics: DynamicNumerics,
    (tokens, features): (usize, usize),
    into: &mut QuantizedActivations,
    par: Par,
    quantise: impl Fn(usize, &mut K, &mut [i8]) -> TokenParams + Sync,
) {
    if into.codes.dim() != (tokens, features) || !into.codes.is_standard_layout() {
        into.codes = Array2::zeros((tokens, features));
    }
    let params = for_codes(&mut into.codes, par, |first, mut codes| {
        let mut params: Vec<TokenParams> = Vec::with_capacity(codes.nrows());
        let mut kept = K::default();
        for (i, mut codes) in codes.rows_mut().into_iter().enumerate() {
            let Some(codes) = codes.as_slice_mut() else { continue };
            params.push(quantise(first + i, &mut kept, codes));
        }
        params
    });
    let params = params.into_iter().flatten();
    into.zeros = numerics.is_asymmetric().then(|| params.clone().map(|p| p.zero).collect());
    into.scales = params.map(|p| p.scale).collect();
}

/// Codes of a row that lies somewhere.
fn quantize_row(numerics: DynamicNumerics, row: &[f32], codes: &mut [i8]) -> TokenParams {
    vectorized(
        #[inline(always)]
        || numerics.token(row, codes),
    )
}

/// Codes of `x` `[tokens, features]` with parameters of each token: those of [`DynamicNumerics::token`].
#[must_use]
pub fn quantize_tokens(numerics: DynamicNumerics, x: ArrayView2<'_, f32>, par: Par) -> QuantizedActivations {
    let mut result = QuantizedActivations::default();
    quantize_rows(numerics, x.dim(), &mut result, par, |i, buffer: &mut Vec<f32>, codes| {
        with_row(x.row(i), buffer, |row| quantize_row(numerics, row, codes))
    });
    result
}

/// Codes of [`rms_norm`](crate::rms_norm) of `x` `[tokens, features]` in one pass, which never writes the normed activations: bit for
/// bit those of the two steps. The memory of `into` is used again where it has the shape of `x`.
///
/// ```
/// use quant_core::Bits;
/// use quant_core::operators::DynamicNumerics;
/// use quant_kernels::ndarray::array;
/// use quant_kernels::{Par, quantize_tokens, rms_norm, rms_norm_quantize};
///
/// let (x, weight) = (array![[3.0_f32, 4.0], [1.0, -1.0]], array![1.0, 2.0]);
/// let numerics = DynamicNumerics::Ascend { bits: Bits::new(8)? };
/// let two_steps = quantize_tokens(numerics, rms_norm(x.view(), weight.view(), 1e-6).view(), Par::Seq);
/// let mut fused = two_steps.clone();
/// fused.codes.fill(0);
/// rms_norm_quantize(x.view(), weight.view(), 1e-6, numerics, &mut fused, Par::Seq);
/// assert_eq!(fused, two_steps);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
///
/// # Panics
/// If `weight` does not have one element per feature.
pub fn rms_norm_quantize(
    x: ArrayView2<'_, f32>,
    weight: ArrayView1<'_, f32>,
    eps: f32,
    numerics: DynamicNumerics,
    into: &mut QuantizedActivations,
    par: Par,
) {
    assert_eq!(weight.len(), x.ncols(), "the norm weight must have one element per feature of x");
    let weight = weight.to_vec();
    quantize_rows(numerics, x.dim(), into, par, |i, Norms { buffer, factor }: &mut Norms, codes| {
        if numerics.is_asymmetric() {
            buffer.resize(x.ncols(), 0.0);
            match x.row(i).to_slice() {
                Some(row) => vectorized(
                    #[inline(always)]
                    || norm_row(row, &weight, eps, buffer),
                ),
                None => norm_row(&x.row(i).to_vec(), &weight, eps, buffer),
            }
            return quantize_row(numerics, buffer, codes);
        }
        let next = if i + 1 < x.nrows() { x.row(i + 1).to_slice() } else { None };
        let (params, next) = with_row(x.row(i), buffer, |row| {
            vectorized(
                #[inline(always)]
                || {
                    let factor = factor.unwrap_or_else(|| norm_factor(row, eps));
                    norm_codes((row, factor), (next, eps), &weight, numerics, codes)
                },
            )
        });
        *factor = next;
        params
    });
}

/// What rows that are normed and quantised one after the other share.
#[derive(Default)]
struct Norms {
    /// For rows that are not adjacent numbers.
    buffer: Vec<f32>,
    /// [`norm_factor`] of the next row, where it is known.
    factor: Option<f32>,
}

/// Numbers of a row that become codes before as many of the next are looked at: whole blocks of lanes.
const STRIP: usize = 4 * LANES;

/// Codes of a normed row under parameters without a zero, and the factor of the next row if it is given. What is normed is computed
/// twice, for its largest magnitude and for its codes: that costs two products, and a row in between does not fit into the first-level
/// cache beside the others. The next row is summed meanwhile: memory brings it while there is something else to do.
#[inline(always)]
fn norm_codes(
    (row, factor): (&[f32], f32),
    (next, eps): (Option<&[f32]>, f32),
    weight: &[f32],
    numerics: DynamicNumerics,
    codes: &mut [i8],
) -> (TokenParams, Option<f32>) {
    // Magnitudes compare like integers, infinity and NaN above all numbers.
    let magnitude = |(&v, &w): (&f32, &f32)| (v * factor * w).abs().to_bits();
    let largest = f32::from_bits(row.iter().zip(weight).map(magnitude).fold(0, u32::max));
    let params = numerics.of_range(-largest, largest);
    let mut squares = [0.0; LANES];
    let mut ahead = next.unwrap_or_default().chunks(STRIP);
    let strips = codes.chunks_mut(STRIP).zip(row.chunks(STRIP)).zip(weight.chunks(STRIP));
    for ((codes, row), weight) in strips {
        for ((code, &v), &w) in codes.iter_mut().zip(row).zip(weight) {
            *code = params.code(v * factor * w);
        }
        add_to_lanes(&mut squares, ahead.next().unwrap_or_default(), |v: f32| v * v);
    }
    (params, next.map(|next| factor_of_squares(tree_sum(squares), next.len(), eps)))
}

/// Codes of `silu(gate) * up`, both `[tokens, features]`, in one pass: bit for bit those of [`silu_mul`](crate::silu_mul) and then
/// [`quantize_tokens`]. The memory of `into` is used again where it has their shape.
///
/// # Panics
/// If the shapes differ.
pub fn silu_mul_quantize(
    gate: ArrayView2<'_, f32>,
    up: ArrayView2<'_, f32>,
    numerics: DynamicNumerics,
    into: &mut QuantizedActivations,
    par: Par,
) {
    assert_eq!(gate.dim(), up.dim(), "gate and up projections must have one shape");
    quantize_rows(numerics, gate.dim(), into, par, |i, buffer: &mut Vec<f32>, codes| {
        buffer.resize(gate.ncols(), 0.0);
        let (gate, up) = (gate.row(i), up.row(i));
        match (gate.to_slice(), up.to_slice()) {
            (Some(gate), Some(up)) => vectorized(
                #[inline(always)]
                || {
                    for ((out, &gate), &up) in buffer.iter_mut().zip(gate).zip(up) {
                        *out = silu_times(gate, up);
                    }
                },
            ),
            _ => {
                for ((out, &gate), &up) in buffer.iter_mut().zip(gate).zip(up) {
                    *out = silu_times(gate, up);
                }
            }
        }
        quantize_row(numerics, buffer, codes)
    });
}

/// Codes of `x` `[tokens, features]` under one scale and zero for all: those of [`StaticNumerics::quantize`].
#[must_use]
pub fn quantize_static(
    numerics: StaticNumerics,
    bits: Bits,
    params: QParams,
    x: ArrayView2<'_, f32>,
    par: Par,
) -> QuantizedActivations {
    // The parameters of all, from a tensor without numbers.
    let mut result = numerics.quantize(bits, params, x.slice_axis(Axis(0), ndarray::Slice::from(0..0)));
    result.codes = Array2::zeros(x.dim());
    let finite = for_codes(&mut result.codes, par, |first, codes| {
        let rows = x.slice_axis(Axis(0), ndarray::Slice::from(first..first + codes.nrows()));
        vectorized(
            #[inline(always)]
            || {
                numerics.codes(bits, params, rows, codes);
                let mut finite = true;
                for row in rows.rows() {
                    match row.to_slice() {
                        // Without a way out in between, neighbours are looked at together.
                        Some(row) => {
                            for x in row {
                                finite &= x.is_finite();
                            }
                        }
                        None => finite &= row.iter().all(|x| x.is_finite()),
                    }
                }
                finite
            },
        )
    });
    if finite.contains(&false) {
        result.scales.fill(f32::NAN);
    }
    result
}
