//! Files of tasks from a hub of our own, over a real socket, with faults.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "tests")]

#[path = "../../../quant-client/tests/server/mod.rs"]
mod server;

mod fetched;
mod redirects;
mod refused;
mod system;

use quant_data::{DataError, Hub, HubError, HubProgress, HubToken, Task};
use serde_json::json;
use server::{Own, Seen, TestServer};
use sha2::Digest;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const MAIN: &str = "1111111111111111111111111111111111111111";
const CONVERTED: &str = "2222222222222222222222222222222222222222";
const TOKEN: &str = "hf_secret";

/// A data set with these files in its main branch; `fault` answers first. What it gives for a file is its path in [`content`].
fn hub_of(
    files: &'static [&'static str],
    fault: impl Fn(&Seen, &str) -> Option<Own> + Send + Sync + 'static,
) -> TestServer {
    TestServer::start_with(move |seen| {
        let path = seen.line.split(' ').nth(1).unwrap().trim_start_matches("/hub/").to_owned();
        Some(fault(seen, &path).unwrap_or_else(|| answer(files, seen, &path)))
    })
}

fn answer(files: &[&str], seen: &Seen, path: &str) -> Own {
    let none = || own("404 Not Found", "", b"no");
    if let Some(revision) = path.strip_prefix("api/datasets/us/capitals/revision/") {
        return match revision {
            "main" => listing(MAIN, files),
            _ => none(),
        };
    }
    let Some(file) = path.strip_prefix("datasets/us/capitals/resolve/") else { return none() };
    match file.split_once('/') {
        Some((MAIN | CONVERTED, file)) => ranged(seen, &content(file)),
        _ => none(),
    }
}

fn listing(commit: &str, files: &[&str]) -> Own {
    let siblings: Vec<_> = files.iter().map(|file| json!({"rfilename": file})).collect();
    Own::Json(json!({"id": "us/capitals", "sha": commit, "siblings": siblings, "gated": false}))
}

/// One item that names its file, and something to be cut.
fn content(file: &str) -> Vec<u8> {
    format!("{{\"country\": \"{file}\", \"cities\": [\"a\", \"b\"], \"right\": 0}}\n{}", "\n".repeat(200_000))
        .into_bytes()
}

/// The part of the bytes that was asked for.
fn ranged(seen: &Seen, body: &[u8]) -> Own {
    let begin = seen
        .headers
        .get("range")
        .map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
    match begin {
        None => own("200 OK", "", body),
        Some(begin) => {
            let (last, size) = (body.len() - 1, body.len());
            let range = format!("Content-Range: bytes {begin}-{last}/{size}\r\n");
            own("206 Partial Content", &range, &body[begin..])
        }
    }
}

fn own(status: &'static str, headers: &str, body: &[u8]) -> Own {
    Own::Bytes { status, headers: headers.to_owned(), body: body.to_vec(), sent: usize::MAX }
}

/// What the hub says of a file that it keeps elsewhere.
fn tag(hash: &str) -> String {
    format!("X-Linked-Etag: \"{hash}\"\r\n")
}

/// As [`own`], and cut.
fn cut(status: &'static str, headers: &str, body: &[u8], sent: usize) -> Own {
    Own::Bytes { status, headers: headers.to_owned(), body: body.to_vec(), sent }
}

fn task_of(source: &str) -> Task {
    Task::parse(&format!(
        "version: 1\nname: capitals\nkind: choice\nsource: {{ {source} }}\ncontext: 'The capital of {{{{ country }}}} is'\n\
         choices: cities\ngold: right\n"
    ))
    .unwrap()
}

/// Names no file that the hub could have but by its layouts.
fn task(config: &str, split: &str) -> Task {
    task_of(&format!(
        "repository: us/capitals, {config} split: {split}, files: [own.jsonl], columns: [country, right]"
    ))
}

fn hub(server: &TestServer, folder: &Path) -> Hub {
    let (attempts, backoff) = (3, Duration::from_millis(2));
    Hub { endpoint: server.url("hub"), attempts, backoff, ..Hub::new(folder) }
}

fn go_on(_: &HubProgress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn fetch(server: &TestServer, folder: &Path, task: &Task) -> Result<Vec<PathBuf>, DataError> {
    hub(server, folder).fetch(task, &[], &mut go_on)
}

/// Every file below a folder, by its path in it.
fn files_in(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(folder).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

fn tokens_seen(server: &TestServer) -> Vec<Option<String>> {
    server.seen("hub").iter().map(|seen| seen.headers.get("authorization").cloned()).collect()
}

/// The error of a fetch that leaves nothing.
fn refused(server: &TestServer, change: impl Fn(&mut Hub)) -> HubError {
    let folder = tempfile::tempdir().unwrap();
    let mut asked = hub(server, folder.path());
    change(&mut asked);
    let result = asked.fetch(&task("config: europe,", "test"), &[], &mut go_on);
    assert!(files_in(folder.path()).is_empty(), "{:?}", files_in(folder.path()));
    match result {
        Err(DataError::Hub(error)) => error,
        other => panic!("{other:?}"),
    }
}

const TABLES: &[&str] = &[
    "README.md",
    "africa/test-00000-of-00001.parquet",
    "europe/test-00001-of-00002.parquet",
    "europe/test-00000-of-00002.parquet",
    "europe/train-00000-of-00001.parquet",
    "europe/old/test-00000-of-00001.parquet",
    "test-00000-of-00001.parquet",
];
