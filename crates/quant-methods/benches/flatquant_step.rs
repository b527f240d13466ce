//! One training step of FlatQuant in a block of Qwen2-1.5B's shape, on 4 sequences of 512 tokens: effective weights, forward, backward to
//! every parameter, AdamW. The same step in PyTorch: `benchmarks/peers/flatquant_step.py`.
//!
//! `cargo bench -p quant-methods --bench flatquant_step [-- one]`, where `one` is one thread only.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench fails by panicking")]

use ndarray::{Array1, Array2};
use quant_core::Bits;
use quant_graph::{BlockTraining, EffectiveWeight, EffectiveWeights, LinearId, LinearWeight, Site};
use quant_kernels::{Compute, Par};
use quant_methods::flatquant::{FlatParameters, FlatScheme, FlatShape, FlatStep, Start, mean_squared_error};
use quant_model::{Block, BlockTrainer, RopeTable, model_spec};
use quant_rotate::{AdamW, AdamWSettings, Parametrisation};
use quant_testkit::{Numbers, random_block, timed};
use std::collections::BTreeMap;

const SEQUENCES: usize = 4;
const LENGTH: usize = 512;
const ROUNDS: usize = 3;

fn main() {
    let one = std::env::args().any(|argument| argument == "one");
    let config = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    });
    let spec = model_spec(&config).unwrap();
    let mut numbers = Numbers::new(1);
    let mut params = random_block(&spec, &mut numbers);
    let linears = std::mem::take(&mut params.linears);
    let block = Block::<f32>::new(&spec, 0, params, Compute::F32, Par::Seq).unwrap();
    let float: EffectiveWeights<'_, f32> = linears
        .iter()
        .map(|(id, linear): (&LinearId, _)| {
            let LinearWeight::Float(weight) = &linear.weight else { unreachable!() };
            let bias = linear.bias.as_ref().map(|bias| bias.view());
            (*id, EffectiveWeight { weight: weight.view(), bias })
        })
        .collect();
    let table = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, LENGTH);
    let rope = |_| &table;
    let trainer = BlockTrainer::new(&block, &rope, EffectiveWeights::new()).unwrap();
    let starts: Vec<usize> = (0..=SEQUENCES).map(|i| i * LENGTH).collect();
    let [x, target]: [Array2<f32>; 2] =
        [(); 2].map(|()| numbers.matrix(SEQUENCES * LENGTH, spec.hidden, 1.0));

    let four = Bits::new(4).unwrap();
    let scheme = FlatScheme::new(Some(four), Some((four, false)), Some((four, false))).unwrap();
    let shape = FlatShape::new(&spec, 0);
    let stages = spec.block(0).stages.into_iter().filter(|stage| stage.site != Site::AttentionOutput);
    let scales: BTreeMap<_, _> = stages.map(|stage| (stage.site, Array1::ones(stage.width))).collect();
    let start = Start {
        parametrisation: Parametrisation::Inverse,
        scales: &scales,
        weight_clips: true,
        input_clips: true,
        seed: 0,
        name: "model.layers.0",
    };
    let mut parameters = FlatParameters::initial(&shape, &scheme, start).unwrap();
    let mut optimiser = AdamW::new(AdamWSettings::default()).unwrap();
    for par in if one { vec![Par::Seq] } else { vec![Par::Seq, Par::new(2)] } {
        let mut best = f64::INFINITY;
        for round in 0..=ROUNDS {
            let (first, step) = timed(par, || FlatStep::new(&shape, &scheme, &parameters).unwrap());
            let (merging, merged) = timed(par, || step.weights(&float, par).unwrap());
            let with = merged.iter().map(|(id, weight)| (*id, weight.view())).collect();
            let mut insert = step.insert();
            let (forward, (loss, tape)) = timed(par, || {
                let (y, tape) = trainer.record(x.view(), &starts, &with, &mut insert, par).unwrap();
                (mean_squared_error(y.view(), target.view()).logarithmic(), tape)
            });
            let (backward, back) = timed(par, || tape.backward(loss.gradient, &mut insert, par).unwrap());
            let (parting, gradients) =
                timed(par, || step.backward(&float, &back.weights, insert.into_sums(), par).unwrap());
            let (last, ()) = timed(par, || {
                parameters.descend(&gradients, &mut optimiser, [5e-3, 5e-3, 5e-2, 5e-2]).unwrap();
            });
            let seconds = first + merging + forward + backward + parting + last;
            // The first round only warms caches and memory.
            best = if round > 0 { best.min(seconds) } else { best };
            println!(
                "{par}, round {round}: {seconds:.3} s, loss {:.5}: matrices {first:.3}, weights {merging:.3}, forward {forward:.3}, \
                 backward {backward:.3}, their gradients {parting:.3}, update {last:.3}",
                loss.value
            );
        }
        println!("{par}: {best:.3} s a step");
    }
}
