//! The command line as scripts rely on it: arguments, exit codes, JSON, files.

use crate::common::{
    CALIBRATION, SMALL, assert_same_files, few_windows, files, ptq, quantize, root, text, tiny_reasoner,
    write_tokens,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::tempdir;

#[test]
fn the_recipe_schema_holds_every_default() {
    let schema = ptq(&["quantize", "--recipe-schema"]).expect(0, &[]).json();
    let modifiers = schema["properties"]["modifiers"]["items"]["oneOf"].as_array().unwrap();
    let keys = |method: &str| {
        let found = modifiers.iter().find_map(|m| m["properties"].get(method)).unwrap();
        found["properties"].clone()
    };
    for (method, key, default) in [
        ("gptq", "mse_clip", json!(false)),
        ("gptq", "actorder", json!("none")),
        ("gptq", "true_sequential", json!(true)),
        ("gptq", "damping", json!(0.01)),
        ("gptq", "variant", json!("exact")),
        ("gptq", "symmetric", json!(true)),
        ("rtn", "mse_clip", json!(false)),
        ("rtn", "symmetric", json!(true)),
        ("smoothquant", "alpha", json!(0.5)),
    ] {
        assert_eq!(keys(method)[key]["default"], default, "{method}.{key}");
    }
    let properties = &schema["properties"];
    for (section, key, default) in [
        ("activations", "dynamic", json!(true)),
        ("activations", "clip_ratio", json!(1.0)),
        ("activations", "observer", json!("minmax")),
        ("activations", "in_calibration", json!(false)),
    ] {
        assert_eq!(properties[section]["properties"][key]["default"], default, "{section}.{key}");
    }
    assert_eq!(properties["compute"]["default"], "f32");
    assert_eq!(properties["ignore"]["default"], json!(["lm_head"]));
    assert_eq!(properties["export"]["properties"]["format"]["default"], "dequantized");
    // Every key says what it is, and every key but the scheme has a default.
    for method in ["rtn", "gptq", "smoothquant"] {
        for (key, entry) in keys(method).as_object().unwrap() {
            assert!(entry["description"].is_string(), "{method}.{key}");
            assert!(key == "scheme" || entry.get("default").is_some(), "{method}.{key}");
        }
    }
}

/// The recipe of the contract, word for word.
const CONTRACT: &str = r#"version: 1
modifiers:
  - smoothquant: { alpha: 0.5 }
  - gptq: { scheme: W4A16g32, symmetric: false, convention: q-asym, actorder: static, mse_clip: true, true_sequential: true, damping: 0.01 }
activations: { symmetric: false, dynamic: true, clip_ratio: 1.0, observer: minmax, in_calibration: false }
kv_cache: { symmetric: false, granularity: token_head }
overrides: { "*.down_proj": { scheme: W8A16 } }
compute: f32
ignore: [lm_head]
export: { format: compressed-tensors }
"#;

#[test]
fn a_quantised_folder_describes_itself() {
    let work = tempdir().unwrap();
    let recipe = work.path().join("recipe.yaml");
    std::fs::write(&recipe, CONTRACT).unwrap();
    let output = work.path().join("deep").join("out");
    let more = [SMALL, &["--json", "--threads", "2"]].concat();
    let report = quantize(&tiny_reasoner(), text(&recipe), &output, &more).expect(0, &[]).json();
    assert_eq!(report["format"], "compressed-tensors");
    assert_eq!(report["run"]["linears"].as_array().unwrap().len(), 42);
    assert_eq!(report["run"]["calibration_tokens"], 256);
    for key in ["bits_per_weight", "bytes", "input_bytes", "seconds", "predicted_memory"] {
        assert!(report[key].as_f64().is_some_and(|v| v > 0.0), "{key}");
    }
    let schemes: Vec<&str> = report["run"]["linears"].as_array().unwrap()[..7]
        .iter()
        .map(|l| l["scheme"].as_str().unwrap())
        .collect();
    assert_eq!(schemes.iter().filter(|s| **s == "W4A16g32").count(), 6, "{schemes:?}");
    let names: Vec<PathBuf> = files(&output).into_keys().collect();
    for name in [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "quantization_report.json",
        "README.md",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        assert!(names.iter().any(|n| n == Path::new(name)), "{name} is not among {names:?}");
    }
    assert_eq!(std::fs::read_to_string(output.join("recipe.yaml")).unwrap(), CONTRACT);
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(output.join(name)).unwrap()).unwrap() };
    let manifest = read("manifest.json");
    let bytes = std::fs::read(output.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let hashes = manifest["output"].as_object().unwrap();
    assert_eq!(hashes.len(), tensors.len());
    assert!(tensors.names().iter().all(|name| hashes.contains_key(*name)));
    let bytes = std::fs::read(tiny_reasoner().join("model.safetensors")).unwrap();
    let input = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(manifest["input"].as_object().unwrap().len(), input.len());
    for name in ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] {
        assert_eq!(manifest["input"][name], manifest["output"][name], "{name} is copied");
    }
    assert_eq!(read("quantization_report.json")["linears"].as_array().unwrap().len(), 42);
    // The recipe of the folder makes the folder.
    let again = work.path().join("again");
    quantize(&tiny_reasoner(), text(&output.join("recipe.yaml")), &again, SMALL).expect(0, &[]);
    assert_same_files(&output, &again);
}

