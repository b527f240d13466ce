//! The published implementations' numbers, at the tolerances that come with them.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use half::f16;
use ndarray::{Array2, Array3, ArrayView2, Axis, s};
use quant_core::{Bits, ClipSearch, Convention, FloatType, Grid, Variant};
use quant_hessian::{ActOrder, FactorSettings, GptqConfig, Hessian, Precision, gptq, prepare};
use quant_kernels::{Compute, Par};
use safetensors::SafeTensors;
use serde_json::Value;

struct Goldens<'a> {
    tensors: SafeTensors<'a>,
    cases: serde_json::Map<String, Value>,
}

impl<'a> Goldens<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let (_, header) = SafeTensors::read_metadata(bytes).expect("a safetensors header");
        let meta = &header.metadata().as_ref().expect("metadata")["meta"];
        let meta: Value = serde_json::from_str(meta).expect("meta is JSON");
        let cases = meta["cases"].as_object().expect("cases").clone();
        Self { tensors: SafeTensors::deserialize(bytes).expect("a safetensors file"), cases }
    }
    fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }
    fn numbers(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        use safetensors::Dtype;
        let view = self.tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I32 => data.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
            Dtype::F16 => {
                data.chunks(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
            }
            Dtype::U8 => data.iter().map(|&b| f32::from(b)).collect(),
            Dtype::I8 => data.iter().map(|&b| f32::from(b as i8)).collect(),
            other => panic!("{name}: unexpected {other:?}"),
        };
        (view.shape().to_vec(), values)
    }
    fn matrix(&self, name: &str) -> Array2<f32> {
        let (shape, values) = self.numbers(name);
        Array2::from_shape_vec((shape[0], shape[1]), values).expect(name)
    }
    fn activations(&self) -> Array3<f32> {
        let (shape, values) = self.numbers("X");
        Array3::from_shape_vec((shape[0], shape[1], shape[2]), values).expect("X")
    }
    fn hessian(&self) -> Hessian {
        let x = self.activations();
        let mut hessian = Hessian::new(x.dim().2);
        for sequence in x.axis_iter(Axis(0)) {
            hessian.add(sequence, 1, Compute::F32, Par::Seq).unwrap();
        }
        hessian
    }
}

