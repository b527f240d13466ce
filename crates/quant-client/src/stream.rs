//! A streamed answer, put together.

use crate::events::Events;
use crate::pieces::Piece;
use crate::retry::Failure;
use crate::server::{Call, Server};
use serde::Deserialize;
use serde_json::Value;

/// What a stream that is none, or breaks off, has to say to its reader.
const ADVICE: &str = "is this the address of an OpenAI-compatible server?";

/// All that a stream said.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    pub(crate) thought: String,
    pub(crate) text: String,
    /// The server's word for why it ended.
    pub(crate) finish: String,
    pub(crate) tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
    object: Option<String>,
}
#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
}
#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}
#[derive(Deserialize)]
struct Usage {
    completion_tokens: Option<u64>,
}

/// Sends a request once and reads the stream that answers it.
pub(crate) fn read(
    server: &Server,
    call: &Call,
    max_tokens: u32,
    on_piece: &mut dyn FnMut(Piece<'_>),
) -> Result<Streamed, Failure> {
    let answer = server.send(call)?;
    if !answer.streams() {
        let text = answer.whole()?;
        return Err(call.unreadable("a stream of events", server.shown(&text), ADVICE).into());
    }
    let mut events = Events::new(answer);
    let mut all = Streamed::default();
    let mut finish = None;
    let mut pieces = 0_u64;
    loop {
        let data = match events.next() {
            Ok(Some(data)) => data,
            Ok(None) => break,
            // Nothing of the text is missing.
            Err(_) if finish.is_some() => break,
            Err(failure) => return Err(failure),
        };
        if data == b"[DONE]" {
            if finish.is_none() {
                let found = format!("[DONE] after {pieces} pieces of text");
                return Err(call.unreadable("a finish_reason", found, ADVICE).into());
            }
            break;
        }
        let chunk: Chunk = serde_json::from_slice(&data).map_err(|error| {
            let found = server.unparsed(&data, &error);
            call.unreadable("an event with a piece of a completion", found, ADVICE)
        })?;
        if chunk.error.is_some() || chunk.object.as_deref() == Some("error") {
            return Err(refused(server, call, &data));
        }
        if let Some(usage) = chunk.usage {
            all.tokens = usage.completion_tokens.or(all.tokens);
        }
        let Some(choice) = chunk.choices.into_iter().next() else { continue };
        let (thought, text) = parts(&choice);
        if !thought.is_empty() {
            pieces += 1;
            all.thought.push_str(thought);
            on_piece(Piece::Thought(thought));
        }
        if !text.is_empty() {
            pieces += 1;
            all.text.push_str(text);
            on_piece(Piece::Text(text));
        }
        finish = choice.finish_reason.or(finish);
        // Each piece is at least one token, but for one that a parser of thoughts cut in two.
        if pieces > 2 * u64::from(max_tokens) + 16 {
            let limit = format!("{pieces} pieces of text, where max_tokens was {max_tokens}");
            return Err(call.endless(limit, "the server does not heed max_tokens; use another").into());
        }
    }
    match finish {
        Some(finish) => Ok(Streamed { finish, ..all }),
        None => {
            let reason =
                format!("the stream broke off after {pieces} pieces of text, without a finish_reason");
            Err(Failure::Passing(call.unreachable(reason, "the server's log may say why"), None))
        }
    }
}

/// The thought and the text of a piece. Servers that send the thought under both names send it twice.
fn parts(choice: &Choice) -> (&str, &str) {
    let text = choice.text.as_deref().unwrap_or_default();
    let Some(delta) = &choice.delta else { return ("", text) };
    let thought = [&delta.reasoning_content, &delta.reasoning];
    let thought = thought.into_iter().flatten().find(|t| !t.is_empty());
    (thought.map_or("", String::as_str), delta.content.as_deref().unwrap_or(text))
}

/// An error that came as an event: `{"error": {"code": 500, …}}`, or with the code on top.
fn refused(server: &Server, call: &Call, data: &[u8]) -> Failure {
    let value: Value = serde_json::from_slice(data).unwrap_or_default();
    let code = [&value["error"]["code"], &value["code"]].into_iter().find_map(|code| {
        code.as_u64().or_else(|| code.as_str()?.parse().ok()).and_then(|code| u16::try_from(code).ok())
    });
    // An error without a code is the server's own.
    server.refused(call, code.filter(|code| *code >= 400).unwrap_or(500), server.shown(data), None)
}