#[test]
fn text_output_of_quantize_is_a_table() {
    let work = tempdir().unwrap();
    let ran = quantize(&tiny_reasoner(), "w8a8-ascend", &work.path().join("out"), &[])
        .expect(0, &["block 6/6 done"]);
    for word in [
        "weight error",
        "the 10 linears with the largest errors",
        "quantization_report.json",
        "bits per weight",
        "products in f32, factorisation none",
        "largest relative weight error",
        "peak memory",
    ] {
        assert!(ran.out.contains(word), "no {word:?} in {}", ran.out);
    }
    assert!(!ran.out.contains("largest relative output error"), "nothing was calibrated: {}", ran.out);
    let lines = ran.out.lines().filter(|l| l.starts_with("model.layers."));
    let errors: Vec<f64> = lines.map(|l| l.split_whitespace().nth(4).unwrap().parse().unwrap()).collect();
    assert!(errors.len() == 10 && errors.is_sorted_by(|a, b| a >= b), "{errors:?}");
}

/// A result that cannot be written is a failure; a reader that has seen enough is none.
#[test]
#[cfg(target_os = "linux")]
fn stdout_that_takes_nothing() {
    use std::process::{Command, Stdio};
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in [&["list"][..], &["list", "--json"], &["--help"], &["inspect", text(&tiny_reasoner())]] {
        let ptq = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ptq"));
            command.args(arguments);
            command
        };
        let ran: crate::common::Ran = ptq().stdout(full()).output().unwrap().into();
        ran.expect(5, &["cannot write the result to stdout"]);
        let mut child = ptq().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        crate::common::Ran::from(child.wait_with_output().unwrap()).expect(0, &[]);
        // Talk that nobody can read stops nothing.
        let ran = ptq().stderr(full()).output().unwrap();
        assert_eq!(ran.status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn every_kind_of_calibration_data() {
    let work = tempdir().unwrap();
    let path = |name: &str| work.path().join(name);
    let prose = "What is 12 + 30? Let us add the ones and then the tens. ".repeat(20);
    std::fs::write(path("prose.txt"), &prose).unwrap();
    let line = json!({"text": prose}).to_string();
    std::fs::write(path("texts.jsonl"), format!("{line}\n{line}\n")).unwrap();
    let rows: Vec<Vec<i64>> =
        few_windows(6, 40).sequences.iter().map(|s| s.iter().map(|&t| t.into()).collect()).collect();
    let tokens = write_tokens(&path("tokens.safetensors"), &rows, 40);
    for (i, (data, more, expected)) in [
        (text(&path("prose.txt")), &["--num-samples", "3", "--max-seq-len", "32"][..], 96),
        (text(&path("texts.jsonl")), &["--num-samples", "3", "--max-seq-len", "32"], 96),
        (CALIBRATION, &["--num-samples", "3", "--max-seq-len", "32"], 96),
        (&tokens, &[], 240),
        (&tokens, &["--num-samples", "2", "--max-seq-len", "10"], 20),
    ]
    .into_iter()
    .enumerate()
    {
        let more = [&["--calibration", data, "--json"], more].concat();
        let report =
            quantize(&tiny_reasoner(), "w8a8", &path(&format!("out{i}")), &more).expect(0, &[]).json();
        assert_eq!(report["run"]["calibration_tokens"], expected, "{data}");
    }
    // All rows in order: the first rows of a tensor are the tensor of the first rows.
    let first = write_tokens(&path("first.safetensors"), &rows[..2], 40);
    let quantized = |name: &str, more: &[&str]| {
        quantize(&tiny_reasoner(), "w8a8", &path(name), more).expect(0, &[]);
        std::fs::read(path(name).join("model.safetensors")).unwrap()
    };
    let a = quantized("a", &["--calibration", &tokens, "--num-samples", "2"]);
    assert!(a == quantized("b", &["--calibration", &first]));
    assert!(a != quantized("c", &["--calibration", &tokens]));
    // Token ids need no tokenizer.
    let bare = crate::common::copy_of_model(work.path());
    std::fs::remove_file(bare.join("tokenizer.json")).unwrap();
    quantize(&bare, "w8a8", &path("bare"), &["--calibration", &tokens]).expect(0, &[]);
}

#[test]
fn verification() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    let verify = |dir: &Path, target: &str, code: i32| {
        let json = ptq(&["verify", text(dir), "--target", target, "--json"]).expect(code, &[]).json();
        let said = ptq(&["verify", text(dir), "--target", target]).expect(code, &[]);
        assert!(
            said.out.contains(if code == 0 { "passes for" } else { "does not pass for" }),
            "{}",
            said.out
        );
        let failed = json["checks"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["passed"] == false && c["severity"] == "rule");
        assert_eq!(failed, code == 1, "{json}");
        said.out
    };
    for (preset, passes) in [
        ("w8a8kv8-ascend", &["vllm-ascend"][..]),
        ("w8a8-static-ascend", &["vllm-ascend"]),
        ("w8a8", &["vllm", "transformers", "vllm-ascend"]),
        ("w4a16g32", &["vllm", "transformers"]),
        ("w4a4kv4-research", &["vllm", "transformers"]),
    ] {
        let folder = work.path().join(preset);
        quantize(&model, preset, &folder, SMALL).expect(0, &[]);
        for target in ["vllm-ascend", "vllm", "transformers"] {
            verify(&folder, target, i32::from(!passes.contains(&target)));
        }
    }

    let folder = work.path().join("w8a8kv8-ascend");
    let description = folder.join("quant_model_description.json");
    let whole = std::fs::read_to_string(&description).unwrap();
    let entry = "\"model.layers.3.mlp.down_proj.weight\": \"W8A8_DYNAMIC\"";
    assert!(whole.contains(entry));
    for changed in [
        entry.replace("W8A8_DYNAMIC", "FLOAT"),
        entry.replace("W8A8_DYNAMIC", "W9A9"),
        entry.replace("3.mlp", "9.mlp"),
    ] {
        std::fs::write(&description, whole.replace(entry, &changed)).unwrap();
        let out = verify(&folder, "vllm-ascend", 1);
        assert!(out.contains("FAILED") && out.contains("down_proj"), "{changed}: {out}");
    }
    std::fs::write(&description, &whole).unwrap();
    verify(&folder, "vllm-ascend", 0);
    std::fs::write(folder.join("model.safetensors.index.json"), "{\"weight_map\": {}}").unwrap();
    let out = verify(&folder, "vllm-ascend", 1);
    assert!(out.contains("model.safetensors.index.json"), "{out}");
}

#[test]
fn plans() {
    let model = tiny_reasoner();
    let plan = |recipe: &str, more: &[&str]| {
        ptq(&[&["plan", "--model", text(&model), "--recipe", recipe], more].concat())
    };
    let json = plan("w8a8kv8-ascend", &["--json", "--calibration", CALIBRATION, "--num-samples", "4"])
        .expect(0, &[])
        .json();
    assert_eq!((&json["format"], &json["needs_calibration"]), (&json!("vllm-ascend"), &json!(true)));
    assert!(json["memory"]["peak"].as_u64() >= json["memory"]["peak_spilled"].as_u64());
    assert!(json["calibration_tokens"].as_u64().unwrap() > 0);
    let said = plan("w4a16g32", &[]).expect(0, &[]).out;
    for word in [
        "Qwen2ForCausalLM",
        "6 blocks",
        "compressed-tensors",
        "groups of 32",
        "predicted peak memory",
        "needed, not given",
        "method: gptq",
        "stays float: embedding, head, norms",
        "0-5     q k v o gate up down",
        "bits per weight",
        "estimated time",
    ] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    // Every preset parses and is either possible for this model or says why not; a preset is the file of that name.
    let list = ptq(&["list", "--json"]).expect(0, &[]).json();
    let presets: Vec<&str> =
        list["presets"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(presets.len() >= 10 && presets.is_sorted(), "{presets:?}");
    for preset in presets {
        // The estimated time is measured.
        let plan = |recipe: &str| {
            let ran = plan(recipe, &["--json"]);
            let mut json: Value = serde_json::from_str(&ran.out).unwrap_or_default();
            if let Some(forecast) = json["forecast"].as_object_mut() {
                assert!(forecast.remove("seconds").unwrap().as_f64().unwrap() > 0.0);
            }
            (ran, json)
        };
        let (by_name, named) = plan(preset);
        let file = root().join("recipes").join(format!("{preset}.yaml"));
        let (by_file, filed) = plan(text(&file));
        assert_eq!((by_name.code, named), (by_file.code, filed), "{preset}");
        match by_name.code {
            Some(0) => {}
            Some(3) => assert!(by_name.err.contains("groups of 128"), "{by_name:?}"),
            _ => panic!("{by_name:?}"),
        }
    }
}

#[test]
fn a_plan_takes_the_arguments_of_the_run() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    let output = work.path().join("deep").join("out");
    let job = ["--model", text(&model), "--recipe", "w8a8kv8-ascend", "--output", text(&output)];
    let arguments = [&job, SMALL, &["--threads", "2", "--memory", "4GB", "--json"]].concat();
    let plan = ptq(&[&["plan"], arguments.as_slice()].concat()).expect(0, &[]).json();
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 0, "a plan writes nothing");
    let report = ptq(&[&["quantize"], arguments.as_slice()].concat()).expect(0, &[]).json();
    assert_eq!(plan["memory"]["peak"], report["predicted_memory"]);
    assert_eq!(plan["forecast"]["bits_per_weight"], report["bits_per_weight"]);
    assert_eq!(plan["blocks"].as_array().unwrap().len(), 1, "equal blocks are one entry: {}", plan["blocks"]);
    let weights =
        std::fs::metadata(output.join("quant_model_weights-00001-of-00001.safetensors")).unwrap().len();
    let forecast = plan["forecast"]["output_bytes"].as_u64().unwrap();
    assert!(weights >= forecast && weights - forecast < 1 << 16, "all but the header: {forecast} {weights}");
    for setting in ["compute", "factor"] {
        assert_eq!((&plan[setting], &report[setting]), (&json!("f32"), &json!("f32")), "{setting}");
    }
    // What the run would refuse about its output, the plan refuses too.
    let plan = |more: &[&str]| ptq(&[&["plan"], more].concat());
    plan(&arguments).expect(2, &["--force"]);
    plan(&[&arguments, &["--force"][..]].concat()).expect(0, &[]);
    let file = work.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (place, word) in
        [(&file, "not a folder"), (&model, "never touched"), (&model.join("in"), "never touched")]
    {
        let job = ["--model", text(&model), "--recipe", "w8a8-ascend", "--output", text(place), "--force"];
        plan(&job).expect(2, &[word]);
    }
    let schema = plan(&["--recipe-schema"]).expect(0, &[]).out;
    assert_eq!(schema, ptq(&["quantize", "--recipe-schema"]).out);
}

