//! Outputs that stand already: what `--resume` says of them, whole, damaged, and while they were being replaced.

use crate::common::{
    CALIBRATION, SMALL, assert_same_files, files, interrupt, ptq, quantize, text, tiny_reasoner,
};
use std::path::Path;
use tempfile::tempdir;

/// Stays whole through one change to a file of a copy, and what is then said of it.
#[track_caller]
fn damaged(output: &Path, name: &str, change: impl FnOnce(&Path), words: &[&str]) {
    let work = tempdir().unwrap();
    let copy = work.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for (name, bytes) in files(output) {
        std::fs::write(copy.join(name), bytes).unwrap();
    }
    let again = |more: &[&str]| quantize(&tiny_reasoner(), "w8a8-ascend", &copy, &[SMALL, more].concat());
    assert!(again(&["--resume"]).expect(0, &[]).out.contains("finished before"));
    change(&copy.join(name));
    let words = [words, &["damaged since", "--force makes it anew"]].concat();
    again(&["--resume"]).expect(4, &words);
    let mut plan = vec!["plan", "--model"];
    let model = tiny_reasoner();
    plan.extend([text(&model), "--recipe", "w8a8-ascend", "--output", text(&copy), "--resume"]);
    ptq(&[&plan[..], SMALL].concat()).expect(4, &words);
    let said = again(&["--resume", "--force"]).expect(0, &[]).out;
    assert!(!said.contains("finished before"), "{said}");
    assert_same_files(output, &copy);
}

#[test]
fn a_damaged_output_is_not_finished() {
    let work = tempdir().unwrap();
    let output = work.path().join("out");
    quantize(&tiny_reasoner(), "w8a8-ascend", &output, SMALL).expect(0, &[]);
    let model = tiny_reasoner();
    let plan = ["plan", "--model", text(&model), "--recipe", "w8a8-ascend", "--output", text(&output)];
    ptq(&[&plan[..], SMALL].concat()).expect(2, &["--force"]);
    ptq(&[&plan[..], SMALL, &["--resume"]].concat()).expect(0, &["finished before, by the same job"]);
    let shard = "quant_model_weights-00001-of-00001.safetensors";
    let remove = |file: &Path| std::fs::remove_file(file).unwrap();
    let flip = |file: &Path| {
        let mut bytes = std::fs::read(file).unwrap();
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        std::fs::write(file, bytes).unwrap();
    };
    let cut = |file: &Path| {
        let bytes = std::fs::read(file).unwrap();
        std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    };
    damaged(&output, shard, remove, &[shard, "is missing"]);
    damaged(&output, shard, flip, &["hash differs from the manifest"]);
    damaged(&output, shard, cut, &[shard]);
    damaged(&output, "config.json", cut, &["config.json"]);
    damaged(&output, "tokenizer.json", flip, &["tokenizer.json is missing or not that of the model"]);
    damaged(&output, "quantization_report.json", remove, &["quantization_report.json is missing"]);
}

/// A run that was to replace a finished output, and broke off.
#[test]
fn a_replacement_that_broke_off_is_gone_on_with() {
    let work = tempdir().unwrap();
    let (output, partial) = (work.path().join("out"), work.path().join("out.partial"));
    let model = tiny_reasoner();
    let arguments = |more: &[&'static str]| -> Vec<String> {
        let fixed =
            ["quantize", "--model", text(&model), "--recipe", "w8a8kv8-ascend", "--output", text(&output)];
        let data =
            ["--calibration", CALIBRATION, "--num-samples", "64", "--max-seq-len", "256", "--threads", "1"];
        [&fixed[..], &data, more].concat().into_iter().map(str::to_owned).collect()
    };
    let run = |more: &[&'static str]| {
        let arguments = arguments(more);
        ptq(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    run(&[]).expect(0, &[]);
    let finished = files(&output);
    let force = arguments(&["--force"]);
    let force: Vec<&str> = force.iter().map(String::as_str).collect();
    let said = interrupt(&force, "block 1/6 done", || assert!(partial.exists())).expect(130, &["is kept in"]);
    assert!(!said.err.contains("nothing was left behind"), "{}", said.err);
    // The finished one stands, and it is said that there is another.
    let said = run(&["--resume"]).expect(0, &["out.partial", "--resume --force goes on with it"]);
    assert!(said.out.contains("finished before") && partial.exists(), "{said:?}");
    let said = run(&["--resume", "--force"]).expect(0, &["going on where the run broke off"]);
    assert!(!said.out.contains("finished before") && !partial.exists(), "{said:?}");
    assert!(files(&output) == finished);
}

/// Work whose weights are gone is not said to be kept.
#[test]
fn lost_work_is_not_said_to_be_kept() {
    let work = tempdir().unwrap();
    let (output, partial) = (work.path().join("out"), work.path().join("out.partial"));
    let model = tiny_reasoner();
    let fixed =
        ["quantize", "--model", text(&model), "--recipe", "w8a8kv8-ascend", "--output", text(&output)];
    let data =
        ["--calibration", CALIBRATION, "--num-samples", "64", "--max-seq-len", "256", "--threads", "1"];
    let job = [&fixed[..], &data].concat();
    interrupt(&job, "block 2/6 done", || {}).expect(130, &["is kept in"]);
    for name in files(&partial).keys().filter(|name| name.extension().is_some_and(|e| e == "safetensors")) {
        std::fs::remove_file(partial.join(name)).unwrap();
    }
    let again = ptq(&[&job[..], &["--resume"]].concat());
    let said = again.expect(4, &["the work of that run is lost: --restart throws it away"]).err;
    assert!(!said.contains("--resume"), "{said}");
    ptq(&[&job[..], &["--restart"]].concat()).expect(0, &[]);
}
