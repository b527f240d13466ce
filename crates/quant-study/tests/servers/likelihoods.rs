//! Choices and texts, by the log-likelihoods of prompts.

use super::server::TestServer;
use super::{ask, choices, echo, in_process, job, options};
use quant_data::built_in_task;
use quant_study::{Record, StudyError, TaskJob};

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

/// The perplexity of a text is that of the model in process, window by window, also of a run that was cut.
#[test]
fn a_text_is_as_likely_as_in_process() {
    let folder = tempfile::tempdir().unwrap();
    let text = job(built_in_task("tiny-text").unwrap(), 3);
    let expected = in_process(&text).result;
    let server = TestServer::start_with(echo);
    let kept = TaskJob { output: Some(folder.path().join("text")), ..text.clone() };
    let found = ask(&kept, options(&server, "ok")).unwrap();
    assert_eq!(server.seen("ok").len(), 3 + 1, "one request a window, and one for the name of the model");
    assert_eq!((found.result.items, found.records.len()), (3, 3));
    let (own, other) = (found.result.figure.value.unwrap(), expected.figure.value.unwrap());
    assert!((own / other - 1.0).abs() < 1e-9, "{own} {other}");
    let (own, other) = (found.result.text.clone().unwrap(), expected.text.unwrap());
    assert_eq!((own.tokens, own.kl, own.top1_agreement), (other.tokens, None, None));
    // Windows that were scored are not asked for again.
    let journal = folder.path().join("text/items.jsonl");
    let all = std::fs::read_to_string(&journal).unwrap();
    std::fs::remove_file(folder.path().join("text/result.json")).unwrap();
    let (first, _) = all.split_once('\n').unwrap();
    std::fs::write(&journal, format!("{first}\n{{\"kind\":\"win")).unwrap();
    let again = ask(&TaskJob { resume: true, ..kept }, options(&server, "ok")).unwrap();
    assert_eq!((again.result, server.seen("ok").len()), (found.result, 4 + 2 + 1));
    assert_eq!(std::fs::read_to_string(&journal).unwrap(), all);
    // What the server has no room for is refused before anything is asked.
    let written = text.task.written().replace("window: 256", "window: 4096");
    let long = TaskJob { task: quant_data::Task::parse(&written).unwrap(), ..text };
    let error = ask(&long, options(&server, "long")).unwrap_err();
    assert!(matches!(&error, StudyError::Refused(words) if words.contains("smaller `window`")), "{error}");
    assert_eq!(server.seen("long").len(), 1);
}
