//! Properties of the block.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

use crate::common::{config_with, spec};
use ndarray::{Array1, Array2, concatenate};
use proptest::prelude::*;
use quant_core::{ActQuant, ActRule, Bits, EntryQuant, KvQuant, KvSide, QParams};
use quant_graph::{BlockParams, LinearId, LinearWeight, ModelSpec, Norm};
use quant_kernels::{Compute, Element, Par};
use quant_model::{Activations, Block, KvCache, KvStore, ModelError, RopeTable, model_spec};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

const QWEN3: &str = "Qwen3ForCausalLM";
const PANGU: &str = "PanguEmbeddedForCausalLM";
const QWEN2: &str = "Qwen2ForCausalLM";

fn block<T: Element>(spec: &ModelSpec, params: &BlockParams) -> Block<T> {
    Block::new(spec, 0, params.clone(), Compute::F32, Par::Seq).unwrap()
}

fn table<T: Element>(spec: &ModelSpec, tokens: usize) -> RopeTable<T> {
    RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, tokens)
}

fn forward<T: Element>(spec: &ModelSpec, params: &BlockParams, h: &Array2<f32>) -> Array2<T> {
    block::<T>(spec, params).forward(h.mapv(T::from_f32), &table(spec, h.nrows()), Par::Seq).unwrap()
}

fn largest<T: Into<f64> + Copy>(values: impl IntoIterator<Item = T>) -> f64 {
    values.into_iter().fold(0.0, |m, x| m.max(x.into().abs()))
}

fn bits(b: u32) -> Bits {
    Bits::new(b).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn f32_and_f64_agree(tokens in 1_usize..60, seed in any::<u64>()) {
        for architecture in [QWEN2, QWEN3, PANGU] {
            let spec = spec(architecture);
            let mut numbers = Numbers::new(seed);
            let params = random_block(&spec, &mut numbers);
            let h = numbers.matrix(tokens, spec.hidden, 2.0);
            let narrow = forward::<f32>(&spec, &params, &h).mapv(f64::from);
            let wide = forward::<f64>(&spec, &params, &h);
            prop_assert!(largest(&narrow - &wide) < 2e-5 * largest(wide.iter().copied()).max(1.0));
        }
    }

    #[test]
    fn later_tokens_change_nothing_earlier(tokens in 2_usize..200, cut in 1_usize..199, seed in any::<u64>()) {
        let cut = cut.min(tokens - 1);
        let spec = spec(QWEN3);
        let mut numbers = Numbers::new(seed);
        let params = random_block(&spec, &mut numbers);
        let h = numbers.matrix(tokens, spec.hidden, 2.0);
        let mut changed = h.clone();
        for mut row in changed.rows_mut().into_iter().skip(cut) {
            row.fill(7.0);
        }
        let (a, b) = (forward::<f64>(&spec, &params, &h), forward::<f64>(&spec, &params, &changed));
        for (t, (x, y)) in a.rows().into_iter().zip(b.rows()).enumerate() {
            if t < cut {
                prop_assert!(largest(&x - &y) < 1e-12, "token {}", t);
            }
        }
        // A prefix computed alone is the same too.
        let alone = forward::<f64>(&spec, &params, &h.select(ndarray::Axis(0), &(0..cut).collect::<Vec<_>>()));
        for (x, y) in a.rows().into_iter().zip(alone.rows()) {
            prop_assert!(largest(&x - &y) < 1e-12);
        }
    }

    #[test]
    fn stages_make_the_block_for_any_number_of_threads(tokens in 1_usize..150, threads in 1_usize..5) {
        let spec = spec(PANGU);
        let mut numbers = Numbers::new(tokens as u64);
        let block = block::<f32>(&spec, &random_block(&spec, &mut numbers));
        let rope = table(&spec, tokens);
        let h = numbers.matrix(tokens, spec.hidden, 2.0);
        let par = Par::new(threads);
        let x = block.attention_input(h.view(), par).unwrap();
        let a = block.attention(x.view(), &rope, &mut KvCache::new(), par).unwrap();
        prop_assert_eq!(a.dim(), (tokens, spec.query_width()));
        let h1 = &h + &block.attention_output(a.view(), par).unwrap();
        let x = block.mlp_input(h1.view(), par).unwrap();
        let m = block.mlp_activation(x.view(), par).unwrap();
        prop_assert_eq!(m.dim(), (tokens, spec.intermediate));
        let h2 = &h1 + &block.mlp_output(m.view(), par).unwrap();
        prop_assert_eq!(h2, block.forward(h, &rope, Par::Seq).unwrap());
    }
}

