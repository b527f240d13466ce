//! Executed linears beside simulated ones.

use crate::common::{Scheme, quantised_model, spec};
use ndarray::{Array1, Array2, ArrayView2};
use quant_core::operators::{
    DynamicNumerics, DynamicQuant, IntegerLinear, PreparedMatmul, Processor, Profile, QuantMatmul,
    QuantizedActivations, Reference, StaticNumerics, StaticQuant, WeightOnlyProduct,
};
use quant_core::{
    ActQuant, ActRule, Bits, ClipRatio, CoreError, FloatType, ProcessorProblem, QParams, QuantizedMatrix,
};
use quant_graph::{BlockSource, LinearId};
use quant_kernels::Cpu;
use quant_model::{
    Arithmetic, Backend, Block, Compute, Execution, Flips, LinearOp, ModelError, Par, WeightOnlyOp,
    count_flips, linear_op,
};
use quant_testkit::{Conformance, Numbers};
use std::ops::ControlFlow;
use std::sync::Arc;

const SCHEMES: [Scheme; 4] = [Scheme::Dynamic, Scheme::Static, Scheme::Packed, Scheme::Grouped];

fn profiles() -> [Arithmetic; 3] {
    let profiles =
        [Profile::Ascend { model: FloatType::Bf16 }, Profile::CompressedTensors, Profile::Calibration];
    profiles.map(|profile| Arithmetic::from(Compute::F32).of(profile))
}

fn arithmetic() -> Arithmetic {
    let [ascend, ..] = profiles();
    ascend
}

/// One input: the same codes, so that outputs differ by the rounding of sums alone, `inputs · 2^-23` of what they sum; products of
/// floats with packed weights do not differ at all.
#[test]
fn one_input_gives_one_output() {
    let spec = spec("Qwen2ForCausalLM");
    let mut numbers = Numbers::new(4);
    for scheme in SCHEMES {
        let params = quantised_model(&spec, scheme, 9).block(0).unwrap();
        for arithmetic in profiles() {
            for (id, linear) in &params.linears {
                let simulated = linear_op::<f32>(linear, arithmetic.clone(), Par::Seq).unwrap();
                let executed = linear_op::<f32>(linear, arithmetic.clone().executed(), Par::Seq).unwrap();
                assert!(executed.is_executed() && !simulated.is_executed());
                assert!(
                    4 * executed.bytes() <= 3 * simulated.bytes(),
                    "{} {}",
                    executed.bytes(),
                    simulated.bytes()
                );
                let (outputs, inputs) = linear.weight.dim();
                let x = numbers.matrix(13, inputs, 1.5);
                let (want, got) = (
                    simulated.forward(x.view(), Par::Seq).unwrap(),
                    executed.forward(x.view(), Par::new(2)).unwrap(),
                );
                assert_eq!(got.dim(), (13, outputs));
                if linear.input.is_none() {
                    assert_eq!(got, want, "{id}");
                    continue;
                }
                let weight = linear.weight.clone().into_values();
                let sizes = x.mapv(f32::abs).dot(&weight.mapv(f32::abs).t());
                for ((got, want), size) in got.iter().zip(&want).zip(&sizes) {
                    let limit = (inputs as f32 + 8.0) * f32::EPSILON * (size + 1.0);
                    assert!((got - want).abs() <= limit, "{id} {scheme:?} {got} {want}");
                }
                // Wider elements take the same codes.
                let wide = linear_op::<f64>(linear, arithmetic.clone().executed(), Par::Seq).unwrap();
                assert_eq!(wide.forward(x.mapv(f64::from).view(), Par::Seq).unwrap(), got.mapv(f64::from));
            }
        }
    }
}

