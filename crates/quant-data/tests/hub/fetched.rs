//! What is chosen and fetched.

use super::*;

#[test]
fn files_of_a_split_are_fetched_once_and_found_from_then_on() {
    let server = hub_of(TABLES, |_, _| None);
    let folder = tempfile::tempdir().unwrap();
    let task = task("config: europe,", "test");
    let mut told = Vec::new();
    let found = hub(&server, folder.path())
        .fetch(&task, &[], &mut |now| {
            told.push((now.file.to_owned(), now.done, now.of, now.number, now.files));
            ControlFlow::Continue(())
        })
        .unwrap();
    let names =
        ["capitals/europe/test-00000-of-00002.parquet", "capitals/europe/test-00001-of-00002.parquet"];
    assert_eq!(files_in(folder.path()), names);
    assert_eq!(found, names.map(|name| folder.path().join(name)));
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner");
    let items = task.choices(&found, &quant_data::Tokenizer::from_dir(&tokenizer).unwrap(), None).unwrap();
    assert_eq!(items.len(), 2);
    let size = content("europe/test-00000-of-00002.parquet").len() as u64;
    assert_eq!(told[0], ("europe/test-00000-of-00002.parquet".to_owned(), 0, size, 1, 2));
    assert_eq!(told.last().map(|last| (last.1, last.3)), Some((size, 2)));
    // All of one commit, whatever becomes of the branch; and no more than that.
    // Sizes and hashes are those of the bytes themselves.
    assert!(server.seen("hub").iter().all(|seen| seen.headers["accept-encoding"] == "identity"));
    let lines: Vec<String> = server.seen("hub").into_iter().map(|seen| seen.line).collect();
    let file =
        |n: u32| format!("GET /hub/datasets/us/capitals/resolve/{MAIN}/europe/test-0000{n}-of-00002.parquet");
    assert_eq!(lines, ["GET /hub/api/datasets/us/capitals/revision/main".to_owned(), file(0), file(1)]);
    let connections = server.connections();
    assert_eq!(fetch(&server, folder.path(), &task).unwrap(), found);
    assert_eq!(task.source().find("capitals", &[folder.path().to_owned()]).unwrap(), found);
    assert_eq!((server.seen("hub").len(), server.connections()), (3, connections));
}

#[test]
fn what_lies_in_a_data_folder_is_not_asked_for() {
    let server = hub_of(TABLES, |_, _| None);
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("own.jsonl"), content("own.jsonl")).unwrap();
    let folders = [data.path().to_owned()];
    let found =
        hub(&server, folder.path()).fetch(&task("config: europe,", "test"), &folders, &mut go_on).unwrap();
    assert_eq!((found, server.connections()), (vec![data.path().join("own.jsonl")], 0));
    // A task without a repository is not to be had there.
    let error = fetch(&server, folder.path(), &task_of("files: [q.jsonl]")).unwrap_err();
    assert!(matches!(error, DataError::NoItems { .. }), "{error}");
    let error = fetch(&server, folder.path(), &task_of("repository: a/../b, files: [q.jsonl]")).unwrap_err();
    assert!(matches!(&error, DataError::Task { .. }) && error.to_string().contains("OWNER/NAME"), "{error}");
    assert_eq!(server.connections(), 0);
}

#[test]
fn the_layouts_of_a_hub() {
    let of = |files: &'static [&'static str], task: &Task| {
        let server = hub_of(files, |_, _| None);
        let folder = tempfile::tempdir().unwrap();
        fetch(&server, folder.path(), task).map(|_| files_in(folder.path())).map_err(|e| e.to_string())
    };
    let tables = &["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"];
    assert_eq!(of(tables, &task("", "test")).unwrap(), ["capitals/data/test-00000-of-00001.parquet"]);
    let lines = &["test.jsonl", "train.jsonl"];
    assert_eq!(of(lines, &task("config: default,", "train")).unwrap(), ["capitals/train.jsonl"]);
    // Those of the only configuration are not taken for those of another.
    assert!(of(tables, &task("config: europe,", "test")).unwrap_err().contains("has none of"));
    // What the task itself names wins, with or without the folder of the repository.
    let named: &[&str] = &["test.jsonl", "more/odd name.jsonl", "data/test-00000-of-00001.parquet"];
    for files in ["[more/odd*.jsonl]", "[other/x.jsonl, capitals/more/odd*.jsonl]"] {
        let task = task_of(&format!("repository: us/capitals, split: test, files: {files}"));
        assert_eq!(of(named, &task).unwrap(), ["capitals/more/odd name.jsonl"]);
    }
    // No name leads out of the folder.
    let hostile: &[&str] = &["../data/test-0.parquet", "data/../test-0.parquet", "data/.test-0.parquet"];
    for pattern in ["*/data/*", "data/*/*", "data/*"] {
        let task = task_of(&format!("repository: us/capitals, split: test, files: ['{pattern}']"));
        assert!(of(hostile, &task).unwrap_err().contains("has none of"), "{pattern}");
    }
}

#[test]
fn what_the_hub_makes_of_other_forms_is_taken_where_there_is_nothing_else() {
    let server = hub_of(&["capitals.csv"], |_, path| {
        (path == "api/datasets/us/capitals/revision/refs%2Fconvert%2Fparquet")
            .then(|| listing(CONVERTED, &["europe/test/0000.parquet", "europe/train/0000.parquet"]))
    });
    let folder = tempfile::tempdir().unwrap();
    let found = fetch(&server, folder.path(), &task("config: europe,", "test")).unwrap();
    assert_eq!(found, [folder.path().join("capitals/europe/test/0000.parquet")]);
    let last = server.seen("hub").pop().unwrap();
    assert!(last.line.contains(&format!("/resolve/{CONVERTED}/europe/test/0000.parquet")), "{}", last.line);
}

#[test]
fn a_file_that_is_cut_is_gone_on_with() {
    let file = "europe/test-00000-of-00002.parquet";
    let server = hub_of(TABLES, move |seen, path| {
        (path.ends_with(file) && !seen.headers.contains_key("range"))
            .then(|| cut("200 OK", "", &content(file), 70_000))
    });
    let folder = tempfile::tempdir().unwrap();
    let found = fetch(&server, folder.path(), &task("config: europe,", "test")).unwrap();
    assert_eq!(std::fs::read(&found[0]).unwrap(), content(file));
    let ranges: Vec<String> =
        server.seen("hub").iter().filter_map(|seen| seen.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=70000-"]);
    // A server that knows no ranges gives all of it again; the hash is that of the whole.
    let hash = sha2::Sha256::digest(content(file));
    let hash: String = hash.iter().map(|byte| format!("{byte:02X}")).collect();
    let server = hub_of(TABLES, move |seen, path| {
        path.ends_with(file).then(|| match seen.headers.contains_key("range") {
            true => own("200 OK", &tag(&hash), &content(file)),
            false => cut("200 OK", "", &content(file), 70_000),
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let found = fetch(&server, folder.path(), &task("config: europe,", "test")).unwrap();
    assert_eq!(std::fs::read(&found[0]).unwrap(), content(file));
}
