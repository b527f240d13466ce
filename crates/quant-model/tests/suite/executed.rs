//! Executed linears beside simulated ones.

use crate::common::{Scheme, quantised_model, spec};
use ndarray::Array2;
use quant_core::operators::Profile;
use quant_core::{ActQuant, ActRule, Bits, ClipRatio, FloatType};
use quant_graph::{BlockSource, LinearId};
use quant_model::{Arithmetic, Block, Compute, Execution, Flips, ModelError, Par, count_flips, linear_op};
use quant_testkit::Numbers;
use std::ops::ControlFlow;

const SCHEMES: [Scheme; 4] = [Scheme::Dynamic, Scheme::Static, Scheme::Packed, Scheme::Grouped];

fn profiles() -> [Arithmetic; 3] {
    let profiles =
        [Profile::Ascend { model: FloatType::Bf16 }, Profile::CompressedTensors, Profile::Calibration];
    profiles.map(|profile| Arithmetic::from(Compute::F32).of(profile))
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
                let simulated = linear_op::<f32>(linear, arithmetic, Par::Seq);
                let executed = linear_op::<f32>(linear, arithmetic.executed(), Par::Seq);
                assert!(executed.is_executed() && !simulated.is_executed());
                assert!(
                    4 * executed.bytes() <= 3 * simulated.bytes(),
                    "{} {}",
                    executed.bytes(),
                    simulated.bytes()
                );
                let (outputs, inputs) = linear.weight.dim();
                let x = numbers.matrix(13, inputs, 1.5);
                let (want, got) =
                    (simulated.forward(x.view(), Par::Seq), executed.forward(x.view(), Par::new(2)));
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
                let wide = linear_op::<f64>(linear, arithmetic.executed(), Par::Seq);
                assert_eq!(wide.forward(x.mapv(f64::from).view(), Par::Seq), got.mapv(f64::from));
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
            let arithmetic = Arithmetic { execution, ..profiles()[0] };
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
        let executed = linear_op::<f32>(linear, profiles()[0].executed(), Par::Seq);
        let simulated = linear_op::<f32>(linear, profiles()[0], Par::Seq);
        assert!(!executed.is_executed());
        let x = Numbers::new(8).matrix(5, spec.hidden, 1.0);
        assert_eq!(executed.forward(x.view(), Par::Seq), simulated.forward(x.view(), Par::Seq));
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
            let arithmetic = Arithmetic { compute, ..profiles()[0] };
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
        count_flips(&mut packed, profiles()[0], &sequences, Par::Seq, &mut |_| ControlFlow::Continue(()));
    assert!(none.unwrap().iter().all(|f| f.codes == 0));
    let stopped =
        count_flips(&mut packed, profiles()[0], &sequences, Par::Seq, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(ModelError::Stopped)));
}