#[test]
fn grouped_heads_equal_repeated_weights() {
    let grouped = spec(QWEN2);
    let full = model_spec(&config_with(QWEN2, json!({ "num_key_value_heads": 4 }))).unwrap();
    let mut numbers = Numbers::new(3);
    let params = random_block(&grouped, &mut numbers);
    let mut repeated = params.clone();
    let rows: Vec<usize> = (0..32).map(|r| r / 8 / 2 * 8 + r % 8).collect();
    for role in [LinearId::K, LinearId::V] {
        let linear = repeated.linears.get_mut(&role).unwrap();
        if let LinearWeight::Float(w) = &mut linear.weight {
            *w = w.select(ndarray::Axis(0), &rows);
        }
        linear.bias = linear.bias.take().map(|b| b.select(ndarray::Axis(0), &rows));
    }
    let h = numbers.matrix(40, 32, 2.0);
    let difference = forward::<f64>(&grouped, &params, &h) - forward::<f64>(&full, &repeated, &h);
    assert!(largest(difference) < 1e-12);
}

#[test]
fn a_window_as_long_as_the_sequence_is_full_attention() {
    let with = |window: usize| {
        let on = json!({ "use_sliding_window": true, "sliding_window": window, "max_window_layers": 0 });
        model_spec(&config_with(QWEN2, on)).unwrap()
    };
    let mut numbers = Numbers::new(5);
    let params = random_block(&spec(QWEN2), &mut numbers);
    let h = numbers.matrix(150, 32, 2.0);
    let full = forward::<f64>(&spec(QWEN2), &params, &h);
    assert!(largest(forward::<f64>(&with(150), &params, &h) - &full) < 1e-12);
    let short = forward::<f64>(&with(10), &params, &h);
    for (t, (a, b)) in short.rows().into_iter().zip(full.rows()).enumerate() {
        // Inside the window nothing changes; beyond it something does.
        assert_eq!(largest(&a - &b) < 1e-9, t < 10, "token {t}");
    }
}

#[test]
fn eight_bit_inputs_stay_close_and_shared_inputs_are_quantised_alike() {
    let spec = spec(PANGU);
    let mut numbers = Numbers::new(7);
    let float = random_block(&spec, &mut numbers);
    let h = numbers.matrix(50, spec.hidden, 2.0);
    let exact = forward::<f64>(&spec, &float, &h);
    let error = |b: u32| {
        let mut params = float.clone();
        for linear in params.linears.values_mut() {
            linear.input = Some(ActQuant::Dynamic {
                bits: bits(b),
                rule: ActRule::Asymmetric,
                clip_ratio: 1.0.into(),
                shards: 1,
            });
        }
        largest(forward::<f64>(&spec, &params, &h) - &exact) / largest(exact.iter().copied())
    };
    let (eight, four) = (error(8), error(4));
    assert!(eight < 0.03 && eight > 0.0 && four > 4.0 * eight, "{eight}, {four}");

    // Each of q, k, v alone sees what it sees with the others.
    let quant = ActQuant::Static { bits: bits(8), params: QParams { scale: 0.03, zero: 128.0 } };
    let mut params = float;
    for role in [LinearId::Q, LinearId::K, LinearId::V] {
        params.linears.get_mut(&role).unwrap().input = Some(quant);
    }
    let block = block::<f64>(&spec, &params);
    let x = h.mapv(f64::from);
    let mut quantised = x.clone();
    quant.fake_quantize(quantised.view_mut());
    for role in [LinearId::Q, LinearId::K, LinearId::V] {
        let linear = block.linear(role).unwrap();
        assert_eq!(linear.input_quant().map(|input| input.quant), Some(quant));
        let mut product = Array2::from_elem((x.nrows(), linear.out_features()), f64::NAN);
        linear.product_into(Activations::Float(quantised.view()), product.view_mut(), Par::Seq).unwrap();
        assert_eq!(linear.forward(x.view(), Par::Seq).unwrap(), product);
    }
}

#[test]
fn a_quantiser_on_the_grid_of_its_input_changes_nothing() {
    let spec = spec(QWEN2);
    let mut numbers = Numbers::new(8);
    let mut params = random_block(&spec, &mut numbers);
    let x = numbers.matrix(20, spec.hidden, 100.0).mapv(|v| v.round() / 64.0);
    let float =
        block::<f32>(&spec, &params).linear(LinearId::GATE).unwrap().forward(x.view(), Par::Seq).unwrap();
    params.linears.get_mut(&LinearId::GATE).unwrap().input =
        Some(ActQuant::Static { bits: bits(8), params: QParams { scale: 1.0 / 64.0, zero: 128.0 } });
    let fake =
        block::<f32>(&spec, &params).linear(LinearId::GATE).unwrap().forward(x.view(), Par::Seq).unwrap();
    assert_eq!(float, fake);
}

