//! `ptq generate` and `ptq eval --execute` as people use them.

use crate::common::{SMALL, few_windows, pipe, ptq, quantize, text, tiny_reasoner, write_rows, write_tokens};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::tempdir;

const QUESTIONS: [&str; 5] =
    ["What is 74 + 51?", "What is 42 + 47?", "What is 8 + 5?", "What is 93 + 18?", "What is 12 + 12?"];

fn lines(path: &Path, lines: &[Value]) -> String {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn chat(path: &Path) -> String {
    let turn = |question: &&str| json!({"messages": [{"role": "user", "content": question}]});
    lines(path, &QUESTIONS.iter().map(turn).collect::<Vec<_>>())
}

fn generate(model: &Path, more: &[&str]) -> crate::common::Ran {
    ptq(&[&["generate", "--model", text(model)], more].concat())
}

#[test]
fn the_model_answers_and_nothing_of_the_run_shows_in_a_text() {
    let work = tempdir().unwrap();
    let prompts = chat(&work.path().join("prompts.jsonl"));
    let base = generate(&tiny_reasoner(), &["--prompts", &prompts, "--json"])
        .expect(0, &["tokens/s", "float"])
        .json();
    assert_eq!(base.as_array().unwrap().len(), 5);
    for (index, item) in base.as_array().unwrap().iter().enumerate() {
        assert_eq!((item["index"].as_u64(), &item["finish_reason"]), (Some(index as u64), &json!("stop")));
        assert!(item["prompt_tokens"].as_u64().unwrap() > 5 && item["tokens"].as_array().unwrap().len() > 5);
    }
    assert!(base[0]["text"].as_str().unwrap().ends_with("\\boxed{125}."), "{base}");
    for more in
        [&["--batch", "1", "--threads", "1"][..], &["--batch", "3"], &["--threads", "2", "--memory", "200MB"]]
    {
        let same = generate(&tiny_reasoner(), &[&["--prompts", &prompts, "--json"], more].concat());
        assert_eq!(same.expect(0, &[]).json(), base);
    }
    // Printed, the texts are the same ones, each under the number of its prompt.
    let printed = generate(&tiny_reasoner(), &["--prompts", &prompts]).expect(0, &[]).out;
    let texts = base.as_array().unwrap().iter().enumerate();
    let want: String = texts.map(|(i, t)| format!("--- {i}\n{}\n", t["text"].as_str().unwrap())).collect();
    assert_eq!(printed, want);
    let one = generate(&tiny_reasoner(), &["--prompt", QUESTIONS[0], "--chat"]).expect(0, &[]).out;
    assert_eq!(one, format!("{}\n", base[0]["text"].as_str().unwrap()));
    // The same through a pipe, behind the mark with which editors of some systems begin a text.
    let from = work.path().join("pipe.jsonl");
    let writer = pipe(&from, &format!("\u{feff}{}", std::fs::read_to_string(&prompts).unwrap()));
    let piped = generate(&tiny_reasoner(), &["--prompts", text(&from), "--json"]).expect(0, &[]).json();
    writer.join().unwrap();
    assert_eq!(piped, base);
    // A prompt as it is written is continued, at most by as many tokens as were asked for.
    let raw = generate(&tiny_reasoner(), &["--prompt", QUESTIONS[0], "--max-new-tokens", "3", "--json"]);
    let raw = raw.expect(0, &[]).json();
    assert_eq!((raw[0]["tokens"].as_array().unwrap().len(), &raw[0]["finish_reason"]), (3, &json!("length")));
}

#[test]
fn draws_have_a_seed() {
    let work = tempdir().unwrap();
    let prompts = chat(&work.path().join("prompts.jsonl"));
    let drawn = |seed: &str, batch: &str| {
        let sampled = ["--temperature", "1.5", "--top-p", "0.95", "--top-k", "50", "--max-new-tokens", "40"];
        let arguments = [&["--prompts", &prompts, "--json", "--seed", seed, "--batch", batch], &sampled[..]];
        generate(&tiny_reasoner(), &arguments.concat()).expect(0, &[]).json()
    };
    let base = drawn("7", "1");
    assert_eq!(drawn("7", "5"), base);
    assert_ne!(drawn("8", "5"), base);
}

/// Every kind of folder with codes is executed unless told otherwise, and answers; evaluations of both kinds agree.
#[test]
fn folders_are_executed() {
    let work = tempdir().unwrap();
    let prompts = chat(&work.path().join("prompts.jsonl"));
    let windows = few_windows(12, 160);
    let tokens = write_rows(&work.path().join("tokens.safetensors"), &windows);
    let packed =
        "version: 1\nmodifiers: [rtn: { scheme: W4A16g32 }]\nexport: { format: compressed-tensors }\n";
    let fixed = "version: 1\nmodifiers: [rtn: { scheme: W8A8 }]\nactivations: { dynamic: false }\n\
                 export: { format: vllm-ascend }\n";
    for (name, recipe, calibrated) in [
        ("dynamic", "preset: w8a8-ascend\n", false),
        ("cache", "preset: w8a8kv8-ascend\n", true),
        ("static", fixed, true),
        ("packed", packed, false),
    ] {
        let recipe_file = work.path().join(format!("{name}.yaml"));
        std::fs::write(&recipe_file, recipe).unwrap();
        let folder = work.path().join(name);
        let recipe = recipe.strip_prefix("preset: ").map_or_else(|| text(&recipe_file), str::trim);
        quantize(&tiny_reasoner(), recipe, &folder, if calibrated { SMALL } else { &[] }).expect(0, &[]);
        let executed = generate(&folder, &["--prompts", &prompts, "--json"]);
        let executed = executed.expect(0, &["42 of 42 quantised linears executed as codes"]).json();
        let simulated = generate(&folder, &["--prompts", &prompts, "--json", "--execute", "sim"]);
        let simulated = simulated.expect(0, &["42 quantised linears simulated"]).json();
        let answers = executed.as_array().unwrap().iter().filter(|t| t["finish_reason"] == "stop").count();
        assert!(answers >= 4, "{name}: {executed}");
        let eval = |more: &[&str]| {
            ptq(&[&["eval", "--model", text(&folder), "--tokens", &tokens, "--json"], more].concat())
                .expect(0, &[])
                .json()
        };
        let (sim, int8) = (eval(&[]), eval(&["--execute", "int8", "--flips"]));
        assert_eq!((&sim["execution"], &int8["execution"]), (&json!("sim"), &json!("int8")));
        let [a, b] = [&sim, &int8].map(|v| v["perplexity"].as_f64().unwrap());
        if name == "packed" {
            assert_eq!((executed, a), (simulated, b), "weights alone are executed to the bit");
        } else {
            assert!((a / b - 1.0).abs() < 4e-3, "{name}: {a} {b}");
            // A flipped code moves its output by a step, and what follows flips more: few in the first block, more with every one.
            let flips = int8["flips"].as_array().unwrap();
            let share = |f: &Value| f["flipped"].as_f64().unwrap() / f["codes"].as_f64().unwrap();
            assert!(share(&flips[0]) < 1e-3 && flips.iter().all(|f| share(f) < 0.4), "{name}: {int8}");
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_work() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    generate(&model, &["--prompt", "a", "--execute", "int8"]).expect(3, &["--execute sim"]);
    let tokens = write_tokens(&work.path().join("tokens.safetensors"), &[vec![1, 2, 3]], 3);
    let eval = |more: &[&str]| ptq(&[&["eval", "--model", text(&model), "--tokens", &tokens], more].concat());
    eval(&["--execute", "int8"]).expect(3, &["--execute sim"]);
    eval(&["--flips"]).expect(2, &["--execute int8"]);
    eval(&["--execute", "fast"]).expect(2, &["expected sim or int8"]);
    generate(&model, &["--prompt", ""]).expect(4, &["no text"]);
    let file = work.path().join("prompts.jsonl");
    for (line, words) in [
        (json!({"prompt": ""}), "the prompt is empty"),
        (json!({"prompt": "a", "max_tokens": 3}), "unknown field `max_tokens`"),
        (json!({"question": "a"}), "unknown field `question`"),
    ] {
        let prompts = lines(&file, &[json!({"prompt": "good"}), line]);
        generate(&model, &["--prompts", &prompts]).expect(4, &["line 2", words]);
    }
    std::fs::write(&file, b"{\"prompt\": \"\xff\"}\n").unwrap();
    generate(&model, &["--prompts", text(&file)]).expect(4, &["line 1", "not UTF-8"]);
    generate(&model, &["--prompts", text(&work.path().join("none.jsonl"))]).expect(4, &["none.jsonl"]);
    generate(&model, &["--prompt", "a", "--max-new-tokens", "2048"])
        .expect(5, &["a context of 2048", "--max-new-tokens"]);
    generate(&model, &["--prompt", "a", "--memory", "10MB"])
        .expect(5, &["--memory allows 10", "weights take"]);
    for (flag, value) in
        [("--temperature", "-1"), ("--top-p", "0"), ("--batch", "0"), ("--max-new-tokens", "0")]
    {
        generate(&model, &["--prompt", "a", &format!("{flag}={value}")]).expect(2, &[flag]);
    }
    generate(&model, &[]).expect(2, &["--prompt"]);
    generate(&model, &["--prompt", "a", "--prompts", "b"]).expect(2, &["cannot be used with"]);
}
