//! What a recipe says of activations and cache: refusals of the plan, and what calibration and the finished blocks make of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array2, Axis};
use quant_core::{ActQuant, ActRule, ChannelRanges, EntryQuant, FloatType, KvGranularity, KvQuant};
use quant_data::TokenSet;
use quant_graph::{BlockParams, BlockSource, KvScheme, LinearId, ModelSpec, Site};
use quant_kernels::{Compute, Par};
use quant_model::{Block, InMemoryModel, RopeTable, model_spec};
use quant_pipeline::run::{MemorySink, RunOptions, run};
use quant_pipeline::{Plan, Recipe, RunReport, Silent};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

fn spec(architecture: &str) -> ModelSpec {
    model_spec(&json!({
        "architectures": [architecture], "hidden_size": 32, "intermediate_size": 60, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    }))
    .unwrap()
}

/// A random model; `key_bias` is the bias of the last channel of its keys, where they have one, next to which the others are
/// small.
fn model(architecture: &str, key_bias: f32) -> InMemoryModel {
    let spec = spec(architecture);
    let mut numbers = Numbers::new(11);
    let block = |_| {
        let mut block = random_block(&spec, &mut numbers);
        if let Some(bias) = block.linears.get_mut(&LinearId::K).and_then(|k| k.bias.as_mut()) {
            let size = bias.len() as f32;
            bias.indexed_iter_mut().for_each(|(j, b)| *b = key_bias * ((j + 1) as f32 / size).powi(40));
        }
        block
    };
    let blocks = (0..spec.layers).map(block).collect();
    let (embedding, head) = (numbers.matrix(64, 32, 1.0), numbers.matrix(64, 32, 1.0));
    InMemoryModel::new(spec, blocks, embedding, numbers.vector(32, 1.0, 0.2), Some(head)).unwrap()
}

fn tokens() -> TokenSet {
    let row = |s: u32| (0..40).map(|t| (t * 7 + s * 13) % 64).collect();
    TokenSet::from_sequences((0..6).map(row).collect(), "rows")
}

fn recipe(modifiers: &str, rest: &str) -> Result<Recipe, String> {
    let text = format!("version: 1\nmodifiers: [{modifiers}]\n{rest}\n");
    Recipe::parse(&text).map_err(|e| e.to_string())
}

fn plan_of(architecture: &str, modifiers: &str, rest: &str) -> Result<Plan, String> {
    Plan::new(&recipe(modifiers, rest)?, &spec(architecture)).map_err(|e| e.to_string())
}

fn cache(modifiers: &str, rest: &str) -> KvScheme {
    plan_of("Qwen2ForCausalLM", modifiers, rest).unwrap_or_else(|e| panic!("{e}")).scheme.kv.unwrap()
}

fn quantise(model: &mut InMemoryModel, modifiers: &str, rest: &str) -> (Vec<BlockParams>, RunReport) {
    let plan = Plan::new(&recipe(modifiers, rest).unwrap(), model.spec()).unwrap();
    let mut blocks = MemorySink::default();
    let options = RunOptions::new(Par::Seq);
    let report = run(&plan, model, Some(&tokens()), &mut blocks, &mut Silent, &options).unwrap();
    (blocks.blocks().to_vec(), report)
}