#[test]
fn recipes_that_cannot_be_read() {
    let (work, model) = (tempdir().unwrap(), tiny_reasoner());
    let out = work.path().join("out");
    let file = work.path().join("latin.yaml");
    std::fs::write(&file, b"version: 1 # caf\xe9\n").unwrap();
    let absent = work.path().join("absent.yaml");
    let pointer = work.path().join("pointer.yaml");
    std::fs::write(&pointer, "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n").unwrap();
    for (recipe, words) in [
        (&pointer, ["Git-LFS pointer", "git lfs pull"]),
        (&file, ["latin.yaml", "UTF-8"]),
        (&absent, ["absent.yaml", "the file is missing"]),
        (&work.path().to_path_buf(), ["is a folder", "name of a preset"]),
        (&file.join("below.yaml"), ["latin.yaml", "below.yaml"]),
    ] {
        quantize(&model, text(recipe), &out, SMALL).expect(2, &words);
        ptq(&["plan", "--model", text(&model), "--recipe", text(recipe)]).expect(2, &words);
    }
    assert!(!out.exists());
    // The mark that some editors put before a text is none of the recipe.
    std::fs::write(&file, "\u{feff}version: 1\nmodifiers: [rtn: { scheme: W8A8 }]\n").unwrap();
    ptq(&["plan", "--model", text(&model), "--recipe", text(&file)]).expect(0, &[]);
}

