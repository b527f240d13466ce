//! Each operator on the simulator: numbers of CANN's documents, results of plain loops, and a deliberate fault that is seen.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ascend_kernels::layout::{group_size, pack_int4, pack_int4_words, pack_scale, to_nz};
use ascend_kernels::operators::{
    AntiQuant, CubeMath, DynamicQuant, DynamicVersion, KroneckerQuant, Matmul, MatmulVersion,
    OneTokenAttention, PackInt4, PackScales, Pages, QuantMatmul, Round, StaticQuant, WeightOnlyMatmul,
    pack_scales_on_host,
};
use ascend_kernels::{Call, Cann, Device, DeviceBuffer, OpenOptions, Result, Stream, Tensor, Typed};
use ascend_sim::{Mistake, Simulator, Switch};
use half::{bf16, f16};
use quant_testkit::Numbers;
use std::cell::Cell;

struct Npu {
    stream: Stream,
    device: Device,
    // After what uses it.
    simulator: Simulator,
}

impl Npu {
    fn new() -> Self {
        let simulator = Simulator::new().unwrap();
        simulator.set(Switch::Wrong, WRONG.get());
        let cann = Cann::open(&OpenOptions::new().folder(simulator.folder())).unwrap();
        let device = Device::open(&cann, 0).unwrap();
        Self { stream: Stream::new(&device).unwrap(), device, simulator }
    }
    fn put<T: Typed>(&self, values: &[T], dims: &[usize]) -> Tensor {
        Tensor::new(&DeviceBuffer::from_slice(&self.device, values).unwrap(), dims).unwrap()
    }
    fn room<T: Typed>(&self, dims: &[usize]) -> (DeviceBuffer<T>, Tensor) {
        let buffer = DeviceBuffer::new(&self.device, dims.iter().product()).unwrap();
        let tensor = Tensor::new(&buffer, dims).unwrap();
        (buffer, tensor)
    }
    fn run(&self, call: Result<Call>) {
        call.unwrap().launch(&self.stream).unwrap();
    }
    fn get<T: Typed>(&self, buffer: &DeviceBuffer<T>) -> Vec<T> {
        buffer.read(&self.stream).unwrap()
    }
}

fn halves<T>(values: &[f32], round: impl Fn(f32) -> T) -> Vec<T> {
    values.iter().map(|&x| round(x)).collect()
}

fn product<'a>(x: &'a Tensor, weight: &'a Tensor, scale: &'a Tensor, out: &'a Tensor) -> QuantMatmul<'a> {
    QuantMatmul { x, weight, transposed: false, scale, token_scale: None, offset: None, bias: None, out }
}

