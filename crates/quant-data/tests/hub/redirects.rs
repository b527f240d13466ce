//! Where the hub may point to.

use super::*;

#[test]
fn redirects_are_followed_within_the_hub_and_show_the_token_to_it_alone() {
    let file = "europe/test-00000-of-00002.parquet";
    // What lies elsewhere has a server, and a port, of its own.
    let storage = TestServer::start_with(move |seen| Some(ranged(seen, &content(file))));
    let moved = |to: String| {
        hub_of(TABLES, move |_, path| {
            path.ends_with(&format!("resolve/{MAIN}/{file}")).then(|| {
                let size = content(file).len();
                own("302 Found", &format!("Location: {to}\r\nX-Linked-Size: {size}\r\n"), b"")
            })
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("token");
    std::fs::write(&key, TOKEN).unwrap();
    let with_token = |hub: &mut Hub| hub.token = Some(HubToken::from_file(&key).unwrap());
    let fetched = |server: &TestServer, known: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let mut asked = hub(server, folder.path());
        with_token(&mut asked);
        asked.storage.extend(known.iter().map(|host| (*host).to_owned()));
        let found = asked.fetch(&task("config: europe,", "test"), &[], &mut go_on).unwrap();
        assert_eq!(std::fs::read(&found[0]).unwrap(), content(file));
    };
    // To itself: a path of its own.
    let server = moved(format!("/hub/datasets/us/capitals/resolve/{CONVERTED}/{file}"));
    fetched(&server, &[]);
    assert!(tokens_seen(&server).iter().all(Option::is_some));
    // To another server of the same host, and to a host that is known.
    fetched(&moved(storage.url("same")), &[]);
    let named = storage.url("known").replace("127.0.0.1", "localhost");
    fetched(&moved(named.clone()), &["localhost"]);
    for fault in ["same", "known"] {
        let seen = storage.seen(fault);
        assert!(seen.len() == 1 && !seen[0].headers.contains_key("authorization"), "{seen:?}");
    }
    // To anybody else: not asked, and the signature that stands in the address is not shown.
    let before = storage.connections();
    for to in
        [named + "?signature=hf_secret", "//localhost/x".into(), "ftp://127.0.0.1/x".into(), String::new()]
    {
        let server = moved(to.clone());
        let error = refused(&server, with_token);
        let text = format!("{error} {error:?}");
        assert!(matches!(error, HubError::Redirect { .. }) && !text.contains(TOKEN), "{to}: {text}");
    }
    assert_eq!(storage.connections(), before);
    // A host that ends alike is another.
    let server = moved("http://evil127.0.0.1/x".into());
    assert!(matches!(refused(&server, |_| {}), HubError::Redirect { .. }));
    // Round and round.
    let server = moved(format!("/hub/datasets/us/capitals/resolve/{MAIN}/{file}"));
    assert!(refused(&server, |_| {}).to_string().contains("more than 5 redirects"));
}
