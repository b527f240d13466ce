//! Streamed texts.

use super::server::greedy_text;
use super::{SERVER, open};
use quant_client::{ChatRequest, Finish, Message, Piece, Prompt, Sampling, ThoughtMarks};
use serde_json::json;

fn request(content: &str, max_tokens: u32) -> ChatRequest {
    ChatRequest {
        messages: vec![
            Message { role: "system".to_owned(), content: "be brief".to_owned() },
            Message::user(content),
        ],
        sampling: Sampling::greedy(max_tokens),
        marks: ThoughtMarks::default(),
    }
}

/// Pieces as a test can compare them.
fn note(piece: Piece<'_>) -> String {
    match piece {
        Piece::Thought(text) => format!("thought {text}"),
        Piece::Text(text) => format!("text {text}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn chats_are_put_together_from_their_pieces() {
    let mut pieces = Vec::new();
    let answer = open("ok").chat(&request("t5 t6", 4), &mut |piece| pieces.push(note(piece))).unwrap();
    assert_eq!(answer.text, greedy_text(6, 4));
    assert_eq!((answer.finish, answer.completion_tokens), (Finish::Length, Some(4)));
    assert_eq!(pieces, ["text t7 ", "text t8 ", "text t9 ", "text t10 "]);
    // Up to the token that ends the text.
    let answer = open("ok").chat(&request("t997", 100), &mut |_| {}).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("\u{fffd}\u{fffd}", Finish::Stop));
    assert_eq!(answer.completion_tokens, Some(3));
}

#[test]
fn thoughts_are_put_back_before_the_answer() {
    for fault in ["reasoning-content", "reasoning"] {
        let mut pieces = Vec::new();
        let mut asked = request("t5 t6", 4);
        asked.marks = ThoughtMarks { open: "<t>\n".to_owned(), close: "</t>".to_owned() };
        let answer = open(fault).chat(&asked, &mut |piece| pieces.push(note(piece))).unwrap();
        assert_eq!(answer.text, "<t>\nt7 t8 </t>t9 t10 ", "{fault}");
        assert_eq!(pieces, ["thought t7 ", "thought t8 ", "text t9 ", "text t10 "], "{fault}");
        // Out of tokens within the thought.
        asked.sampling.max_tokens = 2;
        assert_eq!(open(fault).chat(&asked, &mut |_| {}).unwrap().text, "<t>\nt7 t8 ", "{fault}");
    }
}

#[test]
fn texts_are_continued_as_text_and_as_tokens() {
    for prompt in [Prompt::Text("t5 t6".to_owned()), Prompt::Tokens(vec![5, 6])] {
        let answer = open("ok").complete(&prompt, &Sampling::greedy(3), &mut |_| {}).unwrap();
        assert_eq!((answer.text, answer.finish), (greedy_text(6, 3), Finish::Length));
    }
    let error = open("ok").complete(&Prompt::Tokens(vec![]), &Sampling::greedy(3), &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "prompt is without tokens, expected at least one token");
}

#[test]
fn the_request_is_what_was_asked() {
    let mut asked = request("t5", 7);
    let (top_k, stop) = (Some(20), vec!["\n\n".to_owned()]);
    asked.sampling = Sampling { temperature: 0.6, top_p: 0.95, top_k, seed: 42, max_tokens: 7, stop };
    open("chat-request").chat(&asked, &mut |_| {}).unwrap();
    let [seen] = SERVER.seen("chat-request").try_into().unwrap();
    assert_eq!(seen.line, "POST /chat-request/v1/chat/completions");
    assert_eq!(
        seen.body,
        json!({
            "model": "tiny", "temperature": 0.6, "top_p": 0.95, "top_k": 20, "seed": 42, "max_tokens": 7, "stop": ["\n\n"],
            "stream": true, "stream_options": {"include_usage": true},
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "t5"}],
        })
    );
    asked.messages.clear();
    let error = open("chat-request").chat(&asked, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "messages is empty, expected at least one message");
    assert_eq!(SERVER.seen("chat-request").len(), 1);
}

#[test]
fn a_stream_that_was_cut_begins_again() {
    let mut pieces = Vec::new();
    let answer = open("cut-stream-once").chat(&request("t6", 5), &mut |p| pieces.push(note(p))).unwrap();
    assert_eq!(answer.text, greedy_text(6, 5));
    let again = pieces.iter().position(|p| p == "Again").unwrap();
    assert_eq!((again, pieces.len()), (3, 9), "{pieces:?}");
    assert_eq!(SERVER.seen("cut-stream-once").len(), 2);

    let error = open("cut-stream").chat(&request("t6", 5), &mut |_| {}).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(error.to_string().contains("(3 attempts)"), "{error}");
    assert_eq!(SERVER.seen("cut-stream").len(), 3);
}

#[test]
fn what_comes_after_the_reason_of_the_end_may_be_missing() {
    for fault in ["cut-after-finish", "no-usage"] {
        let answer = open(fault).chat(&request("t6", 5), &mut |_| {}).unwrap();
        assert_eq!((answer.text, answer.completion_tokens), (greedy_text(6, 5), None), "{fault}");
        assert_eq!(SERVER.seen(fault).len(), 1, "{fault}");
    }
}

#[test]
fn streams_that_say_something_else_are_refused() {
    for (fault, expected, found) in [
        ("malformed-event", "an event with a piece of a completion", "{\"choices\":7} (invalid type"),
        ("no-finish", "a finish_reason", "[DONE] after 3 pieces of text"),
        ("not-streamed", "a stream of events", "{\"choices\":[{"),
    ] {
        let error = open(fault).chat(&request("t6", 5), &mut |_| {}).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("expected {expected}, found {found}")), "{fault}: {text}");
        assert!(error.is_unreadable(), "{fault}");
    }
}

#[test]
fn errors_within_a_stream_count_like_statuses() {
    let error = open("error-event").chat(&request("t6", 5), &mut |_| {}).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("answered 500 (3 attempts)") && text.contains("the engine died"), "{text}");
    assert!(error.is_unreachable());
    let error = open("error-event-400").chat(&request("t6", 5), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("answered 400 (1 attempts)"), "{error}");
    assert!(!error.is_unreachable() && !error.is_unreadable());
}

#[test]
fn a_stream_without_end_is_left() {
    let mut pieces = 0;
    let error = open("endless").chat(&request("t6", 5), &mut |_| pieces += 1).unwrap_err();
    assert!(error.is_unreadable(), "{error}");
    assert!(error.to_string().contains("27 pieces of text, where max_tokens was 5"), "{error}");
    assert_eq!(pieces, 27);
}
