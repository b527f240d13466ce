//! AWQ on a whole block: folding scales changes no output, and the search that runs attention and MLP helps them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2, ArrayView2, Axis};
use proptest::prelude::*;
use quant_core::matrix::round_matrix;
use quant_core::{Bits, Convention, FloatType, Grid, Groups, Variant};
use quant_graph::{BlockParams, LinearId, LinearWeight, ModelSpec, Norm};
use quant_kernels::{Compute, Element, Par};
use quant_methods::awq::{Loss, Search, divide_norm, divide_rows, search_scales};
use quant_methods::{HeadTie, MethodError};
use quant_model::{Block, KvCache, RopeTable, model_spec};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

const FAMILIES: [(&str, &str); 4] = [
    ("LlamaForCausalLM", "llama"),
    ("Qwen2ForCausalLM", "qwen2"),
    ("Qwen3ForCausalLM", "qwen3"),
    ("PanguEmbeddedForCausalLM", "PanguEmbedded"),
];

/// Six query heads on two key heads.
fn spec(family: usize) -> ModelSpec {
    let (architecture, model_type) = FAMILIES[family];
    model_spec(&json!({
        "architectures": [architecture], "model_type": model_type, "hidden_act": "silu", "vocab_size": 16,
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
        "tie_word_embeddings": true, "bias": true,
    }))
    .unwrap()
}

fn tie(spec: &ModelSpec) -> HeadTie {
    HeadTie { heads: spec.heads, kv_heads: spec.kv_heads, head_dim: spec.head_dim }
}

fn rope<T: Element>(spec: &ModelSpec, tokens: usize) -> RopeTable<T> {
    RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, tokens)
}

fn forward<T: Element>(spec: &ModelSpec, params: &BlockParams, h: &Array2<T>) -> Array2<T> {
    let block = Block::<T>::new(spec, 0, params.clone(), Compute::F32, Par::Seq).unwrap();
    block.forward(h.clone(), &rope(spec, h.nrows()), Par::Seq).unwrap()
}

fn float(params: &BlockParams, role: LinearId) -> Array2<f32> {
    params.linears[&role].weight.clone().into_values()
}

fn set(params: &mut BlockParams, role: LinearId, weight: Array2<f32>) {
    params.linears.get_mut(&role).unwrap().weight = LinearWeight::Float(weight);
}

/// Folds scales into all four edges of a block: norm to q, k, v; v to o with tied heads; norm to gate, up; up to down.
fn folded(spec: &ModelSpec, params: &BlockParams, scale: &mut dyn FnMut() -> f32) -> BlockParams {
    let mut out = params.clone();
    for (norm, roles) in [
        (Norm::Input, &[LinearId::Q, LinearId::K, LinearId::V][..]),
        (Norm::PostAttention, &[LinearId::GATE, LinearId::UP]),
    ] {
        let mut weights: Vec<_> = roles.iter().map(|role| float(&out, *role)).collect();
        let c = Array1::from_shape_simple_fn(spec.hidden, &mut *scale);
        let norm = out.norms.get_mut(&norm).unwrap();
        let mut targets: Vec<_> = weights.iter_mut().collect();
        divide_norm(c.view(), norm, &mut targets, FloatType::F32).unwrap();
        for (role, weight) in roles.iter().zip(weights) {
            set(&mut out, *role, weight);
        }
    }
    for (previous, next, tie) in
        [(LinearId::V, LinearId::O, Some(tie(spec))), (LinearId::UP, LinearId::DOWN, None)]
    {
        let (mut before, mut after) = (float(&out, previous), float(&out, next));
        let c = Array1::from_shape_simple_fn(before.nrows(), &mut *scale);
        let c = tie.map_or_else(|| c.clone(), |tie| tie.expand(c.view()).unwrap());
        let rows = 0..before.nrows();
        let bias = &mut out.linears.get_mut(&previous).unwrap().bias;
        let bias = bias.as_mut().map(|b| b.view_mut());
        divide_rows(c.view(), tie, before.view_mut(), rows, bias, &mut [&mut after]).unwrap();
        set(&mut out, previous, before);
        set(&mut out, next, after);
    }
    out
}