#[test]
fn quantised_weights_multiply_as_their_dequantised_values() {
    let spec = spec(QWEN2);
    let mut numbers = Numbers::new(9);
    let params = random_block(&spec, &mut numbers);
    let grid = quant_core::Grid {
        convention: quant_core::Convention::QSym,
        bits: bits(4),
        variant: quant_core::Variant::Exact,
        scale_type: quant_core::FloatType::F32,
    };
    let (mut quantised, mut values) = (params.clone(), params);
    for role in spec.layout.ids() {
        let linear = quantised.linears.get_mut(&role).unwrap();
        let LinearWeight::Float(w) = &linear.weight else { panic!("float") };
        let q =
            quant_core::matrix::round_matrix(&grid, None, quant_core::Groups::Size(20), w.view()).unwrap();
        values.linears.get_mut(&role).unwrap().weight = LinearWeight::Float(q.dequantize());
        linear.weight = LinearWeight::Quantized(q);
    }
    let h = numbers.matrix(12, 32, 1.0);
    assert_eq!(forward::<f32>(&spec, &quantised, &h), forward::<f32>(&spec, &values, &h));
}

#[test]
fn kv_quantisation_sits_after_rope_and_before_the_cache() {
    let spec = spec(QWEN3);
    let mut numbers = Numbers::new(11);
    let params = random_block(&spec, &mut numbers);
    let mut block = block::<f64>(&spec, &params);
    let x = numbers.matrix(30, spec.hidden, 1.0).mapv(f64::from);
    let rope = table(&spec, 30);
    let mut seen = KvCache::new();
    let float = block.attention(x.view(), &rope, &mut seen, Par::Seq).unwrap();
    let (keys, values) = (seen.keys().to_owned(), seen.values().to_owned());
    assert_eq!((keys.dim(), values.dim()), ((30, 16), (30, 16)));
    // Rope keeps the length of each key, which the key norm fixes up to its weight; position 0 is not rotated at all.
    let plain = block.linear(LinearId::V).unwrap().forward(x.view(), Par::Seq).unwrap();
    assert_eq!(values, plain);

    block.set_kv(Some(token_head(8, ActRule::Asymmetric))).unwrap();
    let mut held = KvCache::new();
    let dynamic = block.attention(x.view(), &rope, &mut held, Par::Seq).unwrap();
    for (side, mut float) in [(KvSide::Key, keys.clone()), (KvSide::Value, values.clone())] {
        block.kv().unwrap().side(side).fake_quantize(spec.head_dim, float.view_mut());
        assert_eq!(float, if side == KvSide::Key { held.keys() } else { held.values() });
    }
    let error = largest(&dynamic - &float);
    assert!(error > 0.0 && error < 0.05, "{error}");

    let scales = |x: &Array2<f64>| {
        x.columns().into_iter().map(|c| (largest(c.iter().copied()) / 127.0) as f32).collect::<Array1<f32>>()
    };
    let channel = |scales: Array1<f32>| EntryQuant::Channel {
        bits: bits(8),
        zeros: Array1::from_elem(scales.len(), 128.0),
        scales,
    };
    let fixed = KvQuant { values: channel(scales(&values)), ..KvQuant::both(channel(scales(&keys))) };
    block.set_kv(Some(fixed)).unwrap();
    let error = largest(block.attention(x.view(), &rope, &mut KvCache::new(), Par::Seq).unwrap() - &float);
    assert!(error > 0.0 && error < 0.05, "{error}");
    let short = KvQuant { keys: channel(Array1::ones(8)), ..token_head(8, ActRule::Asymmetric) };
    assert!(matches!(block.set_kv(Some(short)), Err(ModelError::Shape { .. })));
    let late = KvQuant { pre_bias: true, ..token_head(8, ActRule::Asymmetric) };
    assert!(matches!(block.set_kv(Some(late)), Err(ModelError::Part { .. })));
}

fn token_head(b: u32, rule: ActRule) -> KvQuant {
    KvQuant::both(EntryQuant::TokenHead { bits: bits(b), rule, clip_ratio: 1.0.into() })
}

#[test]
fn a_zero_value_vector_survives_kv_quantisation() {
    let spec = spec(PANGU);
    let mut numbers = Numbers::new(12);
    let mut params = random_block(&spec, &mut numbers);
    let v = params.linears.get_mut(&LinearId::V).unwrap();
    v.weight = LinearWeight::Float(Array2::zeros((16, 32)));
    v.bias = Some(Array1::zeros(16));
    for rule in [ActRule::Asymmetric, ActRule::Symmetric, ActRule::SymmetricFull] {
        params.kv = Some(token_head(4, rule));
        let block = block::<f32>(&spec, &params);
        let x = numbers.matrix(10, 32, 1.0);
        let a = block.attention(x.view(), &table(&spec, 10), &mut KvCache::new(), Par::Seq).unwrap();
        assert!(a.iter().all(|&v| v == 0.0));
    }
}

