//! Every case of the official quantisers (`quantizer.safetensors`), where the reference data is present.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array2, ArrayView2};
use quant_core::matrix::round_matrix;
use quant_core::{
    ActQuant, ActRule, Bits, ClipSearch, Convention, FloatType, Grid, Groups, QParams, Variant,
};
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

fn read(file: &SafeTensors<'_>, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
    let t = file.tensor(name).ok()?;
    let data = t.data();
    let values = match t.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::I8 => data.iter().map(|&b| f32::from(b as i8)).collect(),
        Dtype::I16 => {
            data.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        other => panic!("{name}: unexpected {other:?}"),
    };
    Some((t.shape().to_vec(), values))
}

fn matrix(file: &SafeTensors<'_>, name: &str) -> Array2<f32> {
    let (shape, values) = read(file, name).unwrap();
    Array2::from_shape_vec((shape[0], shape[1]), values).unwrap()
}

/// Relative difference in units that treat equal infinities and denormals alike.
fn close(a: f32, b: f32) -> bool {
    a == b || (a - b).abs() <= 2e-7 * a.abs().max(b.abs()) || (a - b).abs() < 2e-45
}

fn row_error(w: &[f32], params: QParams, top: f32, norm: f32) -> f64 {
    w.iter().map(|&x| f64::from((params.fake(x, top) - x).abs()).powf(f64::from(norm))).sum()
}

struct Weights<'a> {
    grid: Grid,
    clip: Option<ClipSearch>,
    size: usize,
    signed: bool,
    scale: &'a [f32],
    zero: &'a [f32],
}

/// Compares a weight case; returns (different codes, codes).
fn compare(name: &str, w: ArrayView2<'_, f32>, case: &Weights<'_>, codes: &Array2<f32>) -> (usize, usize) {
    let q = round_matrix(&case.grid, case.clip.as_ref(), Groups::Size(case.size), w).unwrap();
    let groups = q.scales.ncols();
    let top = case.grid.bits.max_level();
    let half = if case.signed { case.grid.bits.mid_level() } else { 0.0 };
    let (mut different, mut total) = (0, 0);
    for i in 0..w.nrows() {
        for g in 0..groups {
            let range = g * case.size..((g + 1) * case.size).min(w.ncols());
            let group: Vec<f32> = w.row(i).iter().copied().skip(range.start).take(range.len()).collect();
            let ours = q.params(i, g);
            let at = if case.scale.len() == 1 { 0 } else { i * groups + g };
            let theirs = QParams { scale: case.scale[at], zero: case.zero[at] + half };
            if !(close(ours.scale, theirs.scale) && ours.zero == theirs.zero) {
                // Two clip candidates may tie to the last bit: then their errors are equal and the codes are not comparable.
                let norm = case.clip.map_or(2.0, |c| c.norm);
                let (a, b) = (row_error(&group, ours, top, norm), row_error(&group, theirs, top, norm));
                assert!(
                    case.clip.is_some() && (a - b).abs() <= 1e-5 * b.abs(),
                    "{name} row {i} group {g}: {ours:?} vs {theirs:?}, errors {a} {b}"
                );
                continue;
            }
            for (j, x) in range.zip(&group) {
                total += 1;
                if f32::from(q.levels[(i, j)]) - half != codes[(i, j)] {
                    different += 1;
                    let quotient = x / theirs.scale;
                    let tie = (quotient - quotient.floor() - 0.5).abs() <= 1e-6 * quotient.abs().max(1.0);
                    assert!(
                        tie,
                        "{name} ({i}, {j}): {} vs {}, x/s = {quotient}",
                        q.levels[(i, j)],
                        codes[(i, j)]
                    );
                }
            }
        }
    }
    (different, total)
}

