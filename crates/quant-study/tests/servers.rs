//! Tasks on models behind servers, over a real socket: the answers are those of the model of the repository, or faults.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "a test fails by panicking")]

#[path = "../../quant-client/tests/server/mod.rs"]
mod server;

use quant_data::{Said, Task, built_in_task};
use quant_eval::{PositionOptions, score_positions};
use quant_kernels::Par;
use quant_model::Arithmetic;
use quant_pipeline::{Event, Events, Registry, Scored, Silent, open_folder};
use quant_study::quant_client::{ApiKey, ServerOptions};
use quant_study::{
    Grid, Record, Signs, Status, StudyError, StudyJob, StudyOutcome, TaskJob, TaskOutcome, run_study,
    run_task, run_task_on_server,
};
use serde_json::{Value, json};
use server::{Own, Seen, TestServer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The model of the repository.
fn tiny_reasoner() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner")
}

fn options(server: &TestServer, fault: &str) -> ServerOptions {
    let mut options = ServerOptions::new(server.url(fault));
    options.backoff = Duration::from_millis(2);
    options.retries = 1;
    options
}

fn ask(job: &TaskJob, options: ServerOptions) -> Result<TaskOutcome, StudyError> {
    run_task_on_server(job, options, &mut Silent, &Registry::default())
}

fn in_process(job: &TaskJob) -> TaskOutcome {
    run_task(job, None, &mut Silent, &Registry::default()).unwrap()
}

fn job(task: Task, limit: usize) -> TaskJob {
    TaskJob { limit: Some(limit), threads: 2, batch: 4, ..TaskJob::new(tiny_reasoner(), task) }
}

fn choices(folder: &Path) -> TaskJob {
    let items: String = ["74 + 51", "8 + 5", "12 + 12", "93 + 18", "1 + 2", "30 + 7", "50 + 50"]
        .iter()
        .enumerate()
        .map(|(gold, sum)| {
            let choices = ["So 74 + 51 = 125.", "13", "\\boxed{24}", "of 111", "x", "<think>", "a hundred"];
            format!("{}\n", json!({"q": format!("What is {sum}?"), "choices": choices, "gold": gold}))
        })
        .collect();
    std::fs::write(folder.join("sums.jsonl"), items).unwrap();
    let task = Task::parse(
        "version: 1\nname: sums\nkind: choice\nsource: { files: [sums.jsonl] }\ncontext: '{{ q }}'\nchoices: choices\n\
         gold: gold\nmetric: acc_norm\n",
    )
    .unwrap();
    TaskJob { data: vec![folder.to_owned()], ..job(task, 7) }
}

/// What a server says of a prompt, by the model of the repository.
fn echo(seen: &Seen) -> Option<Own> {
    if seen.body["echo"] != true {
        return None;
    }
    let prompt: Vec<u32> =
        seen.body["prompt"].as_array()?.iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let source = open_folder(&tiny_reasoner()).unwrap().into_source().unwrap();
    let mut model = Scored::new(source, Arithmetic::from(quant_kernels::Compute::F32), Par::Seq);
    let scores = score_positions(
        &mut model,
        std::slice::from_ref(&prompt),
        std::slice::from_ref(&(1..prompt.len())),
        PositionOptions::default(),
    )
    .unwrap();
    let (mut own, mut top) = (vec![Value::Null], vec![Value::Null]);
    for score in &scores[0] {
        let likely = -score.nll.unwrap();
        own.push(json!(likely));
        // A better one, where it is not the best.
        top.push(json!({"a": if score.greedy { likely } else { likely / 2.0 }}));
    }
    Some(Own::Json(json!({
        "choices": [{"index": 0, "text": "", "logprobs": {"token_logprobs": own, "top_logprobs": top}}],
        "usage": {"prompt_tokens": prompt.len()},
    })))
}

