//! What an output says about itself: where it comes from, how it is loaded, how good it is; and which files of the input
//! it does not take along.

use crate::common::{SMALL, copy_of_model, files, ptq, quantize, text, tiny_reasoner, write_tokens};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::tempdir;

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap()
}

fn edit_config(model: &Path, key: &str, value: Value) {
    let file = model.join("config.json");
    let mut config: Value = serde_json::from_str(&read(&file)).unwrap();
    config.as_object_mut().unwrap().insert(key.into(), value);
    std::fs::write(file, config.to_string()).unwrap();
}

#[test]
fn a_card_tells_where_the_model_comes_from() {
    let work = tempdir().unwrap();
    let snapshot =
        work.path().join("models--org--Tiny-Instruct/snapshots/0123456789abcdef0123456789abcdef01234567");
    std::fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    std::fs::rename(copy_of_model(work.path()), &snapshot).unwrap();
    let card =
        "---\nlicense: apache-2.0\nlanguage: [en]\npipeline_tag: text-generation\ntags: [x]\n---\n# Tiny\n";
    std::fs::write(snapshot.join("README.md"), card).unwrap();
    edit_config(&snapshot, "auto_map", json!({"AutoModelForCausalLM": "modeling_tiny.Tiny"}));
    std::fs::write(snapshot.join("modeling_tiny.py"), "from .layers_tiny import L\n").unwrap();
    std::fs::write(snapshot.join("layers_tiny.py"), "").unwrap();
    let strangers = ["adapter_config.json", "trainer_state.json", "train.sh", "convert.py", "optimizer.pt"];
    for name in strangers {
        std::fs::write(snapshot.join(name), "{}").unwrap();
    }
    let output = work.path().join("out");
    let ran = quantize(&snapshot, "w8a8-ascend", &output, &[]).expect(0, &[]);
    let card = read(&output.join("README.md"));
    let head = "---\nbase_model: org/Tiny-Instruct\nbase_model_relation: quantized\nlibrary_name: transformers\n\
                license: apache-2.0\nlanguage:\n- en\npipeline_tag: text-generation\ntags:\n- quantized\n- vllm-ascend\n---\n";
    assert!(card.starts_with(head), "{card}");
    assert!(card.contains("`vllm serve . --quantization ascend --trust-remote-code`"), "{card}");
    assert!(!card.contains("from_pretrained") && !card.contains("0123456789abcdef"), "{card}");
    assert!(!card.contains(text(work.path())), "{card}");
    let ascend = ran.out.lines().find(|l| l.contains("vllm serve ")).unwrap();
    assert!(ascend.ends_with("--quantization ascend --trust-remote-code"), "{ascend}");
    assert!(ascend.contains(text(&output)), "{ascend}");
    let names = files(&output);
    for wanted in ["modeling_tiny.py", "layers_tiny.py", "tokenizer.json"] {
        assert!(names.contains_key(Path::new(wanted)), "{wanted}");
    }
    let report: Value = serde_json::from_str(&read(&output.join("quantization_report.json"))).unwrap();
    let left: Vec<&str> =
        report["not_copied"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    for stranger in strangers {
        assert!(!names.contains_key(Path::new(stranger)), "{stranger}");
        assert!(left.contains(&stranger), "{stranger}: {left:?}");
    }
    assert!(ran.out.contains("not copied: adapter_config.json"), "{}", ran.out);
}

#[test]
fn commands_are_those_of_the_programs_that_load_the_folder() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    let vllm = "vllm serve .";
    let python = "AutoModelForCausalLM.from_pretrained(\".\")";
    for (recipe, lines) in [
        ("w4a16g32", vec![("vLLM", vllm), ("transformers", python)]),
        ("w8a8", vec![("vLLM", vllm), ("vLLM-Ascend", vllm), ("transformers", python)]),
        ("w8a8kv8-ascend", vec![("vLLM-Ascend", "vllm serve . --quantization ascend")]),
    ] {
        let output = work.path().join(recipe);
        quantize(&model, recipe, &output, SMALL).expect(0, &[]);
        let card = read(&output.join("README.md"));
        for client in ["vLLM", "vLLM-Ascend", "transformers"] {
            let line = lines.iter().find(|(c, _)| *c == client);
            let row = line.map(|(c, command)| format!("| {c} | `{command}` |"));
            match row {
                Some(row) => assert!(card.contains(&format!("{row} loads with TP 1")), "{row}: {card}"),
                None => assert!(!card.contains(&format!("| {client} | `")), "{client}: {card}"),
            }
        }
    }
}

