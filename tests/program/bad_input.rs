//! Damaged checkpoints, wrong data, and a machine that runs out of something: each has its exit code and a
//! message that names the place; no output is left, finished or not, unless there is work to go on with; the input stays as it
//! was.

use crate::common::{
    CALIBRATION, SMALL, copy_of_model, files, nothing_left, on_a_full_disk, ptq, quantize, refused,
    split_in_two, text, tiny_reasoner, write_tokens,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

/// A preset that needs no calibration data.
const SIMPLE: &str = "w8a8-ascend";

fn model() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let model = copy_of_model(folder.path());
    (folder, model)
}

/// The header of the weights as text, and the data behind it.
fn weights(model: &Path) -> (String, Vec<u8>) {
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (String::from_utf8(bytes[8..8 + length].to_vec()).unwrap(), bytes[8 + length..].to_vec())
}

fn write_weights(model: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(model.join("model.safetensors"), bytes).unwrap();
}

/// A model whose header has been changed.
fn with_header(change: impl FnOnce(&mut Value)) -> (TempDir, PathBuf) {
    let (folder, model) = model();
    let (header, data) = weights(&model);
    let mut header: Value = serde_json::from_str(&header).unwrap();
    change(&mut header);
    write_weights(&model, &header.to_string(), &data);
    (folder, model)
}

/// A model whose config has been changed.
fn with_config(change: impl FnOnce(&mut Value)) -> (TempDir, PathBuf) {
    let (folder, model) = model();
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
    (folder, model)
}

