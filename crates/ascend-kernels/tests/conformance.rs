//! The traits of `quant-core` on the simulator: the suite that the CPU runs, and what must make it fail.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ascend_kernels::{Model, OpenOptions, Processor, ProcessorOptions};
use ascend_sim::{Simulator, Switch};
use ndarray::{Array1, Array2};
use quant_core::operators::{
    Bias, DynamicNumerics, DynamicQuant, IntegerLinear, Output, QuantMatmul, QuantizedActivations, Reference,
};
use quant_core::{Bits, CoreError, FloatType, Par};
use quant_testkit::{Conformance, Numbers};

fn ascend(bits: u32) -> DynamicNumerics {
    DynamicNumerics::Ascend { bits: Bits::new(bits).unwrap() }
}

fn suite(inputs: FloatType) -> Conformance {
    Conformance { profiles: vec![ascend(8), ascend(4)], inputs }
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

/// A deliberate fault in the simulator's operators, and each of its documented other behaviours, is seen by the suite.
#[test]
fn conformance_can_fail() {
    for (switch, value) in [(Switch::Wrong, 1), (Switch::Association, 1), (Switch::ScaleFormula, 1)] {
        let simulator = Simulator::new().unwrap();
        simulator.set(switch, value);
        let processor = open(&simulator, |_| {});
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            suite(FloatType::Bf16).check("cann", &processor);
        }));
        assert!(ended.is_err(), "{switch:?}");
    }
}

/// What the other documented association and the other formula of the scale may change: the last bit of a result.
#[test]
fn documented_behaviours_differ_in_the_last_bit() {
    let mut numbers = Numbers::new(3);
    let x = numbers.matrix(16, 96, 3.0).mapv(|x| FloatType::Bf16.round(x));
    let scales = numbers.vector(40, 0.01, 0.005);
    let codes = numbers.matrix(40, 96, 127.0).mapv(|x| x as i8);
    let linear = IntegerLinear::new(codes, scales, Bias::None).unwrap();
    let run = |switches: &[(Switch, i64)]| {
        let simulator = Simulator::new().unwrap();
        switches.iter().for_each(|&(switch, value)| simulator.set(switch, value));
        let processor = open(&simulator, |_| {});
        let x = processor.quantize(&ascend(8), x.view(), Par::Seq).unwrap();
        let mut out = Array2::from_elem((16, 40), half::bf16::ZERO);
        processor.prepare(&linear, Par::Seq).unwrap().forward(&x, out.view_mut().into(), Par::Seq).unwrap();
        (x, out)
    };
    let (x, out) = run(&[]);
    for switches in [
        &[(Switch::Association, 1)][..],
        &[(Switch::ScaleFormula, 1)],
        &[(Switch::Association, 1), (Switch::ScaleFormula, 1)],
    ] {
        let (other_x, other) = run(switches);
        assert_eq!(x.codes, other_x.codes);
        let last = |a: f32, b: f32| a.to_bits().abs_diff(b.to_bits());
        assert!(x.scales.iter().zip(&other_x.scales).all(|(&a, &b)| last(a, b) <= 1), "{switches:?}");
        let far = out.iter().zip(&other).map(|(a, b)| a.to_bits().abs_diff(b.to_bits())).max().unwrap();
        assert!(far <= 1, "{switches:?}: {far} last places of bf16");
    }
}

#[test]
fn arithmetic_that_cann_lacks_is_refused() {
    let simulator = Simulator::new().unwrap();
    let processor = open(&simulator, |_| {});
    let x = Array2::from_elem((1, 4), 0.5_f32);
    for numerics in [DynamicNumerics::CompressedTensors { bits: Bits::new(8).unwrap() }, ascend(3)] {
        let error = processor.quantize(&numerics, x.view(), Par::Seq).unwrap_err();
        assert!(error.to_string().contains("--backend cpu"), "{error}");
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

#[test]
fn memory_of_the_device_is_told_apart() {
    let simulator = Simulator::new().unwrap();
    simulator.set_memory(4096);
    let processor = open(&simulator, |_| {});
    let linear = IntegerLinear::new(Array2::zeros((64, 128)), Array1::ones(64), Bias::None).unwrap();
    let error = processor.prepare(&linear, Par::Seq).err().unwrap();
    assert!(matches!(&error, CoreError::Processor { out_of_memory: true, .. }), "{error}");
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
