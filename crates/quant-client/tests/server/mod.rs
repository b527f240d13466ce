//! A server for tests: HTTP/1.1 over a real socket, with a tiny "model" behind the OpenAI protocol. The first part of the path says how
//! it misbehaves (`http://127.0.0.1:PORT/cut-stream-once/v1/…`), so that many tests can share one.
//!
//! What stands behind a `~` makes a fault another one of the same kind, with a count of its own.
//!
//! Nothing but the standard library and `serde_json`; other crates' tests may take this folder in by `#[path]`.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "for tests, each of which needs some of it"
)]

mod answers;
mod model;

pub use model::{greedy_text, log_probability};

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `POST /fault/v1/completions`.
    pub line: String,
    /// In lower case.
    pub headers: HashMap<String, String>,
    /// Empty for GET.
    pub body: serde_json::Value,
}

/// What a test answers itself.
#[derive(Clone, Debug)]
pub enum Own {
    /// As it is.
    Json(serde_json::Value),
    /// A streamed answer to a chat or a text: its thought, which is cut off it, its text, and why it ended.
    Text { thought: String, text: String, finish: &'static str },
    /// Any other: what stands behind `HTTP/1.1 `, lines of headers, a length, and the first `sent` bytes, after which the connection is
    /// closed where they are not all.
    Bytes { status: &'static str, headers: String, body: Vec<u8>, sent: usize },
    /// The connection is closed.
    Cut,
}

/// Answers a request, or leaves it to the server.
type Hook = dyn Fn(&Seen) -> Option<Own> + Send + Sync;

/// What happened so far, by fault.
#[derive(Debug, Default)]
struct State {
    seen: HashMap<String, Vec<Seen>>,
    /// Connections accepted.
    connections: usize,
    /// Requests being answered, and the most of them at a time.
    running: usize,
    most_running: usize,
}

/// A running server; it ends with the process.
#[derive(Clone)]
pub struct TestServer {
    port: u16,
    state: Arc<Mutex<State>>,
    own: Option<Arc<Hook>>,
}

impl std::fmt::Debug for TestServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TestServer({})", self.port)
    }
}

impl TestServer {
    /// Starts one on a free port of the loopback.
    pub fn start() -> Self {
        Self::begin(None)
    }

    /// Starts one that answers as the test says, where it says something.
    pub fn start_with(own: impl Fn(&Seen) -> Option<Own> + Send + Sync + 'static) -> Self {
        Self::begin(Some(Arc::new(own)))
    }

    fn begin(own: Option<Arc<Hook>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Self { port: listener.local_addr().unwrap().port(), state: Arc::default(), own };
        let handle = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                handle.locked().connections += 1;
                let handle = handle.clone();
                // A client that goes away is an error here and of no interest.
                std::thread::spawn(move || handle.serve(stream).ok());
            }
        });
        server
    }

    /// The URL with a fault, or with `ok`.
    pub fn url(&self, fault: &str) -> String {
        format!("http://127.0.0.1:{}/{fault}", self.port)
    }

    /// What arrived under a fault.
    pub fn seen(&self, fault: &str) -> Vec<Seen> {
        self.locked().seen.get(fault).cloned().unwrap_or_default()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.locked().connections
    }

    /// Most requests that were answered at a time.
    pub fn most_running(&self) -> usize {
        self.locked().most_running
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Answers the requests of one connection.
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        while let Some(request) = read_request(&mut reader)? {
            let path = request.line.split(' ').nth(1).unwrap_or_default().to_owned();
            let (fault, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
            let earlier = {
                let mut state = self.locked();
                state.running += 1;
                state.most_running = state.most_running.max(state.running);
                let seen = state.seen.entry(fault.to_owned()).or_default();
                seen.push(request.clone());
                seen.len() - 1
            };
            let kind = fault.split('~').next().unwrap_or(fault);
            let result = match self.own.as_ref().and_then(|own| own(&request)) {
                Some(own) => answers::own(&mut writer, rest, own),
                None => answers::answer(&mut writer, kind, rest, &request, earlier),
            };
            self.locked().running -= 1;
            if !result? {
                writer.shutdown(std::net::Shutdown::Both).ok();
                return Ok(());
            }
        }
        Ok(())
    }
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    Ok(Some(Seen { line, headers, body: serde_json::from_slice(&body).unwrap_or_default() }))
}

/// An answer with a length. Returns true: the connection can be used again.
fn reply(
    out: &mut impl Write,
    status: &str,
    headers: &str,
    kind: &str,
    body: &[u8],
) -> std::io::Result<bool> {
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    )?;
    out.write_all(body)?;
    Ok(true)
}
