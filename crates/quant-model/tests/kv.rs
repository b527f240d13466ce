//! A block with a cache is a block without one: tokens that come later change nothing of what was computed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ndarray::{Array2, ArrayView2, Axis, Slice};
use quant_core::{ActRule, Bits, KvQuant};
use quant_graph::Site;
use quant_kernels::{Compute, Par};
use quant_model::{Block, KvCache, KvStore, ModelError, Output, RopeTable, StageScratch, Walk, model_spec};
use quant_testkit::{Numbers, random_block};

/// Tokens `h` `[tokens, hidden]` that stand after those of `cache`, which takes in theirs: the block as a server runs it.
fn step(
    block: &Block<f64>,
    h: ArrayView2<'_, f64>,
    cache: &mut KvCache<f64>,
    rope: &RopeTable<f64>,
) -> Array2<f64> {
    let (mut h, mut wide) = (h.to_owned(), Array2::zeros((0, 0)));
    let (starts, table) = ([0, h.nrows()], |_| rope);
    let walk = Walk { starts: &starts, rope: &table };
    for stage in &block.spec().stages {
        let x = block.input(stage.site, h.view(), wide.view(), Par::Seq).unwrap().into_owned();
        let scratch = &mut StageScratch::default();
        let caches = (stage.site == Site::AttentionInput).then(|| std::slice::from_mut(cache));
        if let Output::Next(next) = Output::of(stage.site) {
            let width = block.spec().stages.iter().find(|s| s.site == next).unwrap().width;
            wide = Array2::zeros((h.nrows(), width));
            block.advance(stage.site, x.view(), &walk, caches, wide.view_mut(), scratch, Par::Seq).unwrap();
        } else {
            block.advance(stage.site, x.view(), &walk, caches, h.view_mut(), scratch, Par::Seq).unwrap();
        }
    }
    h
}

/// Property 3 of the KV cache: prefill of n tokens and one step of decoding equal the prefill of n + 1, because a
/// token and head has its own scale and so never changes when others arrive.
#[test]
fn prefill_and_one_step_equal_a_longer_prefill() {
    for (architecture, window) in
        [("LlamaForCausalLM", None), ("Qwen2ForCausalLM", Some(9)), ("Qwen3ForCausalLM", None)]
    {
        let config = serde_json::json!({
            "architectures": [architecture], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
        });
        let mut spec = model_spec(&config).unwrap();
        spec.windows = vec![window; spec.layers];
        let rules = [(8, ActRule::Symmetric), (4, ActRule::Asymmetric), (4, ActRule::SymmetricFull)];
        for (seed, (bits, rule)) in rules.into_iter().enumerate() {
            let mut numbers = Numbers::new(seed as u64 + 70);
            let bits = Bits::new(bits).unwrap();
            let blocks: Vec<_> = (0..spec.layers)
                .map(|index| {
                    let mut params = random_block(&spec, &mut numbers);
                    params.kv = Some(KvQuant::TokenHead { bits, rule });
                    Block::<f64>::new(&spec, index, params, Compute::F32, Par::Seq).unwrap()
                })
                .collect();
            let tokens = 21;
            let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, 128, tokens);
            let h = numbers.matrix(tokens, spec.hidden, 1.0).mapv(f64::from);
            let whole = blocks.iter().fold(h.clone(), |h, b| b.forward(h, &rope, Par::Seq).unwrap());

            let mut caches = vec![KvCache::new(); spec.layers];
            let mut run = |rows: std::ops::Range<usize>| {
                let part = h.slice_axis(Axis(0), Slice::from(rows)).to_owned();
                blocks.iter().zip(&mut caches).fold(part, |h, (b, cache)| step(b, h.view(), cache, &rope))
            };
            let (prefill, last) = (run(0..tokens - 1), run(tokens - 1..tokens));
            let kept = whole.slice_axis(Axis(0), Slice::from(0..tokens - 1));
            assert_eq!(prefill, kept, "{architecture} {rule:?}");
            assert_eq!(last.row(0), whole.row(tokens - 1), "{architecture} {rule:?}");
            assert!(caches.iter().all(|cache| cache.past() == tokens));
        }
    }
}

#[test]
fn a_table_that_ends_before_the_cache_is_refused() {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
    });
    let spec = model_spec(&config).unwrap();
    let mut numbers = Numbers::new(1);
    let block =
        Block::<f32>::new(&spec, 0, random_block(&spec, &mut numbers), Compute::F32, Par::Seq).unwrap();
    let rope = RopeTable::new(&spec.rope, spec.head_dim, 128, 10);
    let x = numbers.matrix(6, 32, 1.0);
    let mut cache = KvCache::new();
    block.attention(x.view(), &rope, &mut cache, Par::Seq).unwrap();
    let error = block.attention(x.view(), &rope, &mut cache, Par::Seq);
    assert!(matches!(error, Err(ModelError::Positions { available: 10, needed: 12 })));
}
