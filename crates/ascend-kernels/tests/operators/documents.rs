//! What CANN's documents state, number by number and row by row: tables of types, lengths that are too long, ends of codes, paddings.

use crate::npu::{Npu, halves};
use ascend_kernels::layout::{nz_length, pack_int4, pack_int4_words, pack_scale, to_nz};
use ascend_kernels::operators::{
    AntiQuant, CubeMath, DynamicQuant, KroneckerQuant, Matmul, PackInt4, PackScales, QuantMatmul, Round,
    StaticQuant, WeightOnlyMatmul, pack_scales_on_host,
};
use ascend_kernels::{DataType, DeviceBuffer, Tensor};
use half::{bf16, f16};

const SHAPE: (usize, usize, usize) = (3, 16, 8);

fn put_as(npu: &Npu, kind: DataType, values: &[f32]) -> Tensor {
    let dims = [values.len()];
    let words = || values.iter().map(|&x| pack_scale(x, 0));
    match kind {
        DataType::F32 => npu.put(values, &dims),
        DataType::F16 => npu.put(&halves(values, f16::from_f32), &dims),
        DataType::Bf16 => npu.put(&halves(values, bf16::from_f32), &dims),
        DataType::I32 => npu.put(&halves(values, |x| x as i32), &dims),
        DataType::U64 => npu.put(&words().collect::<Vec<_>>(), &dims),
        DataType::I64 => npu.put(&words().map(u64::cast_signed).collect::<Vec<_>>(), &dims),
        other => unreachable!("no argument is of {other:?}"),
    }
}

/// The number that a tensor of a type holds for `x`.
fn held(kind: DataType, x: f32) -> f32 {
    match kind {
        DataType::F16 => f16::from_f32(x).to_f32(),
        DataType::Bf16 => bf16::from_f32(x).to_f32(),
        // The fix-pipe's 19 bits of a word.
        DataType::U64 | DataType::I64 => f32::from_bits(x.to_bits() & !0x1FFF),
        _ => x,
    }
}

/// A row of the table of types, once without a bias and once with each.
struct Row {
    four: bool,
    token: bool,
    scale: DataType,
    offset: bool,
    out: DataType,
}

