//! `--download` of `ptq eval --task` and `ptq study`.

use crate::common::{Ran, ptq, text, tiny_reasoner};
use tempfile::tempdir;

fn eval(more: &[&str]) -> Ran {
    let model = tiny_reasoner();
    ptq(&[&["eval", "--model", text(&model)], more].concat())
}

#[test]
fn downloads_are_of_tasks() {
    eval(&["--text", "a.txt", "--download", "data"]).expect(2, &["--download goes with --task"]);
    eval(&["--task", "gsm8k", "--download-token", "token"]).expect(2, &["--download"]);
    eval(&["--task", "gsm8k", "--download-from", "https://hub.example"]).expect(2, &["--download"]);
    // Without it nobody is asked, whatever the program was built with.
    eval(&["--task", "gsm8k"]).expect(4, &["data set openai/gsm8k", "configuration main", "split test"]);
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_program_without_the_feature_says_so() {
    let work = tempdir().unwrap();
    let folder = work.path().join("data");
    let words = ["built without --download", "--features hub"];
    eval(&["--task", "gsm8k", "--download", text(&folder)]).expect(3, &words);
    let output = work.path().join("study");
    let study = ["study", "--preset", "tiny", "--output", text(&output), "--download", text(&folder)];
    ptq(&study).expect(3, &words);
    ptq(&[&study[..], &["--plan"]].concat()).expect(3, &words);
    assert!(!folder.exists() && !output.exists());
}

#[cfg(feature = "hub")]
#[path = "../../crates/quant-client/tests/server/mod.rs"]
mod server;

#[cfg(feature = "hub")]
#[test]
fn what_is_missing_is_fetched_and_found() {
    use serde_json::json;
    use server::{Own, TestServer};
    let work = tempdir().unwrap();
    let folder = work.path().join("data");
    let task = work.path().join("sums.yaml");
    std::fs::write(
        &task,
        "version: 1\nname: sums\nkind: generate\nsource: { repository: us/sums, split: test, files: [own.jsonl] }\n\
         prompt: '{{ question }}'\ngold: '{{ answer }}'\nscorer: exact\nmax_new_tokens: 320\n",
    )
    .unwrap();
    let hub = TestServer::start_with(|seen| {
        let bytes = |status, body: &[u8]| {
            let (headers, body, sent) = (String::new(), body.to_vec(), usize::MAX);
            Some(Own::Bytes { status, headers, body, sent })
        };
        match seen.line.as_str() {
            "GET /hub/api/datasets/us/sums/revision/main" => {
                let commit = "1".repeat(40);
                Some(Own::Json(json!({"sha": commit, "siblings": [{"rfilename": "test.jsonl"}]})))
            }
            line if line.starts_with("GET /hub/datasets/us/sums/resolve/1") => {
                bytes("200 OK", b"{\"question\": \"74 + 51?\", \"answer\": \"125\"}\n")
            }
            _ => bytes("404 Not Found", b""),
        }
    });
    let url = hub.url("hub");
    let from = ["--download", text(&folder), "--download-from", &url];
    // Told what to do with it, not what it is.
    let key = work.path().join("token");
    std::fs::write(&key, "two words").unwrap();
    let with_token = [&["--task", text(&task), "--download-token", text(&key)], &from[..]].concat();
    let ran = eval(&with_token).expect(2, &["one line"]);
    assert!(!ran.err.contains("two words"), "{}", ran.err);
    assert_eq!(hub.connections(), 0);
    let ran =
        eval(&[&["--task", text(&task), "--json"], &from[..]].concat()).expect(0, &["fetching test.jsonl"]);
    assert_eq!(ran.json()["result"]["items"], 1);
    let asked = hub.seen("hub").len();
    eval(&["--task", text(&task), "--data-dir", text(&folder)]).expect(0, &[]);
    // A study finds it too, and a plan asks nobody.
    let grid = work.path().join("grid.yaml");
    let recipe = "{ name: rtn, recipe: { version: 1, modifiers: [{ rtn: { scheme: W8A16g32 } }] } }";
    let written = |tasks: &str| {
        let models = "models: ['embedded:tiny-reasoner']";
        let text = format!("version: 1\nname: short\n{models}\nrecipes: [{recipe}]\ntasks: [{tasks}]\n");
        std::fs::write(&grid, text).unwrap();
    };
    written("sums.yaml");
    let output = work.path().join("study");
    let study = ["study", "--grid", text(&grid), "--output", text(&output)];
    let other = work.path().join("other");
    let elsewhere = ["--download", text(&other), "--download-from", &url];
    ptq(&[&study[..], &["--plan"], &elsewhere].concat()).expect(0, &[]);
    assert_eq!(hub.seen("hub").len(), asked);
    ptq(&[&study[..], &elsewhere].concat()).expect(0, &["fetching test.jsonl"]);
    assert!(other.join("sums/test.jsonl").is_file() && hub.seen("hub").len() == asked + 2);
    // A data set that is not there, and a hub that is not.
    let gone = ["--task", "gsm8k", "--download", text(&folder), "--download-from"];
    eval(&[&gone[..], &[&url]].concat()).expect(4, &["answers 404", "data set openai/gsm8k"]);
    eval(&[&gone[..], &["hub.example"]].concat()).expect(2, &["is no address"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    eval(&[&gone[..], &[&nobody]].concat()).expect(5, &["the connection was refused"]);
}