/// A model with one bf16 element of a tensor replaced.
fn with_element(tensor: &str, index: usize, bits: u16) -> (TempDir, PathBuf) {
    let (folder, model) = model();
    let (header, mut data) = weights(&model);
    let entries: Value = serde_json::from_str(&header).unwrap();
    let at = entries[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 2 * index;
    data[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    write_weights(&model, &header, &data);
    (folder, model)
}

const NORM: &str = "model.norm.weight";

#[test]
fn truncated_weights() {
    let (_folder, model) = model();
    let file = model.join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    for (length, words) in [
        (5, ["model.safetensors", "5 bytes"]),
        (1000, ["model.safetensors", "only 992 follow"]),
        (whole.len() - 10, ["model.safetensors", "truncated"]),
    ] {
        std::fs::write(&file, &whole[..length]).unwrap();
        refused(&model, SIMPLE, &[], 4, &words);
    }
}

#[test]
fn lying_headers() {
    let (_folder, lying) = model();
    let file = lying.join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    for (length, word) in
        [(u64::MAX, "the format allows at most"), (50_000_000, "header of 50000000 bytes announced")]
    {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
        refused(&lying, SIMPLE, &[], 4, &["model.safetensors", word]);
    }
    let (_folder, model) = with_header(|h| {
        let end = h[NORM]["data_offsets"][1].as_u64().unwrap();
        h[NORM]["data_offsets"][1] = json!(end + 2);
    });
    refused(&model, SIMPLE, &[], 4, &["model.safetensors", NORM, "need 384 bytes", "span 386"]);
    let (_folder, model) = with_header(|h| h[NORM]["data_offsets"] = json!([u64::MAX - 383, 1]));
    refused(&model, SIMPLE, &[], 4, &[NORM, "backwards"]);
    let (_folder, model) = with_header(|h| h[NORM]["shape"] = json!([1_u64 << 40, 1_u64 << 40]));
    refused(&model, SIMPLE, &[], 4, &[NORM, "overflows"]);
    let (_folder, model) = with_header(|h| {
        h[NORM]["data_offsets"] = h["model.layers.0.input_layernorm.weight"]["data_offsets"].clone();
    });
    refused(&model, SIMPLE, &[], 4, &["model.safetensors", "inside the tensor"]);
    let (_folder, model) = with_header(|h| h[NORM]["dtype"] = json!("F17"));
    refused(&model, SIMPLE, &[], 4, &[NORM, "F17"]);
}

#[test]
fn duplicate_header_keys() {
    let (_folder, model) = model();
    let (header, data) = weights(&model);
    let entries: Value = serde_json::from_str(&header).unwrap();
    let twice = format!("{{{:?}:{},{}", NORM, entries[NORM], &header[1..]);
    write_weights(&model, &twice, &data);
    refused(&model, SIMPLE, &[], 4, &["model.safetensors", NORM, "twice"]);
}

#[test]
fn missing_shards_and_lying_indices() {
    let (_folder, model) = model();
    split_in_two(&model);
    let index = model.join("model.safetensors.index.json");
    let whole = std::fs::read_to_string(&index).unwrap();
    let change = |tensor: &str, shard: Option<&str>| {
        let mut json: Value = serde_json::from_str(&whole).unwrap();
        let map = json["weight_map"].as_object_mut().unwrap();
        match shard {
            Some(shard) => drop(map.insert(tensor.into(), shard.into())),
            None => drop(map.remove(tensor)),
        }
        std::fs::write(&index, json.to_string()).unwrap();
    };
    // Even if the file is there and would do.
    std::fs::copy(tiny_reasoner().join("model.safetensors"), model.parent().unwrap().join("x.safetensors"))
        .unwrap();
    for outside in ["../x.safetensors", "/etc/x.safetensors", "..", "a/../x.safetensors"] {
        change(NORM, Some(outside));
        refused(&model, SIMPLE, &[], 4, &["model.safetensors.index.json", NORM, outside, "plain file name"]);
    }
    change(NORM, None);
    refused(&model, SIMPLE, &[], 4, &[NORM, "the index does not place there"]);
    change("model.surplus", Some("model-00001-of-00002.safetensors"));
    refused(&model, SIMPLE, &[], 4, &["model.surplus", "does not hold it"]);
    std::fs::write(&index, &whole).unwrap();
    std::fs::remove_file(model.join("model-00002-of-00002.safetensors")).unwrap();
    refused(&model, SIMPLE, &[], 4, &["\"model-00002-of-00002.safetensors\" is missing"]);
}

#[test]
fn weights_that_are_not_finite() {
    const NAN: u16 = 0x7FC0;
    const INFINITY: u16 = 0x7F80;
    // In the middle of the run, so that there is something to remove: nothing was paid for but rounding to nearest.
    let (_folder, model) = with_element("model.layers.2.mlp.up_proj.weight", 3 * 192 + 7, NAN);
    refused(&model, SIMPLE, &[], 4, &["model.layers.2.mlp.up_proj.weight", "[3, 7]", "NaN"]);
    // From the first stage on there is work to keep, whatever ends the run.
    let work = tempdir().unwrap();
    let words = ["model.layers.2.mlp.up_proj.weight", "[3, 7]", "NaN", "out.partial", "--resume"];
    quantize(&model, "w8a8kv8-ascend", &work.path().join("out"), SMALL).expect(4, &words);
    assert!(work.path().join("out.partial/JOURNAL").is_dir() && !work.path().join("out").exists());
    let tokens = tempdir().unwrap();
    let tokens = write_tokens(&tokens.path().join("t.safetensors"), &[vec![5, 6, 7]], 3);
    ptq(&["eval", "--model", text(&model), "--tokens", &tokens])
        .expect(4, &["model.layers.2.mlp.up_proj.weight", "[3, 7]", "NaN"]);
    // What is copied unchanged is looked at, too.
    for (tensor, place, index) in
        [("model.embed_tokens.weight", 192 + 5, "[1, 5]"), ("lm_head.weight", 4, "[0, 4]"), (NORM, 9, "[9]")]
    {
        let (_folder, model) = with_element(tensor, place, INFINITY);
        refused(&model, SIMPLE, &[], 4, &[tensor, index, "inf"]);
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let tensor = "model.layers.1.mlp.down_proj.weight";
    let (_folder, model) = with_header(|h| h[tensor]["shape"] = json!([576, 192]));
    refused(&model, SIMPLE, &[], 4, &[tensor, "[576, 192]", "[192, 576]"]);
    let (_folder, model) = with_config(|c| c["intermediate_size"] = json!(512));
    refused(&model, SIMPLE, &[], 4, &["model.layers.0.mlp", "576", "512"]);
    let (_folder, model) = with_config(|c| c["num_hidden_layers"] = json!(7));
    refused(&model, SIMPLE, &[], 4, &["model.layers.6."]);
    let (_folder, model) = with_config(|c| c["num_attention_heads"] = json!(0));
    refused(&model, SIMPLE, &[], 4, &["num_attention_heads"]);
}

#[test]
fn unknown_architecture() {
    let (_folder, model) = with_config(|c| c["architectures"] = json!(["MambaForCausalLM"]));
    refused(&model, SIMPLE, &[], 3, &["MambaForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM"]);
    let (_folder, model) = with_config(|c| c["hidden_act"] = json!("relu"));
    refused(&model, SIMPLE, &[], 3, &["hidden_act", "relu"]);
}

#[test]
fn calibration_data() {
    let refused = |calibration: &str, code: i32, words: &[&str]| {
        let more = ["--calibration", calibration, "--num-samples", "4", "--max-seq-len", "64"];
        refused(&tiny_reasoner(), "w4a16g32", &more, code, words);
    };
    self::refused(&tiny_reasoner(), "w4a16g32", &[], 2, &["needs calibration data", "--calibration"]);
    let folder = tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        text(&path).to_owned()
    };
    refused(&file("empty.txt", ""), 4, &["empty.txt", "no token"]);
    refused(&file("empty.jsonl", ""), 4, &["empty.jsonl"]);
    refused(&file("broken.jsonl", "{\"text\": \"a\"}\n{\"text\": \n"), 4, &["broken.jsonl", "line 2"]);
    refused(&file("other.jsonl", "{\"body\": \"a\"}\n"), 4, &["other.jsonl", "line 1"]);
    let tokens =
        |name: &str, rows: &[Vec<i64>], length| write_tokens(&folder.path().join(name), rows, length);
    refused(&tokens("none.safetensors", &[], 8), 4, &["none.safetensors", "no token"]);
    let rows = [vec![1, 2, 3, 4], vec![5, 6, 7, 1024]];
    refused(&tokens("large.safetensors", &rows, 4), 4, &["token id 1024 at sequence 1, position 3", "1024"]);
    refused(
        &tokens("negative.safetensors", &[vec![1, -1]], 2),
        4,
        &["token id -1 at sequence 0, position 1"],
    );
    let other = tokens("good.safetensors", &[vec![1, 2]], 2).replace(":ids", ":tokens");
    refused(&other, 4, &["good.safetensors", "tokens", "ids"]);
    refused(other.trim_end_matches(":tokens"), 2, &["FILE.safetensors:TENSOR"]);
    refused(text(&folder.path().join("absent.txt")), 4, &["absent.txt"]);
    let (_folder, model) = model();
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    self::refused(&model, "w4a16g32", SMALL, 4, &["tokenizer.json"]);
}

#[test]
fn full_disk() {
    let model = tiny_reasoner();
    let before = files(&model);
    for (recipe, limit) in [("w8a8-ascend", 100), ("w8a8-ascend", 2000), ("w4a16g32", 0)] {
        let work = tempdir().unwrap();
        let output = work.path().join("out");
        let mut arguments =
            vec!["quantize", "--model", text(&model), "--recipe", recipe, "--output", text(&output)];
        arguments.extend(SMALL);
        on_a_full_disk(limit, &arguments).expect(5, &["out.partial", "no space left"]);
        nothing_left(work.path());
    }
    assert!(files(&model) == before, "the input was touched");

    let work = tempdir().unwrap();
    let tokens = tempdir().unwrap();
    let tokens = write_tokens(&tokens.path().join("t.safetensors"), &[(0..200).collect()], 200);
    let logits = work.path().join("logits.safetensors");
    on_a_full_disk(
        100,
        &["eval", "--model", text(&model), "--tokens", &tokens, "--save-logits", text(&logits)],
    )
    .expect(5, &["logits"]);
    nothing_left(work.path());
}

#[test]
fn memory_that_does_not_suffice() {
    let more = [SMALL, &["--memory", "1MB"]].concat();
    refused(&tiny_reasoner(), "w4a16g32", &more, 5, &["--memory", "needs up to"]);
}

#[test]
fn outputs_in_the_way() {
    let work = tempdir().unwrap();
    let output = work.path().join("out");
    std::fs::create_dir(&output).unwrap();
    std::fs::write(output.join("letter.txt"), "keep me").unwrap();
    quantize(&tiny_reasoner(), SIMPLE, &output, &[]).expect(2, &["out", "--force"]);
    assert_eq!(files(work.path()).len(), 1, "{:?}", files(work.path()).keys());
    // What this program did not make is moved aside, never deleted, and the person is told where to.
    quantize(&tiny_reasoner(), SIMPLE, &output, &["--force"]).expect(0, &["warning", "out.old-1"]);
    assert!(!output.join("letter.txt").exists() && output.join("manifest.json").exists());
    let kept = std::fs::read_to_string(work.path().join("out.old-1/letter.txt")).unwrap();
    assert_eq!(kept, "keep me");
    std::fs::remove_dir_all(work.path().join("out.old-1")).unwrap();
    // An output of this program is replaced.
    quantize(&tiny_reasoner(), SIMPLE, &output, &["--force"]).expect(0, &[]);
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 1);
    // A run that fails leaves the old output as it was.
    let (_folder, bad) = with_element("model.layers.4.mlp.up_proj.weight", 0, 0x7FC0);
    let before = files(&output);
    quantize(&bad, SIMPLE, &output, &["--force"]).expect(4, &["up_proj"]);
    assert!(files(&output) == before);
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 1);
    // Quantised folders are no input.
    refused(&output, SIMPLE, &[], 3, &["is quantised already (vllm-ascend); start from the float"]);
    let file = work.path().join("file");
    std::fs::write(&file, "").unwrap();
    quantize(&tiny_reasoner(), SIMPLE, &file, &["--force"]).expect(2, &["not a folder"]);
}

