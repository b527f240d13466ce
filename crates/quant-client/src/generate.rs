//! Texts from `/v1/chat/completions` and `/v1/completions`, streamed.

use crate::error::ClientError;
use crate::pieces::Piece;
use crate::server::Server;
use crate::stream::{Streamed, read};
use serde_json::{Map, Value, json};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: content.into() }
    }
}

/// How tokens are drawn, and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token each time.
    pub temperature: f64,
    /// Mass of the most likely tokens that is drawn from, above 0 and at most 1.
    pub top_p: f64,
    /// How many of the most likely tokens are drawn from; none leaves it to the server.
    pub top_k: Option<u32>,
    /// Of the server's generator; at most 2⁶³ - 1.
    pub seed: u64,
    /// Most tokens of the answer, at least 1.
    pub max_tokens: u32,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
}

impl Sampling {
    /// The most likely tokens, at most so many.
    pub fn greedy(max_tokens: u32) -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: None, seed: 0, max_tokens, stop: Vec::new() }
    }

    fn check(&self) -> Result<(), ClientError> {
        let refused = |name, value: String, expected| Err(ClientError::Argument { name, value, expected });
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refused("temperature", self.temperature.to_string(), "a number from 0 on");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refused("top_p", self.top_p.to_string(), "a number above 0, at most 1");
        }
        if self.top_k == Some(0) {
            return refused("top_k", "0".to_owned(), "at least 1, or none");
        }
        if i64::try_from(self.seed).is_err() {
            return refused("seed", self.seed.to_string(), "at most 9223372036854775807");
        }
        if self.max_tokens == 0 {
            return refused("max_tokens", "0".to_owned(), "at least 1");
        }
        Ok(())
    }

    /// As fields of a request to `model`, streamed.
    fn fields(&self, model: &str) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("model", json!(model));
        set("temperature", json!(self.temperature));
        set("top_p", json!(self.top_p));
        set("seed", json!(self.seed));
        set("max_tokens", json!(self.max_tokens));
        if let Some(top_k) = self.top_k {
            set("top_k", json!(top_k));
        }
        if !self.stop.is_empty() {
            set("stop", json!(self.stop));
        }
        set("stream", json!(true));
        set("stream_options", json!({"include_usage": true}));
        fields
    }
}

/// What stands before and behind a thought that the server cut off the text (`reasoning_content`, or `reasoning`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThoughtMarks {
    /// Before it.
    pub open: String,
    /// Between it and the answer.
    pub close: String,
}

impl Default for ThoughtMarks {
    /// `<think>` and `</think>`: parsers leave the line breaks in what they cut.
    fn default() -> Self {
        Self { open: "<think>".to_owned(), close: "</think>".to_owned() }
    }
}

/// A conversation to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// Its turns, at least one.
    pub messages: Vec<Message>,
    /// How the answer is drawn.
    pub sampling: Sampling,
    /// How its thought is put back.
    pub marks: ThoughtMarks,
}

/// A text to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Tokenised by the server, by its own rules about special tokens.
    Text(String),
    /// In the model's token ids.
    Tokens(Vec<u32>),
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a text of [`Sampling::stop`] did.
    Stop,
    /// It has all the tokens it may have.
    Length,
    /// What the server called it.
    Other(String),
}

/// An answer, or the continuation of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The text, of a chat with its thought put back before it. The closing mark is left out where the answer ran out of
    /// tokens within the thought.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Its tokens, where the server counts them.
    pub completion_tokens: Option<u64>,
}