fn frobenius(a: impl Iterator<Item = f32>) -> f64 {
    a.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// tr(D H Dᵀ) in f64.
fn proxy(d: &Array2<f32>, h: &Array2<f32>) -> f64 {
    let (d, h) = (d.mapv(f64::from), h.mapv(f64::from));
    (&d.dot(&h) * &d).sum()
}

fn close(what: &str, got: f64, want: f64, tolerance: f64) -> f64 {
    let relative = (got - want).abs() / want.abs().max(f64::MIN_POSITIVE);
    assert!(relative <= tolerance, "{what}: {got} instead of {want}, relative difference {relative:e}");
    relative
}

fn check_case(
    goldens: &Goldens<'_>,
    name: &str,
    h: &Array2<f32>,
    weight: ArrayView2<'_, f32>,
    precision: Precision,
) {
    let case = &goldens.cases[name];
    let flag = |key: &str| case.get(key).and_then(Value::as_bool).unwrap_or(false);
    let number = |key: &str| case.get(key).and_then(Value::as_f64);
    let bits = Bits::new(number("bits").unwrap() as u32).unwrap();
    let (symmetric, act_order) = (flag("sym"), flag("actorder"));
    let ist = case["variant"] == "ist";
    let (convention, variant) = match (ist, symmetric) {
        (true, false) => (Convention::QAsym, Variant::Exact),
        (true, true) => (Convention::QSymGptq, Variant::Official),
        (false, false) => (Convention::QAsym, Variant::Official),
        (false, true) => (Convention::QSym, Variant::Official),
    };
    let settings = FactorSettings {
        damping: number("percdamp").unwrap(),
        act_order,
        precision,
        ..FactorSettings::default()
    };
    let factor = prepare(goldens.hessian(), &settings, Par::Seq).unwrap();
    let config = GptqConfig {
        group: number("groupsize").map(|g| g as usize),
        clip: flag("mse").then(ClipSearch::default),
        act_order: match (act_order, flag("static_groups")) {
            (false, _) => ActOrder::None,
            (true, true) => ActOrder::Static,
            (true, false) => ActOrder::Dynamic,
        },
        static_groups: flag("static_groups"),
        block: number("blocksize").map_or(128, |b| b as usize),
        ..GptqConfig::new(Grid::new(convention, bits, variant, FloatType::F32).unwrap())
    };
    let result = gptq(weight, &factor, &config, Par::Seq).unwrap();

    let offset = if !ist && symmetric { bits.mid_level() } else { 0.0 };
    let want = goldens.matrix(&format!("{name}.codes"));
    let codes = result.matrix.levels.mapv(|l| f32::from(l) - offset);
    let different = codes.iter().zip(&want).filter(|(a, b)| a != b).count();
    assert!(different * 1000 <= codes.len(), "{name}: {different} of {} codes differ", codes.len());
    let want = goldens.matrix(&format!("{name}.scale"));
    let scale_error =
        frobenius((&result.matrix.scales - &want).into_iter()) / frobenius(want.iter().copied());
    assert!(scale_error <= 1e-5, "{name}: scales differ by {scale_error:e}");
    let zeros = goldens.matrix(&format!("{name}.zero"));
    let zero_errors = result.matrix.zeros.iter().zip(&zeros).filter(|(a, b)| **a - offset != **b).count();
    assert!(zero_errors * 1000 <= zeros.len(), "{name}: {zero_errors} of {} zeros differ", zeros.len());
    let (_, g_idx) = goldens.numbers(&format!("{name}.g_idx"));
    for (column, &group) in g_idx.iter().enumerate() {
        assert_eq!(result.matrix.groups.of(column), group as usize, "{name}: group of column {column}");
    }
    if goldens.has(&format!("{name}.perm")) {
        let (_, perm) = goldens.numbers(&format!("{name}.perm"));
        let order: Vec<f32> = factor.order().unwrap().iter().map(|&c| c as f32).collect();
        let differ = order.iter().zip(&perm).filter(|(a, b)| a != b).count();
        // The two dead columns tie, and ties are open in the reference.
        assert!(differ <= 2, "{name}: {differ} positions of the order differ");
    }
    let loss = close(name, result.loss(), number("loss").unwrap(), 1e-3);
    let (_, rows) = goldens.numbers(&format!("{name}.losses_row"));
    let mut worst_row = 0.0_f64;
    for (row, &want) in rows.iter().enumerate() {
        let relative = (result.row_losses[row] - f64::from(want)).abs() / f64::from(want);
        worst_row = worst_row.max(relative);
    }
    let difference = &weight - &result.matrix.dequantize();
    let proxy = close(name, proxy(&difference, h), number("proxy_trDHDt").unwrap(), 1e-3);
    println!(
        "{name:34} codes {different} of {}, zeros {zero_errors}, scale {scale_error:.1e}, loss {loss:.1e} \
         (worst row {worst_row:.1e}), proxy {proxy:.1e}",
        codes.len()
    );
}

fn check_all(goldens: &Goldens<'_>, precision: Precision) {
    let h = goldens.hessian().finish().unwrap();
    let weight = goldens.matrix("W");
    for name in goldens.cases.keys() {
        check_case(goldens, name, &h, weight.view(), precision);
    }
}

const SUBSET: &[u8] = include_bytes!("data/gptq_subset.safetensors");

#[test]
fn subset_in_f32() {
    let goldens = Goldens::new(SUBSET);
    assert_eq!(goldens.cases.len(), 6);
    let (_, want) = goldens.numbers("Hdiag");
    for (got, want) in goldens.hessian().diagonal().unwrap().iter().zip(want) {
        assert!((got - want).abs() <= 1e-5 * want);
    }
    check_all(&goldens, Precision::F32);
}

#[test]
fn subset_in_f64() {
    check_all(&Goldens::new(SUBSET), Precision::F64);
}

#[test]
fn every_case_of_the_golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/goldens/gptq.safetensors");
    let Ok(bytes) = std::fs::read(path) else {
        quant_testkit::skipped(format_args!("{path} not present"));
        return;
    };
    let goldens = Goldens::new(&bytes);
    assert_eq!(goldens.cases.len(), 33);
    let (got, want) = (goldens.hessian().finish().unwrap(), goldens.matrix("H"));
    let error = frobenius((&got - &want).into_iter()) / frobenius(want.iter().copied());
    println!("H: relative difference {error:.1e}");
    assert!(error <= 1e-5, "H: {error:e}");
    check_all(&goldens, Precision::F32);

    // The stored H instead of ours, through `from_matrix`, and activations in one go: the same factor.
    let settings = FactorSettings::default();
    let stored = prepare(Hessian::from_matrix(want, 8).unwrap(), &settings, Par::Seq).unwrap();
    let x = goldens.activations();
    let flat = x.to_shape((320, 160)).unwrap();
    let mut whole = Hessian::new(160);
    whole.add(flat.slice(s![.., ..]), 8, Compute::F32, Par::Seq).unwrap();
    let whole = prepare(whole, &settings, Par::Seq).unwrap();
    for (name, value) in [("stored H", stored.report().lambda()), ("one batch", whole.report().lambda())] {
        close(name, value, prepare(goldens.hessian(), &settings, Par::Seq).unwrap().report().lambda(), 1e-5);
    }
    assert_eq!(stored.report().dead_columns, [17, 90]);
}
