//! Connections and answers that fail.

use super::server::{greedy_text, log_probability};
use super::{SERVER, open, options};
use quant_client::{ClientError, Prompt, Sampling, Server, ServerOptions};
use std::net::TcpListener;
use std::time::{Duration, Instant};

fn error_of(options: ServerOptions) -> ClientError {
    Server::open(options).unwrap().score(&[1], &[2]).unwrap_err()
}

#[test]
fn what_passes_is_tried_again() {
    for (fault, requests) in [
        ("429-once", 2),
        ("500-twice", 3),
        ("cut-head-once", 2),
        ("length-long-once", 2),
        ("length-short-once", 2),
    ] {
        let began = Instant::now();
        let scored = open(fault).score(&[1], &[9]).unwrap();
        assert_eq!(scored.log_likelihood, log_probability(1, 9), "{fault}");
        assert_eq!(SERVER.seen(fault).len(), requests, "{fault}");
        // `Retry-After: 1` is heard.
        assert_eq!(began.elapsed() >= Duration::from_secs(1), fault == "429-once", "{fault}");
    }
}

#[test]
fn what_does_not_pass_is_given_up_with_its_reason() {
    for (fault, said) in [
        ("429-always", "expected status 200, the server answered 429 (3 attempts): {\"error\":"),
        ("503-always", "answered 503 (3 attempts)"),
        ("cut-head", "the connection was cut"),
        ("length-long", "the connection was cut"),
    ] {
        let error = error_of(options(fault));
        assert!(error.is_unreachable() && !error.is_unreadable(), "{fault}: {error}");
        let text = error.to_string();
        assert!(text.contains(said) && text.contains("(3 attempts)"), "{fault}: {text}");
        assert!(!text.contains('\u{1b}'), "{fault}: {text}");
        assert_eq!(SERVER.seen(fault).len(), 3, "{fault}");
    }
}

#[test]
fn half_an_answer_is_tried_again_and_then_unreadable() {
    for fault in ["cut-json", "length-short"] {
        let error = error_of(options(fault));
        assert!(error.is_unreadable(), "{fault}: {error}");
        assert!(error.to_string().contains("EOF while parsing"), "{fault}: {error}");
        assert_eq!(SERVER.seen(fault).len(), 3, "{fault}");
    }
}

#[test]
fn refusals_are_final() {
    let error = error_of(options("bad-request"));
    let text = error.to_string();
    assert!(text.contains("answered 400 (1 attempts)") && text.contains("maximum context length"), "{text}");
    assert!(!error.is_unreachable() && !error.is_unreadable());
    assert_eq!(SERVER.seen("bad-request").len(), 1);
    let mut lost = options("ok");
    lost.url.push_str("/wrong");
    let text = error_of(lost).to_string();
    assert!(text.contains("answered 404") && text.contains("URL that of its root"), "{text}");
    let error = error_of(options("no-http"));
    assert!(error.is_unreadable() && error.to_string().contains("expected an answer in HTTP/1.1"), "{error}");
}

#[test]
fn a_server_that_asks_for_a_day_is_left() {
    let began = Instant::now();
    let error = error_of(options("429-long"));
    assert!(error.to_string().contains("asks to wait 86400 seconds"), "{error}");
    assert!(error.is_unreachable() && began.elapsed() < Duration::from_secs(5));
    assert_eq!(SERVER.seen("429-long").len(), 1);
}

#[test]
fn nobody_listens() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut options = options("ok");
    options.url = format!("http://127.0.0.1:{port}");
    let error = error_of(options);
    let text = error.to_string();
    assert!(text.contains("the connection was refused (3 attempts); is the server running"), "{text}");
    assert!(error.is_unreachable());
}

