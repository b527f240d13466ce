//! The traits of `quant-core` on the simulator: the suite that the CPU runs, and what must make it fail.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ascend_kernels::{Model, OpenOptions, Processor, ProcessorOptions};
use ascend_sim::{Kind, Mistake, Simulator, Switch};
use ndarray::{Array1, Array2};
use quant_core::operators::{
    Bias, Cached, ChannelCodes, CodeCacheForm, DynamicNumerics, DynamicQuant, IntegerLinear, Output,
    Processor as _, QuantMatmul, QuantizedActivations, Reference, StaticNumerics,
};
use quant_core::{Bits, CoreError, FloatType, Groups, Par, ProcessorProblem, QuantizedMatrix};
use quant_testkit::{Conformance, Numbers, WeightOnlyProduct};

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
        (Switch::Wrong, Mistake::Attention as i64),
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

/// The suite's attention over a cache, in both types of a model, and what a cache refuses.
#[test]
fn a_cache_attends() {
    for (model, inputs) in [(Model::Bf16, FloatType::Bf16), (Model::F16, FloatType::F16)] {
        let simulator = Simulator::new().unwrap();
        let processor = open(&simulator, |options| options.model = model);
        assert!(suite(inputs).check_cache("cann", &processor));
        // Forms that CANN has no attention for stay with the host.
        let side = |width: usize| ChannelCodes { scales: Array1::ones(width), zeros: Array1::zeros(width) };
        let form = |head_dim: usize| {
            let (keys, values) = (side(2 * head_dim), side(2 * head_dim));
            CodeCacheForm { heads: 6, kv_heads: 2, head_dim, page: 64, keys, values }
        };
        assert!(processor.code_cache(&form(24)).unwrap().is_none());
        let mut cache = processor.code_cache(&form(32)).unwrap().unwrap();
        cache.reserve(5).unwrap();
        for (page, slot, count) in [(8, 0, 64), (0, 64, 64), (0, 0, 63)] {
            assert!(cache.write(page, slot, &vec![0; count], &vec![0; count]).is_err());
        }
        let mut short = Array2::<f32>::zeros((1, 3));
        assert!(cache.attend(short.view_mut(), &[Cached { pages: &[0], length: 1 }]).is_err());
        let mut one = Array2::<f32>::zeros((1, 6 * 32));
        for (pages, length) in [(&[0_u32][..], 65), (&[0], 0), (&[9], 1)] {
            assert!(cache.attend(one.view_mut(), &[Cached { pages, length }]).is_err());
        }
        drop(cache);
        processor.close().unwrap();
        assert_eq!(simulator.leaks(), []);
    }
}

/// Codes of a prompt go to the device as they come: the host holds those of a page at most, and what is there when the cache grows is
/// copied on the device.
#[test]
fn a_cache_lies_on_the_device() {
    let simulator = Simulator::new().unwrap();
    let processor = open(&simulator, |_| {});
    let side = || ChannelCodes { scales: Array1::ones(32), zeros: Array1::zeros(32) };
    let form = CodeCacheForm { heads: 1, kv_heads: 1, head_dim: 32, page: 64, keys: side(), values: side() };
    let mut cache = processor.code_cache(&form).unwrap().unwrap();
    let copies = || simulator.trace().iter().filter(|step| step.name == "aclrtMemcpyAsync").count();
    for (pages, grown) in [(1, 0), (2, 2), (3, 4), (4, 4)] {
        cache.reserve(pages).unwrap();
        assert_eq!(copies(), grown, "room for {pages} pages");
        for slot in 0..64 {
            cache.write(pages as u32 - 1, slot, &[1; 32], &[1; 32]).unwrap();
        }
    }
    // Four pages of keys and of values; parameters are below a page.
    let bytes = simulator.count(Kind::DeviceBytes);
    assert!((2 * 4 * 64 * 32..2 * 5 * 64 * 32).contains(&bytes), "{bytes}");
}

