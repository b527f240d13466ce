//! The output depends on the job alone: not on the number of threads, the memory budget, the way the input is sharded, or
//! the day. And a folder read back computes what the quantised model in memory computed, bit for bit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{
    CALIBRATION, SMALL, assert_same_files, copy_of_model, few_windows, files, ptq, quantize,
    quantize_in_memory, side_by_side, split_in_two, text, tiny_reasoner,
};
use ptq::eval::LanguageModel;
use ptq::graph::BlockSource;
use ptq::pipeline::{PRESETS, Scored, open_folder, with_threads};
use quant_kernels::Compute;
use std::ops::ControlFlow;
use tempfile::tempdir;

#[test]
fn threads_runs_and_memory_do_not_matter() {
    let work = tempdir().unwrap();
    // Two chunks: one alone is in memory whole, spilled or not.
    let windows = ["--calibration", CALIBRATION, "--num-samples", "5", "--max-seq-len", "256"];
    for preset in ["w8a8kv8-ascend", "w4a16g32"] {
        let mut plan = vec!["plan", "--model"];
        let model = tiny_reasoner();
        plan.extend([text(&model), "--recipe", preset, "--json"]);
        plan.extend(windows);
        let memory = ptq(&plan).expect(0, &[]).json()["memory"].clone();
        let budget = budget_that_spills(&memory).unwrap();
        let run = |name: &str, more: &[&str]| {
            let output = work.path().join(format!("{preset}-{name}"));
            let more = [&windows, more, &["--json"]].concat();
            let ran = quantize(&model, preset, &output, &more).expect(0, &[]);
            (output, ran.json()["spilled"].as_bool().unwrap())
        };
        let (one, _) = run("one", &["--threads", "1"]);
        for (name, more) in [
            ("two", &["--threads", "2"][..]),
            ("again", &["--threads", "1"]),
            ("more", &["--threads", "5"]),
            ("budget", &["--threads", "2", "--memory", &budget]),
        ] {
            let (other, spilled) = run(name, more);
            assert_eq!(spilled, name == "budget");
            assert_same_files(&one, &other);
        }
    }
}

/// Between what a plan needs with activations on disk and what it needs with them in memory; none where the disk saves nothing,
/// because a chunk of tokens is as large as all of them.
fn budget_that_spills(memory: &serde_json::Value) -> Option<String> {
    let bytes = |key: &str| memory[key].as_u64().unwrap_or_else(|| panic!("{key} of {memory}"));
    let (spilled, kept) = (bytes("bound_spilled"), bytes("bound"));
    (spilled < kept).then(|| spilled.midpoint(kept).to_string())
}

