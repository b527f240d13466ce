//! The traits of `quant-core` on the simulator: the suite that the CPU runs, and what must make it fail.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ascend_kernels::{Model, OpenOptions, Processor, ProcessorOptions};
use ascend_sim::{Mistake, Simulator, Switch};
use ndarray::{Array1, Array2};
use quant_core::operators::{
    Bias, Cached, ChannelCodes, CodeCacheForm, DynamicNumerics, DynamicQuant, IntegerLinear, Output,
    Processor as _, QuantMatmul, QuantizedActivations, Reference, StaticNumerics,
};
use quant_core::{Bits, CoreError, FloatType, Par, ProcessorProblem};
use quant_testkit::{Conformance, Numbers};

fn ascend(bits: u32) -> DynamicNumerics {
    DynamicNumerics::Ascend { bits: Bits::new(bits).unwrap() }
}

fn suite(inputs: FloatType) -> Conformance {
    let fixed = vec![StaticNumerics::Ascend { model: inputs }];
    Conformance { profiles: vec![ascend(8), ascend(4)], fixed, inputs }
}

fn open(simulator: &Simulator, change: impl FnOnce(&mut ProcessorOptions)) -> Processor {
    let library = OpenOptions::new().folder(simulator.folder());
    let mut options = ProcessorOptions { library, ..ProcessorOptions::default() };
    change(&mut options);
    Processor::open(&options).unwrap()
}

#[test]
fn a_model_of_bf16_conforms() {
    let simulator = Simulator::new().unwrap();
    let processor = open(&simulator, |_| {});
    suite(FloatType::Bf16).check("cann bf16", &processor);
    processor.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

#[test]
fn a_model_of_f16_conforms() {
    let simulator = Simulator::new().unwrap();
    let processor = open(&simulator, |options| options.model = Model::F16);
    suite(FloatType::F16).check("cann f16", &processor);
}

/// Every version of the product that can carry it, and both layouts of the weight.
#[test]
fn every_version_conforms() {
    let without = |names: &'static [&'static str]| {
        move |options: &mut ProcessorOptions| {
            for name in names {
                options.library = options.library.clone().without(*name);
            }
        }
    };
    let newest = &["aclnnQuantMatmulWeightNz"][..];
    let v4 = &["aclnnQuantMatmulWeightNz", "aclnnQuantMatmulV5"][..];
    let v2 = &["aclnnDynamicQuant"][..];
    for names in [newest, v4, v2] {
        let simulator = Simulator::new().unwrap();
        let processor = open(&simulator, without(names));
        suite(FloatType::Bf16).check(&format!("cann without {names:?}"), &processor);
    }
    let simulator = Simulator::new().unwrap();
    suite(FloatType::Bf16).check("cann row-major", &open(&simulator, |options| options.row_major = true));
    assert!(simulator.trace().iter().all(|step| !step.name.contains("WeightNz")));
}

/// A deliberate fault in each operator that the traits use, and each of its documented other behaviours, is seen by the suite.
#[test]
fn conformance_can_fail() {
    for (switch, value) in [
        (Switch::Wrong, Mistake::QuantMatmul as i64),
        (Switch::Wrong, Mistake::TokenCodes as i64),
        (Switch::Wrong, Mistake::TokenScales as i64),
        (Switch::Wrong, Mistake::StaticQuant as i64),
        (Switch::Association, 1),
        (Switch::ScaleFormula, 1),
    ] {
        let simulator = Simulator::new().unwrap();
        simulator.set(switch, value);
        let processor = open(&simulator, |_| {});
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            suite(FloatType::Bf16).check("cann", &processor);
        }));
        assert!(ended.is_err(), "{switch:?} {value}");
    }
    let simulator = Simulator::new().unwrap();
    simulator.set(Switch::Wrong, Mistake::Attention as i64);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attends(&simulator)));
    assert!(ended.is_err(), "attention");
}

/// What the other documented association and the other formula of the scale may change: the last bit of a result, in both types of a model.
#[test]
fn documented_behaviours_differ_in_the_last_bit() {
    for (model, float) in [(Model::Bf16, FloatType::Bf16), (Model::F16, FloatType::F16)] {
        let changed = [(16, 96, 40), (1, 33, 7), (5, 640, 64)].map(|shape| last_bit(model, float, shape));
        assert!(changed.iter().sum::<usize>() > 0, "the switches change nothing");
    }
}

/// Last places between two numbers of 16 bits: their bits are in order on either side of zero.
fn places(a: u16, b: u16) -> i32 {
    let order = |bits: u16| {
        let magnitude = i32::from(bits & 0x7fff);
        if bits & 0x8000 == 0 { magnitude } else { -magnitude }
    };
    (order(a) - order(b)).abs()
}