/// q, k and v share one pass of the quantiser, executed or not.
#[test]
fn a_block_runs_executed_linears() {
    let spec = spec("LlamaForCausalLM");
    for scheme in SCHEMES {
        let params = quantised_model(&spec, scheme, 2).block(1).unwrap();
        let [simulated, executed] = [Execution::Simulated, Execution::Integer].map(|execution| {
            let arithmetic = Arithmetic { execution, ..arithmetic() };
            Block::<f32>::new(&spec, 1, params.clone(), arithmetic, Par::Seq).unwrap()
        });
        assert_eq!(executed.arithmetic().execution, Execution::Integer);
        let x: Array2<f32> = Numbers::new(8).matrix(21, spec.hidden, 1.0);
        let rope = quant_model::RopeTable::new(&spec.rope, spec.head_dim, 128, 21);
        let want = simulated.forward(x.clone(), &rope, Par::Seq).unwrap();
        let got = executed.forward(x, &rope, Par::new(2)).unwrap();
        let size = want.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= 2e-2 * size, "{scheme:?} {got} {want}");
        }
    }
}

/// What has no product of codes is simulated: floats, and tokens in shards.
#[test]
fn what_cannot_be_executed_is_simulated() {
    let spec = spec("LlamaForCausalLM");
    let mut params = quantised_model(&spec, Scheme::Dynamic, 2).block(0).unwrap();
    let linear = params.linears.get_mut(&LinearId::O).unwrap();
    linear.input = Some(ActQuant::Dynamic {
        bits: Bits::new(8).unwrap(),
        rule: ActRule::Symmetric,
        clip_ratio: ClipRatio::NONE,
        shards: 2,
    });
    let float = quantised_model(&spec, Scheme::Float, 2).block(0).unwrap();
    for linear in [&*linear, &float.linears[&LinearId::O]] {
        let executed = linear_op::<f32>(linear, arithmetic().executed(), Par::Seq).unwrap();
        let simulated = linear_op::<f32>(linear, arithmetic(), Par::Seq).unwrap();
        assert!(!executed.is_executed());
        let x = Numbers::new(8).matrix(5, spec.hidden, 1.0);
        assert_eq!(
            executed.forward(x.view(), Par::Seq).unwrap(),
            simulated.forward(x.view(), Par::Seq).unwrap()
        );
    }
}

/// A float weight of bf16 numbers takes half the bytes and gives the same bits, where products are those of f32; every other weight
/// and every other arithmetic stays what it was.
#[test]
fn bf16_weights_are_held_as_such_when_asked() {
    let spec = spec("Qwen2ForCausalLM");
    let halves = quantised_model(&spec, Scheme::Halves, 2).block(0).unwrap();
    let floats = quantised_model(&spec, Scheme::Float, 2).block(0).unwrap();
    let plain = Arithmetic::from(Compute::F32);
    let bf16 = Arithmetic::from(Compute::Bf16);
    for (id, linear) in &halves.linears {
        let op =
            |linear, arithmetic: &Arithmetic| linear_op::<f32>(linear, arithmetic.clone(), Par::Seq).unwrap();
        let (wide, narrow) = (op(linear, &plain), op(linear, &plain.clone().narrow()));
        // Two bytes a number and a few for each row, of rows up to whole panels of 32; floats come in panels of other widths.
        let shape = spec.block(0).linear(*id).map(|linear| (linear.outputs, linear.inputs)).unwrap();
        let rows = shape.0.next_multiple_of(32);
        let most = 2 * rows * shape.1.next_multiple_of(2) + 16 * rows;
        assert!(narrow.bytes() <= most && !narrow.is_executed(), "{id}: {} of {most}", narrow.bytes());
        let halved = 10 * narrow.bytes() <= 7 * wide.bytes();
        assert!(halved || rows != shape.0, "{id}: {} of {}", narrow.bytes(), wide.bytes());
        assert_eq!(op(linear, &bf16.clone().narrow()).bytes(), op(linear, &bf16).bytes());
        let float = &floats.linears[id];
        assert_eq!(op(float, &plain.clone().narrow()).bytes(), op(float, &plain).bytes());
        let (double, same) = (
            linear_op::<f64>(linear, plain.clone(), Par::Seq).unwrap(),
            linear_op::<f64>(linear, plain.clone().narrow(), Par::Seq).unwrap(),
        );
        assert_eq!(double.bytes(), same.bytes());
        for tokens in [1, 3, 20] {
            let x = Numbers::new(8).matrix(tokens, wide.in_features(), 1.0);
            assert_eq!(
                narrow.forward(x.view(), Par::Seq).unwrap(),
                wide.forward(x.view(), Par::new(2)).unwrap()
            );
        }
    }
}

