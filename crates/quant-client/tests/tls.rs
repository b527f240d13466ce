//! Servers behind `https://`.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "tests")]
#![allow(dead_code, reason = "the server of the other tests has more than is used here")]

mod server;

use quant_client::{ApiKey, Server, ServerOptions};
use server::TestServer;
use std::time::Duration;

/// A server that does not speak TLS gets no request, and with it no key.
#[test]
fn a_server_without_tls_sees_no_key() {
    let server = TestServer::start();
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "sk-right").unwrap();
    let mut with = ServerOptions::new(server.url("plain").replace("http://", "https://"));
    with.model = Some("tiny".to_owned());
    with.key = Some(ApiKey::from_file(&key).unwrap());
    with.backoff = Duration::from_millis(4);
    with.retries = 2;
    let error = Server::open(with).unwrap().score(&[1], &[2]).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(server.seen("plain").is_empty());
}
