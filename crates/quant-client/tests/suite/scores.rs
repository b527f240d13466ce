//! Log-likelihoods.

use super::server::{TestServer, log_probability};
use super::{SERVER, open, options};
use quant_client::{Server, for_each_concurrently};
use serde_json::json;

#[test]
fn scores_are_those_of_the_model() {
    let server = open("ok");
    let scored = server.score(&[5, 900], &[901, 902, 7]).unwrap();
    let own = [log_probability(900, 901), log_probability(901, 902), log_probability(902, 7)];
    assert_eq!(scored.tokens.iter().map(|t| t.log_probability).collect::<Vec<_>>(), own);
    assert_eq!(scored.log_likelihood, own.iter().sum::<f64>());
    assert_eq!(scored.tokens.iter().map(|t| t.greedy).collect::<Vec<_>>(), [true, true, false]);
    assert!(!scored.greedy);
    assert!(server.score(&[5], &[6, 7, 8]).unwrap().greedy);
}

#[test]
fn tokens_with_the_same_text_are_told_apart() {
    // 950 has the text of the most likely token, 903, but not its probability.
    let scored = open("ok").score(&[902], &[950]).unwrap();
    assert_eq!(scored.log_likelihood, log_probability(902, 950));
    assert!(!scored.greedy);
}

#[test]
fn the_request_is_what_was_asked() {
    open("request").score(&[1, 2], &[3]).unwrap();
    let [seen] = SERVER.seen("request").try_into().unwrap();
    assert_eq!(seen.line, "POST /request/v1/completions");
    assert_eq!(
        seen.body,
        json!({
            "model": "tiny", "prompt": [1, 2, 3], "echo": true, "logprobs": 1, "max_tokens": 1,
            "temperature": 0, "stream": false,
        })
    );
    assert_eq!(seen.headers["content-type"], "application/json");
    assert!(!seen.headers.contains_key("authorization"));
}

#[test]
fn nothing_to_score_is_a_mistake_of_the_caller() {
    let server = open("never-asked");
    for (context, continuation, name) in [(&[][..], &[1][..], "context"), (&[1], &[], "continuation")] {
        let error = server.score(context, continuation).unwrap_err();
        assert_eq!(error.to_string(), format!("{name} is without tokens, expected at least one token"));
        assert!(!error.is_unreachable() && !error.is_unreadable());
    }
    assert!(SERVER.seen("never-asked").is_empty());
}

#[test]
fn answers_that_lack_a_score_are_refused_with_the_reason() {
    for (fault, expected, found) in [
        ("no-logprobs", "expected logprobs", "found none"),
        ("null-logprob", "expected a log-probability of token 1", "found null"),
        (
            "few-logprobs",
            "expected token_logprobs of the 4 tokens sent and of one generated",
            "found 3 entries",
        ),
        ("adds-bos", "expected a prompt of the 4 tokens sent", "found one of 5"),
        ("no-top", "expected the most likely token in place of token 2", "found none"),
        ("wrong-type", "expected a completion with logprobs", "invalid type: string \"-1\", expected f64"),
        ("malformed", "expected a completion with logprobs", "found {\"choices\": [}"),
        ("html", "expected a completion with logprobs", "found <html><body>Welcome</body></html>"),
    ] {
        let error = open(fault).score(&[1, 2], &[3, 4]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains(found), "{fault}: {text}");
        assert!(text.starts_with("POST http://127.0.0.1:") && text.contains("; "), "{fault}: {text}");
        assert!(error.is_unreadable() && !error.is_unreachable(), "{fault}");
        assert_eq!(SERVER.seen(fault).len(), 1, "{fault}: what cannot be read is not asked for again");
    }
}

#[test]
fn many_are_scored_at_a_time_and_in_order() {
    // A server of its own, as it counts.
    let own = TestServer::start();
    let mut options = options("slow-scores");
    options.url = own.url("slow-scores");
    let server = Server::open(options).unwrap();
    let items: Vec<u32> = (1..=24).collect();
    let scores = for_each_concurrently(&items, 8, |_, &token| server.score(&[token], &[3, token])).unwrap();
    for (token, scored) in items.iter().zip(&scores) {
        let expected = log_probability(*token, 3) + log_probability(3, *token);
        assert_eq!(scored.log_likelihood, expected);
    }
    assert!((2..=8).contains(&own.most_running()), "{}", own.most_running());
    // Connections are kept: 24 requests went over at most eight.
    assert!(own.connections() <= 8, "{}", own.connections());
}
