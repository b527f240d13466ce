//! One server, and one request to it.

use crate::error::{ClientError, is_passing};
use crate::key::excerpt;
use crate::options::{ServerOptions, base};
use crate::retry::{Failure, with_retries};
use crate::transport::agent;
use serde::Deserialize;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::http::{HeaderMap, HeaderValue, header};
use ureq::{Agent, BodyReader, Timeout};

/// Bytes of an error's answer that are read.
const ERROR_BYTES: u64 = 64 << 10;
/// Models that are named in an error.
const NAMED: usize = 5;

/// A server that speaks the OpenAI protocol.
///
/// Only its own address is contacted: redirects are refused, and no proxy is used. It may be shared by threads.
///
/// ```no_run
/// use quant_client::{Server, ServerOptions};
///
/// let server = Server::open(ServerOptions::new("http://localhost:8000"))?;
/// let scored = server.score(&[9707, 11], &[1879])?;
/// println!("{}: {}", server.model(), scored.log_likelihood);
/// # Ok::<(), quant_client::ClientError>(())
/// ```
#[derive(Debug)]
pub struct Server {
    agent: Agent,
    base: String,
    model: String,
    max_length: Option<u64>,
    options: ServerOptions,
    stopped: AtomicBool,
}

/// The part of `GET /v1/models` that is looked at.
#[derive(Deserialize)]
struct Models {
    data: Vec<ModelCard>,
}
#[derive(Deserialize)]
struct ModelCard {
    id: String,
    max_model_len: Option<u64>,
}

impl Server {
    /// Takes up with a server. With a model in the options nothing is sent; without one, `GET /v1/models` names it.
    ///
    /// # Errors
    ///
    /// Options that cannot be; the errors of a request; [`ClientError::Models`] where there is not exactly one.
    pub fn open(options: ServerOptions) -> Result<Self, ClientError> {
        options.check()?;
        let (agent, base) = (agent(&options), base(&options.url)?);
        let model = options.model.clone().unwrap_or_default();
        let stopped = AtomicBool::new(false);
        let mut server = Self { agent, base, model, max_length: None, options, stopped };
        if server.options.model.is_none() {
            let call = server.get("/v1/models");
            let models: Models = server.json(&call, "a list of models, {\"data\": [{\"id\": …}]}")?;
            let [ModelCard { id, max_model_len }] = models.data.as_slice() else {
                let names: Vec<&str> = models.data.iter().take(NAMED).map(|m| m.id.as_str()).collect();
                let found = match names.as_slice() {
                    [] => "none".to_owned(),
                    names => server.shown(format!("{}: {}", models.data.len(), names.join(", ")).as_bytes()),
                };
                return Err(ClientError::Models { request: call.name, found });
            };
            (server.model, server.max_length) = (id.clone(), *max_model_len);
        }
        Ok(server)
    }

    /// The model that is asked.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The address, without `/v1`.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Ends the requests of all threads, and those to come, with [`ClientError::Stopped`]. One that waits for a byte ends when it
    /// comes, or by a time-out.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Most tokens of prompt and answer together, where the list of models says so (vLLM does).
    pub fn max_length(&self) -> Option<u64> {
        self.max_length
    }

    fn get(&self, path: &'static str) -> Call {
        let address = format!("{}{path}", self.base);
        Call { name: format!("GET {address}"), address, body: None }
    }

    pub(crate) fn post(&self, path: &'static str, body: &serde_json::Value) -> Call {
        let address = format!("{}{path}", self.base);
        Call { name: format!("POST {address}"), address, body: Some(body.to_string().into_bytes()) }
    }

