//! The kernels of a quantised linear, one by one.

use super::{Peaks, Product, best};
use quant_core::ndarray::{Array1, Array2, ArrayView2, Axis, Slice};
use quant_core::operators::{Bias, DynamicNumerics, IntegerLinear, QuantMatmul, StaticNumerics};
use quant_core::{Bits, CoreError, FloatType, Groups, QParams, matrix::round_matrix};
use quant_kernels::{
    Compute, Cpu, IntegerWeight, PAGE, PackedWeight, PageEntries, PagedQueries, PagedScratch, Par,
    PreparedWeight, attend_paged, quantize_static, quantize_tokens, rms_norm_quantize, tasks, vectorized,
};
use serde::Serialize;
use std::hint::black_box;

/// A kernel at one size.
#[derive(Clone, Debug, Serialize)]
pub struct KernelRate {
    /// The product it belongs to.
    pub shape: String,
    /// Tokens, inputs, outputs.
    pub size: (usize, usize, usize),
    /// Which kernel.
    pub kernel: &'static str,
    /// Seconds of one run.
    pub seconds: f64,
    /// In `unit`.
    pub rate: f64,
    /// `GFLOP/s`, `GOP/s`, or `GB/s` of what is read and written.
    pub unit: &'static str,
    /// Of the peak of that kind in the same run; above 1 where a cache held what was read.
    pub share_of_peak: Option<f64>,
    /// Time by that of the integer product of this shape.
    pub by_product: f64,
    /// Its instructions, or the processor.
    pub level: String,
    /// Threads.
    pub threads: usize,
}

/// What a rate is held against.
#[derive(Clone, Copy)]
enum Of {
    Float,
    Integer,
    Bytes,
}