#[test]
fn keys_of_the_cache_follow_from_each_other() {
    let (head, channel) = (KvGranularity::TokenHead, KvGranularity::ChannelStatic);
    let four = |rest: &str| cache("rtn: { scheme: W16A16KV4 }", rest);
    let bits = quant_core::Bits::new(4).unwrap();
    let usual = KvScheme::new(bits, ActRule::Asymmetric, head);
    assert_eq!(four(""), usual);
    assert_eq!(four("kv_cache: { clip_ratio: 0.95 }"), KvScheme { clip_ratio: 0.95.into(), ..usual });
    let symmetric = KvScheme::new(bits, ActRule::Symmetric, channel);
    assert_eq!(four("kv_cache: { granularity: channel_static }"), symmetric);
    assert_eq!(
        four("kv_cache: { granularity: channel_static, symmetric: false }"),
        KvScheme::new(bits, ActRule::Asymmetric, channel)
    );
    // KVQuant*: keys by channel before rope, values by token and head.
    let star = KvScheme { keys: channel, before_rope: true, ..usual };
    assert_eq!(four("kv_cache: { before_rope: true }"), star);
    assert_eq!(four("kv_cache: { before_rope: true, granularity: channel_static, symmetric: false }"), star);
    assert_eq!(
        four("kv_cache: { before_rope: true, pre_bias: true, clip_ratio: 0.9 }"),
        KvScheme { pre_bias: true, clip_ratio: 0.9.into(), ..star }
    );
    assert_eq!(
        four("kv_cache: { before_rope: true, value_granularity: channel_static }"),
        KvScheme { values: channel, ..star }
    );
    assert_eq!(
        four("kv_cache: { before_rope: true, granularity: token_head }"),
        KvScheme { before_rope: true, ..usual }
    );
    for (scheme, width) in [("W8A8KV2", 2), ("W8A8KV3", 3), ("W8A8KV8", 8)] {
        assert_eq!(cache(&format!("rtn: {{ scheme: {scheme} }}"), "").bits.get(), width);
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_ways_out() {
    let qwen2 = "Qwen2ForCausalLM";
    let (kv4, kv8) = ("rtn: { scheme: W16A16KV4 }", "rtn: { scheme: W8A8KV8 }");
    let shards = |n: usize| format!("rtn: {{ scheme: W8A8, input_shards: {n} }}");
    let (ascend, packed) = ("export: { format: vllm-ascend }", "export: { format: compressed-tensors }");
    for (architecture, modifiers, rest, words) in [
        (qwen2, kv4, "kv_cache: { pre_bias: true }", &["kv_cache.pre_bias", "before_rope: true"][..]),
        (
            qwen2,
            kv4,
            "kv_cache: { granularity: channel_static, clip_ratio: 0.9 }",
            &["clip_ratio", "token_head"],
        ),
        (qwen2, kv4, "kv_cache: { clip_ratio: 2 }", &["kv_cache.clip_ratio", "from 0.01 to 1"]),
        (
            qwen2,
            kv4,
            "kv_cache: { value_granularity: tokenhead }",
            &["value_granularity", "did you mean \"token_head\""],
        ),
        (
            qwen2,
            kv8,
            &format!("kv_cache: {{ before_rope: true }}\n{ascend}"),
            &["before rope", "dequantized"],
        ),
        (
            qwen2,
            kv8,
            &format!("kv_cache: {{ symmetric: false, granularity: channel_static }}\n{ascend}"),
            &["asymmetric KV cache", "symmetric: true", "dequantized"],
        ),
        (
            qwen2,
            kv8,
            &format!("kv_cache: {{ value_granularity: token_head }}\n{ascend}"),
            &["values quantised per token", "dequantized"],
        ),
        (qwen2, "rtn: { scheme: W8A8KV2 }", ascend, &["2 bits", "KV8", "dequantized"]),
        (
            qwen2,
            kv8,
            &format!("kv_cache: {{ before_rope: true }}\n{packed}"),
            &["KV8", "vllm-ascend", "dequantized"],
        ),
        // 32 inputs of o, 60 of down.
        (qwen2, &shards(3), "", &["o_proj has 32 inputs", "3 shards"]),
        (qwen2, &shards(8), "", &["down_proj has 60 inputs", "8 shards"]),
        (
            qwen2,
            "rtn: { scheme: W8A8g6, input_shards: 4 }",
            "",
            &["o_proj has 32 inputs", "4 shards of whole groups of 6"],
        ),
        (qwen2, &shards(4), "activations: { dynamic: false }", &["static scale", "input_shards: 1"]),
        (qwen2, &shards(4), ascend, &["4 shards", "input_shards: 1", "dequantized"]),
        (qwen2, &shards(4), packed, &["4 shards", "input_shards: 1", "dequantized"]),
        (
            qwen2,
            "gptq: { scheme: W4A8g4, input_shards: 4, actorder: dynamic }",
            "",
            &["input_shards", "drop one"],
        ),
        (
            qwen2,
            "awq: { input_shards: 4 }, rtn: { scheme: W8A8 }",
            "",
            &["modifiers[0].awq.input_shards", "give a scheme"],
        ),
        (
            qwen2,
            "smoothquant: { pairs: [norm, vo] }, rtn: { scheme: W8A8 }",
            "",
            &["pairs", "norm, v-o, up-down", "did you mean \"v-o\""],
        ),
        (
            qwen2,
            "smoothquant: { pairs: [norm, norm] }, rtn: { scheme: W8A8 }",
            "",
            &["a list of different words"],
        ),
        (qwen2, "smoothquant: { pairs: [] }, rtn: { scheme: W8A8 }", "", &["a list of different words"]),
    ] {
        let error = plan_of(architecture, modifiers, rest).map(|_| ()).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{modifiers} {rest}: {error}");
    }
    // Keys without a bias lose none, which is worth a word; keys that are normed have it inside.
    let rest = "kv_cache: { before_rope: true, pre_bias: true }";
    let llama = plan_of("LlamaForCausalLM", kv4, rest).unwrap();
    assert!(!llama.scheme.kv.unwrap().pre_bias);
    assert!(llama.warnings.iter().any(|w| w.contains("pre_bias changes nothing")), "{:?}", llama.warnings);
    let mut normed = spec("Qwen3ForCausalLM");
    normed.qkv_bias = true;
    let error = Plan::new(&recipe(kv4, rest).unwrap(), &normed).unwrap_err().to_string();
    assert!(error.contains("normed behind their bias"), "{error}");
}

/// Only o and down are cut: their inputs token by token, their weights row by row; and nothing where activations stay float.
#[test]
fn shards_cut_o_and_down() {
    let plan = |modifiers: &str, rest: &str| plan_of("Qwen2ForCausalLM", modifiers, rest).unwrap();
    for method in ["rtn", "gptq", "gptaq", "qronos", "awq"] {
        let plan = plan(&format!("{method}: {{ scheme: W8A8, input_shards: 4 }}"), "");
        for (id, linear) in &plan.blocks[1] {
            let apart = matches!(id.site(), Site::AttentionOutput | Site::MlpActivation);
            let (shards, group) =
                if apart { (4, Some(plan.spec.site_width(id.site()) / 4)) } else { (1, None) };
            assert_eq!(linear.scheme.input.unwrap().shards, shards, "{method} {id}");
            assert_eq!(linear.scheme.weight.unwrap().group, group, "{method} {id}");
        }
    }
    let of = |plan: &Plan, id| {
        let scheme = plan.blocks[0][&id].scheme;
        (scheme.input.map(|i| i.shards), scheme.weight.and_then(|w| w.group))
    };
    // A group inside a shard stays, one that is wider becomes the shard. 15 inputs of down are no whole groups of 4.
    let down = "overrides: { \"*.down_proj\": { scheme: W8A8 } }";
    for (size, group) in [(4, 4), (8, 8), (16, 8)] {
        let plan = plan(&format!("rtn: {{ scheme: W8A8g{size}, input_shards: 4 }}"), down);
        assert_eq!(of(&plan, LinearId::O), (Some(4), Some(group)));
        assert_eq!(of(&plan, LinearId::DOWN), (Some(4), Some(15)));
    }
    assert_eq!(of(&plan("rtn: { scheme: W8A16, input_shards: 4 }", ""), LinearId::O), (None, None));
    // Another method takes the shards over, as it does the scheme, unless it says something else.
    let sharded = |over: &str| {
        plan("rtn: { scheme: W8A8, input_shards: 4 }", &format!("overrides: {{ \"*.o_proj\": {over} }}"))
    };
    assert_eq!(of(&sharded("{ gptq: {} }"), LinearId::O), (Some(4), Some(8)));
    assert_eq!(of(&sharded("{ gptq: { input_shards: 2 } }"), LinearId::O), (Some(2), Some(16)));
    assert_eq!(of(&sharded("{ scheme: W8A16 }"), LinearId::O), (None, None));

    let (blocks, _) = quantise(
        &mut model("Qwen2ForCausalLM", 1.0),
        "gptq: { scheme: W8A8, input_shards: 4 }",
        "activations: { in_calibration: true }",
    );
    let o = &blocks[0].linears[&LinearId::O];
    assert!(matches!(o.input, Some(ActQuant::Dynamic { shards: 4, .. })), "{:?}", o.input);
    assert_eq!(o.weight.quantized().unwrap().scales().ncols(), 4);
    assert_eq!(blocks[0].linears[&LinearId::UP].weight.quantized().unwrap().scales().ncols(), 1);
}

/// The embedded tokens, the input of the first block, `[sequences · tokens, hidden]` one sequence after the other.
fn first_inputs(model: &mut InMemoryModel) -> Vec<Array2<f32>> {
    tokens().sequences.iter().map(|ids| model.embed(ids).unwrap()).collect()
}

/// Static ranges are those of the keys and values that the *rounded* first block makes, at the place where the cache takes
/// them, whether attention shows them or a pass of their own does.
#[test]
fn static_ranges_are_those_of_the_deployed_keys_and_values() {
    for architecture in ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"] {
        for (rest, in_calibration) in [
            ("granularity: channel_static", false),
            ("granularity: channel_static", true),
            ("granularity: channel_static, symmetric: false", false),
            ("before_rope: true", false),
            ("before_rope: true, pre_bias: true", true),
        ] {
            for sequential in [true, false] {
                let mut model = model(architecture, 3.0);
                let modifiers = format!("gptq: {{ scheme: W4A16KV4, true_sequential: {sequential} }}");
                let rest =
                    format!("kv_cache: {{ {rest} }}\nactivations: {{ in_calibration: {in_calibration} }}");
                let scheme = {
                    let plan = plan_of(architecture, &modifiers, &rest).unwrap();
                    plan.scheme.kv.unwrap()
                };
                let (blocks, report) = quantise(&mut model, &modifiers, &rest);
                let (spec, first) = (model.spec().clone(), blocks[0].clone());
                let block = Block::<f32>::new(
                    &spec,
                    0,
                    BlockParams { kv: None, ..first.clone() },
                    Compute::F32,
                    Par::Seq,
                );
                let block = block.unwrap();
                let mut ranges = [(); 2].map(|()| ChannelRanges::new(spec.kv_width()));
                for h in first_inputs(&mut model) {
                    let x = block.attention_input(h.view(), Par::Seq).unwrap();
                    let rope =
                        RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, h.nrows());
                    let entries = block.cache_entries(x.view(), &rope, &scheme, Par::Seq).unwrap();
                    ranges.iter_mut().zip(&entries).for_each(|(range, x)| range.observe(x.view()));
                }
                let expected = scheme.quant(Some([&ranges[0], &ranges[1]]), FloatType::F32).unwrap();
                assert_eq!(first.kv, Some(expected), "{architecture} {rest} {sequential}");
                assert_eq!(report.caches.len(), 2);
            }
        }
    }
}

