//! SmoothQuant changes no output: the exactness that its method is built on, over whole blocks and models.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common::{random_model, relative, spec};
use ndarray::{Array1, Array2};
use proptest::prelude::*;
use quant_core::{FloatType, Variant};
use quant_graph::{BlockParams, BlockSource, LinearWeight, ModelSpec, Site};
use quant_kernels::{Compute, Par};
use quant_methods::smoothquant::{SmoothQuant, apply, factors};
use quant_model::{Block, InMemoryModel, KvCache, RopeTable, StreamedModel};
use quant_testkit::{Numbers, random_block};
use std::ops::ControlFlow;

const ARCHITECTURES: [&str; 5] = [
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "PanguEmbeddedForCausalLM",
];

/// `max |x_j|` of every channel.
fn largest(x: &Array2<f32>) -> Array1<f32> {
    Array1::from_shape_fn(x.ncols(), |j| x.column(j).iter().fold(0.0_f32, |m, v| m.max(v.abs())))
}

/// The inputs of both norms' linears.
fn site_inputs(spec: &ModelSpec, params: &BlockParams, h: &Array2<f32>) -> [(Site, Array2<f32>); 2] {
    let block = Block::<f32>::new(spec, 0, params.clone(), Compute::F32, Par::Seq).unwrap();
    let rope = RopeTable::<f32>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, h.nrows());
    let x = block.attention_input(h.view(), Par::Seq).unwrap();
    let a = block.attention(x.view(), &rope, &mut KvCache::new(), Par::Seq).unwrap();
    let after = h + &block.attention_output(a.view(), Par::Seq).unwrap();
    let m = block.mlp_input(after.view(), Par::Seq).unwrap();
    [(Site::AttentionInput, x), (Site::MlpInput, m)]
}

/// A block with the scales of both edges folded in, by what `h` makes of it.
fn smoothed(spec: &ModelSpec, params: &BlockParams, h: &Array2<f32>, alpha: f32) -> BlockParams {
    let mut out = params.clone();
    let settings = SmoothQuant { alpha, variant: Variant::Exact };
    let inputs = site_inputs(spec, params, h);
    let block = spec.block(0);
    for (norm, to) in block.norm_edges() {
        let x = &inputs.iter().find(|(site, _)| *site == to).unwrap().1;
        let roles = block.at(to);
        let mut weights: Vec<Array2<f32>> = Vec::new();
        for role in roles {
            weights.push(out.linears[role].weight.clone().into_values());
        }
        let views: Vec<_> = weights.iter().map(|w| w.view()).collect();
        let c = factors(&settings, largest(x).view(), &views).unwrap();
        assert!(c.iter().any(|c| (c - 1.0).abs() > 0.05), "nothing to move");
        let norm = out.norms.get_mut(&norm).unwrap();
        let mut refs: Vec<_> = weights.iter_mut().collect();
        apply(c.view(), norm, &mut refs, FloatType::F32).unwrap();
        for (role, weight) in roles.iter().zip(weights) {
            out.linears.get_mut(role).unwrap().weight = LinearWeight::Float(weight);
        }
    }
    out
}

/// Hidden states with a few outlier channels, as SmoothQuant is made for.
fn stream(numbers: &mut Numbers, tokens: usize, spec: &ModelSpec) -> Array2<f32> {
    let mut h = numbers.matrix(tokens, spec.hidden, 1.0);
    for channel in [1, 7] {
        h.column_mut(channel).mapv_inplace(|v| 30.0 * v);
    }
    h
}

