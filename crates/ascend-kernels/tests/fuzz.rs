//! Arguments that nobody chose: what the safe layer lets through is never invalid to CANN, and nothing is left.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ascend_kernels::operators::{
    AntiQuant, CubeMath, DynamicQuant, KroneckerQuant, Matmul, OneTokenAttention, PackScales, Pages,
    QuantMatmul, Round, StaticQuant, WeightOnlyMatmul,
};
use ascend_kernels::{AscendError, Call, Cann, Device, DeviceBuffer, OpenOptions, Result, Stream, Tensor};
use ascend_sim::{Kind, Simulator};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// A tensor nobody would make: any type, a few axes of any small length.
#[derive(Clone, Debug)]
struct Shape {
    kind: u8,
    dims: Vec<usize>,
}

fn shape() -> impl Strategy<Value = Shape> {
    // Lengths that fit each other often enough.
    let length = prop::sample::select(vec![1_usize, 2, 4, 8, 32, 33, 64]);
    (0_u8..9, prop::collection::vec(length, 0..5)).prop_map(|(kind, dims)| Shape { kind, dims })
}

fn tensor(device: &Device, shape: &Shape) -> Result<Tensor> {
    let (dims, elements) = (&shape.dims, shape.dims.iter().product::<usize>());
    macro_rules! of {
        ($type:ty) => {
            Tensor::new(&DeviceBuffer::<$type>::new(device, elements)?, dims)
        };
    }
    match shape.kind {
        0 => of!(f32),
        1 => of!(f16),
        2 => of!(bf16),
        3 => of!(i8),
        4 => of!(i32),
        5 => of!(u64),
        6 => Tensor::int4(&DeviceBuffer::new(device, elements.div_ceil(2))?, dims),
        7 => Tensor::int4_words(&DeviceBuffer::from_slice(device, &vec![0; elements])?, dims),
        _ => match *dims.as_slice() {
            [rows, columns] => {
                let length = ascend_kernels::layout::nz_length::<i8>(rows, columns);
                Tensor::nz(&DeviceBuffer::<i8>::new(device, length)?, rows, columns)
            }
            _ => of!(i64),
        },
    }
}

/// Every operator with the same ten tensors in every role.
fn calls(device: &Device, t: &[Tensor], n: usize, flag: bool, number: f64) -> Vec<Result<Call>> {
    let some = |at: usize, bit: u32| (n >> bit & 1 == 1).then_some(&t[at]);
    let table = [n as i32 % 5 - 1, 0];
    let lengths = [n / 16 % 70];
    vec![
        QuantMatmul {
            x: &t[0],
            weight: &t[1],
            transposed: flag,
            scale: &t[2],
            token_scale: some(3, 0),
            offset: some(4, 1),
            bias: some(5, 2),
            out: &t[6],
        }
        .prepare(device),
        DynamicQuant { x: &t[0], smooth: some(1, 0), codes: &t[2], scale: &t[3], offset: some(4, 1) }
            .prepare(device),
        StaticQuant { x: &t[0], scale: &t[1], offset: some(2, 0), round: Round::Floor, codes: &t[3] }
            .prepare(device),
        AntiQuant { codes: &t[0], scale: &t[1], offset: some(2, 0), y: &t[3] }.prepare(device),
        WeightOnlyMatmul {
            x: &t[0],
            weight: &t[1],
            scale: &t[2],
            offset: some(3, 0),
            bias: some(4, 1),
            group: n.is_multiple_of(3).then_some(n % 100),
            fast: flag,
            y: &t[5],
        }
        .prepare(device),
        PackScales { scale: &t[0], offset: some(1, 0), round: flag, out: &t[2] }.prepare(device),
        Matmul { a: &t[0], b: &t[1], out: &t[2], math: if flag { CubeMath::F16 } else { CubeMath::Hf32 } }
            .prepare(device),
        KroneckerQuant {
            x: &t[0],
            left: &t[1],
            right: &t[2],
            clip_ratio: number,
            codes: &t[3],
            scale: &t[4],
        }
        .prepare(device),
        OneTokenAttention {
            query: &t[0],
            key: &t[1],
            value: &t[2],
            key_scale: &t[3],
            value_scale: &t[4],
            key_offset: some(5, 0),
            value_offset: some(6, 1),
            pages: (n % 4 == 2).then_some(Pages { table: &table, block: n % 4 * 32 }),
            lengths: &lengths[..n / 8 % 2],
            kv_heads: n % 3,
            scale: number,
            fast: flag,
            out: &t[7],
        }
        .prepare(device),
    ]
}

