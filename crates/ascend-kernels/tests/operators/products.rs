//! Products of codes, and of floats.

use crate::npu::Npu;
use ascend_kernels::layout::{pack_int4, pack_int4_words, pack_scale, to_nz};
use ascend_kernels::operators::{CubeMath, DynamicQuant, Matmul, MatmulVersion, PackInt4, QuantMatmul};
use ascend_kernels::{DeviceBuffer, Tensor};
use ascend_sim::Switch;
use half::{bf16, f16};

fn product<'a>(x: &'a Tensor, weight: &'a Tensor, scale: &'a Tensor, out: &'a Tensor) -> QuantMatmul<'a> {
    QuantMatmul { x, weight, transposed: false, scale, token_scale: None, offset: None, bias: None, out }
}

#[test]
pub(crate) fn products_of_every_version_and_type() {
    let npu = Npu::new();
    let (m, k, n) = (3, 34, 6);
    let code = |i: usize| ((i * 37) % 255) as i32 - 127;
    let (x, w): (Vec<i8>, Vec<i8>) =
        ((0..m * k).map(|i| code(i) as i8).collect(), (0..k * n).map(|i| code(i + 9) as i8).collect());
    let sum =
        |i: usize, j: usize| (0..k).map(|l| i32::from(x[i * k + l]) * i32::from(w[l * n + j])).sum::<i32>();
    let sums: Vec<i32> = (0..m * n).map(|at| sum(at / n, at % n)).collect();
    let xs = npu.put(&x, &[m, k]);
    let plain = npu.put(&w, &[k, n]);
    let turned: Vec<i8> = (0..n * k).map(|at| w[at % k * n + at / k]).collect();
    let turned = npu.put(&turned, &[n, k]);
    let nz = DeviceBuffer::from_slice(&npu.device, &to_nz(&w, k, n).unwrap()).unwrap();
    let nz = Tensor::nz(&nz, k, n).unwrap();
    let bias: Vec<i32> = (0..n).map(|j| j as i32 * 1000 - 2500).collect();
    let biases = npu.put(&bias, &[n]);
    let one = npu.put(&[1.0_f32], &[1]);
    // Bare sums, in every version, layout and orientation.
    for (weight, transposed, version) in [
        (&plain, false, MatmulVersion::V3),
        (&plain, false, MatmulVersion::V4),
        (&plain, false, MatmulVersion::V5),
        (&turned, true, MatmulVersion::V5),
        (&nz, false, MatmulVersion::V4),
        (&nz, false, MatmulVersion::WeightNz),
    ] {
        let (got, out) = npu.room::<i32>(&[m, n]);
        let operator = QuantMatmul { transposed, bias: Some(&biases), ..product(&xs, weight, &one, &out) };
        npu.run(operator.prepare_with(&npu.device, version));
        let want: Vec<i32> = sums.iter().enumerate().map(|(at, sum)| sum + bias[at % n]).collect();
        assert_eq!(npu.get(&got), want, "{version:?} {transposed}");
    }
    // Scales as words: f16, and codes with an offset, through 19 bits.
    let (scales, offsets): (Vec<f32>, Vec<i32>) =
        ((0..n).map(|j| 0.001 + j as f32 * 0.0003).collect(), vec![5, -3, 0, 255, -256, 7]);
    let words: Vec<u64> = scales.iter().zip(&offsets).map(|(&s, &o)| pack_scale(s, o)).collect();
    let words = npu.put(&words, &[n]);
    let cut = |j: usize| f32::from_bits(scales[j].to_bits() & !0x1FFF);
    let (got, out) = npu.room::<f16>(&[m, n]);
    npu.run(product(&xs, &plain, &words, &out).prepare(&npu.device));
    let want: Vec<f16> =
        sums.iter().enumerate().map(|(at, &s)| f16::from_f32(s as f32 * cut(at % n))).collect();
    assert_eq!(npu.get(&got), want);
    let (got, out) = npu.room::<i8>(&[m, n]);
    npu.run(product(&xs, &plain, &words, &out).prepare(&npu.device));
    let want = |(at, &s): (usize, &i32)| {
        let nine = (s as f32 * cut(at % n)).round_ties_even().clamp(-256.0, 255.0) as i32;
        (nine + offsets[at % n]).clamp(-128, 127) as i8
    };
    assert_eq!(npu.get(&got), sums.iter().enumerate().map(want).collect::<Vec<_>>());
    // All of the scale, where the switch says that nothing is cut.
    npu.simulator.set(Switch::Fp19, 0);
    let full = npu.put(&scales.iter().map(|s| u64::from(s.to_bits())).collect::<Vec<_>>(), &[n]);
    let (got, out) = npu.room::<f16>(&[m, n]);
    npu.run(product(&xs, &plain, &full, &out).prepare(&npu.device));
    let want: Vec<f16> =
        sums.iter().enumerate().map(|(at, &s)| f16::from_f32(s as f32 * scales[at % n])).collect();
    assert_eq!(npu.get(&got), want);
}

