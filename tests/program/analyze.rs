//! `ptq analyze` as scripts rely on it: what it prints, the page it writes, what it refuses.

use crate::common::{CALIBRATION, Ran, copy_of_model, ptq, quantize, text, tiny_reasoner};
use serde_json::Value;
use std::path::Path;
use tempfile::tempdir;

/// On a sample of a fraction of a second.
fn analyze(recipe: &str, more: &[&str]) -> Ran {
    let model = tiny_reasoner();
    let job = ["analyze", "--model", text(&model), "--recipe", recipe, "--calibration", CALIBRATION];
    ptq(&[&job[..], &["--sample", "2x32"], more].concat())
}

fn recipe(work: &Path, modifiers: &str) -> String {
    let file = work.join("recipe.yaml");
    std::fs::write(&file, format!("version: 1\nmodifiers: [{modifiers}]\n")).unwrap();
    text(&file).to_owned()
}

/// Everything that opens is closed in its order, and nothing is fetched from anywhere.
fn check_page(page: &str) {
    let body = page.strip_prefix("<!doctype html>").unwrap_or_else(|| panic!("{page}"));
    let mut open: Vec<&str> = Vec::new();
    for tag in body.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').unwrap_or_else(|| panic!("{tag}"));
        assert!(!text.contains('>') || open.last() == Some(&"style"), "{text}");
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed)),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split([' ', '\n']).next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for reference in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<image"] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert!(page.contains("prefers-color-scheme:dark") && page.contains("<svg"));
}

#[test]
fn an_analysis_is_a_table_json_and_a_page() {
    let work = tempdir().unwrap();
    let page = work.path().join("page.html");
    let rotated = recipe(work.path(), "quarot: {}, rtn: { scheme: W4A4KV4 }");
    let ran = analyze(&rotated, &["--json", "--output", text(&page)]);
    let ran = ran.expect(0, &["12 block reads", "6 blocks on 2", "times through a block, about"]);
    let found = ran.json();
    let keys: Vec<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "model",
        "recipe",
        "sample",
        "tokens",
        "float_perplexity",
        "quantised",
        "blocks",
        "ranking",
        "max_position_embeddings",
        "lessons",
        "cost",
        "seconds",
        "peak_memory",
        "version",
        "notes",
        "warnings",
    ];
    assert_eq!(keys, expected);
    assert_eq!((&found["quantised"], &found["tokens"]), (&"recipe".into(), &62.into()));
    // Of each: the float model before and behind the rotation, quantised, and its calibration; and of all, those quantised before.
    assert_eq!(found["cost"]["block_passes"], 6 * 4 + 15);
    let blocks = found["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 6);
    for block in blocks {
        let keys: Vec<&str> = block.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["block", "kl", "top1_agreement", "relative_mse", "linears", "activations", "keys"];
        assert_eq!(keys, expected);
        assert!(block["kl"].as_f64().unwrap() > 0.0 && block["relative_mse"].as_f64().unwrap() > 0.0);
        assert_eq!(
            (block["linears"].as_array().unwrap().len(), block["keys"].as_array().unwrap().len()),
            (7, 5)
        );
        assert!(block["linears"][0]["relative_mse"].as_f64().unwrap() > 0.0);
        let down = &block["activations"][3];
        assert_eq!(
            (&down["place"], &down["steps"][0]["after"], &down["steps"][1]["after"]),
            (&"mlp-activation".into(), &"float".into(), &"quarot".into())
        );
        // What a Hadamard rotation is for.
        let kurtosis = |step: usize| down["steps"][step]["kurtosis"].as_f64().unwrap();
        assert!(kurtosis(1) < 0.5 * kurtosis(0), "{down}");
    }
    let kl = |index: &Value| blocks[index.as_u64().unwrap() as usize]["kl"].as_f64().unwrap();
    let ranking = found["ranking"].as_array().unwrap();
    assert!(ranking.len() == 6 && ranking.windows(2).all(|pair| kl(&pair[0]) >= kl(&pair[1])));
    check_page(&std::fs::read_to_string(&page).unwrap());

    // The same without JSON: the same numbers in words.
    analyze(&rotated, &["--output", text(&page)]).expect(2, &["page.html", "--force"]);
    let told = analyze(&rotated, &["--output", text(&page), "--force"]).expect(0, &[]).out;
    let first = blocks[ranking[0].as_u64().unwrap() as usize]["kl"].as_f64().unwrap();
    let line = told.lines().skip_while(|line| !line.starts_with("---")).nth(1).unwrap();
    let printed: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((printed / first - 1.0).abs() < 1e-3, "{line} {first}");
    assert!(told.contains("relative error of keys") && told.contains("quarot"), "{told}");
}