#[test]
fn settings_of_the_arithmetic_are_told() {
    let work = tempdir().unwrap();
    let recipe = work.path().join("recipe.yaml");
    let model = tiny_reasoner();
    let plan = ["plan", "--model", text(&model), "--recipe", text(&recipe)];
    let run = |keys: &str, rest: &str| {
        std::fs::write(&recipe, format!("version: 1\nmodifiers: [{keys}]\n{rest}")).unwrap();
        let json = ptq(&[&plan[..], &["--json"]].concat()).expect(0, &[]).json();
        let said = ptq(&plan).expect(0, &[]).out;
        let line = said.lines().find(|l| l.starts_with("arithmetic:")).unwrap().to_owned();
        ((json["compute"].clone(), json["factor"].clone()), line)
    };
    let (json, line) = run("rtn: { scheme: W8A8 }", "compute: bf16\n");
    assert_eq!(json, (json!("bf16"), Value::Null));
    let level = quant_kernels::Level::detect();
    assert_eq!(line, format!("arithmetic: products in bf16 ({level}), factorisation none"));
    let (_, line) = run("gptq: { scheme: W4A16 }", "compute: bf16\nstatistics: bf16x2\n");
    assert_eq!(
        line,
        format!("arithmetic: products in bf16, statistics in bf16x2 ({level}), factorisation in f32")
    );
    let (json, line) = run("gptq: { scheme: W4A16 }", "statistics: bf16x3\n");
    assert_eq!(json.0, "f32");
    assert_eq!(
        line,
        format!("arithmetic: products in f32, statistics in bf16x3 ({level}), factorisation in f32")
    );
    std::fs::write(&recipe, "version: 1\nmodifiers: [rtn: { scheme: W8A16 }]\nstatistics: bf16x4\n").unwrap();
    let said = ptq(&plan).expect(2, &["statistics", "bf16x3"]).err;
    assert!(said.contains("bf16x4"), "{said}");
    let rest = "overrides: { \"*.down_proj\": { factor: f64 } }\n";
    let (json, line) = run("gptq: { scheme: W4A16 }", rest);
    assert_eq!(json, (json!("f32"), json!("f32, f64")));
    assert_eq!(line, "arithmetic: products in f32, factorisation in f32, f64");
    let out = work.path().join("out");
    let said = quantize(&model, text(&recipe), &out, SMALL).expect(0, &[]).out;
    assert!(said.contains("products in f32, factorisation in f32, f64"), "{said}");
}