/// Measures the kernels of a product: floats, codes, packed weights, and everything that makes codes or ends them; with `heads` (query
/// heads, key heads, features) attention of one token over a cache of codes as long as the product has tokens.
///
/// # Errors
/// Sizes that no kernel takes.
pub fn measure(
    product: &Product,
    heads: Option<(usize, usize, usize)>,
    peaks: &Peaks,
    par: Par,
) -> Result<Vec<KernelRate>, CoreError> {
    let (m, k, n) = (product.tokens, product.inputs, product.outputs);
    let bits = Bits::new(8)?;
    let numerics = DynamicNumerics::Ascend { bits };
    let x = floats(m, k, 1);
    let weight = floats(n, k, 2);
    let rounded = round_matrix(&quant_core::Grid::int8_sym(), None, Groups::Channel, weight.view())?;
    let linear = IntegerLinear::from_matrix(&rounded, Bias::None)?;
    let codes = quantize_tokens(numerics, x.view(), par);
    let operations = 2.0 * (m * n) as f64 * k as f64;
    let mut found: Vec<(&'static str, f64, f64, Of)> = Vec::new();

    let packed = IntegerWeight::new(linear.codes().view(), par)?;
    let mut sums = Array2::<i32>::zeros((m, n));
    found.push((
        "int8 product",
        best(|| packed.sums_into(codes.codes.view(), sums.view_mut(), par)),
        operations,
        Of::Integer,
    ));
    drop(packed);
    let prepared = Cpu::default().prepare(&linear, par)?;
    let mut y = Array2::<f32>::zeros((m, n));
    let finished = best(|| drop(black_box(prepared.forward(&codes, y.view_mut().into(), par))));
    found.push(("int8 product, results f32", finished, operations, Of::Integer));
    drop(prepared);
    let dense = PreparedWeight::new(weight.view(), Compute::F32, par);
    found.push((
        "f32 product",
        best(|| dense.forward_into(x.view(), None, y.view_mut(), par)),
        operations,
        Of::Float,
    ));
    drop(dense);
    let four = round_matrix(&quant_core::Grid::int4_asym(), None, groups(k), weight.view())?;
    let four = PackedWeight::new(&four, par);
    found.push((
        "W4A16 product",
        best(|| four.forward_into(x.view(), None, y.view_mut(), par)),
        operations,
        Of::Float,
    ));
    let one = x.slice_axis(Axis(0), Slice::from(..1));
    let mut row = Array2::<f32>::zeros((1, n));
    let read = four.bytes() as f64;
    found.push((
        "W4A16, one token",
        best(|| four.forward_into(one, None, row.view_mut(), par)),
        read,
        Of::Bytes,
    ));
    drop(four);

    let scales: Vec<f32> = linear.scales().to_vec();
    let dequantise = best(|| dequantise(sums.view(), &scales, &mut y, par));
    found.push(("dequantisation, discrete", dequantise, (8 * m * n) as f64, Of::Bytes));
    let moved = (5 * m * k) as f64;
    found.push((
        "dynamic quantisation, discrete",
        best(|| drop(black_box(quantize_tokens(numerics, x.view(), par)))),
        moved,
        Of::Bytes,
    ));
    let norm = Array1::from_elem(k, 1.0);
    let mut into = quantize_tokens(numerics, x.view(), par);
    let fused = best(|| rms_norm_quantize(x.view(), norm.view(), 1e-6, numerics, &mut into, par));
    found.push(("dynamic quantisation, fused with the norm", fused, moved, Of::Bytes));
    let fixed = StaticNumerics::Ascend { model: FloatType::Bf16 };
    let params = QParams { scale: 0.01, zero: 128.0 };
    found.push((
        "static quantisation",
        best(|| drop(black_box(quantize_static(fixed, bits, params, x.view(), par)))),
        moved,
        Of::Bytes,
    ));
    if let Some((heads, kv_heads, head_dim)) =
        heads.filter(|_| product.name == "qkv" || product.name == "AttentionInput")
    {
        let seconds = attention(m, heads, kv_heads, head_dim, par);
        found.push((
            "attention over an int8 cache, one token",
            seconds,
            (2 * m * kv_heads * (head_dim + 8)) as f64,
            Of::Bytes,
        ));
    }
    let by = found.first().map_or(f64::NAN, |first| first.1);
    Ok(found
        .into_iter()
        .map(|(kernel, seconds, amount, of)| {
            let rate = amount / seconds / 1e9;
            let (peak, unit, level) = match of {
                Of::Float => (Some(peaks.float), "GFLOP/s", &peaks.float_level),
                Of::Integer => (peaks.integer, "GOP/s", &peaks.integer_level),
                Of::Bytes => (Some(peaks.reading), "GB/s", &peaks.float_level),
            };
            KernelRate {
                shape: product.name.clone(),
                size: (m, k, n),
                kernel,
                seconds,
                rate,
                unit,
                share_of_peak: peak.map(|peak| rate / peak),
                by_product: seconds / by,
                level: level.clone(),
                threads: par.threads(),
            }
        })
        .collect())
}

/// Groups of 128 columns where they divide them, else one.
fn groups(inputs: usize) -> Groups {
    if inputs.is_multiple_of(128) { Groups::Size(128) } else { Groups::Channel }
}

/// Sums become floats in a pass of their own.
fn dequantise(sums: ArrayView2<'_, i32>, scales: &[f32], out: &mut Array2<f32>, par: Par) {
    tasks::for_rows(out.view_mut(), par, |first, mut rows| {
        for (i, mut row) in rows.rows_mut().into_iter().enumerate() {
            if let (Some(to), Some(from)) = (row.as_slice_mut(), sums.row(first + i).to_slice()) {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((to, &sum), scale) in to.iter_mut().zip(from).zip(scales) {
                            *to = sum as f32 * scale;
                        }
                    },
                );
            }
        }
    });
}

/// Seconds of attention of one token over a cache of so many positions.
fn attention(positions: usize, heads: usize, kv_heads: usize, head_dim: usize, par: Par) -> f64 {
    let pages = positions.div_ceil(PAGE);
    let levels: Vec<u8> = (0..pages * PAGE * head_dim).map(|i| (i % 251) as u8).collect();
    let (scales, zeros) = (vec![0.01_f32; PAGE], vec![128.0_f32; PAGE]);
    let group = heads / kv_heads.max(1);
    let queries: Vec<f32> = floats(group, head_dim, 5).into_raw_vec_and_offset().0;
    let at = vec![positions - 1; group];
    best(|| {
        let done = tasks::map_with(0..kv_heads, par, PagedScratch::default, |scratch, _| {
            let page = |p: usize| {
                let levels = &levels[p * PAGE * head_dim..(p + 1) * PAGE * head_dim];
                let entries = PageEntries::TokenHead { levels, scales: &scales, zeros: &zeros };
                (entries, entries)
            };
            let of = PagedQueries { queries: &queries, positions: &at, head_dim, window: None };
            let mut out = vec![0.0; queries.len()];
            attend_paged(&of, &page, scratch, &mut out);
            out
        });
        black_box(done);
    })
}

pub(super) fn floats(rows: usize, columns: usize, seed: u32) -> Array2<f32> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}
