//! What is answered, by fault.

use super::model::{EOS, echoed, most_likely, piece, tokens_of};
use super::{Own, Seen, reply};
use serde_json::{Value, json};
use std::io::{Result, Write};
use std::time::Duration;

const JSON: &str = "application/json";
const OK: &str = "200 OK";

/// Answers a request; false closes the connection. `earlier` counts the requests under this fault before this one.
pub(super) fn answer(
    out: &mut impl Write,
    fault: &str,
    path: &str,
    request: &Seen,
    earlier: usize,
) -> Result<bool> {
    let error = |text: &str| json!({"error": {"message": text, "type": "x", "code": null}}).to_string();
    let key = request.headers.get("authorization").cloned().unwrap_or_default();
    let refuse = |out: &mut _, status: &str, headers: &str, text: &str| {
        reply(out, status, headers, JSON, error(text).as_bytes())
    };
    match fault {
        "needs-key" if key != "Bearer sk-right" => refuse(out, "401 Unauthorized", "", "Unauthorized"),
        "key-echo" => {
            refuse(out, "401 Unauthorized", "", &format!("wrong: {key}, {key}. {}", "x".repeat(300)))
        }
        "key-echo-200" => reply(out, OK, "", JSON, format!("[\"{key}\"").as_bytes()),
        "bad-request" => {
            refuse(out, "400 Bad Request", "", "this model's maximum context length is 8 tokens")
        }
        "429-once" if earlier == 0 => refuse(out, "429 Too Many", "Retry-After: 1\r\n", "busy"),
        "429-always" => refuse(out, "429 Too Many", "", "busy"),
        "429-long" => refuse(out, "429 Too Many", "Retry-After: 86400\r\n", "busy"),
        "500-twice" if earlier < 2 => refuse(out, "500 Internal Server Error", "", "oops"),
        "503-always" => refuse(out, "503 Service Unavailable", "", "loading\u{1b}[2J"),
        "endless-error" => {
            write!(out, "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            loop {
                chunk(out, &[b'x'; 1000])?;
            }
        }
        "redirect" => refuse(out, "307 Temporary Redirect", "Location: http://127.0.0.1:9/v1\r\n", "moved"),
        "html" => reply(out, OK, "", "text/html", b"<html><body>Welcome</body></html>"),
        "no-http" => out.write_all(b"SSH-2.0-OpenSSH_9.6\r\n\r\n").map(|()| false),
        "cut-head-once" if earlier == 0 => Ok(false),
        "cut-head" => out.write_all(b"HTTP/1.1 200 O").map(|()| false),
        "stall" => {
            std::thread::sleep(Duration::from_secs(20));
            Ok(false)
        }
        "models-none" => reply(out, OK, "", JSON, b"{\"data\": []}"),
        "models-two" => reply(out, OK, "", JSON, b"{\"data\": [{\"id\": \"a\"}, {\"id\": \"b\"}]}"),
        _ => match path {
            "v1/models" => {
                let models = json!({"object": "list", "data": [{"id": "tiny", "max_model_len": 4096}]});
                reply(out, OK, "", JSON, models.to_string().as_bytes())
            }
            "v1/completions" if request.body["echo"] == true => scores(out, fault, request, earlier),
            "v1/completions" | "v1/chat/completions" => stream(out, fault, path, request, earlier),
            _ => refuse(out, "404 Not Found", "", "Not Found"),
        },
    }
}

