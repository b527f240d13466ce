//! Folders that are not what they seem: quantised by other tools, with tensors that do not fit, without a declared type,
//! changed after they were written. Each command says which it is, with the exit code that fits.

use crate::common::{
    Ran, SMALL, copy_of_model, ptq, quantize, shared, silent_pipe, split_in_two, text, tiny_reasoner,
    write_tokens,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

const SIMPLE: &str = "w8a8-ascend";
const DOWN: &str = "model.layers.2.mlp.down_proj.weight";

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Changes the tensors of a safetensors file.
fn edit(file: &Path, change: impl FnOnce(&mut Tensors)) {
    let bytes = std::fs::read(file).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, view): (String, TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    let mut tensors: Tensors = stored.tensors().into_iter().map(own).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(n, (d, s, b))| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, file).unwrap();
}

fn edit_config(folder: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let file = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    std::fs::write(file, config.to_string()).unwrap();
}

fn model() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let model = copy_of_model(folder.path());
    (folder, model)
}

fn tokens(folder: &Path) -> String {
    write_tokens(&folder.join("tokens.safetensors"), &[(1..9).collect(), (11..19).collect()], 8)
}

/// Every command that needs the model refuses it as a quantised folder of another tool.
fn refused_as_foreign(folder: &Path, name: &str) {
    let work = tempdir().unwrap();
    let tokens = tokens(work.path());
    let words = [name, "start from the float model", "compressed-tensors", "vllm-ascend"];
    quantize(folder, SIMPLE, &work.path().join("out"), &[]).expect(3, &words);
    ptq(&["plan", "--model", text(folder), "--recipe", SIMPLE]).expect(3, &words);
    ptq(&["inspect", text(folder)]).expect(3, &words);
    ptq(&["eval", "--model", text(folder), "--tokens", &tokens]).expect(3, &words);
    let float = tiny_reasoner();
    ptq(&["eval", "--model", text(&float), "--tokens", &tokens, "--reference", text(folder)])
        .expect(3, &words);
    for target in ["vllm", "transformers", "vllm-ascend"] {
        let ran = ptq(&["verify", text(folder), "--target", target]).expect(1, &[]);
        assert!(ran.out.contains("FAILED"), "{ran:?}");
    }
    assert!(!work.path().join("out").exists());
}

#[test]
fn folders_of_gptq_and_awq_are_named() {
    let Some(root) = shared("goldens/formats") else { return };
    for (folder, method) in [
        ("gptq-w4-g32-sym", "gptq"),
        ("gptq-w4-g32-sym-descact", "gptq"),
        ("gptq-w8-g32-sym", "gptq"),
        ("gptq-v2-w4-g32-asym", "gptq"),
        ("awq-w4-g32", "awq"),
    ] {
        refused_as_foreign(&root.join(folder), method);
    }
}

#[test]
fn folders_of_other_methods_are_named() {
    let (_folder, model) = model();
    edit_config(&model, |c| drop(c.insert("quantization_config".into(), json!({"quant_method": "fp8"}))));
    refused_as_foreign(&model, "fp8");
    // The early tools left config.json alone.
    edit_config(&model, |c| drop(c.shift_remove("quantization_config")));
    edit(&model.join("model.safetensors"), |t| {
        let (_, shape, _) = t.remove(DOWN).unwrap();
        let words = vec![0; shape[1] / 8 * shape[0] * 4];
        t.insert(DOWN.replace("weight", "qweight"), (Dtype::I32, vec![shape[1] / 8, shape[0]], words));
    });
    refused_as_foreign(&model, "qweight");
}

/// A folder of ours with one weight file in `work`.
fn quantised(work: &Path) -> (PathBuf, PathBuf) {
    let output = work.join("out");
    quantize(&tiny_reasoner(), SIMPLE, &output, &[]).expect(0, &[]);
    let file = std::fs::read_dir(&output).unwrap().map(|e| e.unwrap().path());
    let file = file.into_iter().find(|f| f.extension().is_some_and(|e| e == "safetensors")).unwrap();
    (output, file)
}

#[track_caller]
fn failed_rule(ran: &Ran, rule: &str, word: &str) {
    let report = ran.json();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|c| c["name"] == rule).unwrap_or_else(|| panic!("no {rule}: {report:#}"));
    assert_eq!(check["passed"], false, "{check}");
    assert!(check["detail"].as_str().unwrap().contains(word), "{check}");
}