#[test]
fn slow_is_no_fault_but_silence_is() {
    let mut patient = options("slow-tokens");
    // Longer than the time between two tokens, shorter than all of them.
    patient.idle_timeout = Duration::from_millis(1200);
    let prompt = Prompt::Tokens(vec![6]);
    let server = Server::open(patient).unwrap();
    let began = Instant::now();
    let answer = server.complete(&prompt, &Sampling::greedy(20), &mut |_| {}).unwrap();
    assert_eq!(answer.text, greedy_text(6, 20));
    assert!(began.elapsed() > Duration::from_millis(1200));

    for fault in ["stall", "stall-stream"] {
        let mut options = options(fault);
        options.idle_timeout = Duration::from_millis(200);
        let server = Server::open(options).unwrap();
        let began = Instant::now();
        let error = server.complete(&prompt, &Sampling::greedy(9), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("nothing arrived for 200ms (1 attempts)"), "{fault}: {error}");
        assert!(error.is_unreachable() && began.elapsed() < Duration::from_secs(5), "{fault}");
        assert_eq!(SERVER.seen(fault).len(), 1, "{fault}: a time-out is not tried again");
    }
}

#[test]
fn an_answer_has_its_time() {
    let mut options = options("slow-tokens~2");
    options.timeout = Duration::from_millis(300);
    let server = Server::open(options).unwrap();
    let error = server.complete(&Prompt::Tokens(vec![6]), &Sampling::greedy(100), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("the answer took longer than 300ms (1 attempts)"), "{error}");
    assert!(error.is_unreachable());
}

#[test]
fn answers_without_end_are_left() {
    for fault in ["endless-json", "endless-line", "endless-comments"] {
        let mut options = options(fault);
        options.max_bytes = 100_000;
        let server = Server::open(options).unwrap();
        let error = match fault {
            "endless-json" => server.score(&[1], &[2]).unwrap_err(),
            _ => server.complete(&Prompt::Tokens(vec![6]), &Sampling::greedy(9), &mut |_| {}).unwrap_err(),
        };
        assert!(error.to_string().contains("it has more than 100000 bytes"), "{fault}: {error}");
        assert!(error.is_unreadable(), "{fault}");
    }
    // Also that of an error.
    let error = error_of(options("endless-error"));
    assert!(error.to_string().contains("answered 400") && error.to_string().len() < 600, "{error}");
}

#[test]
fn a_connection_with_leftovers_is_not_used_again() {
    // What the first answer has too much must not become the head of the second.
    let server = open("ok");
    let mut options = options("length-short~2");
    options.retries = 0;
    let faulty = Server::open(options).unwrap();
    for _ in 0..3 {
        assert!(faulty.score(&[1], &[2]).unwrap_err().to_string().contains("EOF while parsing"));
        assert_eq!(server.score(&[1], &[2]).unwrap().log_likelihood, log_probability(1, 2));
    }
}

#[test]
fn a_stopped_server_asks_nothing_more_and_leaves_what_runs() {
    use quant_client::{ChatRequest, Message, ThoughtMarks};
    let request = ChatRequest {
        messages: vec![Message::user("t5")],
        sampling: Sampling::greedy(900),
        marks: ThoughtMarks::default(),
    };
    // A token every 80 ms; and a wait of a day between two attempts.
    let mut patient = options("503-always~stopped");
    (patient.backoff, patient.most_backoff) = (Duration::from_secs(86_400), Duration::MAX);
    for server in [open("slow-tokens"), Server::open(patient).unwrap()] {
        let began = Instant::now();
        let error = std::thread::scope(|scope| {
            let asked = scope.spawn(|| server.chat(&request, &mut |_| {}).unwrap_err());
            std::thread::sleep(Duration::from_millis(300));
            server.stop();
            asked.join().unwrap()
        });
        assert!(matches!(&error, ClientError::Stopped { .. }), "{error}");
        assert!(!error.is_unreachable() && !error.is_unreadable() && began.elapsed().as_secs() < 10);
        let seen = SERVER.seen("slow-tokens").len();
        assert!(matches!(server.score(&[1], &[2]), Err(ClientError::Stopped { .. })));
        assert_eq!(SERVER.seen("slow-tokens").len(), seen);
    }
}