/// Runs a row on the codes of the test and compares with plain sums; whether it was let through.
fn holds(npu: &Npu, row: &Row, bias: Option<DataType>) -> bool {
    let (m, k, n) = SHAPE;
    let code = |i: usize| if row.four { (i * 5 % 16) as i8 - 8 } else { (i * 37 % 255) as i8 };
    let (x, w): (Vec<i8>, Vec<i8>) =
        ((0..m * k).map(code).collect(), (0..k * n).map(|i| code(i + 3)).collect());
    let codes = |codes: &[i8], dims: &[usize]| match row.four {
        true => {
            let bytes = DeviceBuffer::from_slice(&npu.device, &pack_int4(codes).unwrap()).unwrap();
            Tensor::int4(&bytes, dims).unwrap()
        }
        false => npu.put(codes, dims),
    };
    let scales: Vec<f32> = (0..n).map(|j| 0.001_37 + j as f32 * 0.000_31).collect();
    let tokens = [0.7_f32, 1.3, 0.011];
    let biases: Vec<f32> = (0..n).map(|j| j as f32 * 3.0 - 10.0).collect();
    let offsets: Vec<f32> = (0..n).map(|j| j as f32 * 41.5 - 150.0).collect();
    let (xs, weight) = (codes(&x, &[m, k]), codes(&w, &[k, n]));
    let (scale, token) = (put_as(npu, row.scale, &scales), put_as(npu, DataType::F32, &tokens));
    let (added, offset) = (bias.map(|kind| put_as(npu, kind, &biases)), put_as(npu, DataType::F32, &offsets));
    let (half, brain, whole, eight) = (
        npu.room::<f16>(&[m, n]),
        npu.room::<bf16>(&[m, n]),
        npu.room::<i32>(&[m, n]),
        npu.room::<i8>(&[m, n]),
    );
    let out = match row.out {
        DataType::F16 => &half.1,
        DataType::Bf16 => &brain.1,
        DataType::I32 => &whole.1,
        _ => &eight.1,
    };
    let operator = QuantMatmul {
        x: &xs,
        weight: &weight,
        transposed: false,
        scale: &scale,
        token_scale: row.token.then_some(&token),
        offset: row.offset.then_some(&offset),
        bias: added.as_ref(),
        out,
    };
    let Ok(call) = operator.prepare(&npu.device) else { return false };
    call.launch(&npu.stream).unwrap();
    let value = |at: usize| -> (i32, f32) {
        let (i, j) = (at / n, at % n);
        let sum: i32 = (0..k).map(|l| i32::from(x[i * k + l]) * i32::from(w[l * n + j])).sum();
        let sum = if bias == Some(DataType::I32) { sum + biases[j] as i32 } else { sum };
        let scaled = sum as f32 * held(row.scale, scales[j]);
        let scaled = if row.token { scaled * tokens[i] } else { scaled };
        let float = bias.filter(|kind| *kind != DataType::I32);
        (sum, float.map_or(scaled, |kind| scaled + held(kind, biases[j])))
    };
    let all: Vec<(i32, f32)> = (0..m * n).map(value).collect();
    match row.out {
        DataType::F16 => assert_eq!(npu.get(&half.0), halves(&floats(&all), f16::from_f32)),
        DataType::Bf16 => assert_eq!(npu.get(&brain.0), halves(&floats(&all), bf16::from_f32)),
        DataType::I32 => assert_eq!(npu.get(&whole.0), all.iter().map(|of| of.0).collect::<Vec<_>>()),
        _ => {
            let code = |(at, &(_, x)): (usize, &(i32, f32))| {
                let nine = x.round_ties_even().clamp(-256.0, 255.0);
                let offset = if row.offset { offsets[at % n].round_ties_even() } else { 0.0 };
                (nine + offset).clamp(-128.0, 127.0) as i8
            };
            assert_eq!(npu.get(&eight.0), all.iter().enumerate().map(code).collect::<Vec<_>>());
        }
    }
    true
}

fn floats(all: &[(i32, f32)]) -> Vec<f32> {
    all.iter().map(|of| of.1).collect()
}

/// Every combination of types of x, scales, offset, bias and output: those of the table give what plain sums give, and no other is let
/// through.
#[test]
pub(crate) fn types_of_products() {
    use DataType::{Bf16, F16, F32, I8, I32, I64, U64};
    let npu = Npu::new();
    let mut accepted = 0;
    for four in [false, true] {
        for (token, offset) in [(false, false), (true, false), (false, true), (true, true)] {
            for (scale, out) in [F32, Bf16, F16, U64, I64, I32]
                .into_iter()
                .flat_map(|scale| [F16, Bf16, I32, I8].into_iter().map(move |out| (scale, out)))
            {
                for bias in [None, Some(I32), Some(F16), Some(Bf16), Some(F32)] {
                    let words = matches!(scale, U64 | I64);
                    let plain = |of: &[DataType]| bias.is_none_or(|bias| of.contains(&bias));
                    let wanted = match (out, four, token, offset) {
                        (F16, _, false, false) if words => plain(&[I32]),
                        (I8, false, false, _) if words => plain(&[I32]),
                        (Bf16, false, _, false) | (Bf16, true, true, false) => {
                            matches!(scale, F32 | Bf16) && plain(&[I32, Bf16, F32])
                        }
                        (F16, _, true, false) => scale == F32 && plain(&[I32, F16, F32]),
                        (I32, false, false, false) => matches!(scale, F32 | Bf16) && plain(&[I32]),
                        _ => false,
                    };
                    let row = Row { four, token, scale, offset, out };
                    let case = format!("{four} {token} {offset} {scale:?} {bias:?} {out:?}");
                    assert_eq!(holds(&npu, &row, bias), wanted, "{case}");
                    accepted += usize::from(wanted);
                }
            }
        }
    }
    // The table, counted by hand: 8 for f16 of words, 8 for codes, 16 for bf16, 8 for f16, 4 for sums; of four bits 8 of the second kind.
    assert_eq!(accepted, 8 + 8 + 16 + 8 + 4 + 8);
}

