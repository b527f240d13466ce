//! BiLLM's published implementation, at the tolerances that come with its numbers: a subset in the repository, every case where
//! the reference data is present.

use ndarray::Array2;
use quant_core::Variant;
use quant_kernels::Par;
use quant_testkit::Golden;

use super::goldens::{frobenius, hessian};
use crate::{BillmConfig, FactorSettings, Hessian, SalientMetric, billm, prepare};

const SUBSET: &[u8] = include_bytes!("../../tests/data/billm_subset.safetensors");

fn check(golden: &Golden, name: &str) {
    let case = &golden.cases()[name];
    let text = |key: &str| case[key].as_str().unwrap();
    let metric = match text("salient_metric") {
        "hessian" => SalientMetric::Hessian,
        _ => SalientMetric::Magnitude,
    };
    let feedback = !case["disable_gptq"].as_bool().unwrap();
    let block = case["blocksize"].as_u64().unwrap() as usize;
    let config = BillmConfig { metric, block, variant: Variant::Official, feedback };
    let h =
        if golden.has("X") { hessian(golden) } else { Hessian::from_matrix(golden.matrix("H"), 6).unwrap() };
    let settings =
        FactorSettings { damping: case["percdamp"].as_f64().unwrap(), ..FactorSettings::default() };
    let factor = prepare(h, &settings, Par::Seq).unwrap();
    let weight = golden.matrix("W");
    let result = billm(weight.view(), &factor, &config, Par::new(2)).unwrap();
    let counts: Vec<i64> = result.blocks.iter().map(|b| b.salient.len() as i64).collect();
    assert_eq!(counts, golden.tensor(&format!("{name}.n_salient")).i64(), "{name}: salient columns");
    let mut worst = [0.0_f64; 2];
    for (i, found) in result.blocks.iter().enumerate() {
        let mut columns: Vec<i64> = found.salient.iter().map(|&c| (c - i * block) as i64).collect();
        let mut wanted = golden.tensor(&format!("{name}.block{i}.salient_columns")).i64();
        columns.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(columns, wanted, "{name}: salient columns of block {i}");
        let errors = golden.tensor(&format!("{name}.block{i}.salient_search_mse")).f64();
        let thresholds = golden.tensor(&format!("{name}.block{i}.percentile_values")).f64();
        let found_thresholds: Vec<f64> = found.thresholds.iter().map(|&t| f64::from(t)).collect();
        for (at, (found, wanted)) in
            [(&found.salient_errors, errors), (&found_thresholds, thresholds)].into_iter().enumerate()
        {
            assert_eq!(found.len(), wanted.len());
            for (a, b) in found.iter().zip(wanted) {
                worst[at] = worst[at].max((a - b).abs() / b.abs().max(1e-30));
            }
        }
    }
    // Float noise of the update moves the second block's weights; the searches see sums over all rows.
    assert!(worst.iter().all(|w| *w <= 1e-3), "{name}: search errors {worst:?}");
    let groups = golden.tensor(&format!("{name}.group")).i64();
    let group = |i: usize, j: usize| match (result.matrix.salient()[j], result.matrix.codes()[(i, j)] & 2) {
        (true, _) => 3,
        (false, 0) => 1,
        (false, _) => 2,
    };
    let different =
        groups.iter().enumerate().filter(|(at, g)| group(at / weight.ncols(), at % weight.ncols()) != **g);
    let different = different.count();
    assert!(different * 1000 <= groups.len(), "{name}: {different} of {} group entries differ", groups.len());
    let wanted: Array2<f32> = golden.matrix(&format!("{name}.Q"));
    let q = result.matrix.dequantize();
    let error = frobenius(&(&q - &wanted)) / frobenius(&wanted);
    println!(
        "{name}: {different} group entries, searches {:.1e} and {:.1e}, Q {error:.1e}",
        worst[0], worst[1]
    );
    assert!(error <= 1e-4, "{name}: Q differs by {error:e}");
}

#[test]
fn subset() {
    let golden = Golden::parse(SUBSET);
    assert_eq!(golden.cases().len(), 1);
    golden.cases().keys().for_each(|name| check(&golden, name));
}

#[test]
fn every_case_of_the_golden_file() {
    let Some(golden) = Golden::shared("billm.safetensors") else { return };
    assert_eq!(golden.cases().len(), 3);
    golden.cases().keys().for_each(|name| check(&golden, name));
}
