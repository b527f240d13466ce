//! `ptq eval` as scripts rely on it: figures, logits, progress, and what it never overwrites.

use crate::common::{
    Ran, SMALL, copy_of_model, few_windows, files, interrupt, ptq, quantize, text, tiny_reasoner, write_rows,
    write_tokens,
};
use serde_json::Value;
use std::path::Path;
use tempfile::tempdir;

/// `ln sum exp` and the value of each label, in f64.
fn perplexity(logits: &[f32], sequences: &[Vec<u32>], vocabulary: usize) -> f64 {
    let (mut nll, mut count) = (0.0, 0);
    let length = sequences[0].len();
    for (s, ids) in sequences.iter().enumerate() {
        for (t, &label) in ids.iter().enumerate().skip(1) {
            let row = &logits[(s * length + t - 1) * vocabulary..][..vocabulary];
            let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let sum: f64 = row.iter().map(|&v| (f64::from(v) - f64::from(max)).exp()).sum();
            nll += sum.ln() + f64::from(max) - f64::from(row[label as usize]);
            count += 1;
        }
    }
    (nll / f64::from(count)).exp()
}

#[test]
fn evaluation() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    let windows = few_windows(3, 40);
    let tokens = write_rows(&work.path().join("tokens.safetensors"), &windows);
    let folder = work.path().join("out");
    quantize(&model, "w8a8kv8-ascend", &folder, SMALL).expect(0, &[]);
    let eval = |dir: &Path, more: &[&str]| {
        ptq(&[&["eval", "--model", text(dir), "--tokens", &tokens, "--json"], more].concat())
            .expect(0, &[])
            .json()
    };
    let logits = |name: &str| work.path().join(name);
    let float = eval(&model, &["--save-logits", text(&logits("float.safetensors")), "--threads", "1"]);
    assert_eq!(float["tokens"], 3 * 39);
    assert!(float.get("kl").is_none() && float.get("top1_agreement").is_none());
    let quantized =
        eval(&folder, &["--reference", text(&model), "--save-logits", text(&logits("q.safetensors"))]);
    let number = |v: &Value, key: &str| v[key].as_f64().unwrap_or_else(|| panic!("{key} of {v}"));
    assert!(number(&quantized, "kl") > 0.0 && number(&quantized, "kl") < 0.1, "{quantized}");
    let agreement = number(&quantized, "top1_agreement");
    assert!(agreement > 0.8 && agreement <= 1.0, "{quantized}");
    assert_eq!(quantized["format"], "vllm-ascend");
    let same = eval(&model, &["--reference", text(&model)]);
    assert_eq!((number(&same, "kl"), number(&same, "top1_agreement")), (0.0, 1.0));
    assert_eq!(same["perplexity"], float["perplexity"]);

    for (name, report) in [("float.safetensors", &float), ("q.safetensors", &quantized)] {
        let bytes = std::fs::read(logits(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.names(), ["logits"]);
        let tensor = file.tensor("logits").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[3, 40, 1024][..]));
        let values: Vec<f32> =
            tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let expected = perplexity(&values, &windows.sequences, 1024);
        let relative = number(report, "perplexity") / expected - 1.0;
        // Exponentials are f32.
        assert!(relative.abs() < 1e-7, "{name}: {relative:e}");
    }
    eval(&model, &["--save-logits", text(&logits("two.safetensors")), "--threads", "2"]);
    assert!(
        std::fs::read(logits("two.safetensors")).unwrap()
            == std::fs::read(logits("float.safetensors")).unwrap()
    );

    // `--seq-len` cuts rows; text is cut into consecutive windows.
    assert_eq!(eval(&model, &["--seq-len", "20"])["tokens"].as_u64().map(|n| n % 19), Some(0));
    let prose = work.path().join("prose.txt");
    std::fs::write(&prose, "What is 12 + 30? Let us add the ones and then the tens. ".repeat(20)).unwrap();
    let ran = ptq(&["eval", "--model", text(&model), "--text", text(&prose), "--seq-len", "64", "--json"])
        .expect(0, &[]);
    let report = ran.json();
    assert!(number(&report, "perplexity") > 1.0);
    assert_eq!(report["tokens"].as_u64().unwrap() % 63, 0, "{report}");
    assert_eq!(report["protocol"]["sequence_length"], 64);
    let said = ptq(&["eval", "--model", text(&folder), "--tokens", &tokens, "--reference", text(&model)])
        .expect(0, &[]);
    let version = format!("ptq {}, f32 products", env!("CARGO_PKG_VERSION"));
    let paths = [text(&folder), text(&model), version.as_str()];
    for word in ["perplexity", "KL", "top-1 agreement", "protocol"].into_iter().chain(paths) {
        assert!(said.out.contains(word), "no {word:?} in {}", said.out);
    }
    assert!(!said.out.contains("sequence 0"), "{}", said.out);

    // What was computed, of what, by what; lists only where they are asked for.
    assert_eq!(quantized["reference"], text(&model));
    assert_eq!((&quantized["model"], &quantized["compute"]), (&text(&folder).into(), &"f32".into()));
    assert!(quantized["version"].as_str().unwrap().starts_with("ptq "));
    assert!(quantized.get("nll_per_sequence").is_none());
    let listed = eval(&model, &["--per-sequence", "--limit-tokens", "50"]);
    assert_eq!(listed["nll_per_sequence"].as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(listed["tokens"], 39 + 9);
    let protocol = listed["protocol"]["description"].as_str().unwrap();
    assert!(protocol.starts_with("the first 50 tokens of 120"), "{protocol}");
}

