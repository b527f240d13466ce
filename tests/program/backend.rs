//! `--backend`: one folder on the processor and on a simulated NPU.

use crate::common::{
    SMALL, copy_of_model, few_windows, ptq, quantize, text, tiny_reasoner, write_rows, write_tokens,
};
use ascend_kernels::{OpenOptions, Processor, ProcessorOptions};
use ascend_sim::{Kind, Simulator};
use ptq::cli::exit_code;
use ptq::data::PromptSource;
use ptq::kernels::Compute;
use ptq::model::Sampling;
use ptq::pipeline::{GenerateJob, PipelineError, Registry, Silent, generate_with};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::tempdir;

const STATIC: &str = "version: 1\nmodifiers: [rtn: { scheme: W8A8 }]\nactivations: { dynamic: false }\n\
                      export: { format: vllm-ascend }\n";
/// Weights alone: in groups, symmetric and with zero points.
const W4A16: [(&str, &str); 3] = [
    (
        "w4a16g32",
        "version: 1\nmodifiers: [rtn: { scheme: W4A16g32 }]\nexport: { format: compressed-tensors }\n",
    ),
    (
        "w4a16g96",
        "version: 1\nmodifiers: [rtn: { scheme: W4A16g96 }]\nexport: { format: compressed-tensors }\n",
    ),
    (
        "w4a16g64-asym",
        "version: 1\nmodifiers: [rtn: { scheme: W4A16g64, convention: q-asym }]\nexport: { format: compressed-tensors }\n",
    ),
];
const C8: &str = "version: 1\nmodifiers: [rtn: { scheme: W8A8KV8 }]\n\
                  kv_cache: { granularity: channel_static }\nexport: { format: vllm-ascend }\n";

/// A quantised folder by a recipe or a preset.
fn folder(work: &Path, name: &str, recipe: &str, model: &Path) -> PathBuf {
    let file = work.join(format!("{name}.yaml"));
    std::fs::write(&file, recipe).unwrap();
    let recipe = if recipe.contains('\n') { text(&file) } else { recipe };
    let output = work.join(name);
    quantize(model, recipe, &output, SMALL).expect(0, &[]);
    output
}

/// The arguments of a backend.
fn on<'a>(backend: &'a str, library: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["--backend", backend];
    if backend != "cpu" {
        arguments.extend(["--cann-library", library]);
    }
    arguments
}

#[test]
fn logits_and_texts_are_equal_on_both() {
    let (work, simulator) = (tempdir().unwrap(), Simulator::new().unwrap());
    let library = text(simulator.folder()).to_owned();
    let windows = few_windows(4, 96);
    let tokens = write_rows(&work.path().join("tokens.safetensors"), &windows);
    let prompts = work.path().join("prompts.jsonl");
    let ask = |question: &str| json!({"messages": [{"role": "user", "content": question}]}).to_string();
    std::fs::write(&prompts, [ask("What is 74 + 51?"), ask("What is 8 + 5?")].join("\n")).unwrap();
    let codes = [("dynamic", "w8a8-ascend"), ("tensors", "w8a8"), ("static", STATIC), ("c8", C8)];
    let weights = [("w8a16", "w8a16-ascend")].into_iter().chain(W4A16);
    for (name, recipe) in codes.into_iter().chain(weights) {
        let folder = folder(work.path(), name, recipe, &tiny_reasoner());
        let run = |backend: &str| {
            let logits = work.path().join(format!("{name}-{backend}.safetensors"));
            let eval = ["eval", "--model", text(&folder), "--tokens", &tokens, "--json", "--save-logits"];
            let eval = [&eval[..], &[text(&logits)], &on(backend, &library)].concat();
            let report = ptq(&eval).expect(0, &[]).json();
            assert_eq!(report["execution"], "int8");
            assert!(report["processor"].as_str().unwrap().starts_with(backend), "{report}");
            let generate = ["generate", "--model", text(&folder), "--prompts", text(&prompts), "--json"];
            let more = ["--max-new-tokens", "60"];
            let texts = ptq(&[&generate[..], &more, &on(backend, &library)].concat());
            let texts = texts.expect(0, &["42 of 42 quantised linears executed as codes on ", backend]);
            (std::fs::read(logits).unwrap(), report["perplexity"].as_f64().unwrap(), texts.json())
        };
        let (cpu, cann) = (run("cpu"), run("cann:0"));
        assert!(cpu.0 == cann.0, "{name}: logits differ");
        assert_eq!((cpu.1, &cpu.2), (cann.1, &cann.2), "{name}");
        // The arithmetic of the device is not that of floats between codes, and not far from it.
        let here =
            ptq(&["eval", "--model", text(&folder), "--tokens", &tokens, "--json", "--execute", "int8"]);
        let here = here.expect(0, &[]).json();
        assert!(here.get("processor").is_none());
        let here = here["perplexity"].as_f64().unwrap();
        assert!(here != cpu.1 && (here / cpu.1 - 1.0).abs() < 3e-2, "{name}: {here} {}", cpu.1);
    }
    // What is asked of tasks goes the same way.
    let task = |backend: &str| {
        let model = work.path().join("c8");
        let data = tiny_reasoner();
        let arguments =
            ["eval", "--model", text(&model), "--task", "tiny-addition", "--data-dir", text(&data)];
        let arguments = [&arguments[..], &["--limit", "3", "--json"]].concat();
        ptq(&[&arguments[..], &on(backend, &library)].concat()).expect(0, &[]).json()["items"].clone()
    };
    assert_eq!(task("cpu"), task("cann"));
}