#[test]
pub(crate) fn products_of_four_bits() {
    let npu = Npu::new();
    let (m, k, n) = (2, 16, 8);
    let code = |i: usize| ((i * 5) % 16) as i8 - 8;
    let (x, w): (Vec<i8>, Vec<i8>) =
        ((0..m * k).map(code).collect(), (0..k * n).map(|i| code(i + 3)).collect());
    let sum =
        |at: usize| (0..k).map(|l| i32::from(x[at / n * k + l]) * i32::from(w[l * n + at % n])).sum::<i32>();
    let (token, scale): (Vec<f32>, Vec<f32>) =
        (vec![0.5, 0.25], (0..n).map(|j| 0.01 + j as f32 * 0.01).collect());
    let (token_scale, scales) = (npu.put(&token, &[m]), npu.put(&scale, &[n]));
    let bytes = |codes: &[i8]| DeviceBuffer::from_slice(&npu.device, &pack_int4(codes).unwrap()).unwrap();
    let words =
        |codes: &[i8]| DeviceBuffer::from_slice(&npu.device, &pack_int4_words(codes).unwrap()).unwrap();
    let pairs = [
        (Tensor::int4(&bytes(&x), &[m, k]).unwrap(), Tensor::int4(&bytes(&w), &[k, n]).unwrap()),
        (
            Tensor::int4_words(&words(&x), &[m, k / 8]).unwrap(),
            Tensor::int4_words(&words(&w), &[k, n / 8]).unwrap(),
        ),
    ];
    for (x, weight) in &pairs {
        let (got, out) = npu.room::<bf16>(&[m, n]);
        let operator = QuantMatmul { token_scale: Some(&token_scale), ..product(x, weight, &scales, &out) };
        npu.run(operator.prepare(&npu.device));
        let want: Vec<bf16> =
            (0..m * n).map(|at| bf16::from_f32(sum(at) as f32 * scale[at % n] * token[at / n])).collect();
        assert_eq!(npu.get(&got), want);
        assert!(operator.prepare_with(&npu.device, MatmulVersion::V3).is_err());
    }
    let packed = DeviceBuffer::<i32>::new(&npu.device, 1).unwrap();
    let out = Tensor::int4_words(&packed, &[1, 1]).unwrap();
    npu.run(PackInt4 { codes: &[-8, -7, -1, 0, 1, 2, 6, 7], shape: (1, 8), out: &out }.prepare(&npu.device));
    assert_eq!(npu.get(&packed), [0x7621_0F98]);
    assert!(PackInt4 { codes: &[8; 8], shape: (1, 8), out: &out }.prepare(&npu.device).is_err());
}

#[test]
pub(crate) fn products_of_floats() {
    let npu = Npu::new();
    let power = |e: i32| 1.0 + 2.0_f32.powi(e);
    let a = npu.put(&[power(-12), power(-13), std::f32::consts::PI, 0.0], &[4, 1]);
    let one = npu.put(&[1.0_f32], &[1, 1]);
    for (math, want) in [
        (CubeMath::Keep, [power(-12), power(-13), std::f32::consts::PI, 0.0]),
        (CubeMath::Hf32, [power(-11), 1.0, 3.141_601_6, 0.0]),
        (CubeMath::AllowLess, [power(-11), 1.0, 3.141_601_6, 0.0]),
    ] {
        let (got, out) = npu.room::<f32>(&[4, 1]);
        npu.run(Matmul { a: &a, b: &one, out: &out, math }.prepare(&npu.device));
        assert_eq!(npu.get(&got), want, "{math:?}");
    }
    let b = npu.put(&[bf16::ONE], &[1, 1]);
    let (_, out) = npu.room::<bf16>(&[1, 1]);
    assert!(Matmul { a: &b, b: &b, out: &out, math: CubeMath::F16 }.prepare(&npu.device).is_err());
}

/// In the mode without infinities a token of zeros has codes of 0 as well, and what f16 has no place for is its largest number.
#[test]
pub(crate) fn numbers_that_do_not_fit() {
    for (saturates, largest) in [(0, f16::INFINITY), (1, f16::MAX)] {
        let npu = Npu::new();
        // By the switch, and by the runtime's own function.
        npu.simulator.set(Switch::Saturation, 1 - saturates);
        npu.device.set_saturating(saturates == 1).unwrap();
        assert_eq!(npu.device.saturates().unwrap(), Some(saturates == 1));
        for formula in [0, 1] {
            npu.simulator.set(Switch::ScaleFormula, formula);
            let x = npu.put(&[bf16::ZERO; 8], &[2, 4]);
            let ((codes, code), (scales, scale)) = (npu.room::<i8>(&[2, 4]), npu.room::<f32>(&[2]));
            let operator = DynamicQuant { x: &x, smooth: None, codes: &code, scale: &scale, offset: None };
            npu.run(operator.prepare(&npu.device));
            assert_eq!(npu.get(&codes), [0; 8], "{saturates} {formula}");
            // 127/0 is the largest number of f32 there, and its reciprocal next to nothing.
            let want = if (saturates, formula) == (1, 1) { 1.0 / f32::MAX } else { 0.0 };
            assert_eq!(npu.get(&scales), [want; 2], "{saturates} {formula}");
        }
        let (x, weight) = (npu.put(&[127_i8; 2], &[1, 2]), npu.put(&[127_i8, -127, 127, -127], &[2, 2]));
        let words = npu.put(&[pack_scale(3.0, 0); 2], &[2]);
        let (got, out) = npu.room::<f16>(&[1, 2]);
        npu.run(product(&x, &weight, &words, &out).prepare(&npu.device));
        assert_eq!(npu.get(&got), [largest, -largest]);
    }
}
