//! `ptq eval --server`, and programs that a model wrote: what is refused, and how.

use crate::common::{ptq, text, tiny_reasoner};

fn eval(more: &[&str]) -> crate::common::Ran {
    ptq(&[&["eval"], more].concat())
}

#[test]
fn a_server_takes_the_place_of_a_model() {
    let model = tiny_reasoner();
    let server = ["--server", "http://127.0.0.1:9"];
    for (more, words) in [
        (&["--task", "gsm8k"][..], "--model"),
        (&["--task", "gsm8k", "--server-model", "a"], "--server"),
        (&[&server[..], &["--task", "gsm8k"]].concat(), "--tokenizer"),
        (&[&server[..], &["--tokenizer", text(&model), "--text", "a.txt"]].concat(), "--task"),
        (
            &[&server[..], &["--tokenizer", text(&model), "--task", "gsm8k", "--model", text(&model)]]
                .concat(),
            "cannot be used with",
        ),
        (
            &[&server[..], &["--tokenizer", text(&model), "--task", "gsm8k", "--execute", "int8"]].concat(),
            "--execute goes with --model",
        ),
    ] {
        eval(more).expect(2, &[words]);
    }
}

#[cfg(not(feature = "server"))]
#[test]
fn a_program_without_the_feature_says_so() {
    let model = tiny_reasoner();
    for more in [&[][..], &["--server-model", "a", "--key-variable", "NONE", "--server-timeout", "9"]] {
        let asked = ["--server", "http://127.0.0.1:9", "--tokenizer", text(&model), "--task", "tiny-compare"];
        eval(&[&asked[..], more].concat()).expect(3, &["built without --server", "--features server"]);
    }
}

#[cfg(feature = "server")]
#[test]
fn servers_that_cannot_be_had_or_read() {
    use std::io::{Read, Write};
    let model = tiny_reasoner();
    let asked = |url: &str, task: &str, more: &[&str]| {
        let asked =
            ["--server", url, "--tokenizer", text(&model), "--task", task, "--data-dir", text(&model)];
        eval(&[&asked[..], &["--limit", "1"], more].concat())
    };
    // Nobody listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    asked(&url, "tiny-compare", &[]).expect(5, &["the connection was refused"]);
    // It speaks, and not of models.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]").unwrap();
        }
    });
    asked(&url, "tiny-compare", &[]).expect(4, &["expected a list of models"]);
    asked(&url, "tiny-text", &[]).expect(4, &["expected a list of models"]);
    asked("ftp://h", "tiny-compare", &[]).expect(2, &["expected http://HOST:PORT"]);
    asked(&url, "tiny-compare", &["--key-file", "/nowhere/key"]).expect(2, &["cannot read the key"]);
}

#[test]
fn programs_that_a_model_wrote_do_not_run_by_themselves() {
    let model = tiny_reasoner();
    let asked = ["--model", text(&model), "--task", "livecodebench"];
    eval(&asked).expect(3, &["livecodebench", "--allow-code-execution"]);
    eval(&[&asked[..], &["--python", "python3"]].concat()).expect(2, &["--allow-code-execution"]);
}