/// The first block sees one input on both sides: norms and quantisers do not differ there, attention and what follows does by the
/// last bit, which flips few codes.
#[test]
fn few_codes_flip_and_none_where_inputs_are_equal() {
    let spec = spec("Qwen2ForCausalLM");
    let sequences: Vec<Vec<u32>> = (1..9).map(|i| (0..120).map(|j| (i * j * 7 + i) % 50).collect()).collect();
    for scheme in [Scheme::Dynamic, Scheme::Static] {
        let mut model = quantised_model(&spec, scheme, 6);
        let mut count = |compute, par| {
            let arithmetic = Arithmetic { compute, ..arithmetic() };
            let go_on = &mut |_| ControlFlow::Continue(());
            count_flips(&mut model, arithmetic, &sequences, par, go_on).unwrap()
        };
        let flips = count(Compute::F32, Par::Seq);
        assert_eq!(flips, count(Compute::F32, Par::new(2)));
        let tokens = 8 * 120;
        let inputs = (2 * spec.hidden + spec.query_width() + spec.intermediate) as u64;
        assert!(flips.iter().all(|f| f.codes == tokens * inputs), "{flips:?}");
        let all = |flips: &[Flips]| flips.iter().map(|f| f.flipped).sum::<u64>();
        assert!(all(&flips) * 1000 < 2 * tokens * inputs, "{flips:?}");
        // A simulation whose products round their operands is farther away.
        let rounded = count(Compute::Bf16, Par::Seq);
        assert!(all(&rounded) * 10_000 > 2 * tokens * inputs && all(&rounded) > all(&flips), "{rounded:?}");
    }
    // Weights alone: no codes of inputs, and nothing to flip.
    let mut packed = quantised_model(&spec, Scheme::Packed, 6);
    let none =
        count_flips(&mut packed, arithmetic(), &sequences, Par::Seq, &mut |_| ControlFlow::Continue(()));
    assert!(none.unwrap().iter().all(|f| f.codes == 0));
    let stopped =
        count_flips(&mut packed, arithmetic(), &sequences, Par::Seq, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(ModelError::Stopped)));
}

/// Two processors in the arithmetic of a device: one result, of the type of the model; and what one says is told with its place.
#[test]
fn a_backend_runs_the_codes() {
    let spec = spec("Qwen2ForCausalLM");
    for scheme in [Scheme::Dynamic, Scheme::Static] {
        let mut model = quantised_model(&spec, scheme, 9);
        let params = model.block(0).unwrap();
        let on = |processor: Arc<dyn Processor>| Arithmetic {
            backend: Some(Backend { processor, model: FloatType::Bf16 }),
            ..arithmetic().executed()
        };
        let x = Numbers::new(3).matrix(9, spec.hidden, 1.5);
        let linear = &params.linears[&LinearId::O];
        let run = |arithmetic: Arithmetic| {
            let linear = linear_op::<f32>(linear, arithmetic, Par::Seq).unwrap();
            linear.forward(x.view(), Par::Seq).unwrap()
        };
        let (cpu, plain) = (run(on(Arc::new(Cpu::default()))), run(on(Arc::new(Reference))));
        assert_eq!(cpu, plain);
        assert!(cpu.iter().all(|&y| FloatType::Bf16.round(y) == y));
        assert_ne!(cpu, run(arithmetic().executed()));
        let broken = Block::<f32>::new(&spec, 0, params, on(Arc::new(Broken)), Par::Seq).unwrap_err();
        let ModelError::Operator { block: 0, cause, .. } = &broken else { panic!("{broken:?}") };
        assert!(matches!(cause, CoreError::Processor { kind: ProcessorProblem::Memory, .. }));
    }
}