#[test]
fn logits_of_a_smoothed_model_are_those_of_the_model() {
    for (seed, architecture) in ARCHITECTURES.into_iter().enumerate() {
        let spec = spec(architecture);
        let mut model = random_model(&spec, seed as u64 + 40);
        let ids: Vec<u32> = (0..24).map(|i| (i * 7 + 3) % spec.vocab as u32).collect();
        let mut h = model.embed(&ids).unwrap();
        let rope = RopeTable::<f32>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, ids.len());
        let mut blocks = Vec::new();
        for index in 0..spec.layers {
            let params = model.block(index).unwrap();
            blocks.push(smoothed(&spec, &params, &h, 0.5));
            let block = Block::<f32>::new(&spec, index, params, Compute::F32, Par::Seq).unwrap();
            h = block.forward(h, &rope, Par::Seq).unwrap();
        }
        let every: Vec<u32> = (0..spec.vocab as u32).collect();
        let embedding = model.embed(&every).unwrap();
        let (norm, head) = (model.final_norm().unwrap(), model.head(0..spec.vocab).unwrap());
        let smooth = InMemoryModel::new(spec.clone(), blocks, embedding, norm, Some(head)).unwrap();
        let logits = |source: InMemoryModel| {
            let mut model = StreamedModel::new(source, Compute::F32, Par::Seq);
            model.encode(std::slice::from_ref(&ids), &mut |_, _| ControlFlow::Continue(())).unwrap();
            model.logits(0, 0..ids.len()).unwrap()
        };
        let error = relative(&logits(smooth), &logits(model));
        assert!(error > 0.0 && error < 1e-4, "{architecture}: {error:.2e}");
    }
}

/// The identity itself, where the f32 of stored parameters does not blur it: `c` that are powers of two fold into them
/// without rounding, so a block in f64 must give the same output but for the rounding of f64 sums.
fn folded_by_powers_of_two(spec: &ModelSpec, params: &BlockParams, numbers: &mut Numbers) -> BlockParams {
    let mut out = params.clone();
    let block = spec.block(0);
    for (norm, to) in block.norm_edges() {
        let norm = out.norms.get_mut(&norm).unwrap();
        let c = Array1::from_shape_simple_fn(norm.len(), || 2.0_f32.powi((numbers.uniform() * 6.0) as i32));
        let roles = block.at(to);
        let mut weights: Vec<_> =
            roles.iter().map(|role| params.linears[role].weight.clone().into_values()).collect();
        let mut refs: Vec<_> = weights.iter_mut().collect();
        apply(c.view(), norm, &mut refs, FloatType::F32).unwrap();
        for (role, weight) in roles.iter().zip(weights) {
            out.linears.get_mut(role).unwrap().weight = LinearWeight::Float(weight);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_smoothed_block_gives_the_same_output(
        seed in any::<u64>(), family in 0..ARCHITECTURES.len(), alpha in 0.0_f32..=1.0, tokens in 1_usize..40,
    ) {
        let spec = spec(ARCHITECTURES[family]);
        let mut numbers = Numbers::new(seed);
        let params = random_block(&spec, &mut numbers);
        let h = stream(&mut numbers, tokens, &spec);
        let smooth = smoothed(&spec, &params, &h, alpha);
        let rope = RopeTable::<f32>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, tokens);
        let run = |params: &BlockParams| {
            let block = Block::<f32>::new(&spec, 0, params.clone(), Compute::F32, Par::Seq).unwrap();
            block.forward(h.clone(), &rope, Par::Seq).unwrap()
        };
        let error = relative(&run(&smooth), &run(&params));
        prop_assert!(error < 1e-4, "{error:.2e}");
    }

    #[test]
    fn a_smoothed_block_is_exact_in_f64(
        seed in any::<u64>(), family in 0..ARCHITECTURES.len(), tokens in 1_usize..40,
    ) {
        let spec = spec(ARCHITECTURES[family]);
        let mut numbers = Numbers::new(seed);
        let params = random_block(&spec, &mut numbers);
        let h = stream(&mut numbers, tokens, &spec).mapv(f64::from);
        let folded = folded_by_powers_of_two(&spec, &params, &mut numbers);
        prop_assert!(folded != params);
        let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, tokens);
        let run = |params: BlockParams| {
            let block = Block::<f64>::new(&spec, 0, params, Compute::F32, Par::Seq).unwrap();
            block.forward(h.clone(), &rope, Par::Seq).unwrap()
        };
        let (a, b) = (run(folded), run(params.clone()));
        let size = b.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        let worst = (&a - &b).iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        prop_assert!(worst <= 1e-10 * size, "{worst:.2e} of {size:.2e}");
    }
}