/// Groups of 128, which do not divide the widths of the embedded model, in a wider one.
#[test]
fn logits_of_wide_groups_are_equal_on_both() {
    let (work, simulator) = (tempdir().unwrap(), Simulator::new().unwrap());
    let library = text(simulator.folder()).to_owned();
    let model = work.path().join("wide");
    let shape = ["--shape", "qwen2-0.5b", "--layers", "1", "--vocab", "256"];
    ptq(&[&["synth", "--output", text(&model)], &shape[..]].concat()).expect(0, &[]);
    let tokens = write_tokens(&work.path().join("tokens.safetensors"), &[vec![1, 2, 3, 5, 8, 13]], 6);
    let recipe =
        "version: 1\nmodifiers: [rtn: { scheme: W4A16g128 }]\nexport: { format: compressed-tensors }\n";
    let folder = folder(work.path(), "w4a16g128", recipe, &model);
    let [cpu, cann] = ["cpu", "cann"].map(|backend| {
        let logits = work.path().join(format!("{backend}.safetensors"));
        let eval = ["eval", "--model", text(&folder), "--tokens", &tokens, "--save-logits", text(&logits)];
        ptq(&[&eval[..], &on(backend, &library)].concat()).expect(0, &[]);
        std::fs::read(logits).unwrap()
    });
    assert!(cpu == cann, "logits differ");
}