/// A word of the other tool: the bits of an f32, no mark, nothing cut. The top 19 bits count all the same.
#[test]
pub(crate) fn words_without_a_mark() {
    let npu = Npu::new();
    let (x, weight) = (npu.put(&[100_i8, 3], &[1, 2]), npu.put(&[7_i8, -9, 11, 120], &[2, 2]));
    let scales = [0.0123_f32, 0.001];
    let bare: Vec<u64> = scales.iter().map(|s| u64::from(s.to_bits())).collect();
    let sums = [733.0_f32, -540.0];
    for words in [bare, scales.iter().map(|&s| pack_scale(s, 0)).collect()] {
        let words = npu.put(&words, &[2]);
        let (got, out) = npu.room::<f16>(&[1, 2]);
        npu.run(
            QuantMatmul {
                x: &x,
                weight: &weight,
                transposed: false,
                scale: &words,
                token_scale: None,
                offset: None,
                bias: None,
                out: &out,
            }
            .prepare(&npu.device),
        );
        let want = [0, 1].map(|j| f16::from_f32(sums[j] * held(DataType::U64, scales[j])));
        assert_eq!(npu.get(&got), want);
    }
    assert_eq!(held(DataType::U64, 0.0123), 0.012_298_584);
}

/// FRACTAL_NZ weights `[k, n]`, stored `[n/32, k/16, 16, 32]`, and transposed `[n, k]`, stored `[k/32, n/16, 16, 32]`.
#[test]
pub(crate) fn both_forms_of_nz() {
    let npu = Npu::new();
    let (m, k, n) = (2, 33, 50);
    let (x, w): (Vec<i8>, Vec<i8>) = (
        (0..m * k).map(|i| (i % 91) as i8 - 45).collect(),
        (0..k * n).map(|i| (i * 7 % 251) as i8).collect(),
    );
    let turned: Vec<i8> = (0..n * k).map(|at| w[at % k * n + at / k]).collect();
    assert_eq!((nz_length::<i8>(k, n), nz_length::<i8>(n, k)), (2 * 3 * 512, 2 * 4 * 512));
    let xs = npu.put(&x, &[m, k]);
    let one = npu.put(&[1.0_f32], &[1]);
    for (codes, rows, columns, transposed) in [(&w, k, n, false), (&turned, n, k, true)] {
        let buffer = DeviceBuffer::from_slice(&npu.device, &to_nz(codes, rows, columns).unwrap()).unwrap();
        let weight = Tensor::nz(&buffer, rows, columns).unwrap();
        let (got, out) = npu.room::<i32>(&[m, n]);
        npu.run(
            QuantMatmul {
                x: &xs,
                weight: &weight,
                transposed,
                scale: &one,
                token_scale: None,
                offset: None,
                bias: None,
                out: &out,
            }
            .prepare(&npu.device),
        );
        let sum = |at: usize| -> i32 {
            (0..k).map(|l| i32::from(x[at / n * k + l]) * i32::from(w[l * n + at % n])).sum()
        };
        assert_eq!(npu.get(&got), (0..m * n).map(sum).collect::<Vec<_>>(), "{transposed}");
    }
    for (rows, columns) in [(1, 32), (32, 1)] {
        let buffer = DeviceBuffer::<i8>::new(&npu.device, 1024).unwrap();
        let error = Tensor::nz(&buffer, rows, columns).unwrap_err();
        assert!(error.to_string().contains("longer than 1"), "{error}");
    }
}

