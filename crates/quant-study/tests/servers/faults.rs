//! Servers that fail, runs that are cut, and keys.

use super::server::{Own, TestServer};
use super::{ask, choices, job, options, tiny_reasoner};
use quant_data::{Task, built_in_task};
use quant_pipeline::{Event, Events, Registry};
use quant_study::quant_client::ApiKey;
use quant_study::{StudyError, TaskJob, run_task_on_server};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn a_run_that_was_cut_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(built_in_task("tiny-compare").unwrap(), 8);
    // All of it with answers that differ, and none after so many.
    let (left, asked) = (Arc::new(AtomicUsize::new(3)), Arc::new(AtomicUsize::new(0)));
    let (own, count) = (Arc::clone(&left), Arc::clone(&asked));
    let server = TestServer::start_with(move |seen| {
        let said = seen.body["messages"][0]["content"].as_str()?;
        count.fetch_add(1, Ordering::SeqCst);
        if own.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Some(Own::Cut);
        }
        Some(Own::Text { thought: String::new(), text: format!("{said} Yes."), finish: "stop" })
    });
    let output = folder.path().join("cut");
    let cut = TaskJob { output: Some(output.clone()), batch: 1, ..job.clone() };
    let named = |name: &str| {
        let mut options = options(&server, "v1");
        options.model = Some(name.to_owned());
        options
    };
    let error = ask(&cut, named("tiny")).unwrap_err();
    assert!(matches!(&error, StudyError::Server(error) if error.is_unreachable()), "{error}");
    assert!(error.to_string().contains("(2 attempts)"), "{error}");
    let kept = std::fs::read_to_string(output.join("items.jsonl")).unwrap();
    assert_eq!(kept.lines().count(), 3);
    // Another model and another address are other jobs; the folder of the tokenizer is none.
    let again = TaskJob { resume: true, ..cut.clone() };
    let error = ask(&again, named("large")).unwrap_err().to_string();
    assert!(error.contains("the model was tiny and is large"), "{error}");
    let mut elsewhere = named("tiny");
    elsewhere.url = "http://127.0.0.1:9".to_owned();
    let error = ask(&again, elsewhere).unwrap_err().to_string();
    assert!(error.contains("--server was http://127.0.0.1:") && error.contains("127.0.0.1:9"), "{error}");
    left.store(100, Ordering::SeqCst);
    let before = asked.load(Ordering::SeqCst);
    let copy = folder.path().join("tokenizer");
    std::fs::create_dir(&copy).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny_reasoner().join(name), copy.join(name)).unwrap();
    }
    let moved = TaskJob { model: copy, batch: 3, ..again };
    let resumed = ask(&moved, named("tiny")).unwrap();
    assert_eq!(asked.load(Ordering::SeqCst) - before, 5);
    let whole = TaskJob { output: Some(folder.path().join("whole")), ..job };
    assert_eq!(ask(&whole, named("tiny")).unwrap().records, resumed.records);
    for name in ["items.jsonl", "result.json", "job.json"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert_eq!(read(&output), read(&folder.path().join("whole")), "{name}");
    }
    // A finished one asks nothing.
    let before = asked.load(Ordering::SeqCst);
    assert_eq!(ask(&cut, named("tiny")).unwrap().result, resumed.result);
    assert_eq!(asked.load(Ordering::SeqCst), before);
}

/// Stops after the first item.
struct Stops(bool);

impl Events for Stops {
    fn event(&mut self, event: Event<'_>) {
        self.0 |= matches!(event, Event::Evaluated { .. });
    }
    fn cancelled(&self) -> bool {
        self.0
    }
}