/// A budget that all activations in memory would exceed is kept by the disk, to the same numbers.
#[test]
fn a_budget_is_kept_by_the_disk() {
    let work = tempdir().unwrap();
    let plain = recipe(work.path(), "rtn: { scheme: W4A8 }");
    let of = |more: &[&str]| analyze(&plain, &[&["--json", "--threads", "1"], more].concat());
    let free = of(&[]).expect(0, &[]).json();
    let peak = free["cost"]["memory"].as_u64().unwrap();
    let budget = (peak + peak * 15 / 100 - 1).to_string();
    let kept = of(&["--memory", &budget]).expect(0, &["on disk"]).json();
    assert_eq!((&free["cost"]["spilled"], &kept["cost"]["spilled"]), (&false.into(), &true.into()));
    assert!(kept["cost"]["memory"].as_u64().unwrap() < peak && kept["cost"]["disk"].as_u64().unwrap() > 0);
    for (analysis, allowed) in [(&free, peak + peak * 15 / 100), (&kept, peak + peak * 15 / 100 - 1)] {
        let found = analysis["peak_memory"].as_u64().unwrap_or(0);
        assert!(found <= allowed, "{found} of {allowed}");
    }
    assert_eq!((&free["blocks"], &free["ranking"]), (&kept["blocks"], &kept["ranking"]));
}

/// Without a finished output a learner is shown as its training begins; with one, what it holds and how its training went.
#[test]
fn nothing_is_trained() {
    let work = tempdir().unwrap();
    let flat = recipe(work.path(), "flatquant: { scheme: W4A4KV4, epochs: 2, batch_size: 2 }");
    let found = analyze(&flat, &["--json"]).expect(0, &["6 block reads"]).json();
    assert_eq!(found["quantised"], "recipe-untrained");
    assert!(found["notes"].to_string().contains("nothing is trained here"), "{}", found["notes"]);
    let steps = &found["blocks"][5]["activations"][0]["steps"];
    assert_eq!(steps[1]["after"], "flatquant (untrained)");
    assert!(steps[1]["flatness"].as_f64() < steps[0]["flatness"].as_f64(), "{steps}");
    assert_eq!(found["lessons"], Value::Array(Vec::new()));

    let output = work.path().join("out");
    let data = ["--calibration", CALIBRATION, "--num-samples", "4", "--max-seq-len", "32"];
    quantize(&tiny_reasoner(), &flat, &output, &data).expect(0, &[]);
    let page = work.path().join("page.html");
    let more = ["--report", text(&output), "--json", "--output", text(&page)];
    let trained = analyze(&flat, &more).expect(0, &["12 block reads"]).json();
    assert_eq!((&trained["quantised"], trained["lessons"].as_array().unwrap().len()), (&"folder".into(), 6));
    for lesson in trained["lessons"].as_array().unwrap() {
        assert_eq!(
            (lesson["losses"].as_array().unwrap().len(), lesson["epochs"].as_array().unwrap().len()),
            (4, 2)
        );
    }
    let steps = &trained["blocks"][5]["activations"][0]["steps"];
    assert_eq!((&steps[0]["after"], &steps[1]["after"]), (&"float".into(), &"folder".into()));
    // What its run said of them, which had no tokens to measure outputs on.
    let down = &trained["blocks"][5]["linears"][6];
    assert!(down["weight_error"].as_f64() > Some(0.0) && down["relative_mse"].is_null(), "{down}");
    let html = std::fs::read_to_string(&page).unwrap();
    check_page(&html);
    assert!(html.contains("<h2>Training</h2>"));

    // What it is not of.
    let other = recipe(work.path(), "flatquant: { scheme: W4A4KV4, epochs: 1, batch_size: 2 }");
    analyze(&other, &["--report", text(&output)]).expect(2, &["--report", "another recipe"]);
    let nothing = work.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    analyze(&other, &["--report", text(&nothing)]).expect(2, &["--report", "quantization_report.json"]);
}

#[test]
fn what_cannot_be_analysed_is_refused() {
    let work = tempdir().unwrap();
    let plain = recipe(work.path(), "rtn: { scheme: W8A8 }");
    let ran = ptq(&[
        "analyze",
        "--model",
        text(&work.path().join("missing")),
        "--recipe",
        &plain,
        "--calibration",
        CALIBRATION,
    ]);
    assert_ne!(ran.code, Some(0));
    let missing = ptq(&["eval", "--model", text(&work.path().join("missing")), "--text", CALIBRATION]);
    assert_eq!(ran.code, missing.code, "{ran:?}");
    let model = copy_of_model(work.path());
    let inside = model.join("page.html");
    for (more, code, words) in [
        (&["--sample", "8"][..], 2, &["--sample", "8x256"][..]),
        (&["--sample", "0x9"], 2, &["--sample", "8x256"]),
        (&["--memory", "1MB"], 5, &["--memory allows"]),
        (&["--output", text(work.path())], 2, &["--output", "not a plain file"]),
        (&["--output", "/nowhere/at/all.html"], 2, &["--output", "no folder"]),
    ] {
        // The last of two is what counts.
        let job = ["analyze", "--recipe", &plain, "--calibration", CALIBRATION, "--model", text(&model)];
        ptq(&[&job[..], more].concat()).expect(code, words);
    }
    let job = ["analyze", "--recipe", &plain, "--calibration", CALIBRATION, "--model", text(&model)];
    ptq(&[&job[..], &["--output", text(&inside)]].concat()).expect(2, &["models are never written to"]);
    assert!(!inside.exists());
}