/// A product with a coded weight on an NPU, from beginning to end.
fn weight_only(processor: &Processor) -> Box<WeightOnlyProduct<'_>> {
    Box::new(move |weight, bias, x| {
        let prepared = processor.weight_only(weight, bias)?;
        let mut out = Array2::from_elem((x.nrows(), prepared.shape().0), 9.0);
        prepared.forward(x, out.view_mut())?;
        Ok(out)
    })
}

#[test]
fn weight_only_products_conform() {
    for (model, inputs) in [(Model::Bf16, FloatType::Bf16), (Model::F16, FloatType::F16)] {
        let simulator = Simulator::new().unwrap();
        let processor = open(&simulator, |options| options.model = model);
        suite(inputs).check_weight_only("cann", &*weight_only(&processor));
        processor.close().unwrap();
        assert_eq!(simulator.leaks(), []);
    }
}

/// A fault in the operator, its other way for few rows, and sums in an order that nobody fixed are seen.
#[test]
fn weight_only_conformance_can_fail() {
    let wrong = Mistake::WeightOnly as i64;
    for (switch, value, without) in
        [(Switch::Wrong, wrong, ""), (Switch::Msd, 1, ""), (Switch::Wrong, 0, "aclrtCtxSetSysParamOpt")]
    {
        let simulator = Simulator::new().unwrap();
        simulator.set(switch, value);
        let processor = open(&simulator, |options| {
            options.library = options.library.clone().without(without);
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            suite(FloatType::Bf16).check_weight_only("cann", &*weight_only(&processor));
        }));
        assert!(ended.is_err(), "{switch:?} {value} {without}");
    }
}

/// What the operator's documents do not have is refused here, and says what.
#[test]
fn weights_that_are_not_documented_are_refused() {
    let simulator = Simulator::new().unwrap();
    let processor = open(&simulator, |_| {});
    let weight = |bits: u32, zero: f32, groups: Groups| {
        let dim = (4, groups.count(96));
        let (bits, levels) = (Bits::new(bits).unwrap(), Array2::ones((4, 96)));
        QuantizedMatrix::new(bits, levels, Array2::ones(dim), Array2::from_elem(dim, zero), groups).unwrap()
    };
    let index = Groups::Index { size: 48, of_column: (0..96).map(|column| column % 2).collect() };
    for (weight, problem) in [
        (weight(3, 4.0, Groups::Channel), "8 or 4 bits"),
        (weight(2, 2.0, Groups::Size(32)), "8 or 4 bits"),
        (weight(4, 7.5, Groups::Channel), "whole numbers"),
        (weight(4, 8.0, Groups::Size(16)), "multiple of 32"),
        (weight(8, 128.0, Groups::Size(48)), "multiple of 32"),
        (weight(4, 8.0, index), "consecutive"),
    ] {
        let error = processor.weight_only(&weight, None).unwrap_err();
        assert!(
            matches!(&error, CoreError::Processor { kind: ProcessorProblem::Unavailable, .. }),
            "{error}"
        );
        assert!(error.to_string().contains(problem), "{error}");
    }
    let fine = weight(4, 8.0, Groups::Channel);
    let error = processor.weight_only(&fine, Some(&Array1::zeros(3))).unwrap_err();
    assert!(error.to_string().contains("4 (outputs)"), "{error}");
    let prepared = processor.weight_only(&fine, None).unwrap();
    let (x, mut out) = (Array2::zeros((2, 95)), Array2::zeros((2, 4)));
    assert!(prepared.forward(x.view(), out.view_mut()).is_err());
    let lacking = Simulator::new().unwrap();
    let lacking = open(&lacking, |options| {
        options.library = options.library.clone().without("aclnnWeightQuantBatchMatmulV2");
    });
    let (prepared, x) = (lacking.weight_only(&fine, None).unwrap(), Array2::zeros((2, 96)));
    let error = prepared.forward(x.view(), out.view_mut()).unwrap_err();
    assert!(matches!(&error, CoreError::Processor { kind: ProcessorProblem::Unavailable, .. }), "{error}");
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
