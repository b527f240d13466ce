//! The official quantisers: a subset in the repository (`tests/data`), every case where the reference data is present.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2, ArrayView2};
use quant_core::matrix::round_matrix;
use quant_core::{
    ActQuant, ActRule, Bits, ClipSearch, Convention, FloatType, Grid, Groups, QParams, Variant,
};
use quant_testkit::Golden;
use serde_json::Value;

/// Relative difference in units that treat equal infinities and denormals alike.
fn close(a: f32, b: f32) -> bool {
    a == b || (a - b).abs() <= 2e-7 * a.abs().max(b.abs()) || (a - b).abs() < 2e-45
}

fn row_error(w: &[f32], params: QParams, top: f32, norm: f32) -> f64 {
    w.iter().map(|&x| f64::from((params.fake(x, top) - x).abs()).powf(f64::from(norm))).sum()
}

/// A different code is only allowed where `x/s` is a half step to the last bits.
fn assert_tie(at: &str, x: f32, scale: f32) {
    let quotient = x / scale;
    let tie = (quotient - quotient.floor() - 0.5).abs() <= 1e-6 * quotient.abs().max(1.0);
    assert!(tie, "{at}: x/s = {quotient} is no tie");
}

/// What was compared: codes, and those that differ.
#[derive(Default)]
struct Tally {
    cases: usize,
    codes: usize,
    different: usize,
}

struct Weights<'a> {
    grid: Grid,
    clip: Option<ClipSearch>,
    size: usize,
    /// The code base writes symmetric levels around 0.
    signed: bool,
    /// The code base has no lower bound on the range where our grid has one.
    unbounded: bool,
    scale: &'a Array1<f32>,
    zero: &'a Array1<f32>,
}

fn compare(name: &str, w: ArrayView2<'_, f32>, case: &Weights<'_>, codes: &Array2<f32>, tally: &mut Tally) {
    let q = round_matrix(&case.grid, case.clip.as_ref(), Groups::Size(case.size), w).unwrap();
    let groups = q.scales().ncols();
    let top = case.grid.bits.max_level();
    let half = if case.signed { case.grid.bits.mid_level() } else { 0.0 };
    for i in 0..w.nrows() {
        for g in 0..groups {
            let range = g * case.size..((g + 1) * case.size).min(w.ncols());
            let group: Vec<f32> = w.row(i).iter().copied().skip(range.start).take(range.len()).collect();
            let ours = q.params(i, g);
            let at = if case.scale.len() == 1 { 0 } else { i * groups + g };
            let theirs = QParams { scale: case.scale[at], zero: case.zero[at] + half };
            if case.unbounded && theirs.scale * top < 1e-5 {
                // The documented gap: the range is raised to 1e-5, so every weight is nearest to level z or beside it.
                assert_eq!(ours.scale, 1e-5 / top, "{name} row {i}");
                continue;
            }
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
            for (j, &x) in range.zip(&group) {
                tally.codes += 1;
                if f32::from(q.levels()[(i, j)]) - half != codes[(i, j)] {
                    tally.different += 1;
                    assert_tie(&format!("{name} ({i}, {j})"), x, theirs.scale);
                }
            }
        }
    }
}

fn weight_case(golden: &Golden, name: &str, c: &Value, bits: Bits, tally: &mut Tally) {
    let (implementation, sym) = (c["impl"].as_str().unwrap(), c["sym"].as_bool().unwrap_or(false));
    let (convention, variant) = match (implementation, sym) {
        // The binary rule takes the place of the integer formulas in the exact variant, so one bit is official.
        ("ist", false) if bits.get() > 1 => (Convention::QAsym, Variant::Exact),
        ("ist" | "qhs", false) => (Convention::QAsym, Variant::Official),
        ("ist", true) => (Convention::QSymGptq, Variant::Official),
        ("qhs", true) => (Convention::QSym, Variant::Official),
        ("awq", _) => (Convention::QAwq, Variant::Official),
        other => panic!("{name}: unknown implementation {other:?}"),
    };
    let clip = c["mse"].as_bool().unwrap_or(false).then(|| ClipSearch {
        norm: c["norm"].as_f64().unwrap_or(2.4) as f32,
        grid: c["grid"].as_u64().unwrap_or(100) as u32,
        max_shrink: c["maxshrink"].as_f64().unwrap_or(0.8),
    });
    let w = golden.matrix("W");
    let codes = golden.matrix(&format!("{name}.codes"));
    let shape = if c["granularity"] == "tensor" { (1, w.len()) } else { w.dim() };
    let (w, codes) = (w.into_shape_with_order(shape).unwrap(), codes.into_shape_with_order(shape).unwrap());
    let group = c["groupsize"].as_i64().filter(|&g| g > 0).map(|g| g as usize);
    let case = Weights {
        grid: Grid::new(convention, bits, variant, FloatType::F32).unwrap(),
        clip,
        size: group.unwrap_or(w.ncols()),
        signed: implementation == "qhs" && sym,
        unbounded: implementation == "ist" && convention == Convention::QAsym && variant == Variant::Official,
        scale: &golden.vector(&format!("{name}.scale")),
        zero: &golden.vector(&format!("{name}.zero")),
    };
    compare(name, w.view(), &case, &codes, tally);
}

