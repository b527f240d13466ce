//! FlatQuant's transform, and codes behind it.

use crate::npu::{Npu, halves};
use ascend_kernels::layout::pack_int4_words;
use ascend_kernels::operators::KroneckerQuant;
use ascend_kernels::{DeviceBuffer, Tensor};
use ascend_sim::Switch;
use half::f16;
use quant_testkit::Numbers;

#[test]
pub(crate) fn kronecker_codes() {
    let npu = Npu::new();
    let x: Vec<f32> = (0..2 * 2 * 8).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
    let left = [1.0_f32, 1.0, 1.0, -1.0];
    let right: Vec<f32> = (0..64).map(|i| if i / 8 == i % 8 { 1.0 } else { 0.25 }).collect();
    let xs = npu.put(&halves(&x, f16::from_f32), &[2, 2, 8]);
    let (l, r) =
        (npu.put(&halves(&left, f16::from_f32), &[2, 2]), npu.put(&halves(&right, f16::from_f32), &[8, 8]));
    let words = DeviceBuffer::<i32>::new(&npu.device, 4).unwrap();
    let codes = Tensor::int4_words(&words, &[2, 2, 1]).unwrap();
    let (scales, scale) = npu.room::<f32>(&[2]);
    let operator =
        KroneckerQuant { x: &xs, left: &l, right: &r, clip_ratio: 0.875, codes: &codes, scale: &scale };
    npu.run(operator.prepare(&npu.device));
    let (words, scales) = (npu.get(&words), npu.get(&scales));
    for token in 0..2 {
        let y = |i: usize, j: usize| -> f32 {
            (0..2)
                .map(|p| {
                    left[i * 2 + p]
                        * (0..8).map(|q| x[(token * 2 + p) * 8 + q] * right[q * 8 + j]).sum::<f32>()
                })
                .sum()
        };
        let all: Vec<f32> = (0..16).map(|at| y(at / 8, at % 8)).collect();
        let largest = all.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        assert_eq!(scales[token], largest / 8.0);
        let want: Vec<i8> =
            all.iter().map(|x| (x / scales[token]).round_ties_even().clamp(-8.0, 7.0) as i8).collect();
        assert_eq!(words[token * 2..token * 2 + 2], pack_int4_words(&want).unwrap());
    }
    // 148 · 128: a second factor that is no multiple of 8 has no words.
    let (x, r) = (npu.room::<f16>(&[1, 2, 148]).1, npu.room::<f16>(&[148, 148]).1);
    let refused = KroneckerQuant { x: &x, right: &r, ..operator };
    assert!(refused.prepare(&npu.device).unwrap_err().to_string().contains("multiple of 8"));
}

/// FlatQuant with the product between its factors in f32, or rounded to the type of the input: either gives what plain loops give.
#[test]
pub(crate) fn kronecker_codes_rounded_between() {
    let (tokens, n1, n2) = (3, 4, 16);
    let mut numbers = Numbers::new(12);
    let mut random = |rows: usize, columns: usize| -> Vec<f32> {
        numbers.matrix(rows, columns, 1.0).iter().map(|&x| f16::from_f32(x).to_f32()).collect()
    };
    let (x, left, right) = (random(tokens * n1, n2), random(n1, n1), random(n2, n2));
    let found = [0, 1].map(|between| {
        let npu = Npu::new();
        npu.simulator.set(Switch::RoundBetween, between);
        let xs = npu.put(&halves(&x, f16::from_f32), &[tokens, n1, n2]);
        let l = npu.put(&halves(&left, f16::from_f32), &[n1, n1]);
        let r = npu.put(&halves(&right, f16::from_f32), &[n2, n2]);
        let words = DeviceBuffer::<i32>::new(&npu.device, tokens * n1 * n2 / 8).unwrap();
        let codes = Tensor::int4_words(&words, &[tokens, n1, n2 / 8]).unwrap();
        let (scales, scale) = npu.room::<f32>(&[tokens]);
        let operator =
            KroneckerQuant { x: &xs, left: &l, right: &r, clip_ratio: 0.875, codes: &codes, scale: &scale };
        npu.run(operator.prepare(&npu.device));
        let round = |x: f32| if between == 0 { x } else { f16::from_f32(x).to_f32() };
        let dot = |count: usize, term: &dyn Fn(usize) -> f32| (0..count).fold(0.0, |sum, l| sum + term(l));
        let (got, scales) = (npu.get(&words), npu.get(&scales));
        for token in 0..tokens {
            let first =
                |p: usize, j: usize| round(dot(n2, &|q| x[(token * n1 + p) * n2 + q] * right[q * n2 + j]));
            let all: Vec<f32> =
                (0..n1 * n2).map(|at| dot(n1, &|p| left[at / n2 * n1 + p] * first(p, at % n2))).collect();
            let largest = all.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            assert_eq!(scales[token], largest / 8.0, "{between}");
            let code = |x: &f32| (x / scales[token]).round_ties_even().clamp(-8.0, 7.0) as i8;
            let want = pack_int4_words(&all.iter().map(code).collect::<Vec<_>>()).unwrap();
            assert_eq!(got[token * n1 * n2 / 8..(token + 1) * n1 * n2 / 8], want, "{between}");
        }
        scales
    });
    assert_ne!(found[0], found[1], "the switch changes nothing");
}