/// The host's way of a device with coded weights: the stated arithmetic, bit for bit, with any number of threads and wider elements.
#[test]
fn weight_only_products_conform() {
    for model in [FloatType::Bf16, FloatType::F16] {
        let suite = Conformance { profiles: vec![], fixed: vec![], inputs: model };
        suite.check_weight_only("host", &|weight, bias, x| {
            let linear = WeightOnlyOp::<f32>::new(weight, bias, model, Par::Seq);
            let (one, two) = (linear.forward(x, Par::Seq)?, linear.forward(x, Par::new(2))?);
            assert_eq!(one.mapv(f32::to_bits), two.mapv(f32::to_bits));
            let wide = WeightOnlyOp::<f64>::new(weight, bias, model, Par::Seq);
            let wide = wide.forward(x.mapv(f64::from).view(), Par::Seq)?;
            assert!(wide.iter().zip(&one).all(|(a, b)| a.to_bits() == f64::from(*b).to_bits() || a.is_nan()));
            Ok(one)
        });
    }
}

/// With a backend, weights without quantised inputs are multiplied in the arithmetic of the device, whatever products of floats are.
#[test]
fn a_backend_has_coded_weights() {
    let spec = spec("Qwen2ForCausalLM");
    let params = quantised_model(&spec, Scheme::Packed, 9).block(0).unwrap();
    for linear in params.linears.values() {
        let x = Numbers::new(3).matrix(9, linear.weight.dim().1, 1.5);
        let run = |compute, backend: Option<Backend>| {
            let arithmetic = Arithmetic { compute, backend, ..arithmetic().executed() };
            let linear = linear_op::<f32>(linear, arithmetic, Par::Seq).unwrap();
            assert!(linear.is_executed());
            linear.forward(x.view(), Par::Seq).unwrap()
        };
        let on = || Some(Backend { processor: Arc::new(Cpu::default()), model: FloatType::Bf16 });
        let device = run(Compute::F32, on());
        assert!(device.iter().all(|&y| FloatType::Bf16.round(y) == y));
        assert_eq!(device, run(Compute::Bf16, on()));
        let here = run(Compute::F32, None);
        let size = here.iter().fold(0.0_f32, |size, y| size.max(y.abs()));
        assert!(device.iter().zip(&here).all(|(a, b)| (a - b).abs() <= 0.02 * size));
        assert_ne!(device, here);
    }
    let broken = Some(Backend { processor: Arc::new(Broken), model: FloatType::Bf16 });
    let arithmetic = Arithmetic { backend: broken, ..arithmetic().executed() };
    let broken = Block::<f32>::new(&spec, 0, params, arithmetic, Par::Seq).unwrap_err();
    let ModelError::Operator { block: 0, cause, .. } = &broken else { panic!("{broken:?}") };
    assert!(matches!(cause, CoreError::Processor { kind: ProcessorProblem::Memory, .. }));
}

/// A processor without memory.
#[derive(Debug)]
struct Broken;

fn no_memory<T>() -> Result<T, CoreError> {
    Err(CoreError::Processor { message: "no memory".to_owned(), kind: ProcessorProblem::Memory })
}

impl DynamicQuant for Broken {
    fn quantize(
        &self,
        _: &DynamicNumerics,
        _: ArrayView2<'_, f32>,
        _: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        no_memory()
    }
}

impl StaticQuant for Broken {
    fn quantize_static(
        &self,
        _: StaticNumerics,
        _: Bits,
        _: QParams,
        _: ArrayView2<'_, f32>,
        _: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        no_memory()
    }
}

impl QuantMatmul for Broken {
    fn prepare(&self, _: &IntegerLinear, _: Par) -> Result<Box<dyn PreparedMatmul>, CoreError> {
        no_memory()
    }
}

impl Processor for Broken {
    fn name(&self) -> String {
        "broken".to_owned()
    }
    fn weight_only(
        &self,
        _: &QuantizedMatrix,
        _: Option<&Array1<f32>>,
    ) -> Result<Option<Box<dyn WeightOnlyProduct>>, CoreError> {
        no_memory()
    }
}