#[test]
fn choices_are_those_of_the_model_in_process() {
    let folder = tempfile::tempdir().unwrap();
    let job = choices(folder.path());
    let expected = in_process(&job);
    let server = TestServer::start_with(echo);
    let found = ask(&job, options(&server, "ok")).unwrap();
    assert_eq!(server.seen("ok").len(), 49 + 1, "one request a choice, and one for the name of the model");
    assert!((2..=4).contains(&server.most_running()), "{}", server.most_running());
    assert_eq!(found.records.len(), expected.records.len());
    for (found, expected) in found.records.iter().zip(&expected.records) {
        let (
            Record::Choice { log_likelihoods: a, greedy: b, acc: c, acc_norm: d, .. },
            Record::Choice { log_likelihoods: e, greedy: f, acc: g, acc_norm: h, .. },
        ) = (found, expected)
        else {
            panic!("{found:?}")
        };
        assert_eq!((b, c, d), (f, g, h));
        for (a, e) in a.iter().zip(e) {
            assert!((a.unwrap() - e.unwrap()).abs() < 1e-9, "{a:?} {e:?}");
        }
    }
    assert_eq!(found.result.figure, expected.result.figure);
}

/// How a server gives thoughts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Thoughts {
    /// Cut off the text.
    CutOff,
    /// In it, with their marks.
    Marked,
    /// In it, without the marks, which are special tokens.
    Bare,
}

/// A server that knows the answers that the model gives in process.
fn answering(job: &TaskJob, outcome: &TaskOutcome, thoughts: Thoughts) -> TestServer {
    let files = job.task.source().find(job.task.name(), &job.data).unwrap();
    let tokenizer = quant_data::Tokenizer::from_dir(&tiny_reasoner()).unwrap();
    let mut texts = HashMap::new();
    for record in &outcome.records {
        let Record::Answer { number, seed, finish, .. } = record else { panic!("{record:?}") };
        let questions = job.task.questions(&files, *seed, job.limit).unwrap();
        let question = questions.iter().find(|question| question.number == *number).unwrap();
        let Said::Chat(conversation) = &question.said else { panic!("{question:?}") };
        let said = conversation.messages[0]["content"].as_str().unwrap();
        let text = tokenizer.decode(own_tokens(record), thoughts == Thoughts::Bare).unwrap();
        texts.insert(format!("{said} under {seed}"), (text, finish.clone()));
    }
    TestServer::start_with(move |seen| {
        let said = seen.body["messages"][0]["content"].as_str()?;
        let (text, finish) = &texts[&format!("{said} under {}", seen.body["seed"])];
        let cut = (thoughts == Thoughts::CutOff).then(|| text.split_once("</think>")).flatten();
        let (thought, text) = cut.map_or(("", text.as_str()), |(thought, text)| (thought, text));
        let finish = if finish == "stop" { "stop" } else { "length" };
        Some(Own::Text { thought: thought.to_owned(), text: text.to_owned(), finish })
    })
}

/// The tokens of an answer without the one that ended it, which is recorded in process.
fn own_tokens(record: &Record) -> &[u32] {
    let Record::Answer { finish, tokens, .. } = record else { panic!("{record:?}") };
    let tokenizer = quant_data::Tokenizer::from_dir(&tiny_reasoner()).unwrap();
    let end = quant_data::end_tokens(&tiny_reasoner(), &tokenizer).unwrap();
    match tokens.split_last() {
        Some((last, before)) if finish == "stop" && end.contains(last) => before,
        _ => tokens,
    }
}

/// What is said of an answer, without its tokens.
fn said(record: &Record) -> (bool, Option<&String>, &str, Signs, Option<&String>) {
    let Record::Answer { right, extracted, finish, signs, text, .. } = record else { panic!("{record:?}") };
    (*right, extracted.as_ref(), finish, signs.clone(), text.as_ref())
}

