//! A block with a cache is a block without one: tokens that come later change nothing of what was computed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ndarray::{Array2, ArrayView2, Axis, Slice};
use quant_core::{ActRule, Bits, ChannelRanges, FloatType, KvGranularity, KvQuant};
use quant_graph::{KvScheme, LinearId, ModelSpec, Site};
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

const ARCHITECTURES: [(&str, Option<usize>); 4] = [
    ("LlamaForCausalLM", None),
    ("Qwen2ForCausalLM", Some(9)),
    ("Qwen3ForCausalLM", None),
    ("Phi3ForCausalLM", None),
];

fn spec(architecture: &str, window: Option<usize>) -> ModelSpec {
    let config = serde_json::json!({
        "architectures": [architecture], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
    });
    let mut spec = model_spec(&config).unwrap();
    spec.windows = vec![window; spec.layers];
    spec
}

fn bits(bits: u32) -> Bits {
    Bits::new(bits).unwrap()
}

/// Of every kind: per token and head and per channel, keys behind rope and before it, with their bias and without.
fn schemes() -> Vec<KvScheme> {
    let (head, channel) = (KvGranularity::TokenHead, KvGranularity::ChannelStatic);
    let of = |b, rule, granularity| KvScheme::new(bits(b), rule, granularity);
    vec![
        of(8, ActRule::Symmetric, head),
        KvScheme { clip_ratio: 0.95.into(), ..of(4, ActRule::Asymmetric, head) },
        of(2, ActRule::SymmetricFull, head),
        of(8, ActRule::Symmetric, channel),
        of(4, ActRule::Asymmetric, channel),
        KvScheme { before_rope: true, values: head, ..of(4, ActRule::Asymmetric, channel) },
        KvScheme { before_rope: true, pre_bias: true, values: head, ..of(2, ActRule::Asymmetric, channel) },
        KvScheme { before_rope: true, ..of(4, ActRule::Asymmetric, head) },
    ]
}

/// The quantiser of a block's cache by a scheme, from the entries of the tokens `x` `[tokens, hidden]`.
fn calibrated(
    block: &Block<f64>,
    x: ArrayView2<'_, f64>,
    rope: &RopeTable<f64>,
    scheme: &KvScheme,
) -> KvQuant {
    let entries = block.cache_entries(x, rope, scheme, Par::Seq).unwrap();
    let ranges = entries.map(|x| {
        let mut ranges = ChannelRanges::new(x.ncols());
        ranges.observe(x.mapv(|v| v as f32).view());
        ranges
    });
    scheme.quant(Some([&ranges[0], &ranges[1]]), FloatType::F32).unwrap()
}

/// Property 3 of the KV cache: prefill of n tokens and one step of decoding equal the prefill of n + 1, because a token is
/// quantised once: by its own scale, or by one that is fixed.
#[test]
fn prefill_and_one_step_equal_a_longer_prefill() {
    for (architecture, window) in ARCHITECTURES {
        let spec = spec(architecture, window);
        for (seed, scheme) in schemes().into_iter().enumerate() {
            let mut numbers = Numbers::new(seed as u64 + 70);
            let tokens = 21;
            let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, 128, tokens);
            let h = numbers.matrix(tokens, spec.hidden, 1.0).mapv(f64::from);
            let blocks: Vec<_> = (0..spec.layers)
                .map(|index| {
                    let params = random_block(&spec, &mut numbers);
                    let mut block = Block::<f64>::new(&spec, index, params, Compute::F32, Par::Seq).unwrap();
                    let x = block.attention_input(h.view(), Par::Seq).unwrap();
                    block.set_kv(Some(calibrated(&block, x.view(), &rope, &scheme))).unwrap();
                    block
                })
                .collect();
            let whole = blocks.iter().fold(h.clone(), |h, b| b.forward(h, &rope, Par::Seq).unwrap());

            let mut caches = vec![KvCache::new(); spec.layers];
            let mut run = |rows: std::ops::Range<usize>| {
                let part = h.slice_axis(Axis(0), Slice::from(rows)).to_owned();
                blocks.iter().zip(&mut caches).fold(part, |h, (b, cache)| step(b, h.view(), cache, &rope))
            };
            let (prefill, last) = (run(0..tokens - 1), run(tokens - 1..tokens));
            let kept = whole.slice_axis(Axis(0), Slice::from(0..tokens - 1));
            assert_eq!(prefill, kept, "{architecture} {scheme:?}");
            assert_eq!(last.row(0), whole.row(tokens - 1), "{architecture} {scheme:?}");
            assert!(caches.iter().all(|cache| cache.past() == tokens));
        }
    }
}