/// `in_calibration` covers the cache: o is calibrated on what attention makes of quantised keys and values.
#[test]
fn calibration_sees_the_cache_where_it_is_told_to() {
    for kv in ["granularity: token_head", "granularity: channel_static", "before_rope: true"] {
        for sequential in [true, false] {
            let of = |bits: &str, in_calibration: bool| {
                let modifiers = format!("gptq: {{ scheme: W4A16{bits}, true_sequential: {sequential} }}");
                let rest =
                    format!("kv_cache: {{ {kv} }}\nactivations: {{ in_calibration: {in_calibration} }}");
                quantise(&mut model("Qwen2ForCausalLM", 3.0), &modifiers, &rest).0
            };
            let (float, unseen, seen) = (of("", true), of("KV2", false), of("KV2", true));
            let weight = |blocks: &[BlockParams], index: usize, id| blocks[index].linears[&id].clone();
            assert_eq!(weight(&float, 1, LinearId::DOWN), weight(&unseen, 1, LinearId::DOWN), "{kv}");
            // q, k and v come before it in the first block, everything else behind.
            for id in [LinearId::Q, LinearId::K, LinearId::V] {
                assert_eq!(weight(&unseen, 0, id), weight(&seen, 0, id), "{kv} {sequential}");
            }
            assert_ne!(weight(&unseen, 0, LinearId::O), weight(&seen, 0, LinearId::O), "{kv} {sequential}");
            assert_ne!(weight(&unseen, 1, LinearId::Q), weight(&seen, 1, LinearId::Q), "{kv} {sequential}");
            // The ranges of the first block do not depend on what attention does with them; those of the second do.
            let kv_of = |blocks: &[BlockParams], index: usize| blocks[index].kv.clone().unwrap();
            assert_eq!(kv_of(&unseen, 0), kv_of(&seen, 0), "{kv} {sequential}");
            let is_static = matches!(kv_of(&seen, 1).keys, EntryQuant::Channel { .. });
            assert_eq!(kv_of(&unseen, 1) != kv_of(&seen, 1), is_static, "{kv} {sequential}");
        }
    }
}