#[test]
fn answers_are_judged_as_those_in_process() {
    let written = built_in_task("tiny-word").unwrap().written().replace(
        "scorer: exact",
        "scorer: exact\nsampling: { temperature: 1.5, top_p: 0.9, top_k: 40 }\nseeds: [7, 9]",
    );
    let job = TaskJob { with_texts: true, ..job(Task::parse(&written).unwrap(), 6) };
    let expected = in_process(&job);
    for thoughts in [Thoughts::CutOff, Thoughts::Marked, Thoughts::Bare] {
        let server = answering(&job, &expected, thoughts);
        let found = ask(&job, options(&server, "ok")).unwrap();
        assert_eq!(found.records.len(), 12);
        for (found, expected) in found.records.iter().zip(&expected.records) {
            let mut wanted = said(expected);
            if thoughts == Thoughts::Bare {
                // Thoughts cannot be told, and nothing is said of them.
                (wanted.3.thought, wanted.3.unclosed_thought, wanted.3.seen_not_given) = (None, false, false);
                wanted.3.empty = false;
            } else {
                let same = found_tokens_are_those(found, own_tokens(expected));
                assert!(same, "{thoughts:?}: {found:?} {expected:?}");
            }
            assert_eq!(said(found), wanted, "{thoughts:?}");
            assert_eq!(found.key(), expected.key());
        }
        assert_eq!(found.result.figure, expected.result.figure);
        // Drawn as the task says, with the seed of the run.
        let seen = server.seen("ok");
        let body = &seen.iter().find(|seen| seen.body["seed"] == 9).unwrap().body;
        let drawn = ["temperature", "top_p", "top_k", "max_tokens"].map(|name| body[name].as_f64());
        assert_eq!(drawn, [Some(1.5), Some(0.9), Some(40.0), Some(320.0)]);
        assert_eq!(seen.iter().filter(|seen| seen.body["seed"] == 7).count(), 6);
        assert!(seen.iter().all(|s| s.line.starts_with("GET") || s.line.ends_with("/v1/chat/completions")));
    }
}

/// Drawn texts may be spelt in tokens that a tokenizer would not choose; the text is the same then.
fn found_tokens_are_those(found: &Record, expected: &[u32]) -> bool {
    let tokenizer = quant_data::Tokenizer::from_dir(&tiny_reasoner()).unwrap();
    let Record::Answer { tokens, .. } = found else { return false };
    tokens == expected
        || tokenizer.decode(tokens, false).unwrap() == tokenizer.decode(expected, false).unwrap()
}

#[test]
fn a_plain_prompt_is_sent_in_tokens() {
    let written = built_in_task("tiny-compare")
        .unwrap()
        .written()
        .replace("kind: generate", "kind: generate\nchat: false");
    let job = job(Task::parse(&written).unwrap(), 2);
    let server = TestServer::start_with(|seen| {
        let Value::Array(_) = seen.body["prompt"] else { return None };
        Some(Own::Text { thought: String::new(), text: "It is \\boxed{3}".to_owned(), finish: "abort" })
    });
    let outcome = ask(&job, options(&server, "ok")).unwrap();
    let files = job.task.source().find(job.task.name(), &job.data).unwrap();
    let tokenizer = quant_data::Tokenizer::from_dir(&tiny_reasoner()).unwrap();
    let mut prompts: Vec<Value> = server.seen("ok").iter().map(|seen| seen.body["prompt"].clone()).collect();
    for question in job.task.questions(&files, 42, job.limit).unwrap() {
        let Said::Plain(text) = &question.said else { panic!("{question:?}") };
        let tokens = json!(tokenizer.encode(text, false).unwrap());
        let at = prompts.iter().position(|prompt| *prompt == tokens).unwrap();
        prompts.remove(at);
    }
    let Record::Answer { finish, tokens, signs, .. } = &outcome.records[0] else { unreachable!() };
    assert_eq!((finish.as_str(), signs.no_end), ("abort", true));
    assert_eq!(*tokens, tokenizer.encode("It is \\boxed{3}", false).unwrap());
}

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
    let text = TaskJob { task: built_in_task("tiny-text").unwrap(), ..passing };
    let error = ask(&text, named("never-asked")).unwrap_err();
    assert!(matches!(&error, StudyError::Refused(words) if words.contains("KL divergence")), "{error}");
    assert!(server.seen("never-asked").is_empty());
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