    /// Sends a request and reads its answer as JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        call: &Call,
        expected: &str,
    ) -> Result<T, ClientError> {
        self.retrying(call, |_| {
            let text = self.send(call)?.whole()?;
            serde_json::from_slice(&text).map_err(|error| {
                let found = self.unparsed(&text, &error);
                let unreadable =
                    call.unreadable(expected, found, "is this the address of an OpenAI-compatible server?");
                // A connection closed too early, without a length that would tell.
                if error.is_eof() { Failure::Passing(unreadable, None) } else { Failure::Final(unreadable) }
            })
        })
    }

    pub(crate) fn retrying<T>(
        &self,
        call: &Call,
        attempt: impl FnMut(u32) -> Result<T, Failure>,
    ) -> Result<T, ClientError> {
        with_retries(&self.options, call.body.as_deref().unwrap_or_default(), &self.stopped, attempt)
            .unwrap_or_else(|| Err(self.stopped(call)))
    }

    /// The begin of what a server sent, for an error.
    pub(crate) fn shown(&self, text: &[u8]) -> String {
        excerpt(text, true, self.options.key.as_ref())
    }

    /// The same for one that does not parse. The error quotes the text, so it may quote a key.
    pub(crate) fn unparsed(&self, text: &[u8], error: &serde_json::Error) -> String {
        format!("{} ({})", self.shown(text), self.shown(error.to_string().as_bytes()))
    }

    /// Sends a request once; an answer has status 200 and a body that was not read yet.
    pub(crate) fn send<'a>(&'a self, call: &'a Call) -> Result<Answer<'a>, Failure> {
        let sent = match &call.body {
            None => self.authorised(self.agent.get(&call.address))?.call(),
            Some(body) => {
                let request = self.agent.post(&call.address).header(header::CONTENT_TYPE, "application/json");
                self.authorised(request)?.send(body.as_slice())
            }
        };
        let response = sent.map_err(|error| self.broken(call, error))?;
        let (head, body) = response.into_parts();
        let (status, reader) = (head.status.as_u16(), body.into_reader());
        match status {
            200..=299 => {
                let streams = text_of(&head.headers, header::CONTENT_TYPE)
                    .is_some_and(|t| t.to_ascii_lowercase().starts_with("text/event-stream"));
                Ok(Answer { server: self, call, reader, streams, read: 0 })
            }
            300..=399 => {
                let location = text_of(&head.headers, header::LOCATION).unwrap_or("nowhere");
                let location = self.shown(location.as_bytes());
                Err(ClientError::Redirect { request: call.name.clone(), status, location }.into())
            }
            _ => {
                let mut text = Vec::new();
                // What can be had of it; the status is known.
                let end = reader.take(ERROR_BYTES).read_to_end(&mut text);
                let whole = end.is_ok() && (text.len() as u64) < ERROR_BYTES;
                let body = excerpt(&text, whole, self.options.key.as_ref());
                let after = text_of(&head.headers, header::RETRY_AFTER).and_then(|t| t.trim().parse().ok());
                Err(self.refused(call, status, body, after.map(Duration::from_secs)))
            }
        }
    }

    fn authorised<B>(
        &self,
        request: ureq::RequestBuilder<B>,
    ) -> Result<ureq::RequestBuilder<B>, ClientError> {
        let Some(key) = &self.options.key else { return Ok(request) };
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.reveal())).map_err(|_| {
            ClientError::Key { from: "the options".to_owned(), reason: "does not fit a header" }
        })?;
        value.set_sensitive(true);
        Ok(request.header(header::AUTHORIZATION, value))
    }

    /// The failure of a status, or of an error that came as part of a stream.
    pub(crate) fn refused(&self, call: &Call, status: u16, body: String, after: Option<Duration>) -> Failure {
        let advice = match status {
            401 | 403 if self.options.key.is_some() => "the server does not take this key",
            401 | 403 => "the server wants a key: give one by a file or a variable",
            404 => "does the server have this model, and is the URL that of its root?",
            429 => "fewer requests at a time, or more retries",
            500.. => "the server's log says why",
            _ => "the server does not take this request: its answer says why",
        };
        let error = ClientError::Status {
            request: call.name.clone(),
            status,
            attempts: 1,
            body,
            advice: advice.to_owned(),
        };
        if is_passing(status) { Failure::Passing(error, after) } else { Failure::Final(error) }
    }

    fn stopped(&self, call: &Call) -> ClientError {
        ClientError::Stopped { request: call.name.clone() }
    }

    /// The failure of a connection.
    fn broken(&self, call: &Call, error: ureq::Error) -> Failure {
        const RUNNING: &str = "is the server running, and is this its address?";
        match error {
            ureq::Error::Timeout(Timeout::PerRead | Timeout::PerWrite) => {
                let silent = format!("nothing arrived for {:?}", self.options.idle_timeout);
                call.unreachable(silent, "fewer requests at a time, or a longer idle time-out").into()
            }
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                let within = format!("no connection within {:?}", self.options.connect_timeout);
                Failure::Passing(call.unreachable(within, RUNNING), None)
            }
            ureq::Error::Timeout(_) => {
                let within = format!("the answer took longer than {:?}", self.options.timeout);
                call.unreachable(within, "a longer time-out, or fewer tokens").into()
            }
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                Failure::Passing(call.unreachable("the connection was refused".to_owned(), RUNNING), None)
            }
            ureq::Error::Io(e) => Failure::Passing(
                call.unreachable(
                    format!("the connection was cut: {e}"),
                    "the server's log may say why; a proxy between may have a limit",
                ),
                None,
            ),
            e @ (ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..)) => {
                let found = self.shown(e.to_string().as_bytes());
                call.unreadable("an answer in HTTP/1.1", found, RUNNING).into()
            }
            other => call.unreachable(self.shown(other.to_string().as_bytes()), RUNNING).into(),
        }
    }
}

/// One request, sent as often as it takes.
#[derive(Debug)]
pub(crate) struct Call {
    /// Method and address, for errors.
    name: String,
    address: String,
    body: Option<Vec<u8>>,
}

impl Call {
    pub(crate) fn unreadable(
        &self,
        expected: impl Into<String>,
        found: String,
        advice: &'static str,
    ) -> ClientError {
        ClientError::Unreadable { request: self.name.clone(), expected: expected.into(), found, advice }
    }

    pub(crate) fn unreachable(&self, reason: String, advice: &'static str) -> ClientError {
        ClientError::Unreachable { request: self.name.clone(), attempts: 1, reason, advice }
    }

    pub(crate) fn endless(&self, limit: String, advice: &'static str) -> ClientError {
        ClientError::Endless { request: self.name.clone(), limit, advice }
    }
}

/// The body of an answer, read within the limits.
pub(crate) struct Answer<'a> {
    server: &'a Server,
    call: &'a Call,
    reader: BodyReader<'static>,
    streams: bool,
    read: usize,
}

impl Answer<'_> {
    /// Whether it says to be a stream of events.
    pub(crate) fn streams(&self) -> bool {
        self.streams
    }

    /// Reads some bytes, 0 at the end.
    pub(crate) fn some(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        let count = loop {
            match self.reader.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.server.broken(self.call, e.into())),
                Ok(count) => break count,
            }
        };
        if self.server.stopped.load(Ordering::Relaxed) {
            return Err(self.server.stopped(self.call).into());
        }
        self.read += count;
        let most = self.server.options.max_bytes;
        if self.read > most {
            let limit = format!("it has more than {most} bytes");
            return Err(self.call.endless(limit, "fewer tokens, or a larger limit of bytes").into());
        }
        Ok(count)
    }

    /// All of it.
    pub(crate) fn whole(mut self) -> Result<Vec<u8>, Failure> {
        let (mut text, mut buffer) = (Vec::new(), [0; 16 << 10]);
        loop {
            match self.some(&mut buffer)? {
                0 => return Ok(text),
                count => text.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

fn text_of(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