/// Variant C of `kv_cache.md`: what the cache holds are keys that were quantised before they were rotated, which the entries and
/// rope alone reproduce.
#[test]
fn keys_before_rope_are_quantised_and_then_rotated() {
    for (architecture, window) in ARCHITECTURES {
        let spec = spec(architecture, window);
        let mut numbers = Numbers::new(5);
        let params = random_block(&spec, &mut numbers);
        let float = Block::<f64>::new(&spec, 0, params, Compute::F32, Par::Seq).unwrap();
        let tokens = 12;
        let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, 128, tokens);
        let x = numbers.matrix(tokens, spec.hidden, 1.0).mapv(f64::from);
        let entries = |scheme: &KvScheme| float.cache_entries(x.view(), &rope, scheme, Par::Seq).unwrap();
        for scheme in schemes() {
            let mut block = float.clone();
            let quant = calibrated(&float, x.view(), &rope, &scheme);
            block.set_kv(Some(quant.clone())).unwrap();
            let mut cache = KvCache::new();
            block.attention(x.view(), &rope, &mut cache, Par::new(2)).unwrap();
            let [mut keys, mut values] = entries(&scheme);
            quant.keys.fake_quantize(spec.head_dim, keys.view_mut());
            quant.values.fake_quantize(spec.head_dim, values.view_mut());
            if scheme.pre_bias {
                let plain = entries(&KvScheme { pre_bias: false, ..scheme });
                keys += &(&plain[0] - &entries(&scheme)[0]);
            }
            if scheme.before_rope {
                quant_kernels::rope_in_place(keys.view_mut(), 2, rope.cos(0, tokens), rope.sin(0, tokens));
            }
            let worst = (&keys - &cache.keys()).iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            assert!(worst < 1e-12, "{architecture} {scheme:?}: {worst}");
            assert_eq!(values, cache.values());
        }
        // Behind rope they are what a cache without a quantiser holds.
        let mut cache = KvCache::new();
        float.attention(x.view(), &rope, &mut cache, Par::Seq).unwrap();
        let [keys, values] = entries(&KvScheme::new(bits(8), ActRule::Symmetric, KvGranularity::TokenHead));
        assert_eq!((keys.view(), values.view()), (cache.keys(), cache.values()));
    }
}

/// Keys at a position are what a cache holds of the tokens that stand there, whatever came before them.
#[test]
fn keys_at_a_position_are_those_of_a_cache() {
    for (architecture, window) in ARCHITECTURES {
        let spec = spec(architecture, window);
        let mut numbers = Numbers::new(8);
        let float = random_block(&spec, &mut numbers);
        let float = Block::<f64>::new(&spec, 0, float, Compute::F32, Par::Seq).unwrap();
        let (before, tokens) = (9, 5);
        let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, 128, before + tokens);
        let x = numbers.matrix(before + tokens, spec.hidden, 1.0).mapv(f64::from);
        let last = x.slice_axis(Axis(0), Slice::from(before..));
        let keys = |block: &Block<f64>| {
            let mut cache = KvCache::new();
            block.attention(x.view(), &rope, &mut cache, Par::Seq).unwrap();
            cache.keys().slice_axis(Axis(0), Slice::from(before..)).to_owned()
        };
        for scheme in schemes() {
            let mut block = float.clone();
            block.set_kv(Some(calibrated(&float, x.view(), &rope, &scheme))).unwrap();
            let [exact, held] = block.keys_at(last, &rope, before, Par::new(2)).unwrap();
            assert_eq!([exact, held], [keys(&float), keys(&block)], "{architecture} {scheme:?}");
        }
        let short = float.keys_at(last, &rope, before + 1, Par::Seq);
        assert!(matches!(short, Err(ModelError::Positions { .. })));
    }
}

/// Property 6: taking off a bias of zeros changes nothing. And where there is one, its size is of no consequence any more.
#[test]
fn the_bias_of_keys_does_not_reach_their_codes() {
    let spec = spec("Qwen2ForCausalLM", None);
    let mut numbers = Numbers::new(6);
    let mut params = random_block(&spec, &mut numbers);
    let tokens = 16;
    let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, 128, tokens);
    let x = numbers.matrix(tokens, spec.hidden, 1.0).mapv(f64::from);
    let (head, channel) = (KvGranularity::TokenHead, KvGranularity::ChannelStatic);
    let before =
        KvScheme { before_rope: true, values: head, ..KvScheme::new(bits(3), ActRule::Asymmetric, channel) };
    let attended = |params: &quant_graph::BlockParams, scheme: Option<KvScheme>| {
        let mut block = Block::<f64>::new(&spec, 0, params.clone(), Compute::F32, Par::Seq).unwrap();
        let kv = scheme.map(|scheme| calibrated(&block, x.view(), &rope, &scheme));
        block.set_kv(kv).unwrap();
        block.attention(x.view(), &rope, &mut KvCache::new(), Par::Seq).unwrap()
    };
    let set = |params: &mut quant_graph::BlockParams, value: f32| {
        params.linears.get_mut(&LinearId::K).unwrap().bias.as_mut().unwrap().fill(value);
    };
    set(&mut params, 0.0);
    let with = |pre_bias| Some(KvScheme { pre_bias, ..before });
    assert_eq!(attended(&params, with(true)), attended(&params, with(false)));
    set(&mut params, 400.0);
    let float = attended(&params, None);
    let size = float.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let error =
        |scheme| (&attended(&params, scheme) - &float).iter().fold(0.0_f64, |m, v| m.max(v.abs())) / size;
    let (off, on) = (error(with(true)), error(with(false)));
    let per_token = error(Some(KvScheme::new(bits(3), ActRule::Asymmetric, head)));
    assert!(off < 0.6 * on && off < 0.5 * per_token, "{off} against {on} and {per_token}");
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
