//! The published implementation's numbers (brevitas 0.13.4), at the tolerances that come with them, where the reference data is
//! present.

use ndarray::{Array2, Axis};
use quant_core::{Bits, ClipSearch, Convention, FloatType, Grid, Variant};
use quant_kernels::{Compute, Par};
use quant_testkit::Golden;

use super::goldens::{close, frobenius};
use crate::{
    ActOrder, CrossGram, DampingUnit, FactorSettings, GptqConfig, Hessian, Precision, QronosConfig, Retarget,
    prepare, qronos,
};

/// The quantised stream of a case, some of its channels dead, and the float stream.
fn streams(golden: &Golden, name: &str) -> (Array2<f32>, Array2<f32>) {
    let case = &golden.cases()[name];
    let mut x = golden.matrix(case["input"].as_str().unwrap());
    for column in case["zeroed_columns_of_input"].as_array().unwrap() {
        x.column_mut(column.as_u64().unwrap() as usize).fill(0.0);
    }
    (golden.matrix("X_fp"), x)
}

fn sums(float: &Array2<f32>, x: &Array2<f32>, sequences: usize) -> (Hessian, CrossGram) {
    let (mut hessian, mut cross) = (Hessian::new(x.ncols()), CrossGram::new(x.ncols(), true));
    let tokens = x.nrows() / sequences;
    for (float, x) in float.axis_chunks_iter(Axis(0), tokens).zip(x.axis_chunks_iter(Axis(0), tokens)) {
        hessian.add(x, 1, Compute::F32, Par::Seq).unwrap();
        cross.add(float, x, 1, Compute::F32, Par::Seq).unwrap();
    }
    (hessian, cross)
}

#[test]
fn every_case_of_the_golden_file() {
    let Some(golden) = Golden::shared("qronos.safetensors") else { return };
    assert_eq!(golden.cases().len(), 18);
    let weight = golden.matrix("W");
    let sequences = golden.tensor("X").shape[0];
    let (mut apart, mut all) = (0, 0);
    for (name, case) in golden.cases() {
        let part = |part: &str| golden.matrix(&format!("{name}.{part}"));
        let flag = |key: &str| case[key].as_bool().unwrap();
        let number = |key: &str| case[key].as_f64().unwrap();
        let bits = Bits::new(number("bits") as u32).unwrap();
        let convention = if flag("sym") { Convention::QSym } else { Convention::QAsym };
        let offset = if flag("sym") { bits.mid_level() } else { 0.0 };
        let grid = Grid::new(convention, bits, Variant::Official, FloatType::F32).unwrap();
        let gptq = GptqConfig {
            group: Some(number("group_size")).filter(|&g| g > 0.0).map(|g| g as usize),
            clip: flag("mse").then(ClipSearch::default),
            act_order: if flag("act_order") { ActOrder::Static } else { ActOrder::None },
            ..GptqConfig::new(grid)
        };
        let config = QronosConfig { variant: Variant::Official, ..QronosConfig::new(gptq) };
        let (float, x) = streams(&golden, name);
        let (hessian, cross) = sums(&float, &x, sequences);
        if golden.has(&format!("{name}.H")) {
            // Means over tokens, where ours are sums over tokens times 2/N.
            let tokens = x.nrows() as f32;
            let scale = sequences as f32 / (2.0 * tokens);
            let h = hessian.clone().finish().unwrap() * scale;
            let g = cross.clone().finish().unwrap() * scale + &h;
            for (what, got) in [("H", h), ("G", g)] {
                let want = part(what);
                assert!(frobenius(&(&got - &want)) <= 1e-5 * frobenius(&want), "{name}: {what}");
            }
        }
        let settings = FactorSettings {
            damping: number("alpha"),
            damping_unit: DampingUnit::LargestEigenvalue,
            act_order: flag("act_order"),
            precision: Precision::F64,
            ..FactorSettings::default()
        };
        let unit = sequences as f64 / (2.0 * x.nrows() as f64);
        let factor = prepare(hessian, &settings, Par::Seq).unwrap();
        close(&format!("{name}: lambda"), factor.report().lambda() * unit, number("damp"), 1e-4);
        let retarget = Retarget::new(cross, &factor, weight.nrows(), Par::Seq).unwrap();
        let result = qronos(weight.view(), &factor, &retarget, &config, Par::Seq).unwrap();

        let matrix = &result.rounded.matrix;
        let codes = matrix.levels().mapv(|l| f32::from(l) - offset);
        let different = |want: &Array2<f32>| codes.iter().zip(want).filter(|(a, b)| a != b).count();
        let (exact, single) = (different(&part("codes_f64")), different(&part("codes")));
        let target = float.mapv(f64::from).dot(&weight.mapv(f64::from).t());
        let off = &target - &x.mapv(f64::from).dot(&matrix.dequantize().mapv(f64::from).t());
        let error = off.mapv(|e| e * e).sum() / target.mapv(|e| e * e).sum();
        let error = close(&format!("{name}: output"), error, number("out_rel_err_f64"), 1e-3);
        println!(
            "{name:30} {exact} of {} codes differ from f64, {single} from f32; output {error:.1e}; shift {:.3}",
            codes.len(),
            result.shift
        );
        // The column loop is f32, whose rounding 8-bit codes can tell: there its tolerance is that of f32 solvers.
        let wide = bits.get() == 8;
        let (from_f64, from_f32) = if wide { (0.03, 0.03) } else { (0.001, 0.01) };
        let most = |share: f64| (share * codes.len() as f64) as usize;
        assert!(exact <= most(from_f64), "{name}: {exact} codes differ from f64");
        assert!(single <= most(from_f32), "{name}: {single} codes differ from f32");
        for (what, got, want) in [
            ("scale", matrix.scales().clone(), part("scale")),
            ("zero", matrix.zeros() - offset, part("zero")),
        ] {
            assert!(frobenius(&(&got - &want)) <= 1e-6 * frobenius(&want), "{name}: {what}");
        }
        (apart, all) = (apart + exact, all + codes.len());
    }
    println!("{apart} of {all} codes differ from the f64 solver");
}