#[test]
fn official_quantisers() {
    let path =
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/goldens/quantizer.safetensors"));
    let Ok(bytes) = std::fs::read(path) else {
        quant_testkit::skipped("the reference data (goldens/quantizer.safetensors) is not present");
        return;
    };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let meta: serde_json::Value =
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()["meta"]).unwrap();
    let (w, x) = (matrix(&file, "W"), matrix(&file, "X"));
    let (mut ran, mut different, mut total) = (0, 0, 0);
    for (name, c) in meta["cases"].as_object().unwrap() {
        let implementation = c["impl"].as_str().unwrap();
        let bits = Bits::new(c["bits"].as_u64().unwrap() as u32).unwrap();
        let sym = c["sym"].as_bool().unwrap_or(false);
        let mse = c["mse"].as_bool().unwrap_or(false);
        let clip = mse.then(|| ClipSearch {
            norm: c["norm"].as_f64().unwrap_or(2.4) as f32,
            grid: c["grid"].as_u64().unwrap_or(100) as u32,
            max_shrink: c["maxshrink"].as_f64().unwrap_or(0.8) as f32,
        });
        let group = c["groupsize"].as_i64().filter(|&g| g > 0).map(|g| g as usize);
        let (convention, variant) = match (implementation, sym) {
            ("ist", false) => (Convention::QAsym, Variant::Exact),
            ("ist", true) => (Convention::QSymGptq, Variant::Official),
            ("qhs", false) => (Convention::QAsym, Variant::Official),
            ("qhs", true) => (Convention::QSym, Variant::Official),
            ("awq", _) => (Convention::QAwq, Variant::Official),
            ("qhs_act", _) => {
                activation_case(&file, name, c, bits, sym, group, &x);
                ran += 1;
                continue;
            }
            ("smoothquant", _) => {
                smoothquant_case(&file, name, c["fn"].as_str().unwrap(), bits, &w, &x);
                ran += 1;
                continue;
            }
            // The learnable clipping of FlatQuant belongs to that method.
            ("flatquant_act", _) => continue,
            other => panic!("{name}: unknown implementation {other:?}"),
        };
        let grid = Grid {
            convention,
            bits,
            // One-bit cases use the integer formulas, which only the official variant keeps.
            variant: if bits.get() == 1 { Variant::Official } else { variant },
            scale_type: FloatType::F32,
        };
        let codes = matrix(&file, &format!("{name}.codes"));
        let (_, scale) = read(&file, &format!("{name}.scale")).unwrap();
        let (_, zero) = read(&file, &format!("{name}.zero")).unwrap();
        let per_tensor = c["granularity"].as_str() == Some("tensor");
        let flat = w.clone().into_shape_with_order((1, w.len())).unwrap();
        let (source, codes) = if per_tensor {
            (flat.view(), codes.into_shape_with_order((1, w.len())).unwrap())
        } else {
            (w.view(), codes)
        };
        let case = Weights {
            grid,
            clip,
            size: group.unwrap_or(source.ncols()),
            signed: implementation == "qhs" && sym,
            scale: &scale,
            zero: &zero,
        };
        // The official one-bit grid of the GPTQ repository has no range floor either; rows it matters for are tiny.
        let rows: Vec<usize> = (0..source.nrows())
            .filter(|&i| {
                !(bits.get() == 1 && implementation == "ist" && source.row(i).iter().all(|v| v.abs() < 1e-5))
            })
            .collect();
        let source = source.select(ndarray::Axis(0), &rows);
        let codes = codes.select(ndarray::Axis(0), &rows);
        let groups = source.ncols().div_ceil(case.size);
        let pick = |values: &[f32]| -> Vec<f32> {
            if values.len() == 1 {
                return values.to_vec();
            }
            rows.iter().flat_map(|&i| values[i * groups..(i + 1) * groups].to_vec()).collect()
        };
        let (scale, zero) = (pick(case.scale), pick(case.zero));
        let case = Weights { scale: &scale, zero: &zero, ..case };
        let (d, t) = compare(name, source.view(), &case, &codes);
        different += d;
        total += t;
        ran += 1;
    }
    println!("{ran} cases, {different} of {total} codes differ");
    assert!(ran >= 70, "only {ran} cases ran");
    assert!((different as f64) < 5e-4 * total as f64);
}

fn activation_case(
    file: &SafeTensors<'_>,
    name: &str,
    c: &serde_json::Value,
    bits: Bits,
    sym: bool,
    group: Option<usize>,
    x: &Array2<f32>,
) {
    let rule = if sym { ActRule::Symmetric } else { ActRule::Asymmetric };
    let quant = ActQuant::Dynamic { bits, rule, clip_ratio: c["clip_ratio"].as_f64().unwrap() as f32 };
    let size = group.unwrap_or(x.ncols());
    let mut ours = x.clone().into_shape_with_order((x.len() / size, size)).unwrap();
    quant.fake_quantize(ours.view_mut());
    let codes = matrix(file, &format!("{name}.codes")).into_shape_with_order(ours.dim()).unwrap();
    let (_, scale) = read(file, &format!("{name}.scale")).unwrap();
    let (_, zero) = read(file, &format!("{name}.zero")).unwrap();
    let flat = x.clone().into_shape_with_order(ours.dim()).unwrap();
    for i in 0..ours.nrows() {
        let row = flat.row(i);
        let one_sided = row.iter().all(|&v| v > 0.0) || row.iter().all(|&v| v < 0.0);
        if group.is_some() && !sym && one_sided {
            continue; // the official grouped variant leaves zero out of such a range; ours always keeps it
        }
        for j in 0..ours.ncols() {
            let theirs = scale[i] * (codes[(i, j)] - zero[i]);
            let step = scale[i];
            assert!(
                (ours[(i, j)] - theirs).abs() <= 1e-5 * step.max(theirs.abs()),
                "{name} ({i}, {j}): {} vs {theirs}",
                ours[(i, j)]
            );
        }
    }
}

fn smoothquant_case(
    file: &SafeTensors<'_>,
    name: &str,
    function: &str,
    bits: Bits,
    w: &Array2<f32>,
    x: &Array2<f32>,
) {
    let expected = matrix(file, &format!("{name}.dq"));
    let input = if function.contains("weight") { w } else { x };
    let shape = if function.contains("per_tensor") { (1, input.len()) } else { input.dim() };
    let flat = input.clone().into_shape_with_order(shape).unwrap();
    let grid =
        Grid { convention: Convention::QSym, bits, variant: Variant::Official, scale_type: FloatType::F32 };
    let ours = round_matrix(&grid, None, Groups::Channel, flat.view()).unwrap().dequantize();
    let ours = ours.into_shape_with_order(expected.dim()).unwrap();
    for ((i, j), &v) in expected.indexed_iter() {
        assert!(
            (ours[(i, j)] - v).abs() <= 1e-6 * v.abs().max(1e-30),
            "{name} ({i}, {j}): {} vs {v}",
            ours[(i, j)]
        );
    }
}
