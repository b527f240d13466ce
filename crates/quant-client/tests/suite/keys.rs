//! Keys are sent to the server and shown to nobody.

use super::{SERVER, options};
use quant_client::{ApiKey, Server};

fn key(text: &str) -> ApiKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, text).unwrap();
    ApiKey::from_file(&path).unwrap()
}

#[test]
fn a_key_is_sent_as_a_bearer() {
    let mut with = options("needs-key");
    with.key = Some(key("sk-right\n"));
    let server = Server::open(with).unwrap();
    server.score(&[1], &[2]).unwrap();
    assert_eq!(SERVER.seen("needs-key")[0].headers["authorization"], "Bearer sk-right");
    assert!(!format!("{server:?}").contains("sk-right"));

    let error = Server::open(options("needs-key")).unwrap().score(&[1], &[2]).unwrap_err();
    assert!(error.to_string().contains("answered 401 (1 attempts)"), "{error}");
    assert!(error.to_string().contains("the server wants a key"), "{error}");
    let mut with = options("needs-key");
    with.key = Some(key("sk-wrong"));
    let error = Server::open(with).unwrap().score(&[1], &[2]).unwrap_err();
    assert!(error.to_string().contains("does not take this key"), "{error}");
    assert!(!error.is_unreachable() && !error.is_unreadable());
}

#[test]
fn an_echoed_key_is_not_shown() {
    for fault in ["key-echo", "key-echo-200"] {
        let mut with = options(fault);
        with.key = Some(key("sk-very-secret"));
        let error = Server::open(with).unwrap().score(&[1], &[2]).unwrap_err();
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(text.contains("Bearer [key]") && !text.contains("secret"), "{fault}: {text}");
        }
    }
}

#[test]
fn keys_come_from_files_and_variables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    assert!(ApiKey::from_file(&path).unwrap_err().to_string().starts_with("cannot read the key from "));
    std::fs::write(&path, "two words").unwrap();
    let text = ApiKey::from_file(&path).unwrap_err().to_string();
    assert!(text.contains("has spaces") && !text.contains("words"), "{text}");
    std::fs::write(&path, "k".repeat(10_000)).unwrap();
    assert!(ApiKey::from_file(&path).unwrap_err().to_string().contains("more than 4096"));
    // Cargo sets it for every test.
    assert!(ApiKey::from_variable("CARGO_PKG_NAME").is_ok());
    for name in ["NO_SUCH_VARIABLE", "", "A=B"] {
        let error = ApiKey::from_variable(name).unwrap_err().to_string();
        assert!(error.contains(&format!("the variable {name:?}")) && error.contains("is not set"), "{error}");
    }
}