/// What a test answers itself.
pub(super) fn own(out: &mut impl Write, path: &str, own: Own) -> Result<bool> {
    let (thought, text, finish) = match own {
        Own::Json(value) => return reply(out, OK, "", JSON, value.to_string().as_bytes()),
        Own::Bytes { status, headers, body, sent } if sent >= body.len() => {
            return reply(out, status, &headers, "application/octet-stream", &body);
        }
        Own::Bytes { status, headers, body, sent } => {
            write!(out, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len())?;
            return out.write_all(&body[..sent]).map(|()| false);
        }
        Own::Cut => return Ok(false),
        Own::Text { thought, text, finish } => (thought, text, finish),
    };
    write!(out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let chat = path == "v1/chat/completions";
    let choice = |name: &str, piece: &str, finish: Value| match chat {
        true => json!({"choices": [{"index": 0, "delta": {name: piece}, "finish_reason": finish}]}),
        false => json!({"choices": [{"index": 0, "text": piece, "finish_reason": finish}]}),
    };
    for (name, text) in [("reasoning_content", thought), ("content", text)] {
        for piece in text.split_inclusive(' ') {
            event(out, &choice(name, piece, Value::Null))?;
        }
    }
    event(out, &choice("content", "", json!(finish)))?;
    chunk(out, b"data: [DONE]\n\n")?;
    chunk(out, b"")?;
    Ok(true)
}

/// The answer to a prompt to be scored.
fn scores(out: &mut impl Write, fault: &str, request: &Seen, earlier: usize) -> Result<bool> {
    let prompt = tokens_of(&request.body["prompt"]);
    let mut value = echoed(&prompt);
    let logprobs = &mut value["choices"][0]["logprobs"];
    match fault {
        "no-logprobs" => *logprobs = Value::Null,
        "null-logprob" => logprobs["token_logprobs"][1] = Value::Null,
        "few-logprobs" => {
            for name in ["token_logprobs", "top_logprobs"] {
                logprobs[name].as_array_mut().unwrap().truncate(prompt.len() - 1);
            }
        }
        // A server that puts a token of its own before the prompt.
        "adds-bos" => {
            for name in ["token_logprobs", "top_logprobs"] {
                logprobs[name].as_array_mut().unwrap().insert(1, json!(null));
            }
            value["usage"]["prompt_tokens"] = json!(prompt.len() + 1);
        }
        "no-top" => {
            logprobs["top_logprobs"].as_array_mut().unwrap().iter_mut().for_each(|t| *t = Value::Null);
        }
        "wrong-type" => logprobs["token_logprobs"][1] = json!("-1"),
        "slow-scores" => std::thread::sleep(Duration::from_millis(30)),
        _ => {}
    }
    let text = value.to_string();
    let bytes = text.as_bytes();
    let claimed = |out: &mut dyn Write, length: usize, sent: &[u8]| {
        write!(out, "HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\nContent-Length: {length}\r\n\r\n")?;
        out.write_all(sent)
    };
    match fault {
        "malformed" => reply(out, OK, "", JSON, b"{\"choices\": [}"),
        // Says more than it sends, then closes.
        "length-long-once" if earlier == 0 => claimed(out, bytes.len() + 100, bytes).map(|()| false),
        "length-long" => claimed(out, bytes.len() + 100, bytes).map(|()| false),
        // Says less than it sends, and keeps the connection.
        "length-short" => claimed(out, bytes.len() - 20, bytes).map(|()| true),
        "length-short-once" if earlier == 0 => claimed(out, bytes.len() - 20, bytes).map(|()| true),
        // Without a length, cut.
        "cut-json" => {
            write!(out, "HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\n\r\n")?;
            out.write_all(&bytes[..bytes.len() / 2]).map(|()| false)
        }
        "endless-json" => {
            write!(out, "HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            loop {
                chunk(out, &[b' '; 1000])?;
            }
        }
        _ => reply(out, OK, "", JSON, bytes),
    }
}

fn chunk(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    write!(out, "{:x}\r\n", bytes.len())?;
    out.write_all(bytes)?;
    out.write_all(b"\r\n")?;
    out.flush()
}

fn event(out: &mut impl Write, value: &Value) -> Result<()> {
    chunk(out, format!("data: {value}\n\n").as_bytes())
}

/// A streamed text: the tokens that follow the last number of the prompt, until [`EOS`] or `max_tokens`.
fn stream(out: &mut impl Write, fault: &str, path: &str, request: &Seen, earlier: usize) -> Result<bool> {
    let chat = path == "v1/chat/completions";
    let prompt = match chat {
        true => tokens_of(&request.body["messages"].as_array().unwrap().last().unwrap()["content"]),
        false => tokens_of(&request.body["prompt"]),
    };
    if fault == "not-streamed" {
        let body = json!({"choices": [{"message": {"content": "t1 "}, "finish_reason": "stop"}]}).to_string();
        return reply(out, OK, "", JSON, body.as_bytes());
    }
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    )?;
    let choice = |text: &str, name: &str, finish: Value| match chat {
        true => json!({"choices": [{"index": 0, "delta": {name: text}, "finish_reason": finish}]}),
        false => json!({"choices": [{"index": 0, "text": text, "finish_reason": finish}]}),
    };
    if chat {
        event(out, &json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))?;
    }
    // A thought of two tokens.
    let thought = match fault {
        "reasoning-content" => "reasoning_content",
        "reasoning" => "reasoning",
        _ => "",
    };
    let mut last = prompt.last().copied().unwrap_or(0);
    let (mut made, most) = (0, request.body["max_tokens"].as_u64().unwrap());
    let finish = loop {
        if made == most && !fault.starts_with("endless") {
            break "length";
        }
        last = most_likely(last);
        if last == EOS && !fault.starts_with("endless") {
            made += 1;
            break "stop";
        }
        if made == 3 {
            match fault {
                "cut-stream" => return Ok(false),
                "cut-stream-once" if earlier == 0 => return Ok(false),
                "stall-stream" => std::thread::sleep(Duration::from_secs(20)),
                "malformed-event" => event(out, &json!({"choices": 7}))?,
                "no-finish" => {
                    chunk(out, b"data: [DONE]\n\n")?;
                    chunk(out, b"")?;
                    return Ok(true);
                }
                "error-event" => {
                    event(out, &json!({"error": {"message": "the engine died", "code": 500}}))?;
                    return Ok(false);
                }
                "error-event-400" => {
                    event(out, &json!({"object": "error", "message": "no", "code": 400}))?;
                    return Ok(false);
                }
                "endless-line" => loop {
                    chunk(out, &[b'x'; 1000])?;
                },
                "endless-comments" => loop {
                    chunk(out, b": ping\n\n")?;
                },
                _ => {}
            }
        }
        if fault == "slow-tokens" {
            std::thread::sleep(Duration::from_millis(80));
        }
        let name = if !thought.is_empty() && made < 2 { thought } else { "content" };
        event(out, &choice(&piece(last), name, Value::Null))?;
        made += 1;
    };
    event(out, &choice("", "content", json!(finish)))?;
    if fault == "cut-after-finish" {
        return Ok(false);
    }
    if request.body["stream_options"]["include_usage"] == true && fault != "no-usage" {
        event(out, &json!({"choices": [], "usage": {"completion_tokens": made}}))?;
    }
    chunk(out, b": bye\n\ndata: [DONE]\n\n")?;
    chunk(out, b"")?;
    Ok(true)
}
