//! Tasks on models behind servers, over a real socket: the answers are those of the model of the repository, or faults.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "a test fails by panicking")]

mod answers;
mod faults;
mod likelihoods;
mod rows;
#[path = "../../../quant-client/tests/server/mod.rs"]
mod server;

use quant_data::Task;
use quant_eval::{PositionOptions, score_positions};
use quant_kernels::Par;
use quant_model::Arithmetic;
use quant_pipeline::{Registry, Scored, Silent, open_folder};
use quant_study::quant_client::ServerOptions;
use quant_study::{StudyError, TaskJob, TaskOutcome, run_task, run_task_on_server};
use serde_json::{Value, json};
use server::{Own, Seen, TestServer};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The model of the repository.
pub(crate) fn tiny_reasoner() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner")
}

pub(crate) fn options(server: &TestServer, fault: &str) -> ServerOptions {
    let mut options = ServerOptions::new(server.url(fault));
    options.backoff = Duration::from_millis(2);
    options.retries = 1;
    options
}

pub(crate) fn ask(job: &TaskJob, options: ServerOptions) -> Result<TaskOutcome, StudyError> {
    run_task_on_server(job, options, &mut Silent, &Registry::default())
}

pub(crate) fn in_process(job: &TaskJob) -> TaskOutcome {
    run_task(job, None, &mut Silent, &Registry::default()).unwrap()
}

pub(crate) fn job(task: Task, limit: usize) -> TaskJob {
    TaskJob { limit: Some(limit), threads: 2, batch: 4, ..TaskJob::new(tiny_reasoner(), task) }
}

pub(crate) fn choices(folder: &Path) -> TaskJob {
    let items: String = ["74 + 51", "8 + 5", "12 + 12", "93 + 18", "1 + 2", "30 + 7", "50 + 50"]
        .iter()
        .enumerate()
        .map(|(gold, sum)| {
            let choices = ["So 74 + 51 = 125.", "13", "\\boxed{24}", "of 111", "x", "<think>", "a hundred"];
            format!("{}\n", json!({"q": format!("What is {sum}?"), "choices": choices, "gold": gold}))
        })
        .collect();
    std::fs::write(folder.join("sums.jsonl"), items).unwrap();
    let task = Task::parse(
        "version: 1\nname: sums\nkind: choice\nsource: { files: [sums.jsonl] }\ncontext: '{{ q }}'\nchoices: choices\n\
         gold: gold\nmetric: acc_norm\n",
    )
    .unwrap();
    TaskJob { data: vec![folder.to_owned()], ..job(task, 7) }
}

/// What a server says of a prompt, by the model of the repository.
pub(crate) fn echo(seen: &Seen) -> Option<Own> {
    if seen.body["echo"] != true {
        return None;
    }
    let prompt: Vec<u32> =
        seen.body["prompt"].as_array()?.iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let source = open_folder(&tiny_reasoner()).unwrap().into_source().unwrap();
    let mut model = Scored::new(source, Arithmetic::from(quant_kernels::Compute::F32), Par::Seq);
    let scores = score_positions(
        &mut model,
        std::slice::from_ref(&prompt),
        std::slice::from_ref(&(1..prompt.len())),
        PositionOptions::default(),
    )
    .unwrap();
    let (mut own, mut top) = (vec![Value::Null], vec![Value::Null]);
    for score in &scores[0] {
        let likely = -score.nll.unwrap();
        own.push(json!(likely));
        // A better one, where it is not the best.
        top.push(json!({"a": if score.greedy { likely } else { likely / 2.0 }}));
    }
    Some(Own::Json(json!({
        "choices": [{"index": 0, "text": "", "logprobs": {"token_logprobs": own, "top_logprobs": top}}],
        "usage": {"prompt_tokens": prompt.len()},
    })))
}