fn verify(folder: &Path, target: &str, code: i32) -> Ran {
    ptq(&["verify", text(folder), "--target", target, "--json"]).expect(code, &[])
}

#[test]
fn verify_reaches_its_rules_whatever_the_tensors_are() {
    // A float folder.
    let (_folder, model) = model();
    verify(&model, "transformers", 0);
    edit(&model.join("model.safetensors"), |t| drop(t.remove(DOWN)));
    failed_rule(&verify(&model, "transformers", 1), "tensors", DOWN);
    edit(&model.join("model.safetensors"), |t| {
        drop(t.insert(DOWN.into(), (Dtype::BF16, vec![2, 2], vec![0; 8])));
    });
    failed_rule(&verify(&model, "vllm", 1), "tensors", "[2, 2]");
    // Quantised ones: the shard names its tensors, and the index must too.
    let work = tempdir().unwrap();
    let (output, file) = quantised(work.path());
    verify(&output, "vllm-ascend", 0);
    let index = output.join("quant_model_weights.safetensors.index.json");
    edit(&file, |t| drop(t.remove(DOWN)));
    let text = std::fs::read_to_string(&index).unwrap();
    let mut parsed: Value = serde_json::from_str(&text).unwrap();
    parsed["weight_map"].as_object_mut().unwrap().shift_remove(DOWN).unwrap();
    std::fs::write(&index, parsed.to_string()).unwrap();
    let ran = verify(&output, "vllm-ascend", 1);
    failed_rule(&ran, "tensors", DOWN);
    failed_rule(&ran, "manifest", DOWN);
}

#[test]
fn a_stray_float_index_beside_quantised_weights_is_a_failed_rule() {
    let (_folder, float) = model();
    split_in_two(&float);
    let work = tempdir().unwrap();
    let (output, _) = quantised(work.path());
    let stray = "model.safetensors.index.json";
    std::fs::copy(float.join(stray), output.join(stray)).unwrap();
    failed_rule(&verify(&output, "vllm-ascend", 1), "stray-files", stray);
    // With its shards, too.
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        std::fs::copy(float.join(shard), output.join(shard)).unwrap();
    }
    failed_rule(&verify(&output, "vllm-ascend", 1), "stray-files", stray);
}

#[test]
fn a_flipped_bit_fails_verify() {
    for (recipe, target) in [(SIMPLE, "vllm-ascend"), ("w8a8", "vllm"), ("w8a8", "transformers")] {
        let work = tempdir().unwrap();
        let output = work.path().join("out");
        quantize(&tiny_reasoner(), recipe, &output, SMALL).expect(0, &[]);
        verify(&output, target, 0);
        let file = std::fs::read_dir(&output).unwrap().map(|e| e.unwrap().path());
        let file = file.into_iter().find(|f| f.extension().is_some_and(|e| e == "safetensors")).unwrap();
        edit(&file, |t| t.get_mut(DOWN).unwrap().2[100] ^= 1);
        failed_rule(&verify(&output, target, 1), "manifest", DOWN);
    }
}

#[test]
fn the_type_is_that_of_the_tensors_unless_it_is_declared() {
    let (_folder, model) = model();
    let dtype = |json: &Value| json["model"]["dtype"].as_str().unwrap().to_lowercase();
    edit_config(&model, |c| {
        c.shift_remove("torch_dtype");
        c.shift_remove("dtype");
    });
    let inspected = ptq(&["inspect", text(&model), "--json"]).expect(0, &[]);
    assert_eq!(dtype(&inspected.json()), "bf16");
    // So a quantised folder is the same as with the declaration, but for config.json.
    let work = tempdir().unwrap();
    let (declared, derived) = (work.path().join("declared"), work.path().join("derived"));
    quantize(&tiny_reasoner(), SIMPLE, &declared, &[]).expect(0, &[]);
    quantize(&model, SIMPLE, &derived, &[]).expect(0, &[]);
    let weights = "quant_model_weights-00001-of-00001.safetensors";
    assert!(std::fs::read(declared.join(weights)).unwrap() == std::fs::read(derived.join(weights)).unwrap());
    verify(&derived, "vllm-ascend", 0);
    // The declaration is written, under the key that the input has, however empty.
    for (recipe, key, name) in [
        (SIMPLE, None, "bfloat16"),
        ("w8a8", Some("dtype"), "bfloat16"),
        ("w3a16g128-research", Some("torch_dtype"), "float32"),
    ] {
        let output = work.path().join(recipe);
        let mut given = model.clone();
        if let Some(key) = key {
            given = work.path().join(format!("{recipe}-input"));
            std::fs::create_dir(&given).unwrap();
            for entry in std::fs::read_dir(&model).unwrap().map(|e| e.unwrap()) {
                if entry.path().is_file() {
                    std::fs::copy(entry.path(), given.join(entry.file_name())).unwrap();
                }
            }
            edit_config(&given, |c| drop(c.insert(key.into(), Value::Null)));
        }
        let research = recipe.ends_with("research");
        let recipe = if research { write_recipe(work.path(), RESEARCH) } else { recipe.to_owned() };
        quantize(&given, &recipe, &output, if key == Some("dtype") { SMALL } else { &[] }).expect(0, &[]);
        let config: Value =
            serde_json::from_slice(&std::fs::read(output.join("config.json")).unwrap()).unwrap();
        assert_eq!(config[key.unwrap_or("torch_dtype")], name, "{config}");
        let both = config.get("dtype").is_some() && config.get("torch_dtype").is_some();
        assert!(!both, "{config}");
    }

    edit_config(&model, |c| drop(c.insert("torch_dtype".into(), "float16".into())));
    let ran = ptq(&["inspect", text(&model)]).expect(0, &["warning", "F16", "Bf16"]);
    assert!(ran.err.contains("declares"), "{ran:?}");
}