/// Nine operators with the tensors that fit them, then with one of them exchanged: a small step from what is valid.
fn near_shapes(operator: usize) -> Vec<Shape> {
    let of = |kind, dims: &[usize]| Shape { kind, dims: dims.to_vec() };
    match operator {
        0 => vec![
            of(3, &[4, 32]),
            of(3, &[32, 8]),
            of(0, &[8]),
            of(0, &[4]),
            of(0, &[8]),
            of(0, &[8]),
            of(2, &[4, 8]),
        ],
        1 => vec![of(2, &[4, 32]), of(2, &[32]), of(3, &[4, 32]), of(0, &[4]), of(0, &[4])],
        2 => vec![of(2, &[4, 32]), of(2, &[32]), of(2, &[32]), of(3, &[4, 32])],
        3 => vec![of(3, &[4, 32]), of(2, &[32]), of(2, &[32]), of(2, &[4, 32])],
        4 => vec![
            of(2, &[4, 64]),
            of(3, &[64, 8]),
            of(2, &[1, 8]),
            of(2, &[1, 8]),
            of(0, &[8]),
            of(2, &[4, 8]),
        ],
        5 => vec![of(0, &[8]), of(0, &[8]), of(5, &[8])],
        6 => vec![of(1, &[4, 8]), of(1, &[8, 2]), of(1, &[4, 2])],
        7 => vec![of(2, &[4, 2, 8]), of(2, &[2, 2]), of(2, &[8, 8]), of(6, &[4, 2, 8]), of(0, &[4])],
        _ => vec![
            of(2, &[1, 2, 1, 32]),
            of(3, &[1, 2, 64, 32]),
            of(3, &[1, 2, 64, 32]),
            of(2, &[2, 32]),
            of(2, &[2, 32]),
            of(2, &[64]),
            of(2, &[2, 32]),
            of(2, &[1, 2, 1, 32]),
        ],
    }
}

#[test]
fn nothing_invalid_reaches_cann() {
    let simulator = Simulator::new().unwrap();
    let cann = Cann::open(&OpenOptions::new().folder(simulator.folder())).unwrap();
    let device = Device::open(&cann, 0).unwrap();
    let config = Config { cases: 4000, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let accepted = std::cell::Cell::new([0_u32; 9]);
    let arguments = (
        prop::collection::vec(shape(), 10),
        0_usize..9,
        prop::collection::vec(0_usize..8, 0..3),
        any::<u16>(),
        any::<bool>(),
        prop_oneof![Just(0.5_f64), Just(1.0), any::<f64>()],
    );
    runner
        .run(&arguments, |(mut shapes, operator, kept_random, n, flag, number)| {
            for (at, near) in near_shapes(operator).into_iter().enumerate() {
                if !kept_random.contains(&at) {
                    shapes[at] = near;
                }
            }
            // A random tensor that cannot be made is replaced: shapes alone are other tests' business.
            let fallback = Shape { kind: 0, dims: vec![1] };
            let tensors: Vec<Tensor> = shapes
                .iter()
                .map(|s| tensor(&device, s).unwrap_or_else(|_| tensor(&device, &fallback).unwrap()))
                .collect();
            let stream = Stream::new(&device).unwrap();
            for (at, call) in calls(&device, &tensors, usize::from(n), flag, number).into_iter().enumerate() {
                match call {
                    Ok(call) => {
                        call.launch(&stream).unwrap();
                        stream.synchronize().unwrap();
                        let mut counts = accepted.get();
                        counts[at] += 1;
                        accepted.set(counts);
                    }
                    Err(AscendError::Shape { .. }) => {}
                    Err(other) => prop_assert!(false, "operator {at}: {other}"),
                }
            }
            drop((tensors, stream));
            prop_assert_eq!(simulator.count(Kind::Tensor) + simulator.count(Kind::Executor), 0);
            prop_assert_eq!(simulator.count(Kind::DeviceBytes), 0);
            Ok(())
        })
        .unwrap();
    // Every operator was accepted often, so that the test is not one of refusals alone.
    assert!(accepted.get().iter().all(|&count| count >= 10), "{:?}", accepted.get());
    device.close().unwrap();
    cann.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}
