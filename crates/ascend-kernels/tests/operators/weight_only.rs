//! Products of floats with coded weights.

use crate::npu::{Npu, halves};
use ascend_kernels::layout::pack_int4_words;
use ascend_kernels::operators::WeightOnlyMatmul;
use ascend_kernels::{DeviceBuffer, Tensor};
use ascend_sim::Switch;
use half::bf16;
use quant_testkit::Numbers;

#[test]
pub(crate) fn weight_only_products() {
    let (m, k, n) = (3, 64, 32);
    let mut numbers = Numbers::new(4);
    let x: Vec<f32> = numbers.matrix(m, k, 1.0).iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    let codes: Vec<i8> = numbers.matrix(k, n, 127.0).iter().map(|&x| x as i8).collect();
    for (group, fast, msd) in [(None, false, 0), (Some(32), false, 0), (None, true, 0), (None, false, 1)] {
        let npu = Npu::new();
        npu.simulator.set(Switch::Msd, msd);
        let weight = npu.put(&codes, &[k, n]);
        let case = WeightOnlyCase { x: &x, codes: &codes, weight: &weight, shape: (m, k, n), group, fast };
        case.holds(&npu, &format!("{group:?} {fast} {msd}"));
    }
}

/// Three digits of four bits (7.49, 14.98), for groups of 64 and 128: at most an eighth of a group of rows, and sums in any order.
#[test]
pub(crate) fn weight_only_products_of_four_bits() {
    for group in [64, 128] {
        let (k, n) = (2 * group, 64);
        let codes: Vec<i8> =
            Numbers::new(5).matrix(k, n, 8.0).iter().map(|x| x.round().min(7.0) as i8).collect();
        for (m, deterministic, digits) in [(8, false, true), (8, true, false), (group / 8 + 1, false, false)]
        {
            let x: Vec<f32> =
                Numbers::new(6).matrix(m, k, 1.0).iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            let [plain, few] = [0, 1].map(|msd| {
                let npu = Npu::new();
                npu.simulator.set(Switch::Msd, msd);
                npu.device.set_deterministic(deterministic).unwrap();
                let words = DeviceBuffer::from_slice(&npu.device, &pack_int4_words(&codes).unwrap()).unwrap();
                let weight = Tensor::int4_words(&words, &[k, n / 8]).unwrap();
                let (group, fast) = (Some(group), false);
                let case =
                    WeightOnlyCase { x: &x, codes: &codes, weight: &weight, shape: (m, k, n), group, fast };
                case.holds(&npu, &format!("{m} rows, groups of {group:?}, {msd}"))
            });
            assert_eq!(
                plain != few,
                digits,
                "{m} rows, groups of {group}, in a fixed order: {deterministic}"
            );
        }
    }
}

struct WeightOnlyCase<'a> {
    x: &'a [f32],
    codes: &'a [i8],
    weight: &'a Tensor,
    shape: (usize, usize, usize),
    group: Option<usize>,
    fast: bool,
}

impl WeightOnlyCase<'_> {
    /// Runs it with scales and a bias, and compares the results with sums in f64.
    fn holds(&self, npu: &Npu, name: &str) -> Vec<bf16> {
        let Self { x, codes, weight, shape: (m, k, n), group, fast } = *self;
        let groups = group.map_or(1, |g| k / g);
        let scale: Vec<f32> =
            (0..groups * n).map(|i| bf16::from_f32(0.01 + i as f32 * 1e-4).to_f32()).collect();
        let xs = npu.put(&halves(x, bf16::from_f32), &[m, k]);
        let scales = npu.put(&halves(&scale, bf16::from_f32), &[groups, n]);
        let bias = npu.put(&vec![0.5_f32; n], &[n]);
        let (got, y) = npu.room::<bf16>(&[m, n]);
        let (offset, bias) = (None, Some(&bias));
        let operator = WeightOnlyMatmul { x: &xs, weight, scale: &scales, offset, bias, group, fast, y: &y };
        npu.run(operator.prepare(&npu.device));
        let got = npu.get(&got);
        for at in 0..m * n {
            let (i, j) = (at / n, at % n);
            let term = |l: usize| {
                f64::from(x[i * k + l])
                    * f64::from(codes[l * n + j])
                    * f64::from(scale[group.map_or(0, |g| l / g) * n + j])
            };
            let (exact, size) =
                (0..k).fold((0.5, 0.5), |(sum, size), l| (sum + term(l), size + term(l).abs()));
            // Weights and results are rounded to bf16 once each; digits carry eleven bits of the largest activation and more.
            let bound = size * 2.0_f64.powi(-8) + exact.abs() * 2.0_f64.powi(-8);
            assert!((f64::from(got[at].to_f32()) - exact).abs() <= bound, "{name}: {} {exact}", got[at]);
        }
        got
    }
}