#[test]
fn the_hash_of_calibration_data_is_that_of_the_tokens() {
    let work = tempdir().unwrap();
    let rows = [(1..40).collect::<Vec<_>>(), (41..80).collect()];
    let run = |folder: &str, rows: &[Vec<i64>]| {
        let folder = work.path().join(folder);
        std::fs::create_dir(&folder).unwrap();
        let tokens = write_tokens(&folder.join("t.safetensors"), rows, 39);
        let output = folder.join("out");
        quantize(&tiny_reasoner(), "w8a8", &output, &["--calibration", &tokens]).expect(0, &[]);
        let manifest: Value = serde_json::from_str(&read(&output.join("manifest.json"))).unwrap();
        let calibration = &manifest["calibration"];
        assert_eq!(calibration["sequences"], 2, "{calibration}");
        assert_eq!(calibration["tokens"], 78, "{calibration}");
        let hash = calibration["sha256"].as_str().unwrap().to_owned();
        let card = read(&output.join("README.md"));
        assert!(card.contains(&format!("2 sequences, 78 tokens (SHA-256 of the ids {hash})")), "{card}");
        hash
    };
    let first = run("a", &rows);
    assert_eq!(first, run("b", &rows));
    let other = [rows[0].clone(), (42..81).collect()];
    assert_ne!(first, run("c", &other));
}

#[test]
fn eval_writes_its_result_into_the_card_of_an_output_and_of_nothing_else() {
    let work = tempdir().unwrap();
    let output = work.path().join("out");
    quantize(&tiny_reasoner(), "w8a8-ascend", &output, &[]).expect(0, &[]);
    let before = files(&output);
    let tokens = write_tokens(&work.path().join("t.safetensors"), &[(1..40).collect()], 39);
    let model = tiny_reasoner();
    let eval = |folder: &Path, more: &[&str]| {
        let arguments = ["eval", "--model", text(folder), "--tokens", &tokens, "--threads", "1", "--card"];
        ptq(&[&arguments, more].concat())
    };
    eval(&output, &["--reference", text(&model)]).expect(0, &[]);
    let once = files(&output);
    let card = read(&output.join("README.md"));
    assert!(card.contains("t.safetensors") && card.contains("| tiny-reasoner |"), "{card}");
    assert!(!card.contains(text(work.path())) && !card.contains("Not measured"), "{card}");
    for (name, bytes) in &before {
        assert!(name == Path::new("README.md") || bytes == &once[name], "{}", name.display());
    }
    assert_eq!(before.len(), once.len());
    // The same again changes nothing; without a reference there is a second row.
    eval(&output, &["--reference", text(&model), "--json"]).expect(0, &[]);
    assert!(files(&output) == once);
    eval(&output, &[]).expect(0, &[]);
    let rows = read(&output.join("README.md")).lines().filter(|l| l.contains("t.safetensors")).count();
    assert_eq!(rows, 2);
    // Any other folder is refused before work, and keeps its bytes.
    let stranger = copy_of_model(work.path());
    std::fs::write(stranger.join("README.md"), "mine").unwrap();
    eval(&stranger, &[]).expect(2, &["--card", "manifest.json", "ptq quantize"]);
    assert_eq!(read(&stranger.join("README.md")), "mine");
}