/// Codes of four bits as bytes and as words, packed on the device and here.
#[test]
pub(crate) fn packing_of_four_bits() {
    let npu = Npu::new();
    let codes = [-8, -7, -1, 0, 1, 2, 6, 7];
    let here: Vec<i8> = codes.iter().map(|&code| code as i8).collect();
    let bytes = DeviceBuffer::<u8>::new(&npu.device, 4).unwrap();
    let out = Tensor::int4(&bytes, &[1, 8]).unwrap();
    npu.run(PackInt4 { codes: &codes, shape: (1, 8), out: &out }.prepare(&npu.device));
    assert_eq!([npu.get(&bytes), pack_int4(&here).unwrap()], [[0x98, 0x0F, 0x21, 0x76]; 2]);
    let words = DeviceBuffer::<i32>::new(&npu.device, 1).unwrap();
    let out = Tensor::int4_words(&words, &[1, 1]).unwrap();
    npu.run(PackInt4 { codes: &codes, shape: (1, 8), out: &out }.prepare(&npu.device));
    assert_eq!([npu.get(&words), pack_int4_words(&here).unwrap()], [[0x7621_0F98]; 2]);
}

/// The function for the host: one word alone, more padded to 16; offsets half away from zero; no bit cut.
#[test]
pub(crate) fn words_of_the_host() {
    let npu = Npu::new();
    let pack =
        |scales: &[f32], offsets: &[f32]| pack_scales_on_host(npu.device.cann(), scales, offsets).unwrap();
    for (count, padded) in [(1, 1), (2, 16), (16, 16), (17, 32)] {
        let words = pack(&vec![1.1; count], &[]);
        assert_eq!(
            (words.len(), words[0], words[count - 1]),
            (padded, 70_369_810_369_741, words[0]),
            "{count}"
        );
        assert!(words[count..].iter().all(|&word| word == 0));
    }
    for (offset, nine) in [(2.5, 3), (-2.5, 0x1FD), (3.5, 4), (900.0, 255), (-900.0, 0x100)] {
        assert_eq!(pack(&[1.0], &[offset])[0] >> 37 & 0x1FF, nine, "{offset}");
    }
}

/// The operators of the device: offsets half to even, scales cut or rounded, subnormal ones zeros of their sign when rounded.
#[test]
pub(crate) fn words_of_the_device() {
    let npu = Npu::new();
    let scales = [0.001_f32, -1e-40, 1.0, 0.001, 0.001, 2.0];
    let offsets = [0.0_f32, 0.0, 2.5, 5.0, -3.0, 900.0];
    let (scale, offset) = (npu.put(&scales, &[6]), npu.put(&offsets, &[6]));
    for (round, want) in [
        (
            false,
            [
                0x4000_3A83_0000,
                0x4000_8001_0000,
                0x4040_3F80_0000,
                0x40A0_3A83_0000,
                0x7FA0_3A83_0000,
                0x5FE0_4000_0000,
            ],
        ),
        (
            true,
            [
                0x4000_3A83_2000,
                0x4000_8000_0000,
                0x4040_3F80_0000,
                0x40A0_3A83_2000,
                0x7FA0_3A83_2000,
                0x5FE0_4000_0000,
            ],
        ),
    ] {
        let (words, out) = npu.room::<u64>(&[6]);
        npu.run(PackScales { scale: &scale, offset: Some(&offset), round, out: &out }.prepare(&npu.device));
        let got = npu.get(&words);
        assert_eq!(got, want, "{round}: {got:x?}");
        if !round {
            let here: Vec<u64> = scales
                .iter()
                .zip(&offsets)
                .map(|(&s, o)| pack_scale(s, o.round_ties_even() as i32))
                .collect();
            assert_eq!(got, here);
        }
    }
}

