//! Texts, judged as those of a model in process.

use super::server::{Own, TestServer};
use super::{ask, in_process, job, options, tiny_reasoner};
use quant_data::{Said, Task, built_in_task};
use quant_study::{Record, Signs, StudyError, TaskJob, TaskOutcome};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

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
