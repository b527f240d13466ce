//! Only the given address is contacted, and it says which model it has.

use super::server::TestServer;
use super::{SERVER, open, options};
use quant_client::Server;
use std::process::Command;

#[test]
fn the_only_model_is_found() {
    let mut unnamed = options("find");
    unnamed.model = None;
    for url in [SERVER.url("find"), SERVER.url("find/v1/")] {
        unnamed.url = url;
        let server = Server::open(unnamed.clone()).unwrap();
        assert_eq!((server.model(), server.max_length()), ("tiny", Some(4096)));
        server.score(&[1], &[2]).unwrap();
    }
    let lines: Vec<String> = SERVER.seen("find").into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines[..2], ["GET /find/v1/models", "POST /find/v1/completions"]);
    assert_eq!(lines[..2], lines[2..]);
    // A model that is named is not looked for.
    assert_eq!(open("named").max_length(), None);
    assert!(SERVER.seen("named").is_empty());
}

#[test]
fn no_model_and_two_models_are_refused() {
    for (fault, found) in [("models-none", "the server has none; "), ("models-two", "the server has 2: a, b")]
    {
        let mut unnamed = options(fault);
        unnamed.model = None;
        let error = Server::open(unnamed).unwrap_err().to_string();
        assert!(error.contains(found) && error.contains("name one of them"), "{error}");
    }
    let mut page = options("html~2");
    page.model = None;
    let error = Server::open(page).unwrap_err();
    assert!(error.is_unreadable() && error.to_string().contains("expected a list of models"), "{error}");
}

#[test]
fn redirects_are_not_followed() {
    let error = open("redirect").score(&[1], &[2]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("answered 307 and points to \"http://127.0.0.1:9/v1\""), "{text}");
    assert!(!error.is_unreachable() && !error.is_unreadable());
    assert_eq!(SERVER.seen("redirect").len(), 1);
}

#[test]
fn addresses_that_are_none_are_refused() {
    for (url, reason) in [("localhost:8000", "has no scheme"), ("http://h/?a=b", "has a query")] {
        let mut odd = options("ok");
        odd.url = url.to_owned();
        assert!(Server::open(odd).unwrap_err().to_string().contains(reason), "{url}");
    }
}

/// The names of a proxy that programs look for.
const PROXIES: [&str; 6] =
    ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

#[test]
fn a_proxy_of_the_environment_is_not_used() {
    // A process of its own, since the environment of this one is shared by all tests. It runs the test below alone.
    let proxy = TestServer::start();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["addresses::scores_with_the_environment_it_has", "--exact"]);
    for name in PROXIES {
        child.env(name, proxy.url(""));
    }
    child.env_remove("no_proxy").env_remove("NO_PROXY");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn scores_with_the_environment_it_has() {
    open("environment").score(&[1], &[2]).unwrap();
    assert_eq!(SERVER.seen("environment").len(), 1);
}