/// Codes of four bits of tokens: 7 where eight have 127, 15 and 7 for 255 and 127; and a token of one number, whose scale is the least.
#[test]
pub(crate) fn tokens_in_four_bits() {
    let npu = Npu::new();
    let values = [7.0_f32, 2.5, -3.5, -7.0, 0.37, -0.1, 0.25, 0.125, 3.0, 3.0, 3.0, 3.0]
        .map(|x| bf16::from_f32(x).to_f32());
    let x = npu.put(&halves(&values, bf16::from_f32), &[3, 4]);
    for asymmetric in [false, true] {
        let bytes = DeviceBuffer::<u8>::new(&npu.device, 6).unwrap();
        let codes = Tensor::int4(&bytes, &[3, 4]).unwrap();
        let ((scales, scale), (offsets, offset)) = (npu.room::<f32>(&[3]), npu.room::<f32>(&[3]));
        let offset = asymmetric.then_some(&offset);
        npu.run(
            DynamicQuant { x: &x, smooth: None, codes: &codes, scale: &scale, offset }.prepare(&npu.device),
        );
        let (got, scales) = (npu.get(&bytes), npu.get(&scales));
        for (i, row) in values.chunks(4).enumerate() {
            let fold = |of: fn(f32, f32) -> f32| row.iter().copied().reduce(of).unwrap();
            let (low, high) = (fold(f32::min), fold(f32::max));
            let largest = high.max(-low);
            let (step, factor, zero) = if asymmetric {
                let step = ((high - low) / 15.0).max(1e-12);
                (step, 1.0 / step, 7.0 - high / step)
            } else {
                (largest * (1.0 / 7.0), 7.0 / largest, 0.0)
            };
            assert_eq!(scales[i], step, "{asymmetric} {i}");
            let want: Vec<i8> =
                row.iter().map(|x| (x * factor + zero).round_ties_even().clamp(-8.0, 7.0) as i8).collect();
            assert_eq!(got[i * 2..i * 2 + 2], pack_int4(&want).unwrap(), "{asymmetric} {i}");
        }
        if asymmetric {
            assert_eq!(scales[2], 1e-12);
            assert_eq!(npu.get(&offsets)[0], 7.0 - 7.0 / (14.0_f32 / 15.0));
        }
    }
}

/// Codes under fixed scales in four bits, as bytes and as words, and numbers of codes in bf16.
#[test]
pub(crate) fn fixed_codes_in_four_bits() {
    let npu = Npu::new();
    let x = npu.put(&halves(&[1.0, 2.5, -3.5, 1000.0, 0.5, 1.5, -99.0, 3.0], bf16::from_f32), &[1, 8]);
    let scale = npu.put(&[bf16::from_f32(2.0)], &[1]);
    let want = [2, 5, -7, 7, 1, 3, -8, 6];
    let bytes = DeviceBuffer::<u8>::new(&npu.device, 4).unwrap();
    let words = DeviceBuffer::<i32>::new(&npu.device, 1).unwrap();
    for codes in [Tensor::int4(&bytes, &[1, 8]).unwrap(), Tensor::int4_words(&words, &[1, 1]).unwrap()] {
        let round = Round::Nearest;
        npu.run(
            StaticQuant { x: &x, scale: &scale, offset: None, round, codes: &codes }.prepare(&npu.device),
        );
    }
    assert_eq!(
        (npu.get(&bytes), npu.get(&words)),
        (pack_int4(&want).unwrap(), pack_int4_words(&want).unwrap())
    );
    let codes = Tensor::int4(&bytes, &[1, 8]).unwrap();
    let (numbers, y) = npu.room::<bf16>(&[1, 8]);
    let offset = npu.put(&[bf16::from_f32(-3.0)], &[1]);
    npu.run(AntiQuant { codes: &codes, scale: &scale, offset: Some(&offset), y: &y }.prepare(&npu.device));
    assert_eq!(npu.get(&numbers), want.map(|code| bf16::from_f32((f32::from(code) - 3.0) * 2.0)));
}