#[test]
fn what_a_backend_cannot_do_is_refused() {
    let (work, simulator) = (tempdir().unwrap(), Simulator::new().unwrap());
    let library = text(simulator.folder()).to_owned();
    let nothing = tempdir().unwrap();
    let nothing = text(nothing.path());
    let w8a8 = folder(work.path(), "w8a8", "w8a8-ascend", &tiny_reasoner());
    let generate = |model: &Path, more: &[&str]| {
        ptq(&[&["generate", "--model", text(model), "--prompt", "a", "--max-new-tokens", "2"], more].concat())
    };
    // What doctor says is printed where there is no library.
    generate(&w8a8, &on("cann", nothing)).expect(3, &["libascendcl", nothing]);
    generate(&w8a8, &on("cann:9", &library)).expect(3, &["9"]);
    generate(&w8a8, &["--backend", "cann", "--cann-library", &library, "--execute", "sim"])
        .expect(2, &["--execute sim"]);
    generate(&w8a8, &["--backend", "cpu", "--cann-library", &library]).expect(2, &["--backend cann"]);
    generate(&w8a8, &["--cann-library", &library]).expect(2, &["--backend"]);
    generate(&w8a8, &["--backend", "gpu"]).expect(2, &["cpu, cann or cann:N"]);
    for backend in [on("cpu", ""), on("cann", &library)] {
        generate(&tiny_reasoner(), &backend).expect(3, &["no codes to multiply"]);
    }
    let narrow = folder(
        work.path(),
        "w4a16g16",
        "version: 1\nmodifiers: [rtn: { scheme: W4A16g16 }]\nexport: { format: compressed-tensors }\n",
        &tiny_reasoner(),
    );
    for backend in [on("cpu", ""), on("cann", &library)] {
        generate(&narrow, &backend)
            .expect(3, &["q of block 0", "no multiple of 32 inputs", "without --backend"]);
    }
    let tokens = write_tokens(&work.path().join("tokens.safetensors"), &[vec![1, 2, 3]], 3);
    let eval = |more: &[&str]| ptq(&[&["eval", "--model", text(&w8a8), "--tokens", &tokens], more].concat());
    eval(&["--backend", "cpu", "--execute", "sim"]).expect(2, &["--execute sim"]);
    eval(&["--backend", "cpu", "--flips"]).expect(0, &[]);
}

#[test]
fn a_bench_measures_the_backend() {
    let simulator = Simulator::new().unwrap();
    let arguments = ["bench", "--shape", "4x64x32", "--threads", "1", "--json"];
    let report = ptq(&[&arguments[..], &on("cann", text(simulator.folder()))].concat()).expect(0, &[]).json();
    let there = |kernel: &&Value| kernel["level"] == "cann:0";
    let kernels: Vec<&Value> = report["kernels"].as_array().unwrap().iter().filter(there).collect();
    assert_eq!(kernels.len(), 3, "{report}");
    // Where there is no device, doctor speaks.
    let nothing = tempdir().unwrap();
    ptq(&[&arguments[..], &on("cann", text(nothing.path()))].concat()).expect(3, &["CANN: not found"]);
    assert!(kernels.iter().all(|kernel| kernel["rate"].as_f64().unwrap() > 0.0));
}

/// The first block of the embedded model.
fn one_block(work: &Path) -> PathBuf {
    let model = copy_of_model(work);
    let config = model.join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["num_hidden_layers"] = 1.into();
    std::fs::write(config, json.to_string()).unwrap();
    let file = model.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let kept =
        tensors.into_iter().filter(|(name, _)| !name.contains(".layers.") || name.contains(".layers.0."));
    safetensors::serialize_to_file(kept.collect::<Vec<_>>(), None, &file).unwrap();
    model
}

/// A text from a folder on a simulated NPU that is opened and given back.
fn whole_run(simulator: &Simulator, model: &Path) -> Result<Vec<u32>, PipelineError> {
    simulator.clear_trace();
    let library = OpenOptions::new().folder(simulator.folder());
    let core = |error: ascend_kernels::AscendError| PipelineError::Core(error.into());
    let processor = Processor::open(&ProcessorOptions { library, ..ProcessorOptions::default() });
    let processor = Arc::new(processor.map_err(core)?);
    let job = GenerateJob {
        model: model.to_owned(),
        prompts: PromptSource::Text("What".to_owned()),
        chat: false,
        max_new_tokens: 2,
        sampling: Sampling::GREEDY,
        batch: 1,
        execution: None,
        processor: Some(processor.clone()),
        threads: 1,
        memory: None,
        compute: Compute::F32,
    };
    let made = generate_with(&job, &mut Silent, &mut |_, _| {}, &Registry::default());
    drop(job);
    let closed = Arc::into_inner(processor).unwrap().close();
    let made = made?;
    closed.map_err(core)?;
    Ok(made.texts[0].tokens.clone())
}

/// Device memory in which the weights of one block go through two places, but for some.
const SCARCE: usize = 300_000;