#[test]
fn progress_is_plain_lines_without_a_terminal() {
    let work = tempdir().unwrap();
    let rows = vec![(0..40).collect::<Vec<i64>>(); 30];
    let tokens = write_tokens(&work.path().join("t.safetensors"), &rows, 40);
    let model = tiny_reasoner();
    let arguments = ["eval", "--model", text(&model), "--reference", text(&model), "--tokens", &tokens];
    let ran = ptq(&arguments).expect(0, &["left", "MB"]);
    for part in ["reference model, block 6/6", "model, block 1/6", "scored position 1200/1200"] {
        assert!(ran.err.contains(part), "no {part:?} in {}", ran.err);
    }
    assert!(!ran.err.contains('\r') && ran.err.lines().count() <= 30, "{}", ran.err);
}

#[test]
fn an_interrupted_evaluation_leaves_nothing() {
    let (work, data) = (tempdir().unwrap(), tempdir().unwrap());
    let rows = vec![(0..256).collect::<Vec<i64>>(); 192];
    let tokens = write_tokens(&data.path().join("t.safetensors"), &rows, 256);
    let model = tiny_reasoner();
    let logits = work.path().join("logits.safetensors");
    let mut arguments = vec!["eval", "--model", text(&model), "--tokens", &tokens, "--threads", "1"];
    arguments.extend(["--save-logits", text(&logits)]);
    for part in ["model, block 1/6", "scored position"] {
        let ran = interrupt(&arguments, part, || {
            // Counted, not read: the work goes on meanwhile.
            assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 1, "one unfinished file");
            assert!(!logits.exists());
        });
        let ran = ran.expect(130, &["interrupted; nothing was left behind"]);
        assert_eq!(ran.out, "");
        assert!(files(work.path()).is_empty());
    }
}

#[test]
fn saved_logits_replace_nothing_else() {
    let work = tempdir().unwrap();
    let model = copy_of_model(work.path());
    let reference = tempdir().unwrap();
    let reference = copy_of_model(reference.path());
    let rows = [vec![5, 6, 7], vec![8, 9, 10]];
    let tokens_file = work.path().join("tokens.safetensors");
    let tokens = write_tokens(&tokens_file, &rows, 3);
    let letter = work.path().join("letter.txt");
    std::fs::write(&letter, "keep me").unwrap();
    let folder = work.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(&model, work.path().join("link")).unwrap();
    std::os::unix::fs::symlink(&tokens_file, work.path().join("link.safetensors")).unwrap();
    let eval = |logits: &Path| -> Ran {
        let models = ["--model", text(&model), "--reference", text(&reference)];
        ptq(&[&["eval", "--tokens", &tokens, "--save-logits", text(logits)], &models[..]].concat())
    };
    let before = (files(work.path()), files(&reference));
    for (place, word) in [
        (model.join("model.safetensors"), "models are never written to"),
        (model.join("logits.safetensors"), "models are never written to"),
        (work.path().join("link/logits.safetensors"), "models are never written to"),
        (folder.join("../tiny-reasoner/config.json"), "models are never written to"),
        (reference.join("logits.safetensors"), "models are never written to"),
        (tokens_file.clone(), "the data to score"),
        (folder.join("../tokens.safetensors"), "the data to score"),
        (work.path().join("link.safetensors"), "not a plain file"),
        (letter.clone(), "something other than saved logits"),
        (folder.clone(), "it is a folder"),
        (folder.join(".."), "names no file"),
        (work.path().join("absent/logits.safetensors"), "there is no folder"),
        (letter.join("logits.safetensors"), "there is no folder"),
    ] {
        let ran = eval(&place).expect(2, &["--save-logits", word]);
        assert!(!ran.err.contains("block 1/6"), "refused only after evaluating: {}", ran.err);
        assert!((files(work.path()), files(&reference)) == before, "{} changed something", place.display());
    }

    // What was saved before is replaced, and a file that happens to be called like an unfinished one stays.
    let logits = work.path().join("logits.safetensors");
    let neighbour = work.path().join("logits.safetensors.partial");
    std::fs::write(&neighbour, "keep me").unwrap();
    eval(&logits).expect(0, &[]);
    let first = std::fs::read(&logits).unwrap();
    eval(&logits).expect(0, &[]);
    assert!(std::fs::read(&logits).unwrap() == first);
    assert_eq!(std::fs::read(&neighbour).unwrap(), b"keep me");
    assert_eq!(files(work.path()).len(), before.0.len() + 2);

    // A failure leaves the old file: this model has no such token.
    let tokens = write_tokens(&work.path().join("bad.safetensors"), &[vec![1, 1024]], 2);
    ptq(&["eval", "--model", text(&model), "--tokens", &tokens, "--save-logits", text(&logits)])
        .expect(4, &["1024"]);
    assert!(std::fs::read(&logits).unwrap() == first);
}
