//! `ptq study` and `ptq eval --task` as people use them.

use crate::common::{copy_of_model, files, ptq, text, tiny_reasoner};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::tempdir;

fn study(arguments: &[&str], output: &Path) -> crate::common::Ran {
    ptq(&[&["study", "--output", text(output)], arguments].concat())
}

/// A grid of seconds, with a text of two windows.
pub(crate) fn short(folder: &Path) -> String {
    let path = folder.join("grid.yaml");
    let task = "version: 1\nname: few\nkind: text\nsource: { files: [tasks/test.jsonl] }\nmessages: messages\njoin: ''\nwindow: 128\n\
                documents: 4\n";
    std::fs::write(folder.join("few.yaml"), task).unwrap();
    let grid = "version: 1\nname: short\nmodels: [{ path: 'embedded:tiny-reasoner', calibration: tasks/calibration.jsonl, num_samples: 8, \
                max_seq_len: 128 }]\nrecipes:\n  - { name: rtn W4, recipe: { version: 1, modifiers: [{ rtn: { scheme: W4A16g32 } }] } }\n  \
                - { name: gptq W3, recipe: { version: 1, modifiers: [{ gptq: { scheme: W3A16g32 } }] } }\ntasks: [tiny-compare, few.yaml]\n\
                limit: 3\nblame: few\n";
    std::fs::write(&path, grid).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_task_is_asked_and_kept() {
    let work = tempdir().unwrap();
    let output = work.path().join("task");
    let model = tiny_reasoner();
    let arguments =
        ["eval", "--model", text(&model), "--task", "tiny-word", "--limit", "5", "--output", text(&output)];
    let ran = ptq(&[&arguments[..], &["--json"]].concat()).expect(0, &[]).json();
    assert_eq!((&ran["result"]["items"], ran["items"].as_array().unwrap().len()), (&Value::from(5), 5));
    assert!(ran["items"][0].get("text").is_none(), "texts are not kept unless asked for");
    let printed = ptq(&arguments).expect(0, &[]);
    assert!(
        printed.out.contains("accuracy") && printed.out.contains("broken answers    0"),
        "{}",
        printed.out
    );
    ptq(&[&arguments[..8], &["--limit", "6"], &arguments[7..]].concat()).expect(2, &[]);
    let other =
        ["eval", "--model", text(&model), "--task", "tiny-word", "--limit", "6", "--output", text(&output)];
    ptq(&other).expect(2, &["--limit was 5 and is 6", "--restart"]);
    ptq(&[&other[..], &["--restart", "--with-texts"]].concat()).expect(0, &[]);
    assert!(std::fs::read_to_string(output.join("items.jsonl")).unwrap().contains("\"text\":"));
}

#[test]
fn what_is_wrong_with_a_task_is_said() {
    let work = tempdir().unwrap();
    let model = tiny_reasoner();
    let task =
        |name: &str, more: &[&str]| ptq(&[&["eval", "--model", text(&model), "--task", name], more].concat());
    task("tiny-wrd", &[]).expect(2, &["did you mean \"tiny-word\"?"]);
    task("gpqa-diamond", &[]).expect(4, &["Idavidrein/gpqa", "--data-dir"]);
    task("tiny-word", &["--execute", "int8"]).expect(3, &["--execute sim"]);
    task("tiny-word", &["--seq-len", "8"]).expect(2, &["--seq-len goes with --text or --tokens"]);
    task("tiny-word", &["--resume"]).expect(2, &["--output"]);
    let file = work.path().join("mine.yaml");
    std::fs::write(&file, "version: 1\nname: mine\nkind: generate\nsource: { files: [items.jsonl] }\nprompt: '{{ q }}'\ngold: '{{ a }}'\nscorer: exakt\n").unwrap();
    std::fs::write(work.path().join("items.jsonl"), "{\"q\": \"What is 1 + 1?\", \"a\": \"2\"}\n").unwrap();
    let data = ["--data-dir", text(work.path())];
    task(text(&file), &data).expect(2, &["did you mean \"exact\"?"]);
    std::fs::write(&file, "version: 1\nname: mine\nkind: generate\nsorce: 1\n").unwrap();
    task(text(&file), &data).expect(2, &["mine.yaml", "did you mean \"source\"?"]);
    let generate = |more: &str| {
        format!(
            "version: 1\nname: mine\nkind: generate\nsource: {{ files: [items.jsonl] }}\nscorer: exact\n{more}\n"
        )
    };
    for (more, words) in [
        (
            "prompt: '{{ question }}'\ngold: '{{ a }}'",
            &["line 1", "prompt: undefined value", "none of q, a, _item"][..],
        ),
        (
            "prompt: \"{{ raise_exception('not this one') }}\"\ngold: '{{ a }}'",
            &["line 1", "prompt: ", "not this one"],
        ),
        (
            "prompt: '{% for i in range(90000) %}{{ q * 90000 }}{% endfor %}'\ngold: '{{ a }}'",
            &["line 1", "prompt: "],
        ),
    ] {
        std::fs::write(&file, generate(more)).unwrap();
        task(text(&file), &data).expect(4, words);
    }
    std::fs::write(work.path().join("items.jsonl"), "").unwrap();
    task(text(&file), &data).expect(4, &["items.jsonl", "holds no item of the task mine"]);
    task("nothing.yaml", &[]).expect(2, &["nothing.yaml", "ptq list"]);
}

#[test]
fn a_study_is_planned_run_and_reported() {
    let work = tempdir().unwrap();
    let grid = short(work.path());
    let output = work.path().join("out");
    let planned = study(&["--grid", &grid, "--plan"], &output).expect(0, &[]).out;
    assert!(planned.contains("6 cells") && planned.contains("4-16-16") && !output.join("plan.json").exists());
    let results = study(&["--grid", &grid, "--json"], &output)
        .expect(0, &["scoring: tiny-reasoner, rtn W4, sim, few"])
        .json();
    assert_eq!(results["models"][0]["variants"].as_array().unwrap().len(), 3);
    assert!(results["models"][0]["variants"][2]["blame"]["blocks"].as_array().unwrap().len() == 6);
    study(&["--grid", &grid], &output).expect(2, &["--resume"]);
    let page = std::fs::read_to_string(output.join("report.html")).unwrap();
    assert!(
        page.contains("<svg")
            && page.contains("gptq W3")
            && !page.contains("http://")
            && !page.contains("https://")
    );
    let before = std::fs::read(output.join("results.csv")).unwrap();
    std::fs::remove_file(output.join("results.csv")).unwrap();
    let shown = study(&["--report"], &output).expect(0, &[]).out;
    assert!(shown.contains("gptq W3") && shown.contains("report.html"), "{shown}");
    assert_eq!(std::fs::read(output.join("results.csv")).unwrap(), before);
    study(&["--report"], work.path()).expect(2, &["holds no study"]);
    study(&["--preset", "tinny"], &output).expect(2, &["did you mean \"tiny\"?"]);
    study(&["--grid", "nowhere.yaml"], &output).expect(2, &["nowhere.yaml"]);
    // Published models that are not here are planned, and not run.
    let plan = study(&["--preset", "case-study", "--plan"], &work.path().join("case")).expect(0, &[]).out;
    assert!(plan.contains("QwQ-32B") && plan.contains("not to be run here"), "{plan}");
    study(&["--preset", "case-study"], &work.path().join("case"))
        .expect(4, &["DeepSeek-R1-Distill-Qwen-1.5B"]);
}

/// What somebody else keeps in a folder is neither replaced nor removed.
#[test]
fn folders_of_others_are_not_worked_in() {
    let work = tempdir().unwrap();
    let grid = short(work.path());
    let output = work.path().join("mine");
    std::fs::create_dir_all(output.join("work")).unwrap();
    for name in ["work/notes.txt", "report.md"] {
        std::fs::write(output.join(name), "a week of work").unwrap();
    }
    let before = files(&output);
    study(&["--grid", &grid], &output).expect(2, &["no study; give another --output"]);
    study(&["--grid", &grid, "--plan"], &output).expect(2, &["no study; give another --output"]);
    assert_eq!(files(&output), before);
    let model = copy_of_model(work.path());
    let before = files(&model);
    let data = tiny_reasoner();
    let asked = [
        &["eval", "--model", text(&model), "--task", "tiny-word", "--data-dir", text(&data)],
        &["--limit", "2", "--output"][..],
    ]
    .concat();
    ptq(&[&asked[..], &[text(&model)]].concat()).expect(2, &["no run of a task; give another --output"]);
    ptq(&[&asked[..], &[&grid]].concat()).expect(2, &["it exists and is not a folder"]);
    study(&["--grid", &grid], &model).expect(2, &["no study"]);
    assert_eq!(files(&model), before);
}

#[test]
fn options_of_tasks_are_not_taken_beside_a_text() {
    let model = tiny_reasoner();
    let told = model.join("tasks/test.jsonl");
    for option in [["--limit", "1"], ["--output", "nowhere"], ["--batch", "2"], ["--seed", "1"]] {
        let ran = ptq(&[&["eval", "--model", text(&model), "--text", text(&told)], &option[..]].concat());
        ran.expect(2, &[option[0], "goes with --task"]);
    }
}

/// Killed at whatever it does, several times, and gone on with: the results are those of a run that was left alone.
#[test]
fn a_study_survives_being_killed() {
    let work = tempdir().unwrap();
    let grid = short(work.path());
    let (whole, killed) = (work.path().join("whole"), work.path().join("killed"));
    let began = Instant::now();
    study(&["--grid", &grid], &whole).expect(0, &[]);
    let lasts = began.elapsed();
    let mut kills = 0;
    for part in 1..=6 {
        let resume: &[&str] = if killed.join("plan.json").exists() { &["--resume"] } else { &[] };
        let mut child = Command::new(env!("CARGO_BIN_EXE_ptq"))
            .args([
                "study",
                "--grid",
                &grid,
                "--output",
                text(&killed),
                "--threads",
                if part % 2 == 0 { "1" } else { "2" },
            ])
            .args(resume)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(lasts.mul_f64(0.25).max(Duration::from_millis(50)));
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 1, "{kills} of 6");
    study(&["--grid", &grid, "--resume"], &killed).expect(0, &[]);
    for name in ["results.json", "results.csv", "report.md"] {
        assert_eq!(
            std::fs::read(killed.join(name)).unwrap(),
            std::fs::read(whole.join(name)).unwrap(),
            "{name}"
        );
    }
    assert!(!killed.join("work").exists() && !killed.join("removed").exists());
}