#[test]
fn the_input_is_never_the_output() {
    let (folder, model) = model();
    let before = files(folder.path());
    for output in [model.clone(), model.join("inside"), folder.path().to_owned()] {
        quantize(&model, SIMPLE, &output, &["--force"]).expect(2, &["input", "never touched"]);
    }
    assert!(files(folder.path()) == before);
    // Calibration data is an input too.
    let output = folder.path().join("out");
    std::fs::create_dir(&output).unwrap();
    let calibration = output.join("calibration.jsonl");
    std::fs::copy(CALIBRATION, &calibration).unwrap();
    let more = ["--force", "--calibration", text(&calibration), "--num-samples", "4", "--max-seq-len", "64"];
    quantize(&model, "w4a16g32", &output, &more).expect(2, &["calibration.jsonl", "never touched"]);
    assert!(calibration.exists());
}

#[test]
fn wrong_arguments() {
    let output = tempdir().unwrap();
    let output = output.path().join("out");
    let model = tiny_reasoner();
    for (option, value, word) in [
        ("--threads", "0", "--threads"),
        ("--threads", "many", "'many'"),
        ("--memory", "lots", "--memory"),
        ("--num-samples", "0", "--num-samples"),
        ("--max-seq-len", "0", "--max-seq-len"),
        ("--seed", "minus one", "--seed"),
        ("--colour", "blue", "--colour"),
        ("--calibration", "data.parquet", "data.parquet"),
    ] {
        quantize(&model, "w4a16g32", &output, &[option, value]).expect(2, &[word]);
    }
    ptq(&["eval", "--model", text(&model), "--tokens", "x.safetensors:y", "--threads", "0"])
        .expect(2, &["--threads"]);
    ptq(&["eval", "--model", text(&model)]).expect(2, &["--tokens", "--text"]);
    ptq(&["quantize", "--recipe", "w4a16g32", "--output", text(&output)]).expect(2, &["--model"]);
    ptq(&["verify", text(&model), "--target", "torch"]).expect(2, &["torch", "vllm-ascend"]);
    ptq(&["quantise"]).expect(2, &["quantise"]);
    ptq(&["inspect", "/no/such/folder"]).expect(4, &["/no/such/folder"]);
    ptq(&[
        "plan",
        "--model",
        text(&model),
        "--recipe",
        "w4a16g32",
        "--calibration",
        CALIBRATION,
        "--memory",
        "1MB",
    ])
    .expect(5, &["--memory"]);
    assert!(!output.exists());
}