/// A model larger than the device has the text of one that fits; with still less memory nothing of it is read.
#[test]
fn a_model_larger_than_the_device() {
    let work = tempdir().unwrap();
    let model = one_block(work.path());
    let simulator = Simulator::new().unwrap();
    for (name, recipe) in [("static", STATIC), ("c8", C8), W4A16[2]] {
        let folder = folder(work.path(), name, recipe, &model);
        simulator.set_memory(1 << 30);
        let want = whole_run(&simulator, &folder).unwrap();
        let copies = || simulator.trace().iter().filter(|step| step.name == "aclrtMemcpyAsync").count();
        let mut found = Vec::new();
        for memory in [1 << 30, if name.starts_with('w') { SCARCE * 2 / 3 } else { SCARCE }] {
            simulator.set_memory(memory);
            assert_eq!(whole_run(&simulator, &folder).unwrap(), want, "{name} in {memory} bytes");
            found.push(copies());
        }
        // Each weight once, and those without room in each pass.
        assert!(found[0] >= 7 && found[1] > found[0], "{name}: {found:?}");
        simulator.set_memory(100_000);
        let error = whole_run(&simulator, &folder).unwrap_err();
        assert_eq!(exit_code(&error), 5, "{error:?}");
        let words = error.to_string();
        assert!(words.contains("two places for weights") && words.contains("100.0 kB free"), "{words}");
        assert_eq!((simulator.trace().len(), simulator.leaks()), (0, vec![]));
    }
}

/// Each call of a run that makes text fails once: CANN's message, nothing left, and the next run works.
#[test]
fn every_call_of_a_run_fails_once() {
    let work = tempdir().unwrap();
    let model = one_block(work.path());
    let simulator = Simulator::new().unwrap();
    let mut failed = BTreeMap::<String, u64>::new();
    let mut calls = 0;
    // The second folder where its weights do not fit.
    for ((name, recipe), memory) in [(("static", STATIC), 1 << 30), (("c8", C8), SCARCE), (W4A16[2], 1 << 30)]
    {
        let folder = folder(work.path(), name, recipe, &model);
        simulator.set_memory(memory);
        simulator.fail_call(0);
        let want = whole_run(&simulator, &folder).unwrap();
        assert_eq!((want.len(), simulator.leaks()), (2, vec![]));
        let all = simulator.count(Kind::Calls);
        for number in 1..=all {
            simulator.fail_call(number);
            let ended = whole_run(&simulator, &folder);
            let call = simulator.call_name(number);
            simulator.fail_call(0);
            assert_eq!(simulator.leaks(), [], "{name}: call {number}, {call}");
            let error = ended.expect_err(&call);
            let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
            let words: Vec<String> = chain.map(ToString::to_string).collect();
            let words = words.join(": ");
            assert!(
                words.contains(&call) && words.contains("EE9999: simulated failure of"),
                "{call}: {words}"
            );
            assert!([1, 3, 5].contains(&exit_code(&error)), "{words}");
            *failed.entry(call).or_default() += 1;
            if number.is_multiple_of(16) {
                assert_eq!(
                    whole_run(&simulator, &folder).unwrap(),
                    want,
                    "the run after a failure of call {number}"
                );
            }
        }
        assert_eq!(whole_run(&simulator, &folder).unwrap(), want);
        calls += all;
    }
    eprintln!("{calls} calls of {} functions failed once each", failed.len());
    for name in [
        "aclnnDynamicQuant",
        "aclnnAscendQuantV3",
        "aclnnFusedInferAttentionScoreV3",
        "aclnnWeightQuantBatchMatmulV2",
        "aclrtCtxSetSysParamOpt",
        "aclrtMemcpy",
        "aclrtMemcpyAsync",
        "aclrtMallocHost",
        "aclrtStreamWaitEvent",
        "aclrtGetMemInfo",
    ] {
        assert!(failed.keys().any(|call| call.starts_with(name)), "{name} was not called: {failed:?}");
    }
    // Too little memory has an exit code of its own.
    simulator.set_memory(100_000);
    let error = whole_run(&simulator, &work.path().join("c8")).unwrap_err();
    assert_eq!(exit_code(&error), 5, "{error:?}");
    assert_eq!(simulator.leaks(), []);
}