/// How often a switch changed anything.
fn last_bit(model: Model, float: FloatType, (m, k, n): (usize, usize, usize)) -> usize {
    let mut numbers = Numbers::new(3);
    // Tokens of many sizes: a formula of the scale shows in some of them alone.
    let mut x = numbers.matrix(m, k, 3.0);
    for (i, mut token) in x.rows_mut().into_iter().enumerate() {
        token.mapv_inplace(|x| float.round(x * (1.0 + 0.37 * i as f32)));
    }
    let scales = numbers.vector(n, 0.01, 0.005);
    let codes = numbers.matrix(n, k, 127.0).mapv(|x| x as i8);
    let linear = IntegerLinear::new(codes, scales, Bias::None).unwrap();
    let run = |switches: &[(Switch, i64)]| -> (QuantizedActivations, Vec<u16>) {
        let simulator = Simulator::new().unwrap();
        switches.iter().for_each(|&(switch, value)| simulator.set(switch, value));
        let processor = open(&simulator, |options| options.model = model);
        let x = processor.quantize(&ascend(8), x.view(), Par::Seq).unwrap();
        let prepared = processor.prepare(&linear, Par::Seq).unwrap();
        macro_rules! bits {
            ($type:ty) => {{
                let mut out = Array2::from_elem((m, n), <$type>::ZERO);
                prepared.forward(&x, out.view_mut().into(), Par::Seq).unwrap();
                out.iter().map(|x| x.to_bits()).collect()
            }};
        }
        let out = if model == Model::F16 { bits!(half::f16) } else { bits!(half::bf16) };
        (x, out)
    };
    let (x, out) = run(&[]);
    let mut changed = 0;
    for switches in [
        &[(Switch::Association, 1)][..],
        &[(Switch::ScaleFormula, 1)],
        &[(Switch::Association, 1), (Switch::ScaleFormula, 1)],
    ] {
        let (other_x, other) = run(switches);
        assert_eq!(x.codes, other_x.codes);
        let last = |a: f32, b: f32| a.to_bits().abs_diff(b.to_bits());
        assert!(x.scales.iter().zip(&other_x.scales).all(|(&a, &b)| last(a, b) <= 1), "{switches:?}");
        let far = out.iter().zip(&other).map(|(&a, &b)| places(a, b)).max().unwrap();
        assert!(far <= 1, "{model:?} {switches:?}: {far} last places");
        changed += usize::from(x.scales != other_x.scales) + usize::from(out != other);
    }
    changed
}

#[test]
fn arithmetic_that_cann_lacks_is_refused() {
    let simulator = Simulator::new().unwrap();
    let processor = open(&simulator, |_| {});
    let x = Array2::from_elem((1, 4), 0.5_f32);
    for numerics in [DynamicNumerics::CompressedTensors { bits: Bits::new(8).unwrap() }, ascend(3)] {
        let error = processor.quantize(&numerics, x.view(), Par::Seq).unwrap_err();
        assert!(error.to_string().contains("Ascend's arithmetic"), "{error}");
    }
}

#[test]
fn activations_are_rounded_to_the_model() {
    let simulator = Simulator::new().unwrap();
    let processor = open(&simulator, |_| {});
    let x = Numbers::new(5).matrix(7, 33, 2.0);
    let got = processor.quantize(&ascend(8), x.view(), Par::Seq).unwrap();
    let rounded = x.mapv(|x| FloatType::Bf16.round(x));
    assert_eq!(got, Reference.quantize(&ascend(8), rounded.view(), Par::Seq).unwrap());
    assert_ne!(got, Reference.quantize(&ascend(8), x.view(), Par::Seq).unwrap());
}

/// A cache that grows, with sequences on pages out of order, beside attention in f64.
#[test]
fn a_cache_attends() {
    attends(&Simulator::new().unwrap());
}