impl Server {
    /// Answers a conversation; the server applies the model's chat template. `on_piece` is called with what arrives.
    ///
    /// # Errors
    ///
    /// A request that cannot be; the errors of one; [`ClientError::Unreadable`] where the stream is none, or ends without a
    /// reason; [`ClientError::Endless`] where it goes on behind `max_tokens` or the limit of bytes.
    ///
    /// ```no_run
    /// use quant_client::{ChatRequest, Message, Sampling, Server, ServerOptions, ThoughtMarks};
    ///
    /// let server = Server::open(ServerOptions::new("http://localhost:8000"))?;
    /// let request = ChatRequest {
    ///     messages: vec![Message::user("What is 6 times 7?")],
    ///     sampling: Sampling { temperature: 0.6, top_p: 0.95, seed: 42, ..Sampling::greedy(1024) },
    ///     marks: ThoughtMarks::default(),
    /// };
    /// println!("{}", server.chat(&request, &mut |_| {})?.text);
    /// # Ok::<(), quant_client::ClientError>(())
    /// ```
    pub fn chat(
        &self,
        request: &ChatRequest,
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<Generated, ClientError> {
        if request.messages.is_empty() {
            let (name, value) = ("messages", "empty".to_owned());
            return Err(ClientError::Argument { name, value, expected: "at least one message" });
        }
        let messages = request.messages.iter().map(|m| json!({"role": m.role, "content": m.content}));
        let messages = ("messages", Value::Array(messages.collect()));
        let streamed = self.streamed("/v1/chat/completions", messages, &request.sampling, on_piece)?;
        Ok(generated(streamed, &request.marks))
    }

    /// Continues a text as it is, without a chat template. `on_piece` is called with what arrives.
    ///
    /// # Errors
    ///
    /// As for [`Server::chat`].
    pub fn complete(
        &self,
        prompt: &Prompt,
        sampling: &Sampling,
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<Generated, ClientError> {
        let prompt = match prompt {
            Prompt::Tokens(tokens) if tokens.is_empty() => {
                let (name, value) = ("prompt", "without tokens".to_owned());
                return Err(ClientError::Argument { name, value, expected: "at least one token" });
            }
            Prompt::Tokens(tokens) => json!(tokens),
            Prompt::Text(text) => json!(text),
        };
        let streamed = self.streamed("/v1/completions", ("prompt", prompt), sampling, on_piece)?;
        Ok(generated(streamed, &ThoughtMarks::default()))
    }

    fn streamed(
        &self,
        path: &'static str,
        (name, asked): (&str, Value),
        sampling: &Sampling,
        on_piece: &mut dyn FnMut(Piece<'_>),
    ) -> Result<Streamed, ClientError> {
        sampling.check()?;
        let mut fields = sampling.fields(self.model());
        fields.insert(name.to_owned(), asked);
        let call = self.post(path, &Value::Object(fields));
        let mut given = false;
        self.retrying(&call, |_| {
            if std::mem::take(&mut given) {
                on_piece(Piece::Again);
            }
            read(self, &call, sampling.max_tokens, &mut |piece| {
                given = true;
                on_piece(piece);
            })
        })
    }
}

fn generated(streamed: Streamed, marks: &ThoughtMarks) -> Generated {
    let finish = match streamed.finish.as_str() {
        "stop" => Finish::Stop,
        "length" => Finish::Length,
        _ => Finish::Other(streamed.finish),
    };
    let text = match streamed.thought.as_str() {
        "" => streamed.text,
        thought if streamed.text.is_empty() && finish == Finish::Length => format!("{}{thought}", marks.open),
        thought => format!("{}{thought}{}{}", marks.open, marks.close, streamed.text),
    };
    Generated { text, finish, completion_tokens: streamed.tokens }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(thought: &str, text: &str, finish: &str) -> String {
        let (thought, text, finish) = (thought.to_owned(), text.to_owned(), finish.to_owned());
        generated(Streamed { thought, text, finish, tokens: None }, &ThoughtMarks::default()).text
    }

    #[test]
    fn thoughts_are_put_back() {
        assert_eq!(text("\na\n", "\n\nb", "stop"), "<think>\na\n</think>\n\nb");
        assert_eq!(text("a", "b", "length"), "<think>a</think>b");
        assert_eq!(text("a", "", "length"), "<think>a");
        assert_eq!(text("a", "", "stop"), "<think>a</think>");
        assert_eq!(text("", "b", "stop"), "b");
    }

    #[test]
    fn draws_that_cannot_be_are_refused() {
        let refused = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling::greedy(1);
            assert!(sampling.check().is_ok());
            change(&mut sampling);
            sampling.check().unwrap_err().to_string()
        };
        assert_eq!(refused(|s| s.temperature = -1.0), "temperature is -1, expected a number from 0 on");
        assert_eq!(refused(|s| s.temperature = f64::NAN), "temperature is NaN, expected a number from 0 on");
        assert!(refused(|s| s.top_p = 0.0).starts_with("top_p is 0, expected"));
        assert!(refused(|s| s.top_k = Some(0)).starts_with("top_k is 0, expected"));
        assert!(refused(|s| s.seed = 1 << 63).starts_with("seed is 9223372036854775808, expected at most"));
        assert!(refused(|s| s.max_tokens = 0).starts_with("max_tokens is 0, expected"));
    }
}