/// A large bias of the keys is found out, and goes away by the advice.
#[test]
fn keys_that_are_hard_to_quantise_are_reported() {
    let warning = |architecture: &str, key_bias: f32, rest: &str| {
        let modifiers = "gptq: { scheme: W8A16KV4 }";
        let plan = plan_of(architecture, modifiers, rest).unwrap();
        let (_, report) = quantise(&mut model(architecture, key_bias), modifiers, rest);
        report.cache_warning(&plan.scheme.kv.unwrap(), plan.spec.qkv_bias)
    };
    let qwen2 = "Qwen2ForCausalLM";
    let found = warning(qwen2, 4000.0, "").unwrap();
    assert!(found.contains("2 blocks") && found.contains("pre_bias: true"), "{found}");
    assert_eq!(warning(qwen2, 4000.0, "kv_cache: { before_rope: true, pre_bias: true }"), None);
    assert_eq!(warning("LlamaForCausalLM", 0.0, ""), None);
    assert_eq!(warning("LlamaForCausalLM", 0.0, "kv_cache: { before_rope: true }"), None);
}

/// Rounding to nearest with a dynamic cache needs no data, and makes the cache all the same.
#[test]
fn a_dynamic_cache_needs_no_calibration() {
    let rest = "kv_cache: { clip_ratio: 0.95 }\nactivations: { in_calibration: true }";
    let plan = plan_of("Qwen2ForCausalLM", "rtn: { scheme: W8A8KV4 }", rest).unwrap();
    assert!(!plan.streams.calibration());
    let (blocks, report) = quantise(&mut model("Qwen2ForCausalLM", 1.0), "rtn: { scheme: W8A8KV4 }", rest);
    let entries = EntryQuant::TokenHead {
        bits: quant_core::Bits::new(4).unwrap(),
        rule: ActRule::Asymmetric,
        clip_ratio: 0.95.into(),
    };
    assert!(blocks.iter().all(|b| b.kv == Some(KvQuant::both(entries.clone()))));
    assert!(report.caches.is_empty());
    assert_eq!(blocks[0].norms.values().map(|n| n.len_of(Axis(0))).max(), Some(32));
}