/// f32 factors that are rounded to f16 first, and long sums of f32.
#[test]
pub(crate) fn factors_rounded_to_half() {
    let npu = Npu::new();
    let x = 1.0 + 2.0_f32.powi(-12);
    let (a, one) = (npu.put(&[x, std::f32::consts::PI], &[2, 1]), npu.put(&[1.0_f32], &[1, 1]));
    for (math, want) in [
        (CubeMath::F16, [1.0, f16::from_f32(std::f32::consts::PI).to_f32()]),
        (CubeMath::F32Add, [x, std::f32::consts::PI]),
    ] {
        let (got, out) = npu.room::<f32>(&[2, 1]);
        npu.run(Matmul { a: &a, b: &one, out: &out, math }.prepare(&npu.device));
        assert_eq!(npu.get(&got), want, "{math:?}");
    }
}

/// What is longer than the documents allow is refused here, and what is as long is not.
#[test]
pub(crate) fn longest_axes() {
    let npu = Npu::new();
    let one = npu.put(&[1.0_f32], &[1]);
    for k in [65_535, 65_536] {
        let (x, weight) = (npu.room::<i8>(&[1, k]).1, npu.room::<i8>(&[k, 2]).1);
        let (sums, brain) = (npu.room::<i32>(&[1, 2]).1, npu.room::<bf16>(&[1, 2]).1);
        let (transposed, offset, bias) = (false, None, None);
        let bare = QuantMatmul {
            x: &x,
            weight: &weight,
            transposed,
            scale: &one,
            token_scale: None,
            offset,
            bias,
            out: &sums,
        };
        assert_eq!(bare.check().is_ok(), k == 65_535);
        // Scales of tokens have no such end.
        assert!(QuantMatmul { token_scale: Some(&one), out: &brain, ..bare }.check().is_ok());
    }
    for (n1, n2, fits) in [(256, 8, true), (257, 8, false), (2, 256, true), (2, 264, false)] {
        let (x, left, right) =
            (npu.room::<f16>(&[1, n1, n2]).1, npu.room::<f16>(&[n1, n1]).1, npu.room::<f16>(&[n2, n2]).1);
        let words = DeviceBuffer::<i32>::new(&npu.device, n1 * n2 / 8).unwrap();
        let codes = Tensor::int4_words(&words, &[1, n1, n2 / 8]).unwrap();
        let operator =
            KroneckerQuant { x: &x, left: &left, right: &right, clip_ratio: 1.0, codes: &codes, scale: &one };
        assert_eq!(operator.check().is_ok(), fits, "{n1} {n2}");
        for clip_ratio in [0.0, -0.5, 1.01, f64::NAN] {
            assert!(KroneckerQuant { clip_ratio, ..operator }.check().is_err());
        }
    }
    let tokens = 262_145;
    for (count, fits) in [(tokens - 1, true), (tokens, false)] {
        let (x, factor) = (npu.room::<f16>(&[count, 1, 2]).1, npu.room::<f16>(&[1, 1]).1);
        let (right, scale) = (npu.room::<f16>(&[2, 2]).1, npu.room::<f32>(&[count]).1);
        let bytes = DeviceBuffer::<u8>::new(&npu.device, count).unwrap();
        let codes = Tensor::int4(&bytes, &[count, 1, 2]).unwrap();
        let (left, right) = (&factor, &right);
        let operator = KroneckerQuant { x: &x, left, right, clip_ratio: 1.0, codes: &codes, scale: &scale };
        assert_eq!(operator.check().is_ok(), fits, "{count}");
    }
    // Groups: multiples of 32 from 32 to one less than all inputs.
    let (k, n) = (128, 2);
    let (x, weight, y) =
        (npu.room::<bf16>(&[1, k]).1, npu.room::<i8>(&[k, n]).1, npu.room::<bf16>(&[1, n]).1);
    for (group, fits) in [(16, false), (32, true), (48, false), (64, true), (96, true), (128, false)] {
        let scale = npu.room::<bf16>(&[k.div_ceil(group), n]).1;
        let operator = WeightOnlyMatmul {
            x: &x,
            weight: &weight,
            scale: &scale,
            offset: None,
            bias: None,
            group: Some(group),
            fast: false,
            y: &y,
        };
        assert_eq!(operator.check().is_ok(), fits, "{group}");
    }
}
