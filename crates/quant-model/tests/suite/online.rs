//! A block with transforms that run online, their inverses in its weights, is the block it was.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array2, ArrayView2};
use quant_core::{AxisTransform, OnlineTransform, PairTransform};
use quant_graph::{BlockParams, LinearId, LinearWeight, ModelSpec, Site};
use quant_kernels::{Compute, Par};
use quant_model::{Block, RopeTable, model_spec};
use quant_rotate::{Hadamard, Kronecker, haar};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

fn spec(architecture: &str) -> ModelSpec {
    model_spec(&json!({
        "architectures": [architecture], "hidden_size": 32, "intermediate_size": 60, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64,
    }))
    .unwrap()
}

fn weight(block: &mut BlockParams, id: LinearId) -> &mut Array2<f32> {
    match &mut block.linears.get_mut(&id).unwrap().weight {
        LinearWeight::Float(values) => values,
        other => panic!("{other:?}"),
    }
}

/// Rows of a weight times an orthogonal matrix, as its input will be.
fn rotate(block: &mut BlockParams, id: LinearId, matrix: ArrayView2<'_, f64>) {
    let weight = weight(block, id);
    *weight = weight.mapv(f64::from).dot(&matrix).mapv(|v| v as f32);
}

fn dense(matrix: &Array2<f64>) -> AxisTransform {
    AxisTransform::Dense(matrix.mapv(|v| v as f32))
}

#[test]
fn transforms_are_undone_by_the_weights() {
    for architecture in ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"] {
        let spec = spec(architecture);
        let mut numbers = Numbers::new(7);
        let plain = random_block(&spec, &mut numbers);
        let mut turned = plain.clone();

        let (left, right) = (haar(4, 1, "left"), haar(8, 1, "right"));
        let both = Kronecker::new(left.view(), right.view()).unwrap();
        let both = both.apply(Array2::<f64>::eye(32).view(), Par::Seq);
        for id in [LinearId::Q, LinearId::K, LinearId::V] {
            rotate(&mut turned, id, both.view());
        }
        let input = OnlineTransform::kronecker(vec![dense(&left), dense(&right)]).unwrap();
        turned.online.sites.insert(Site::AttentionInput, input.into());

        // Heads are mixed, channels of a head stay.
        let heads = haar(4, 2, "heads");
        let mixed = Array2::from_shape_fn(
            (32, 32),
            |(i, j)| {
                if i % 8 == j % 8 { heads[(i / 8, j / 8)] } else { 0.0 }
            },
        );
        rotate(&mut turned, LinearId::O, mixed.view());
        let across = OnlineTransform::kronecker(vec![dense(&heads), AxisTransform::Identity(8)]).unwrap();
        turned.online.sites.insert(Site::AttentionOutput, across.into());

        let hadamard = Hadamard::new(60).unwrap();
        rotate(&mut turned, LinearId::DOWN, hadamard.matrix().view());
        turned.online.sites.insert(Site::MlpActivation, hadamard.online(60).unwrap().into());

        let walsh = || OnlineTransform::kronecker(vec![AxisTransform::Walsh(8)]).unwrap();
        turned.online.pair = Some(PairTransform::new(walsh(), walsh()).unwrap().into());

        let h = numbers.matrix(20, 32, 1.0).mapv(f64::from);
        let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, 20);
        let run = |params: BlockParams| {
            let block = Block::<f64>::new(&spec, 0, params, Compute::F32, Par::Seq).unwrap();
            block.forward(h.clone(), &rope, Par::Seq).unwrap()
        };
        let (expected, found) = (run(plain.clone()), run(turned.clone()));
        let size = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        let worst = (&found - &expected).iter().fold(0.0_f64, |m, e| m.max(e.abs())) / size;
        // Weights and matrices are stored in f32.
        assert!(worst < 1e-6, "{architecture}: {worst}");

        // The cache holds the keys that are turned, in both places where they are asked for.
        let block = Block::<f64>::new(&spec, 0, turned.clone(), Compute::F32, Par::Seq).unwrap();
        let x = block.attention_input(h.view(), Par::Seq).unwrap();
        let bits = quant_core::Bits::new(8).unwrap();
        let rule = quant_core::ActRule::Asymmetric;
        let scheme = quant_graph::KvScheme::new(bits, rule, quant_core::KvGranularity::TokenHead);
        let [keys, _] = block.cache_entries(x.view(), &rope, &scheme, Par::Seq).unwrap();
        let mut cache = quant_model::KvCache::new();
        block.attention(x.view(), &rope, &mut cache, Par::Seq).unwrap();
        assert_eq!(quant_model::KvStore::keys(&cache), keys);
    }
}

#[test]
fn transforms_that_do_not_fit_are_refused() {
    let spec = spec("LlamaForCausalLM");
    let mut block = random_block(&spec, &mut Numbers::new(1));
    let walsh = |n| OnlineTransform::kronecker(vec![AxisTransform::Walsh(n)]).unwrap();
    block.online.sites.insert(Site::MlpActivation, walsh(64).into());
    let new = |block| Block::<f32>::new(&spec, 0, block, Compute::F32, Par::Seq).unwrap_err().to_string();
    let text = new(block.clone());
    assert!(text.contains("transform of MlpActivation") && text.contains("60"), "{text}");
    block.online.sites.clear();
    block.online.pair = Some(PairTransform::new(walsh(16), walsh(16)).unwrap().into());
    let text = new(block);
    assert!(text.contains("queries and keys") && text.contains('8'), "{text}");
}