#[test]
fn a_person_who_stops_does_not_wait_for_long_answers() {
    let folder = tempfile::tempdir().unwrap();
    let first = AtomicUsize::new(0);
    // One short answer; the others come a token every 80 ms, 320 of them.
    let server = TestServer::start_with(move |seen| {
        seen.body["messages"][0]["content"].as_str()?;
        let text = "Yes.".to_owned();
        (first.fetch_add(1, Ordering::SeqCst) == 0).then_some(Own::Text {
            thought: String::new(),
            text,
            finish: "stop",
        })
    });
    let output = folder.path().join("out");
    let job = TaskJob { output: Some(output.clone()), ..job(built_in_task("tiny-compare").unwrap(), 6) };
    let began = std::time::Instant::now();
    let error =
        run_task_on_server(&job, options(&server, "slow-tokens"), &mut Stops(false), &Registry::default())
            .unwrap_err();
    assert!(error.is_interrupted(), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(std::fs::read_to_string(output.join("items.jsonl")).unwrap().lines().count(), 1);
}

#[test]
fn faults_are_errors_of_their_kind() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let (compare, sums) = (job(built_in_task("tiny-compare").unwrap(), 2), choices(folder.path()));
    let named = |fault| {
        let mut options = options(&server, fault);
        options.model = Some("tiny".to_owned());
        options
    };
    for (job, fault, unreachable) in [
        (&compare, "503-always", true),
        (&compare, "cut-stream", true),
        (&compare, "malformed-event", false),
        (&compare, "not-streamed", false),
        (&sums, "cut-head", true),
        (&sums, "no-logprobs", false),
        (&sums, "html", false),
        (&sums, "adds-bos", false),
    ] {
        let error = ask(job, named(fault)).unwrap_err();
        let StudyError::Server(error) = error else { panic!("{fault}: {error}") };
        assert_eq!(
            (error.is_unreachable(), error.is_unreadable()),
            (unreachable, !unreachable),
            "{fault}: {error}"
        );
    }
    // What passes is no fault.
    let passing = TaskJob { max_new_tokens: Some(5), ..compare };
    for fault in ["500-twice", "cut-stream-once~a"] {
        let mut options = named(fault);
        options.retries = 3;
        assert_eq!(ask(&passing, options).unwrap().records.len(), 2, "{fault}");
    }
}

#[test]
fn a_prompt_that_the_server_has_no_room_for_is_not_sent() {
    // It says that it takes 4096 tokens; the task asks for an answer of more.
    let written = built_in_task("tiny-compare").unwrap().written().replace("max_new_tokens: 320", "");
    let server = TestServer::start_with(|seen| {
        let said = seen.body["messages"][0]["content"].as_str()?.to_owned();
        Some(Own::Text { thought: String::new(), text: said, finish: "length" })
    });
    let job = job(Task::parse(&written).unwrap(), 1);
    ask(&job, options(&server, "ok")).unwrap();
    let seen = server.seen("ok");
    let most = seen.iter().find_map(|seen| seen.body["max_tokens"].as_u64()).unwrap();
    assert!((3900..4096).contains(&most), "{most}");
}

#[test]
fn the_key_is_in_no_output() {
    const KEY: &str = "sk-right";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, KEY).unwrap();
    let server = TestServer::start();
    let output = folder.path().join("out");
    let job = TaskJob {
        output: Some(output.clone()),
        max_new_tokens: Some(3),
        with_texts: true,
        ..job(built_in_task("tiny-compare").unwrap(), 2)
    };
    let with_key = |fault| {
        let mut options = options(&server, fault);
        options.key = Some(ApiKey::from_file(&file).unwrap());
        options
    };
    let error = ask(&job, options(&server, "needs-key")).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("wants a key"), "{error}");
    let outcome = ask(&job, with_key("needs-key")).unwrap();
    assert!(!format!("{outcome:?}").contains(KEY));
    for entry in std::fs::read_dir(&output).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(KEY));
    }
    let echoed = TaskJob { output: None, ..job };
    for fault in ["key-echo", "key-echo-200"] {
        let error = ask(&echoed, with_key(fault)).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(KEY), "{error}");
    }
}