const RESEARCH: &str =
    "version: 1\nmodifiers: [rtn: { scheme: W4A16g32 }]\nexport: { format: dequantized }\n";

fn write_recipe(folder: &Path, recipe: &str) -> String {
    let file = folder.join("recipe.yaml");
    std::fs::write(&file, recipe).unwrap();
    text(&file).to_owned()
}

/// Clients hold float32 models in bfloat16, their scales with them.
#[test]
fn scales_of_float32_models_are_exact_in_bfloat16() {
    let (_folder, model) = model();
    edit_config(&model, |c| drop(c.insert("torch_dtype".into(), "float32".into())));
    edit(&model.join("model.safetensors"), |tensors| {
        for (dtype, _, bytes) in tensors.values_mut() {
            let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            // A little off, so that nothing is exact by chance.
            *bytes = bytes.chunks(2).flat_map(|b| (wide(b) * 1.000_123).to_le_bytes()).collect();
            *dtype = Dtype::F32;
        }
    });
    let work = tempdir().unwrap();
    for recipe in ["w4a16g32", "w8a8", "w8a8-static-ascend", "w8a8kv8-ascend"] {
        let output = work.path().join(recipe);
        quantize(&model, recipe, &output, SMALL).expect(0, &[]);
        let target = if recipe.ends_with("ascend") { "vllm-ascend" } else { "vllm" };
        verify(&output, target, 0);
        let mut seen = 0;
        for file in std::fs::read_dir(&output).unwrap().map(|e| e.unwrap().path()) {
            if file.extension().is_none_or(|e| e != "safetensors") {
                continue;
            }
            let bytes = std::fs::read(&file).unwrap();
            let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in stored.tensors() {
                let kinds = ["weight_scale", "input_scale", "kv_cache_scale"];
                if !kinds.iter().any(|k| name.ends_with(k)) {
                    continue;
                }
                assert_eq!(view.dtype(), Dtype::F32, "{name}");
                assert!(view.data().chunks(4).all(|b| b[0] == 0 && b[1] == 0), "{recipe}: {name}");
                seen += 1;
            }
        }
        assert!(seen >= 30, "{recipe}: {seen}");
    }
}

#[test]
fn a_head_beside_a_tied_embedding_is_compared() {
    let (_folder, model) = model();
    edit_config(&model, |c| drop(c.insert("tie_word_embeddings".into(), true.into())));
    let file = model.join("model.safetensors");
    edit(&file, |t| {
        let embedding = t["model.embed_tokens.weight"].clone();
        t.insert("lm_head.weight".into(), embedding);
    });
    ptq(&["inspect", text(&model)]).expect(0, &["lm_head.weight", "equals it"]);
    edit(&file, |t| t.get_mut("lm_head.weight").unwrap().2[0] ^= 1);
    ptq(&["inspect", text(&model)]).expect(0, &["lm_head.weight", "another table", "embedding is used"]);
}