/// Activations are carried and summed in chunks of whole sequences, about a thousand tokens each: this has three, so that
/// the order of the chunks is under test too.
#[test]
fn several_chunks_of_tokens_do_not_matter() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    let windows = ["--calibration", CALIBRATION, "--num-samples", "12", "--max-seq-len", "256", "--json"];
    let gptq = "  - smoothquant: { alpha: 0.5 }\n  - gptq: { scheme: W8A8KV8, true_sequential: ";
    let jobs = [
        ("sequential", format!("{gptq}true }}"), "compute: f32\nexport: { format: vllm-ascend }"),
        ("sequential-bf16", format!("{gptq}true }}"), "compute: bf16\nexport: { format: vllm-ascend }"),
        ("at-once", format!("{gptq}false }}"), "compute: f32\nexport: { format: vllm-ascend }"),
        ("at-once-bf16", format!("{gptq}false }}"), "compute: bf16\nexport: { format: vllm-ascend }"),
        (
            "gptaq",
            "  - smoothquant: { alpha: 0.5 }\n  - gptaq: { scheme: W4A16g32, actorder: static }".to_owned(),
            "export: { format: compressed-tensors }",
        ),
        (
            "gptaq-at-once",
            "  - awq: { search_tokens: 300, gqa: true }\n  - gptaq: { scheme: W4A8g32, true_sequential: false }".to_owned(),
            "activations: { in_calibration: true }\ncompute: bf16x2\nstatistics: bf16x3",
        ),
        ("qronos", "  - qronos: { scheme: W3A16g32, mse_clip: true, sweeps: 2 }".to_owned(), "export: { format: dequantized }"),
        (
            "qronos-block",
            "  - smoothquant: {}\n  - qronos: { scheme: W4A8g32, actorder: static, float_stream: block }".to_owned(),
            "overrides: { '*.k_proj': { rtn: {} }, '*.down_proj': { gptq: { scheme: W8A8 } } }",
        ),
        ("billm", "  - billm: { block_size: 64 }".to_owned(), ""),
        ("slim-llm", "  - slim-llm: { scheme: W3A16g32, lambda: 2.0 }".to_owned(), "compute: bf16"),
        ("slim-llm-official", "  - slim-llm: { scheme: W2A16g16, variant: official }".to_owned(), ""),
        (
            "tables",
            "  - gptq: { scheme: W4A16g32 }".to_owned(),
            "overrides: { lm_head: { scheme: W8A16, actorder: static }, model.embed_tokens: { rtn: { scheme: W4A16g32 } } }",
        ),
        (
            "quarot",
            "  - quarot: { seed: 9 }\n  - awq: {}\n  - gptaq: { scheme: W4A8KV4 }".to_owned(),
            "activations: { in_calibration: true }",
        ),
        (
            "duquant",
            "  - duquant: { block: 32, steps: 30, tokens: 100 }\n  - gptq: { scheme: W4A4KV4 }".to_owned(),
            "activations: { in_calibration: true }",
        ),
        ("awq", "  - awq: { scheme: W4A16g32 }".to_owned(), "export: { format: compressed-tensors }"),
        ("awq-all", "  - awq: { scheme: W3A16, variant: official }".to_owned(), "compute: bf16"),
        (
            "cache",
            "  - smoothquant: { pairs: [norm, v-o, up-down] }\n  - gptq: { scheme: W8A8KV4, input_shards: 2 }".to_owned(),
            "activations: { in_calibration: true }\nkv_cache: { before_rope: true, pre_bias: true }",
        ),
        (
            "cache-at-once",
            "  - gptaq: { scheme: W4A8KV4g32, true_sequential: false }".to_owned(),
            "activations: { in_calibration: true }\nkv_cache: { granularity: channel_static, symmetric: false }",
        ),
        (
            "rtn",
            "  - rtn: { scheme: W8A8KV8 }".to_owned(),
            "activations: { dynamic: false, observer: percentile }\nkv_cache: { granularity: channel_static }",
        ),
    ];
    side_by_side(&jobs, |(name, modifiers, rest)| {
        let recipe = work.path().join(format!("{name}.yaml"));
        std::fs::write(&recipe, format!("version: 1\nmodifiers:\n{modifiers}\n{rest}\n")).unwrap();
        let plan = ["plan", "--model", text(&model), "--recipe", text(&recipe)];
        let memory = ptq(&[&plan, &windows[..]].concat()).expect(0, &[]).json()["memory"].clone();
        let budget = budget_that_spills(&memory);
        let run = |run: &str, more: &[&str]| {
            let output = work.path().join(format!("{name}-{run}"));
            let more = [&windows, more].concat();
            let report = quantize(&model, text(&recipe), &output, &more).expect(0, &[]).json();
            assert_eq!(report["run"]["calibration_tokens"], 12 * 256);
            assert_eq!(report["spilled"], run == "spilled", "{name}: {memory}");
            output
        };
        let one = run("one", &["--threads", "1"]);
        assert_same_files(&one, &run("two", &["--threads", "2"]));
        assert!(budget.is_some() || name.starts_with("awq"), "{name}: {memory}");
        if let Some(budget) = &budget {
            assert_same_files(&one, &run("spilled", &["--threads", "2", "--memory", budget]));
        }
    });
    // The settings are not without effect.
    let weights = |name: &str| files(&work.path().join(format!("{name}-one")));
    assert!(weights("sequential") != weights("sequential-bf16"));
    assert!(weights("sequential") != weights("at-once"));
}

