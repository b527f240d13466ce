//! What is not given, cut short, or something else.

use super::*;

#[test]
fn nothing_that_fits_lists_ten_of_what_is_there() {
    const MANY: &[&str] = &[
        "README.md",
        "a.txt",
        "b.txt",
        "c.txt",
        "d.txt",
        "e.txt",
        "f.txt",
        "g.txt",
        "h.txt",
        "i.txt",
        "j.txt",
        "africa/\u{1b}[2Jtest-0.parquet",
    ];
    let error = refused(&hub_of(MANY, |_, _| None), |_| {}).to_string();
    for words in [
        "task capitals needs data set us/capitals, configuration europe, split test, columns country, right",
        "capitals/europe/test-*.parquet",
        "it has africa/\\u{1b}[2Jtest-0.parquet, README.md, a.txt",
        "h.txt, and 2 more",
    ] {
        assert!(error.contains(words), "{error}");
    }
    assert!(!error.contains("i.txt"), "{error}");
    assert!(refused(&hub_of(&[], |_, _| None), |_| {}).to_string().contains("it has no files"));
}

#[test]
fn refusals_name_the_data_set_and_show_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("token");
    std::fs::write(&key, format!("{TOKEN}\n")).unwrap();
    for (status, code, advice) in [
        ("401 Unauthorized", 401, "--download-token"),
        ("403 Forbidden", 403, "accept the terms"),
        ("404 Not Found", 404, "under this name"),
    ] {
        for at in ["api/", "datasets/"] {
            let server = hub_of(TABLES, move |seen, path| {
                let told = seen.headers.get("authorization").cloned().unwrap_or_default();
                path.starts_with(at).then(|| own(status, "", told.as_bytes()))
            });
            let error = refused(&server, |hub| hub.token = Some(HubToken::from_file(&key).unwrap()));
            let text = error.to_string();
            assert!(matches!(error, HubError::Refused { status, .. } if status == code), "{text}");
            for words in [advice, "data set us/capitals, configuration europe, split test"] {
                assert!(text.contains(words), "{text}");
            }
            assert!(!format!("{text} {error:?}").contains(TOKEN), "{error:?}");
            assert!(tokens_seen(&server).iter().all(|t| t.as_deref() == Some("Bearer hf_secret")));
        }
    }
    let hub = Hub { token: Some(HubToken::from_file(&key).unwrap()), ..Hub::new("x") };
    assert!(!format!("{hub:?}").contains(TOKEN), "{hub:?}");
    for wrong in ["", "two words", "two\nlines"] {
        std::fs::write(&key, wrong).unwrap();
        let error = HubToken::from_file(&key).unwrap_err().to_string();
        assert!(error.contains("one line") && (wrong.is_empty() || !error.contains(wrong)), "{error}");
    }
    assert!(HubToken::from_file(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
}

#[test]
fn a_server_that_is_not_there_or_cannot_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = refused(&hub_of(TABLES, |_, _| None), |hub| hub.endpoint.clone_from(&nobody));
    let text = error.to_string();
    assert!(matches!(error, HubError::Unreachable { attempts: 3, .. }), "{text}");
    assert!(text.contains(&nobody) && text.contains("the connection was refused"), "{text}");
    for status in ["429 Too Many", "503 Service Unavailable"] {
        let server = hub_of(TABLES, move |_, _| Some(own(status, "", b"")));
        let error = refused(&server, |_| {});
        assert!(matches!(error, HubError::Unreachable { .. }) && server.seen("hub").len() == 3, "{error}");
    }
    // One that is silent.
    let server = hub_of(TABLES, |_, _| {
        std::thread::sleep(Duration::from_secs(5));
        None
    });
    let began = std::time::Instant::now();
    let error = refused(&server, |hub| (hub.timeout, hub.attempts) = (Duration::from_millis(100), 1));
    assert!(error.to_string().contains("no answer in time"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(4));
    for endpoint in
        ["hub.example", "ftp://hub.example", "https://", "https://me:hf_secret@hub.example", "https://h/?q=1"]
    {
        let error = refused(&server, |hub| hub.endpoint = endpoint.to_owned());
        let text = error.to_string();
        assert!(matches!(error, HubError::Endpoint { .. }) && !text.contains("hf_secret"), "{text}");
    }
}

#[test]
fn files_that_are_not_what_was_announced_leave_nothing() {
    let second = "europe/test-00001-of-00002.parquet";
    let with = |answer: fn(&[u8]) -> Own, change: fn(&mut Hub)| {
        let server = hub_of(TABLES, move |_, path| path.ends_with(second).then(|| answer(&content(second))));
        refused(&server, change)
    };
    let nothing: fn(&mut Hub) = |_| {};
    // Always cut, by a server that knows no ranges.
    let error = with(|body| cut("200 OK", "", body, 70_000), nothing);
    assert!(
        error.to_string().contains(" bytes (") && error.to_string().contains("cut short at 70000 of"),
        "{error}"
    );
    assert!(matches!(error, HubError::Unreachable { attempts: 3, .. }), "{error}");
    let error = with(|body| own("200 OK", &tag(&"0".repeat(64)), body), nothing);
    assert!(error.to_string().contains("the bytes of the hash that it names"), "{error}");
    let error = with(|body| own("200 OK", "X-Linked-Size: 7\r\n", body), nothing);
    assert!(error.to_string().contains("7 and "), "{error}");
    let error = with(|body| own("206 Partial Content", "Content-Range: bytes 5-9/10\r\n", body), nothing);
    assert!(error.to_string().contains("others"), "{error}");
    let error = with(|body| own("206 Partial Content", "", body), nothing);
    assert!(error.to_string().contains("Content-Range"), "{error}");
    // Less than there is, again and again.
    let few = |body: &[u8]| {
        let range = format!("Content-Range: bytes 0-9/{}\r\n", body.len());
        own("206 Partial Content", &range, &body[..10])
    };
    let error = with(few, nothing);
    assert!(error.to_string().contains("cut short at 10 of"), "{error}");
    let error = with(|body| own("418 Teapot", "", body), nothing);
    assert!(error.to_string().contains("expected status 200, found 418"), "{error}");
    // The first file and a bit.
    let error = with(|body| own("200 OK", "", body), |hub| hub.limit = 300_000);
    assert!(matches!(error, HubError::TooLarge { .. }) && error.to_string().contains("at most"), "{error}");
    // The person has had enough of it.
    let folder = tempfile::tempdir().unwrap();
    let server = hub_of(TABLES, |_, _| None);
    let mut stop = |now: &HubProgress<'_>| match now.number {
        1 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let error =
        hub(&server, folder.path()).fetch(&task("config: europe,", "test"), &[], &mut stop).unwrap_err();
    assert!(matches!(error, DataError::Hub(HubError::Stopped)), "{error}");
    assert!(files_in(folder.path()).is_empty());
}

#[test]
fn what_is_no_hub_is_named() {
    for (body, words) in [
        (&b"<html>sign in</html>"[..], "expected a list of files"),
        (br#"{"sha": "main", "siblings": []}"#, "the hash of a commit"),
        (br#"{"sha": "../../../etc", "siblings": []}"#, "the hash of a commit"),
        (br#"{"siblings": []}"#, "expected a list of files"),
    ] {
        let error = refused(&hub_of(TABLES, move |_, _| Some(own("200 OK", "", body))), |_| {});
        assert!(matches!(error, HubError::Unreadable { .. }) && error.to_string().contains(words), "{error}");
    }
}