fn attends(simulator: &Simulator) {
    let processor = open(simulator, |_| {});
    let mut numbers = Numbers::new(21);
    let (heads, kv_heads, head_dim, page) = (6, 2, 32, 64);
    let width = kv_heads * head_dim;
    let round = |x: f32| FloatType::Bf16.round(x);
    let mut scales = Numbers::new(22);
    let mut side = |zero: f32| ChannelCodes {
        scales: scales.vector(width, 0.02, 0.01).mapv(round),
        zeros: Array1::from_shape_fn(width, |i| zero * (i % 5) as f32),
    };
    // Without zero codes there is no offset.
    for (keys, values) in [(side(-3.0), side(7.0)), (side(0.0), side(0.0))] {
        let form =
            CodeCacheForm { heads, kv_heads, head_dim, page, keys: keys.clone(), values: values.clone() };
        let mut cache = processor.code_cache(&form).unwrap().unwrap();
        let (pages, lengths) = ([vec![2_u32, 0, 4], vec![1, 3]], [130, 65]);
        let mut codes = |count: usize| -> Vec<i8> {
            numbers.matrix(count, width, 127.0).iter().map(|&x| x as i8).collect()
        };
        let held = lengths.map(|length| [codes(length), codes(length)]);
        let numbers_of = |codes: &[i8], of: &ChannelCodes| {
            let value = |(i, &code): (usize, &i8)| {
                f64::from(of.scales[i % width]) * (f64::from(code) - f64::from(of.zeros[i % width]))
            };
            codes.iter().enumerate().map(value).collect::<Vec<f64>>()
        };
        // The second sequence is short at first, and the cache grows between.
        for (reserved, ends) in [(4, [100, 1]), (5, [130, 65])] {
            cache.reserve(reserved).unwrap();
            for sequence in 0..2 {
                for position in 0..ends[sequence] {
                    let [key, value] = &held[sequence];
                    let row = position * width..(position + 1) * width;
                    let (at, slot) = (pages[sequence][position / page], position % page);
                    cache.write(at, slot, &key[row.clone()], &value[row]).unwrap();
                }
            }
            let queries = Numbers::new(4).matrix(2, heads * head_dim, 1.0).mapv(round);
            let mut out = queries.clone();
            let sequences = [0, 1].map(|i| Cached { pages: &pages[i], length: ends[i] });
            cache.attend(out.view_mut(), &sequences).unwrap();
            for sequence in 0..2 {
                let [key, value] = &held[sequence];
                let (key, value) = (numbers_of(key, &keys), numbers_of(value, &values));
                for head in 0..heads {
                    let first = head / (heads / kv_heads) * head_dim;
                    let score = |t: usize| -> f64 {
                        let products = (0..head_dim).map(|i| {
                            f64::from(queries[(sequence, head * head_dim + i)]) * key[t * width + first + i]
                        });
                        products.sum::<f64>() / (head_dim as f64).sqrt()
                    };
                    let weights: Vec<f64> = (0..ends[sequence]).map(|t| score(t).exp()).collect();
                    for i in 0..head_dim {
                        let sum = weights.iter().enumerate().map(|(t, w)| w * value[t * width + first + i]);
                        let want = sum.sum::<f64>() / weights.iter().sum::<f64>();
                        let got = f64::from(out[(sequence, head * head_dim + i)]);
                        // Half a last place of bf16, and the rounding of the device's own sums.
                        assert!((got - want).abs() <= 0.004 * want.abs() + 1e-4, "{got} {want}");
                    }
                }
            }
        }
        for (page, slot, count) in [(8, 0, width), (0, 64, width), (0, 0, width - 1)] {
            assert!(cache.write(page, slot, &vec![0; count], &vec![0; count]).is_err());
        }
        let mut short = Array2::<f32>::zeros((1, 3));
        assert!(cache.attend(short.view_mut(), &[Cached { pages: &[0], length: 1 }]).is_err());
        let mut one = Array2::<f32>::zeros((1, heads * head_dim));
        for (pages, length) in [(&[0_u32][..], 65), (&[0], 0), (&[9], 1)] {
            assert!(cache.attend(one.view_mut(), &[Cached { pages, length }]).is_err());
        }
    }
    // Forms that CANN has no attention for stay with the host.
    let odd = CodeCacheForm { heads: 2, kv_heads: 1, head_dim: 24, page, keys: side(0.0), values: side(0.0) };
    assert!(processor.code_cache(&odd).unwrap().is_none());
    processor.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

#[test]
fn memory_of_the_device_is_told_apart() {
    let simulator = Simulator::new().unwrap();
    simulator.set_memory(4096);
    let processor = open(&simulator, |_| {});
    let linear = IntegerLinear::new(Array2::zeros((64, 128)), Array1::ones(64), Bias::None).unwrap();
    let error = processor.prepare(&linear, Par::Seq).err().unwrap();
    assert!(matches!(&error, CoreError::Processor { kind: ProcessorProblem::Memory, .. }), "{error}");
    assert!(error.to_string().contains("207018") && error.to_string().contains("EL0004"), "{error}");
    processor.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}

/// Processors on several threads, and a prepared linear that is used by all of them.
#[test]
fn threads_share_a_processor() {
    let simulator = Simulator::new().unwrap();
    let processor = open(&simulator, |_| {});
    let mut numbers = Numbers::new(9);
    let linear = IntegerLinear::new(
        numbers.matrix(33, 64, 127.0).mapv(|x| x as i8),
        Array1::from_elem(33, 0.01),
        Bias::None,
    )
    .unwrap();
    let prepared = processor.prepare(&linear, Par::Seq).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (processor, prepared, linear) = (&processor, &prepared, &linear);
            scope.spawn(move || {
                let x = Numbers::new(seed).matrix(5, 64, 1.0).mapv(|x| FloatType::Bf16.round(x));
                for _ in 0..5 {
                    let codes = processor.quantize(&ascend(8), x.view(), Par::Seq).unwrap();
                    assert_eq!(codes, Reference.quantize(&ascend(8), x.view(), Par::Seq).unwrap());
                    let run = |prepared: &dyn quant_core::operators::PreparedMatmul,
                               x: &QuantizedActivations| {
                        let mut out = Array2::<f32>::zeros((5, 33));
                        prepared.forward(x, Output::from(out.view_mut()), Par::Seq).unwrap();
                        out
                    };
                    let want = Reference.prepare(linear, Par::Seq).unwrap();
                    assert_eq!(run(prepared.as_ref(), &codes), run(want.as_ref(), &codes));
                }
            });
        }
    });
    drop(prepared);
    processor.close().unwrap();
    assert_eq!(simulator.leaks(), []);
}