/// Rows of a grid: one like the float model, one that wants a key and gets it, one that does not; and a grid of servers alone, whose
/// folder holds a tokenizer.
#[test]
fn servers_are_rows_of_a_study() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let sums = choices(folder.path());
    std::fs::write(at("sums.yaml"), sums.task.written()).unwrap();
    std::fs::write(at("key"), "sk-right\n").unwrap();
    let server = TestServer::start_with(echo);
    let run = |name: &str, text: String| {
        std::fs::write(at("grid.yaml"), text).unwrap();
        let grid = Grid::from_file(&at("grid.yaml")).unwrap();
        let data = vec![folder.path().to_owned(), tiny_reasoner()];
        let study = StudyJob { data, threads: 2, resume: true, ..StudyJob::new(grid, at(name)) };
        run_study(&study, &mut Silent, &Registry::default()).unwrap()
    };
    let rows = |float: &str| {
        format!(
            "version: 1\nname: rows\nmodels:\n  - path: {}\n    servers:\n{float}      - {{ name: same, url: '{}', bits: 8-8-16 }}\n\
             tasks: [sums.yaml, tiny-text]\nlimit: 7\n",
            tiny_reasoner().display(),
            server.url("ok")
        )
    };
    let refused = format!("      - {{ name: refused, url: '{}' }}\n", server.url("needs-key"));
    let keyed = format!("      - {{ name: keyed, url: '{}', key_file: key }}\n", server.url("needs-key"));
    let outcome = run("rows", rows(&format!("{refused}{keyed}")));
    assert_eq!(outcome.failed, 1);
    let row = |outcome: &StudyOutcome, name: &str| {
        outcome.results.models[0].variants.iter().find(|row| row.recipe == name).unwrap().clone()
    };
    let (float, same) = (row(&outcome, "float"), row(&outcome, "same"));
    assert_eq!(
        (same.execution.as_str(), same.bits.as_str(), &same.status),
        ("server", "8-8-16", &Status::Ok)
    );
    assert_eq!((same.average, same.average.is_some()), (float.average, true));
    assert_eq!(same.loss.map(|loss| (loss.drop, loss.class)), Some((0.0, "lossless".to_owned())));
    assert!(same.missing.is_empty() && same.problems.concat().contains("tiny-text"), "{:?}", same.problems);
    assert_eq!((float.texts.len(), same.texts.len()), (1, 0));
    assert_eq!(row(&outcome, "keyed").average, float.average);
    let Status::Failed(reason) = row(&outcome, "refused").status else { panic!("it was not refused") };
    assert!(reason.contains("401"), "{reason}");
    // Nothing that is finished is asked again; what failed is.
    let asked = server.seen("ok").len();
    assert_eq!(run("rows", rows(&format!("{refused}{keyed}"))).failed, 1);
    assert!(server.seen("ok").len() <= asked + 1, "the name of the model alone");
    // Without weights.
    let tokenizer = at("tokenizer");
    std::fs::create_dir(&tokenizer).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        if tiny_reasoner().join(name).exists() {
            std::fs::copy(tiny_reasoner().join(name), tokenizer.join(name)).unwrap();
        }
    }
    let float = format!("      - {{ name: float, url: '{}' }}\n", server.url("ok"));
    let alone = rows(&float).replace(text(&tiny_reasoner()), text(&tokenizer)).replace(", tiny-text", "");
    let outcome = run("alone", alone);
    let found = row(&outcome, "float");
    assert_eq!((outcome.failed, found.average, found.execution.as_str()), (0, same.average, "server"));
    assert_eq!(row(&outcome, "same").loss.map(|loss| loss.drop), Some(0.0));
}

/// A path in a text.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Programs that come from a server, run on their tests.
#[test]
fn programs_of_a_server_are_graded() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let job = TaskJob {
        data: vec![data],
        allow_code_execution: true,
        seeds: Some(vec![1, 2]),
        ..job(built_in_task("livecodebench").unwrap(), 3)
    };
    let server = TestServer::start_with(|seen| {
        let said = seen.body["messages"][0]["content"].as_str()?;
        let program = match seen.body["seed"].as_u64() {
            Some(1) if said.contains("their sum") => "print(sum(map(int, input().split())))",
            Some(1) if said.contains("reverse order") => {
                "class Solution:\n    def turned(self, items):\n        return items[::-1]"
            }
            Some(1) => "print(max(input().split(), key=len))",
            _ => "1 / 0",
        };
        let text = format!("```python\n{program}\n```");
        Some(Own::Text { thought: "Let me see.".to_owned(), text, finish: "stop" })
    });
    let outcome = match ask(&job, options(&server, "ok")) {
        Ok(outcome) => outcome,
        Err(StudyError::Refused(reason)) if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("{reason}")
        }
        Err(StudyError::Refused(reason)) => return quant_testkit::skipped(reason),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(outcome.result.answers.unwrap().per_seed, [100.0, 0.0]);
    assert_eq!(outcome.result.figure.value, Some(50.0));
}