#[test]
fn a_tokenizer_that_is_none_is_said_before_a_client_fails_on_it() {
    let (_folder, model) = model();
    std::fs::write(model.join("tokenizer.json"), "{\"model\": ").unwrap();
    let output = model.with_file_name("out");
    let words = ["warning", "tokenizer.json: not JSON", "will fail on it"];
    quantize(&model, SIMPLE, &output, &[]).expect(0, &words);
    let said = ptq(&["verify", text(&output)]).expect(1, &[]).out;
    assert!(said.lines().any(|line| line.contains("FAILED") && line.contains("tokenizer.json")), "{said}");
    // It is that of the model all the same: the output is whole.
    let again = quantize(&model, SIMPLE, &output, &["--resume"]).expect(0, &[]).out;
    assert!(again.contains("finished before"), "{again}");
}

#[test]
fn data_files_that_are_none() {
    let work = tempdir().unwrap();
    let pipe = work.path().join("pipe.txt");
    silent_pipe(&pipe);
    let blank = work.path().join("blank.txt");
    std::fs::write(&blank, " \n\t\n").unwrap();
    let output = work.path().join("out");
    let run = |calibration: &Path, more: &[&str]| {
        let mut arguments = vec!["--calibration", text(calibration)];
        arguments.extend(more);
        quantize(&tiny_reasoner(), "w4a16g32", &output, &arguments)
    };
    run(&pipe, &[]).expect(4, &["pipe.txt", "not a regular file"]);
    run(&blank, &[]).expect(4, &["blank.txt", "no token"]);
    let many = "18446744073709551615";
    run(&blank, &["--num-samples", many]).expect(2, &["--num-samples", many, "--max-seq-len"]);
    let (_folder, model) = model();
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    std::fs::rename(&pipe, model.join("tokenizer.json")).unwrap();
    std::fs::write(&blank, "text").unwrap();
    quantize(&model, "w4a16g32", &output, &["--calibration", text(&blank)])
        .expect(4, &["tokenizer.json", "not a regular file"]);
    assert!(!output.exists());
}

/// Weights saved from a wrapper and a tied table under the head's name: the output is that of the plain model.
#[test]
fn other_names_are_read_and_canonical_ones_written() {
    let (_folder, plain) = model();
    let weights = plain.join("model.safetensors");
    let tied = |tensors: &mut Tensors| {
        tensors.remove("lm_head.weight");
    };
    edit(&weights, tied);
    edit_config(&plain, |config| drop(config.insert("tie_word_embeddings".into(), true.into())));
    let (_folder, odd) = model();
    std::fs::copy(plain.join("config.json"), odd.join("config.json")).unwrap();
    edit(&odd.join("model.safetensors"), |tensors| {
        tied(tensors);
        let table = tensors.remove("model.embed_tokens.weight").unwrap();
        tensors.insert("lm_head.weight".into(), table);
        let buffer = (Dtype::F32, vec![1], vec![0; 4]);
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), buffer);
        *tensors = std::mem::take(tensors).into_iter().map(|(n, t)| (format!("_orig_mod.{n}"), t)).collect();
    });
    let work = tempdir().unwrap();
    let (a, b) = (work.path().join("a"), work.path().join("b"));
    quantize(&plain, SIMPLE, &a, SMALL).expect(0, &[]);
    quantize(&odd, SIMPLE, &b, SMALL)
        .expect(0, &["begin with \"_orig_mod.\"", "only lm_head.weight is stored"]);
    for name in [
        "quant_model_weights-00001-of-00001.safetensors",
        "quant_model_weights.safetensors.index.json",
        "quant_model_description.json",
    ] {
        assert!(std::fs::read(a.join(name)).unwrap() == std::fs::read(b.join(name)).unwrap(), "{name}");
    }
    ptq(&["verify", text(&b), "--target", "vllm-ascend"]).expect(0, &[]);
}

/// Where two folders are in play, an error names the one it speaks of.
#[test]
fn the_folder_of_an_error_is_named() {
    let (folder, bad) = model();
    edit_config(&bad, |config| drop(config.insert("hidden_act".into(), "relu".into())));
    let tokens = tokens(folder.path());
    let run = |model: &Path, reference: &Path| {
        ptq(&["eval", "--model", text(model), "--reference", text(reference), "--tokens", &tokens])
    };
    assert_ne!(run(&bad, &tiny_reasoner()).expect(3, &[text(&bad)]).code, Some(0));
    run(&tiny_reasoner(), &bad).expect(3, &[text(&bad), "hidden_act"]);
    std::fs::write(bad.join("config.json"), "{").unwrap();
    run(&tiny_reasoner(), &bad).expect(4, &[text(&bad), "malformed JSON"]);
}
