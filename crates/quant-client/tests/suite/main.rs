//! The client against a server of our own, over a real socket, with faults.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "tests")]

#[path = "../server/mod.rs"]
mod server;

mod addresses;
mod faults;
mod keys;
mod scores;
mod texts;

use quant_client::{Server, ServerOptions};
use server::TestServer;
use std::sync::LazyLock;
use std::time::Duration;

/// One server for all tests: each uses a fault of its own.
static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

/// Options with short waits.
fn options(fault: &str) -> ServerOptions {
    let mut options = ServerOptions::new(SERVER.url(fault));
    options.model = Some("tiny".to_owned());
    options.backoff = Duration::from_millis(4);
    options.retries = 2;
    options
}

fn open(fault: &str) -> Server {
    Server::open(options(fault)).unwrap()
}