#[test]
fn linears_are_replaced_in_place() {
    let spec = spec(QWEN2);
    let mut numbers = Numbers::new(13);
    let (first, second) = (random_block(&spec, &mut numbers), random_block(&spec, &mut numbers));
    let mut empty = BlockParams { norms: first.norms.clone(), ..second.clone() };
    empty.linears.clear();
    let mut block = block::<f32>(&spec, &empty);
    let h = numbers.matrix(9, 32, 1.0);
    let rope = table(&spec, 9);
    let x = block.attention_input(h.view(), Par::Seq).unwrap();
    assert!(matches!(
        block.attention(x.view(), &rope, &mut KvCache::new(), Par::Seq),
        Err(ModelError::MissingLinear { block: 0, ref module }) if module == "model.layers.0.self_attn.q_proj"
    ));
    for (role, linear) in &first.linears {
        block.set_linear(*role, linear, Par::Seq).unwrap();
    }
    for (norm, weight) in &first.norms {
        assert_eq!(block.norm(*norm).unwrap(), weight.view());
    }
    assert_eq!(block.forward(h.clone(), &rope, Par::Seq).unwrap(), forward::<f32>(&spec, &first, &h));
    block.clear_linear(LinearId::O);
    assert!(block.linear(LinearId::O).is_none());
}

#[test]
fn what_does_not_fit_is_named() {
    let spec = spec(QWEN2);
    let mut numbers = Numbers::new(14);
    let params = random_block(&spec, &mut numbers);
    let build = |params: BlockParams| {
        Block::<f32>::new(&spec, 1, params, Compute::F32, Par::Seq).unwrap_err().to_string()
    };

    let mut wrong = params.clone();
    wrong.linears.get_mut(&LinearId::DOWN).unwrap().weight = LinearWeight::Float(Array2::zeros((48, 32)));
    let message = build(wrong);
    assert!(
        message.contains("block 1: model.layers.1.mlp.down_proj") && message.contains("[32, 48]"),
        "{message}"
    );
    let mut wrong = params.clone();
    wrong.linears.get_mut(&LinearId::K).unwrap().bias = None;
    assert!(build(wrong).contains("self_attn.k_proj.bias is missing"));
    let mut wrong = params.clone();
    wrong.norms.remove(&Norm::PostAttention);
    assert!(build(wrong).contains("post_attention_layernorm is missing"));
    let mut wrong = params.clone();
    wrong.norms.insert(Norm::Query, Array1::ones(8));
    assert!(build(wrong).contains("q_norm does not exist"));
    assert!(Block::<f32>::new(&spec, 2, params.clone(), Compute::F32, Par::Seq).is_err());

    let block = block::<f32>(&spec, &params);
    let x = Array2::zeros((4, 31));
    assert!(matches!(block.mlp_input(x.view(), Par::Seq), Err(ModelError::Shape { .. })));
    assert!(matches!(block.mlp_activation(x.view(), Par::Seq), Err(ModelError::Shape { .. })));
    let h = Array2::zeros((4, 32));
    assert!(matches!(
        block.forward(h, &table(&spec, 3), Par::Seq),
        Err(ModelError::Positions { available: 3, needed: 4 })
    ));
}

#[test]
fn bf16_products_stay_within_their_rounding() {
    let spec = spec(QWEN2);
    let mut numbers = Numbers::new(15);
    let params = random_block(&spec, &mut numbers);
    let h = numbers.matrix(64, 32, 1.0);
    let float = forward::<f32>(&spec, &params, &h);
    let block = Block::<f32>::new(&spec, 0, params, Compute::Bf16, Par::Seq).unwrap();
    let rounded = block.forward(h, &table(&spec, 64), Par::Seq).unwrap();
    let error = largest(&rounded - &float) / largest(float.iter().copied());
    assert!(error > 0.0 && error < 0.05, "{error}");
    assert_eq!(block.compute(), Compute::Bf16);
}

#[test]
fn an_empty_sequence_is_an_empty_result() {
    let spec = spec(QWEN3);
    let params = random_block(&spec, &mut Numbers::new(16));
    let h: Array2<f32> = concatenate![ndarray::Axis(0), Array2::<f32>::zeros((0, 32))];
    assert_eq!(forward::<f32>(&spec, &params, &h).dim(), (0, 32));
}