/// Scale, zero and codes of dynamic activations, and that fake quantisation is made of exactly those.
fn activation_case(golden: &Golden, name: &str, c: &Value, bits: Bits, tally: &mut Tally) {
    let sym = c["sym"].as_bool().unwrap();
    let rule = if sym { ActRule::Symmetric } else { ActRule::Asymmetric };
    let clip_ratio = c["clip_ratio"].as_f64().unwrap() as f32;
    let x = golden.matrix("X");
    let group = c["groupsize"].as_i64().filter(|&g| g > 0).map(|g| g as usize);
    let size = group.unwrap_or(x.ncols());
    let shape = (x.len() / size, size);
    let x = x.into_shape_with_order(shape).unwrap();
    let codes = golden.matrix(&format!("{name}.codes")).into_shape_with_order(shape).unwrap();
    let (scale, zero) = (golden.vector(&format!("{name}.scale")), golden.vector(&format!("{name}.zero")));
    let mut fake = x.clone();
    ActQuant::Dynamic { bits, rule, clip_ratio: clip_ratio.into(), shards: 1 }.fake_quantize(fake.view_mut());
    // Symmetric codes of that code base are signed.
    let half = if sym { bits.mid_level() } else { 0.0 };
    let mut compared = 0;
    for (i, row) in x.rows().into_iter().enumerate() {
        let one_sided = row.iter().all(|&v| v > 0.0) || row.iter().all(|&v| v < 0.0);
        if group.is_some() && !sym && one_sided {
            continue; // the official grouped variant leaves zero out of such a range; ours always keeps it
        }
        let params = rule.params(bits, clip_ratio, &row.to_vec());
        assert!(close(params.scale, scale[i]), "{name} {i}: scale {} vs {}", params.scale, scale[i]);
        assert_eq!(params.zero - half, zero[i], "{name} {i}: zero level");
        for (j, &v) in row.iter().enumerate() {
            let level = params.level(v, bits.max_level());
            compared += 1;
            tally.codes += 1;
            if level - half != codes[(i, j)] {
                tally.different += 1;
                assert_tie(&format!("{name} ({i}, {j})"), v, scale[i]);
            }
            assert_eq!(fake[(i, j)], params.value(level), "{name} ({i}, {j})");
        }
    }
    assert!(compared * 2 > x.len(), "{name}: only {compared} values were compared");
}

fn smoothquant_case(golden: &Golden, name: &str, function: &str, bits: Bits) {
    let expected = golden.matrix(&format!("{name}.dq"));
    let input = golden.matrix(if function.contains("weight") { "W" } else { "X" });
    let shape = if function.contains("per_tensor") { (1, input.len()) } else { input.dim() };
    let input = input.into_shape_with_order(shape).unwrap();
    let grid = Grid::new(Convention::QSym, bits, Variant::Official, FloatType::F32).unwrap();
    let ours = round_matrix(&grid, None, Groups::Channel, input.view()).unwrap().dequantize();
    let ours = ours.into_shape_with_order(expected.dim()).unwrap();
    for ((i, j), &v) in expected.indexed_iter() {
        let same = (ours[(i, j)] - v).abs() <= 1e-6 * v.abs().max(1e-30);
        assert!(same, "{name} ({i}, {j}): {} vs {v}", ours[(i, j)]);
    }
}

fn run(golden: &Golden) -> Tally {
    let mut tally = Tally::default();
    for (name, c) in golden.cases() {
        let bits = Bits::new(c["bits"].as_u64().unwrap() as u32).unwrap();
        match c["impl"].as_str().unwrap() {
            // The learnable clipping of FlatQuant belongs to that method.
            "flatquant_act" => continue,
            "qhs_act" => activation_case(golden, name, c, bits, &mut tally),
            "smoothquant" => smoothquant_case(golden, name, c["fn"].as_str().unwrap(), bits),
            _ => weight_case(golden, name, c, bits, &mut tally),
        }
        tally.cases += 1;
    }
    println!("{} cases, {} of {} codes differ", tally.cases, tally.different, tally.codes);
    assert!((tally.different as f64) < 5e-4 * tally.codes as f64);
    tally
}

#[test]
fn official_quantisers_of_the_subset() {
    let tally = run(&Golden::parse(include_bytes!("data/quantizer_subset.safetensors")));
    assert_eq!(tally.cases, 67);
    assert!(tally.codes > 140_000, "{}", tally.codes);
}

#[test]
fn official_quantisers() {
    let Some(golden) = Golden::shared("quantizer.safetensors") else { return };
    assert_eq!(run(&golden).cases, 73);
}
