//! One training step of a block of Qwen2-1.5B's shape beside its floor, measured in one run.
//!
//! The step is forward and backward of 4 sequences of 512 tokens, with the gradients of the input and of every effective
//! weight. The floor is what the same arithmetic takes at the rates of `quant-kernels`: of every linear, its product, that of
//! the gradient of its input and that of the gradient of its weight, each measured in its own shape, and the seven products
//! of attention at the mean rate of the others. Rounds of the step and of all products take turns, so that a disturbance of
//! the machine hits both; each keeps its best. One thread is timed in CPU time where the system tells it (Linux).
//!
//! Run with `cargo bench -p quant-model --bench training`; add `-- quick` for one round.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use ndarray::{Array1, Array2};
use quant_graph::{
    BlockParams, BlockTraining, EffectiveWeight, EffectiveWeights, LinearId, NoInsert, Online,
};
use quant_kernels::{Compute, Par, matmul_nn, matmul_nt};
use quant_model::{Block, BlockTrainer, RopeTable, model_spec, training_memory};
use quant_testkit::timed;
use std::collections::BTreeMap;

const LENGTHS: [usize; 4] = [512; 4];

fn main() {
    let rounds = if std::env::args().any(|argument| argument == "quick") { 1 } else { 5 };
    let config = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    });
    let spec = model_spec(&config).unwrap();
    let tokens: usize = LENGTHS.iter().sum();
    let norms = spec.norms().into_iter().map(|(norm, width)| (norm, Array1::ones(width))).collect();
    let params = BlockParams { norms, linears: BTreeMap::new(), online: Online::default(), kv: None };
    let block = Block::<f32>::new(&spec, 0, params, Compute::F32, Par::Seq).unwrap();
    let topology = block.spec().clone();
    let weights: BTreeMap<LinearId, (Array2<f32>, Option<Array1<f32>>)> = topology
        .linears
        .iter()
        .map(|l| {
            let scale = (l.inputs as f32).sqrt().recip();
            (l.id, (random(l.outputs, l.inputs, scale), l.bias.then(|| Array1::from_elem(l.outputs, 0.1))))
        })
        .collect();
    let with: EffectiveWeights<'_, f32> = weights
        .iter()
        .map(|(id, (w, b))| (*id, EffectiveWeight { weight: w.view(), bias: b.as_ref().map(|b| b.view()) }))
        .collect();
    let table = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, LENGTHS[0]);
    let rope = |_| &table;
    let trainer = BlockTrainer::new(&block, &rope, EffectiveWeights::new()).unwrap();
    let starts: Vec<usize> = (0..=LENGTHS.len()).map(|i| i * LENGTHS[0]).collect();
    let (x, grad) = (random(tokens, spec.hidden, 1.0), random(tokens, spec.hidden, 1e-3));

    // A query meets the keys up to its own: half of the square, of two products forward and five back.
    let keys = LENGTHS.iter().map(|n| n * (n + 1) / 2).sum::<usize>();
    let attention = 2.0 * 7.0 * (keys * spec.query_width()) as f64;
    let mut products: Vec<Product> =
        topology.linears.iter().flat_map(|l| Product::of(l.shape(), tokens)).collect();
    let operations: f64 = products.iter().map(|p| p.operations).sum();

    for par in [Par::Seq, Par::new(2)] {
        let (mut forward, mut step) = (f64::INFINITY, f64::INFINITY);
        products.iter_mut().for_each(|p| p.best = f64::INFINITY);
        for round in 0..=rounds {
            let mut recorded = None;
            let (first, ()) = timed(par, || {
                recorded = Some(trainer.record(x.view(), &starts, &with, &mut NoInsert, par).unwrap());
            });
            let (second, ()) = timed(par, || {
                let tape = recorded.take().map(|(_, tape)| tape).unwrap();
                let gradients = tape.backward(grad.clone(), &mut NoInsert, par).unwrap();
                assert!(gradients.input.iter().all(|x| x.is_finite()));
            });
            for product in &mut products {
                let seconds = product.run(par);
                // The first round only warms caches and memory.
                product.best = if round > 0 { product.best.min(seconds) } else { product.best };
            }
            if round > 0 {
                (forward, step) = (forward.min(first), step.min(first + second));
            }
        }
        let seconds: f64 = products.iter().map(|p| p.best).sum();
        let floor = seconds + attention / operations * seconds;
        println!("{par}, best of {rounds} rounds");
        for kind in ["forward", "input gradient", "weight gradient"] {
            let of: Vec<&Product> = products.iter().filter(|p| p.kind == kind).collect();
            let rate = of.iter().map(|p| p.operations).sum::<f64>() / of.iter().map(|p| p.best).sum::<f64>();
            let each: Vec<String> = of
                .iter()
                .map(|p| format!("{}x{} {:.0}", p.shape.0, p.shape.1, p.operations / p.best / 1e9))
                .collect();
            println!("  products, {kind:<15} {:.1} GF/s ({})", rate / 1e9, each.join(", "));
        }
        println!(
            "  step {step:.2} s (forward {forward:.2} s), floor {floor:.2} s for {:.0} GFLOP: {:.0} % of it",
            (operations + attention) / 1e9,
            100.0 * floor / step
        );
    }
    let memory = training_memory::<f32>(&spec, &LENGTHS, None);
    println!(
        "tape {} MB, working {} MB, gradients {} MB",
        memory.tape >> 20,
        memory.working >> 20,
        memory.gradients >> 20
    );
}

/// One product of a linear, in the shapes and strides in which a step has it.
struct Product {
    kind: &'static str,
    shape: (usize, usize),
    operations: f64,
    best: f64,
    x: Array2<f32>,
    y: Array2<f32>,
    w: Array2<f32>,
}

impl Product {
    fn of((outputs, inputs): (usize, usize), tokens: usize) -> [Self; 3] {
        ["forward", "input gradient", "weight gradient"].map(|kind| Self {
            kind,
            shape: (outputs, inputs),
            operations: 2.0 * (tokens * outputs) as f64 * inputs as f64,
            best: f64::INFINITY,
            x: random(tokens, inputs, 1.0),
            y: random(tokens, outputs, 1.0),
            w: random(outputs, inputs, 1.0),
        })
    }

    fn run(&mut self, par: Par) -> f64 {
        let Self { kind, x, y, w, .. } = self;
        let (seconds, ()) = match *kind {
            "forward" => timed(par, || {
                matmul_nt(y.view_mut(), false, 1.0, x.view(), w.view(), Compute::F32, par);
            }),
            "input gradient" => timed(par, || {
                matmul_nn(x.view_mut(), false, 1.0, y.view(), w.view(), Compute::F32, par);
            }),
            _ => timed(par, || {
                matmul_nn(w.view_mut(), false, 1.0, y.t(), x.view(), Compute::F32, par);
            }),
        };
        seconds
    }
}

fn random(rows: usize, columns: usize, scale: f32) -> Array2<f32> {
    let mut state = 1_u32;
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / 8_388_608.0 - 1.0) * scale
    })
}
