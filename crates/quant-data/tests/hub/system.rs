//! The environment, and the disk.

use super::*;

/// Runs one test of this file in a process of its own, from a shell that runs `before` first.
fn apart(test: &str, before: &str, variables: &[(&str, &str)]) -> Output {
    let program = std::env::current_exe().unwrap();
    let script = format!("{before} exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(program).args(["--exact", test, "--nocapture"]);
    command.envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn no_variable_of_the_environment_changes_what_is_asked() {
    let home = tempfile::tempdir().unwrap();
    for folder in [".", "hub", ".cache/huggingface"] {
        std::fs::create_dir_all(home.path().join(folder)).unwrap();
        std::fs::write(home.path().join(folder).join("token"), "hf_from_home").unwrap();
    }
    let home = home.path().to_str().unwrap();
    let nobody = "http://127.0.0.1:9";
    let mut variables = vec![("HOME", home), ("HF_HOME", home), ("HF_TOKEN", "hf_from_environment")];
    for name in ["HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
        variables.push((name, nobody));
    }
    let ran = apart("system::what_is_asked_without_a_token", "", &variables);
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success() && text.contains("asked: [None, None, None]"), "{ran:?}");
}

#[test]
fn what_is_asked_without_a_token() {
    let server = hub_of(TABLES, |_, _| None);
    let folder = tempfile::tempdir().unwrap();
    fetch(&server, folder.path(), &task("config: europe,", "test")).unwrap();
    let asked = tokens_seen(&server);
    println!("asked: {asked:?}");
    assert_eq!(asked, [None, None, None]);
}

/// Two files of about 200 kB; where the disk is full, the second must take the first with it.
#[test]
fn what_fits_on_the_disk() {
    let server = hub_of(TABLES, |_, path| {
        path.ends_with("00001-of-00002.parquet").then(|| own("200 OK", "", &vec![b' '; 600_000]))
    });
    let folder = tempfile::tempdir().unwrap();
    match fetch(&server, folder.path(), &task("config: europe,", "test")) {
        Ok(found) => assert_eq!(found.len(), 2),
        Err(DataError::Hub(error @ HubError::CannotWrite { .. })) => {
            assert!(files_in(folder.path()).is_empty());
            println!("nothing left: {error}");
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    // The nearest thing to it that needs no rights: no file may grow beyond 250 or 500 kB, as the shell counts.
    let ran = apart("system::what_fits_on_the_disk", "trap '' XFSZ; ulimit -f 500;", &[]);
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{ran:?}");
    let expected = ["nothing left: cannot write ", "test-00001-of-00002.parquet: ", "File too large"];
    assert!(expected.iter().all(|words| text.contains(words)), "{text}");
    // A file stands where the folder should be.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("capitals"), "x").unwrap();
    let server = hub_of(TABLES, |_, _| None);
    let error = fetch(&server, folder.path(), &task("config: europe,", "test")).unwrap_err();
    assert!(matches!(error, DataError::Hub(HubError::CannotWrite { .. })), "{error}");
    assert_eq!(files_in(folder.path()), ["capitals"]);
}