#[test]
fn shards_of_the_input_do_not_matter() {
    let (whole, split) = (tempdir().unwrap(), tempdir().unwrap());
    let whole_model = copy_of_model(whole.path());
    let split_model = copy_of_model(split.path());
    split_in_two(&split_model);
    let recipes = tempdir().unwrap();
    let mut jobs = vec!["w8a8-static-ascend".to_owned(), "w4a4kv4-research".to_owned()];
    for modifier in [
        "awq: { scheme: W4A16g32 }",
        "gptaq: { scheme: W4A16g32 }",
        "billm: {}",
        "slim-llm: { scheme: W2A16g32 }",
    ] {
        let file = recipes.path().join(format!("{}.yaml", jobs.len()));
        std::fs::write(&file, format!("version: 1\nmodifiers: [{modifier}]\n")).unwrap();
        jobs.push(text(&file).to_owned());
    }
    for (index, preset) in jobs.iter().enumerate() {
        let (a, b) = (whole.path().join(index.to_string()), split.path().join(index.to_string()));
        quantize(&whole_model, preset, &a, SMALL).expect(0, &[]);
        quantize(&split_model, preset, &b, SMALL).expect(0, &[]);
        assert_same_files(&a, &b);
    }
}

/// The bits of all logits of a model on the windows.
fn logit_bits(model: impl BlockSource, sequences: &[Vec<u32>]) -> Vec<u32> {
    with_threads(2, |par| {
        let mut model = Scored::new(model, Compute::F32, par);
        model.encode(sequences, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let positions = sequences.iter().map(Vec::len).sum();
        let mut logits = ndarray::Array2::<f32>::zeros((positions, model.vocab_size()));
        model.logits(0..positions, 0..logits.ncols(), logits.view_mut()).unwrap();
        logits.iter().map(|v| v.to_bits()).collect()
    })
    .unwrap()
}

#[test]
fn a_folder_read_back_is_the_model_in_memory() {
    let windows = few_windows(4, 64);
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    let float = logit_bits(open_folder(&model).unwrap().into_source().unwrap(), &windows.sequences);
    let presets =
        ["w8a8kv8-ascend", "w8a8-static-ascend", "w8a16-ascend", "w4a16g32", "w8a8", "w4a4kv4-research"];
    let presets =
        presets.map(|name| (name, PRESETS.iter().find(|p| p.name == name).unwrap().text.to_owned()));
    let own = [
        ("kvquant", "scheme: W16A16KV4", "kv_cache: { before_rope: true, pre_bias: true }"),
        ("static-cache", "scheme: W16A16KV2", "kv_cache: { granularity: channel_static, symmetric: false }"),
        (
            "values-by-token",
            "scheme: W16A16KV4",
            "kv_cache: { granularity: channel_static, value_granularity: token_head, clip_ratio: 0.9 }",
        ),
        ("shards", "scheme: W8A4, input_shards: 4", ""),
    ];
    let own =
        own.map(|(name, keys, rest)| (name, format!("version: 1\nmodifiers: [rtn: {{ {keys} }}]\n{rest}\n")));
    for (preset, recipe) in presets.into_iter().chain(own) {
        let (in_memory, _) = quantize_in_memory(&model, &recipe, Some(&windows), 2);
        let (folder, file) = (work.path().join(preset), work.path().join(format!("{preset}.yaml")));
        std::fs::write(&file, recipe).unwrap();
        quantize(&model, text(&file), &folder, SMALL).expect(0, &[]);
        let read_back = open_folder(&folder).unwrap().into_source().unwrap();
        let (a, b) = (logit_bits(in_memory, &windows.sequences), logit_bits(read_back, &windows.sequences));
        assert_eq!(a.len(), 4 * 64 * 1024);
        let different = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        assert_eq!(different, 0, "{preset}: {different} of {} logits differ", a.len());
        assert_ne!(a, float, "{preset} changed nothing");
    }
}