fn relative<T: Into<f64> + Copy>(a: &Array2<T>, b: &Array2<T>) -> f64 {
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| (a.into() - b.into()).powi(2)).sum();
    (difference / b.iter().map(|&b| b.into().powi(2)).sum::<f64>()).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Property 1, with biases, tied heads and norms of queries and keys.
    #[test]
    fn a_folded_block_gives_the_same_output(family in 0..FAMILIES.len(), tokens in 1_usize..40, seed in any::<u64>()) {
        let spec = spec(family);
        let mut numbers = Numbers::new(seed);
        let params = random_block(&spec, &mut numbers);
        let h = numbers.matrix(tokens, spec.hidden, 1.0);
        let mut scale = || 1.05 * (1.0 + 0.9 * numbers.uniform()) * if numbers.uniform() > 0.8 { 20.0 } else { 1.0 };
        let folded = folded(&spec, &params, &mut scale);
        prop_assert!(folded != params);
        let error = relative(&forward(&spec, &folded, &h), &forward(&spec, &params, &h));
        prop_assert!(error < 1e-5, "{error:.1e}");
    }

    /// The identity itself: powers of two fold into f32 without rounding, so a block in f64 differs by the rounding of its sums.
    #[test]
    fn a_folded_block_is_exact_in_f64(family in 0..FAMILIES.len(), tokens in 1_usize..40, seed in any::<u64>()) {
        let spec = spec(family);
        let mut numbers = Numbers::new(seed);
        let params = random_block(&spec, &mut numbers);
        let h = numbers.matrix(tokens, spec.hidden, 1.0).mapv(f64::from);
        let folded = folded(&spec, &params, &mut || 2.0_f32.powi((numbers.uniform() * 6.0) as i32));
        let error = relative(&forward(&spec, &folded, &h), &forward(&spec, &params, &h));
        prop_assert!(error < 1e-12, "{error:.1e}");
    }
}

/// Property 6 through a nonlinear unit: a channel of the attention's input is fifty times as loud, and the search that runs
/// attention takes at least a fifth off the error of rounding to 3 bits.
#[test]
fn attention_with_a_loud_channel() {
    let spec = spec(2);
    let mut numbers = Numbers::new(12);
    let mut params = random_block(&spec, &mut numbers);
    params.norms.get_mut(&Norm::Input).unwrap()[5] *= 50.0;
    // Loud, but not the only thing heard: otherwise the softmax sees nothing else.
    for role in [LinearId::Q, LinearId::K, LinearId::V] {
        let mut weight = float(&params, role);
        weight.column_mut(5).mapv_inplace(|w| 0.1 * w);
        set(&mut params, role, weight);
    }
    let block = Block::<f32>::new(&spec, 0, params.clone(), Compute::F32, Par::Seq).unwrap();
    let h = numbers.normals(48, spec.hidden);
    let x = block.attention_input(h.view(), Par::Seq).unwrap();
    let rope = rope(&spec, h.nrows());
    let roles = [LinearId::Q, LinearId::K, LinearId::V];
    let run = |weights: &[ArrayView2<'_, f32>], par: Par| -> Result<Array2<f32>, MethodError> {
        let mut params = params.clone();
        for (role, weight) in roles.iter().zip(weights) {
            set(&mut params, *role, weight.to_owned());
        }
        let block = Block::<f32>::new(&spec, 0, params, Compute::F32, par).unwrap();
        let a = block.attention(x.view(), &rope, &mut KvCache::new(), par).unwrap();
        Ok(block.attention_output(a.view(), par).unwrap())
    };
    let grid = Grid::new(Convention::QAwq, Bits::new(3).unwrap(), Variant::Exact, FloatType::F32).unwrap();
    let search = Search { n_grid: 20, grid, group: Some(16), tie: None };
    let weights = roles.map(|role| float(&params, role));
    let views = weights.each_ref().map(|w| w.view());
    let mean = x.map(|v| v.abs()).mean_axis(Axis(0)).unwrap();
    let found = search_scales(&search, mean.view(), &views, Loss::Forward(&run), Par::Seq).unwrap();
    let least = found.losses.iter().copied().fold(f64::INFINITY, f64::min);
    println!("ratio {}, {:.3} of the error of rounding alone", found.ratio, least / found.losses[0]);
    assert!(found.ratio > 0.0 && least < 0.8 * found.losses[0]);
    assert_eq!(search_scales(&search, mean.view(), &views, Loss::Forward(&run), Par::new(3)).unwrap(), found);

    // The first loss is that of rounding to nearest.
    let rounded = weights
        .each_ref()
        .map(|w| round_matrix(&grid, None, Groups::Size(16), w.view()).unwrap().dequantize());
    let rounded = run(&rounded.each_ref().map(|w| w.view()), Par::Seq).unwrap();
    let difference = rounded - run(&views, Par::Seq).unwrap();
    let loss = difference.mapv(|d| f64::from(d).powi(2)).mean().unwrap();
    assert!((loss / found.losses[0] - 1.0).abs() < 1e-6);
}