#[test]
fn inspection_and_lists() {
    let model = tiny_reasoner();
    let json = ptq(&["inspect", text(&model), "--json"]).expect(0, &[]).json();
    assert_eq!((&json["format"], &json["model"]["layers"]), (&json!("float"), &json!(6)));
    let tensors = json["tensors"].as_array().unwrap();
    assert!(
        tensors.iter().any(|t| t["name"] == "lm_head.weight"
            && t["shape"] == json!([1024, 192])
            && t["dtype"] == "BF16")
    );
    let said = ptq(&["inspect", text(&model), "--tensors"]).expect(0, &[]).out;
    assert!(
        said.contains("Qwen2ForCausalLM") && said.contains("model.layers.5.mlp.down_proj.weight"),
        "{said}"
    );
    let work = tempdir().unwrap();
    let folder = work.path().join("out");
    quantize(&model, "w8a8-ascend", &folder, &[]).expect(0, &[]);
    assert_eq!(ptq(&["inspect", text(&folder), "--json"]).expect(0, &[]).json()["format"], "vllm-ascend");
    assert!(ptq(&["inspect", text(&folder)]).expect(0, &[]).out.contains("42 linears W8A8"));

    let list = ptq(&["list", "--json"]).expect(0, &[]).json();
    for (kind, key, id) in [
        ("methods", "id", "gptq"),
        ("methods", "id", "smoothquant"),
        ("families", "id", "qwen2"),
        ("formats", "id", "vllm-ascend"),
        ("formats", "id", "compressed-tensors"),
        ("presets", "name", "w8a8kv8-ascend"),
    ] {
        assert!(list[kind].as_array().unwrap().iter().any(|e| e[key] == id), "{kind} {id}");
    }
    let gptq = list["methods"].as_array().unwrap().iter().find(|m| m["id"] == "gptq").unwrap();
    assert_eq!(gptq["keys"]["properties"]["damping"]["type"], "number");
    let said = ptq(&["list"]).expect(0, &[]).out;
    for word in ["PanguEmbeddedForCausalLM", "w4a16g32", "arXiv 2210.17323", "keys: scheme"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(said.lines().all(|l| l.chars().count() <= 100), "{said}");
    // Every command shows how it is called.
    for command in ["plan", "quantize", "eval", "verify", "inspect", "list", "synth"] {
        let help = ptq(&[command, "--help"]).expect(0, &[]).out;
        let shown = ["Example", "Examples"].map(|title| help.contains(&format!("{title}:\n  ptq {command}")));
        assert!(shown.contains(&true), "{help}");
    }
    assert!(ptq(&["--version"]).expect(0, &[]).out.starts_with("ptq "));
    assert!(ptq(&["--help"]).expect(0, &[]).out.contains("Exit codes"));
}