#[test]
fn products_of_every_version_and_type() {
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
fn products_of_four_bits() {
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
fn tokens_are_quantised_in_every_version() {
    let npu = Npu::new();
    let values = [0.37_f32, -0.1, 0.25, 0.3699, 0.0, 0.0, 0.0, 0.0, 12.0, 4.0, -3.0, 8.0]
        .map(|x| bf16::from_f32(x).to_f32());
    let x = npu.put(&halves(&values, bf16::from_f32), &[3, 4]);
    for version in [DynamicVersion::V1, DynamicVersion::V2, DynamicVersion::V3, DynamicVersion::V4] {
        let ((codes, code), (scales, scale)) = (npu.room::<i8>(&[3, 4]), npu.room::<f32>(&[3]));
        let operator = DynamicQuant { x: &x, smooth: None, codes: &code, scale: &scale, offset: None };
        npu.run(operator.prepare_with(&npu.device, version));
        for (row, (got, scale)) in values.chunks(4).zip(npu.get(&codes).chunks(4).zip(npu.get(&scales))) {
            let largest = row.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            assert_eq!(scale, largest * (1.0 / 127.0_f32), "{version:?}");
            // A row of zeros: codes of 0, though 127/0 · 0 is no number.
            let want = row.iter().map(|x| (x * (127.0 / largest)).round_ties_even() as i8);
            assert_eq!(got, want.collect::<Vec<_>>(), "{version:?}");
        }
    }
    // Smooth scales, and an offset.
    let smooth = npu.put(&halves(&[1.0, 2.0, 0.5, 4.0], bf16::from_f32), &[4]);
    let ((codes, code), (scales, scale), (offsets, offset)) =
        (npu.room::<i8>(&[3, 4]), npu.room::<f32>(&[3]), npu.room::<f32>(&[3]));
    let operator =
        DynamicQuant { x: &x, smooth: Some(&smooth), codes: &code, scale: &scale, offset: Some(&offset) };
    npu.run(operator.prepare(&npu.device));
    // The last row: 12, 8, −1.5, 32.
    let step = (32.0_f32 + 1.5) / 255.0;
    let zero = 127.0 - 32.0 / step;
    assert_eq!((npu.get(&scales)[2], npu.get(&offsets)[2]), (step, zero));
    let want = [12.0_f32, 8.0, -1.5, 32.0].map(|x| (x * (1.0 / step) + zero).round_ties_even() as i8);
    assert_eq!(npu.get(&codes)[8..], want);
    assert!(operator.prepare_with(&npu.device, DynamicVersion::V1).is_err());
}

#[test]
fn static_codes_and_numbers_of_codes() {
    let npu = Npu::new();
    let x = npu.put(&[1.0_f32, 2.5, -3.5, 1000.0], &[1, 4]);
    let (scale, offset) = (npu.put(&[2.0_f32], &[1]), npu.put(&[0.5_f32], &[1]));
    for (round, want) in [
        (Round::Nearest, [2, 6, -6, 127]),
        (Round::Floor, [2, 5, -7, 127]),
        (Round::Ceil, [3, 6, -6, 127]),
        (Round::Trunc, [2, 5, -6, 127]),
    ] {
        let (codes, code) = npu.room::<i8>(&[1, 4]);
        npu.run(
            StaticQuant { x: &x, scale: &scale, offset: Some(&offset), round, codes: &code }
                .prepare(&npu.device),
        );
        assert_eq!(npu.get(&codes), want, "{round:?}");
    }
    let codes = npu.put(&[-3_i8, 5, 127, 0], &[1, 4]);
    let (numbers, y) = npu.room::<f16>(&[1, 4]);
    npu.run(AntiQuant { codes: &codes, scale: &scale, offset: Some(&offset), y: &y }.prepare(&npu.device));
    assert_eq!(npu.get(&numbers), [-5.0, 11.0, 255.0, 1.0].map(f16::from_f32));
}

#[test]
fn scales_as_words() {
    let npu = Npu::new();
    let host = pack_scales_on_host(npu.device.cann(), &[1.1, 2.2, 3.3, 4.4, 5.5], &[]).unwrap();
    let words =
        [70_369_810_369_741, 70_369_818_758_349, 70_369_823_372_083, 70_369_827_146_957, 70_369_829_453_824];
    assert_eq!((&host[..5], &host[5..]), (&words[..], &[0; 11][..]));
    assert!(pack_scales_on_host(npu.device.cann(), &[f32::NAN], &[]).is_err());
    assert!(pack_scales_on_host(npu.device.cann(), &[1.0; 3], &[1.0; 2]).is_err());
    for (round, without, third) in [
        (false, "", 0x7FA0_3A83_0000),
        (false, "aclnnTransQuantParamV3", 0x7FA0_3A83_0000),
        (true, "", 0x7FA0_3A83_2000),
    ] {
        let options = OpenOptions::new().folder(npu.simulator.folder()).without(without);
        let device = Device::open(&Cann::open(&options).unwrap(), 1).unwrap();
        let stream = Stream::new(&device).unwrap();
        let again =
            |tensor: &[f32]| Tensor::new(&DeviceBuffer::from_slice(&device, tensor).unwrap(), &[3]).unwrap();
        let (a, b) = (again(&[1.0, 0.0123, 0.001]), again(&[0.0, 0.0, -3.0]));
        let words = DeviceBuffer::<u64>::new(&device, 3).unwrap();
        let out = Tensor::new(&words, &[3]).unwrap();
        PackScales { scale: &a, offset: Some(&b), round, out: &out }
            .prepare(&device)
            .unwrap()
            .launch(&stream)
            .unwrap();
        let got = words.read(&stream).unwrap();
        let second = if round { 0x4000_3C49_8000 } else { pack_scale(0.0123, 0) };
        assert_eq!(got, [0x4000_3F80_0000, second, third], "{round} {without}");
    }
    let (scale, offset) = (npu.put(&[0.001_f32], &[1]), npu.put(&[5.0_f32], &[1]));
    let (words, out) = npu.room::<u64>(&[1]);
    npu.run(
        PackScales { scale: &scale, offset: Some(&offset), round: false, out: &out }.prepare(&npu.device),
    );
    assert_eq!(npu.get(&words), [0x40A0_3A83_0000]);
    assert_eq!(group_size(1, 128, 128).unwrap(), 4_303_356_032);
}

#[test]
fn products_of_floats() {
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

#[test]
fn weight_only_products() {
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
fn weight_only_products_of_four_bits() {
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

#[test]
fn kronecker_codes() {
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
fn kronecker_codes_rounded_between() {
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

/// In the mode without infinities a token of zeros has codes of 0 as well, and what f16 has no place for is its largest number.
#[test]
fn numbers_that_do_not_fit() {
    for (saturates, largest) in [(0, f16::INFINITY), (1, f16::MAX)] {
        let npu = Npu::new();
        npu.simulator.set(Switch::Saturation, saturates);
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

#[test]
fn attention_over_a_cache_of_codes() {
    let (batch, heads, kv, d, room) = (2, 4, 2, 32, 64);
    let lengths = [17, 64];
    let mut numbers = Numbers::new(8);
    let query: Vec<f32> =
        numbers.matrix(batch * heads, d, 1.0).iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    let mut cache =
        || numbers.matrix(batch * kv * room, d, 127.0).iter().map(|&x| x as i8).collect::<Vec<_>>();
    let (key, value) = (cache(), cache());
    let scale: Vec<f32> = (0..kv * d).map(|i| f16::from_f32(0.01 + i as f32 * 1e-4).to_f32()).collect();
    let at = |b: usize, h: usize, token: usize, i: usize| ((b * kv + h) * room + token) * d + i;
    for (paged, rounded) in [(false, 0), (true, 0), (false, 1)] {
        let npu = Npu::new();
        npu.simulator.set(Switch::RoundAttention, rounded);
        let queries = npu.put(&halves(&query, f16::from_f32), &[batch, heads, 1, d]);
        let scales = npu.put(&halves(&scale, f16::from_f32), &[kv, d]);
        let (got, out) = npu.room::<f16>(&[batch, heads, 1, d]);
        // Pages of 32 tokens, the second half of each sequence before the first.
        let page = |codes: &[i8]| -> Vec<i8> {
            let mut pages = vec![0; codes.len()];
            for (b, h, token, i) in (0..batch * kv * room * d)
                .map(|n| (n / (kv * room * d), n / (room * d) % kv, n / d % room, n % d))
            {
                let block = b * 2 + 1 - token / 32;
                pages[((block * kv + h) * 32 + token % 32) * d + i] = codes[at(b, h, token, i)];
            }
            pages
        };
        let (keys, values) = if paged {
            (npu.put(&page(&key), &[4, kv, 32, d]), npu.put(&page(&value), &[4, kv, 32, d]))
        } else {
            (npu.put(&key, &[batch, kv, room, d]), npu.put(&value, &[batch, kv, room, d]))
        };
        let operator = OneTokenAttention {
            query: &queries,
            key: &keys,
            value: &values,
            key_scale: &scales,
            value_scale: &scales,
            key_offset: None,
            value_offset: None,
            pages: paged.then_some(Pages { table: &[1, 0, 3, 2], block: 32 }),
            lengths: &lengths,
            kv_heads: kv,
            scale: 1.0 / f64::from(d as u32).sqrt(),
            fast: false,
            out: &out,
        };
        npu.run(operator.prepare(&npu.device));
        let got = npu.get(&got);
        for (b, h) in (0..batch * heads).map(|n| (n / heads, n % heads)) {
            let head = h / (heads / kv);
            let number = |codes: &[i8], token: usize, i: usize| {
                f64::from(codes[at(b, head, token, i)]) * f64::from(scale[head * d + i])
            };
            let score = |t: usize| {
                (0..d).map(|i| f64::from(query[(b * heads + h) * d + i]) * number(&key, t, i)).sum::<f64>()
                    * operator.scale
            };
            let weights: Vec<f64> = (0..lengths[b]).map(|t| score(t).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..d {
                let want =
                    weights.iter().enumerate().map(|(t, w)| w * number(&value, t, i)).sum::<f64>() / total;
                // Values are below 1.7; each is rounded to f16, as are probabilities, in the worst of the simulated ways.
                let bound = 1.7 * 2.0_f64.powi(if rounded == 0 { -11 } else { -8 });
                let got = f64::from(got[(b * heads + h) * d + i].to_f32());
                assert!((got - want).abs() <= bound, "{paged} {rounded}: {got} {want}");
            }
        }
        // Lengths and pages are checked here, not on the device.
        for lengths in [&[65][..], &[0], &[1, 2, 3]] {
            assert!(OneTokenAttention { lengths, ..operator }.prepare(&npu.device).is_err(), "{lengths:?}");
        }
        let pages = Some(Pages { table: &[1, 0, 4, 2], block: 32 });
        assert!(OneTokenAttention { pages, ..operator }.prepare(&npu.device).is_err());
    }
}

thread_local! {
    /// What is made wrong in the simulators of a test.
    static WRONG: Cell<i64> = const { Cell::new(0) };
}

/// A deliberate fault in each operator makes the comparisons of that operator fail.
#[test]
fn faults_of_arithmetic_are_seen() {
    let tests: [(Mistake, fn()); 14] = [
        (Mistake::QuantMatmul, products_of_every_version_and_type),
        (Mistake::QuantMatmul, products_of_four_bits),
        (Mistake::TokenCodes, tokens_are_quantised_in_every_version),
        (Mistake::TokenScales, tokens_are_quantised_in_every_version),
        (Mistake::StaticQuant, static_codes_and_numbers_of_codes),
        (Mistake::AntiQuant, static_codes_and_numbers_of_codes),
        (Mistake::PackScales, scales_as_words),
        (Mistake::Matmul, products_of_floats),
        (Mistake::WeightOnly, weight_only_products),
        (Mistake::WeightOnly, weight_only_products_of_four_bits),
        (Mistake::Kronecker, kronecker_codes),
        (Mistake::Kronecker, kronecker_codes_rounded_between),
        (Mistake::TokenCodes, numbers_that_do_not_fit),
        (Mistake::Attention, attention_over_a_cache_of_codes),
    ];
    for (fault, test) in tests {
        WRONG.set(fault as i64);
        let ended = std::panic::catch_unwind(test);
        WRONG.set(0);
        assert!(ended.is_err(), "{fault:?} is not seen");
    }
}
