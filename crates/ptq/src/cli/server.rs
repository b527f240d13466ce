//! `ptq eval --server`

use super::Failure;
use quant_pipeline::{Events, Registry};
use quant_study::{TaskJob, TaskOutcome};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// With --task, in place of --model: OpenAI-compatible server, http://HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with = "model", requires_all = ["task", "tokenizer"])]
    pub(super) server: Option<String>,
    /// With --server: folder with tokenizer and chat template of its model
    #[arg(long, value_name = "DIR", requires = "server")]
    pub(super) tokenizer: Option<PathBuf>,
    /// With --server: name of the model (default: the only one that the server has)
    #[arg(long, value_name = "NAME", requires = "server")]
    server_model: Option<String>,
    /// With --server: file that holds the key, on one line
    #[arg(long, value_name = "FILE", requires = "server", conflicts_with = "key_variable")]
    key_file: Option<PathBuf>,
    /// With --server: environment variable that holds the key
    #[arg(long, value_name = "NAME", requires = "server")]
    key_variable: Option<String>,
    /// With --server: seconds for one answer at most (default: 7200)
    #[arg(long, value_name = "S", requires = "server", value_parser = clap::value_parser!(u64).range(1..))]
    server_timeout: Option<u64>,
}

/// Runs a task on the server of these arguments.
#[cfg(feature = "server")]
pub(super) fn run(
    url: &str,
    args: &Args,
    job: &TaskJob,
    events: &mut dyn Events,
    registry: &Registry,
) -> Result<TaskOutcome, Failure> {
    use quant_study::quant_client::{ApiKey, ServerOptions};
    let mut options = ServerOptions::new(url);
    options.model.clone_from(&args.server_model);
    options.key = match (&args.key_file, &args.key_variable) {
        (Some(path), _) => Some(ApiKey::from_file(path)),
        (None, Some(name)) => Some(ApiKey::from_variable(name)),
        (None, None) => None,
    }
    .transpose()
    .map_err(|error| Failure::of_study(error.into()))?;
    if let Some(seconds) = args.server_timeout {
        options.timeout = std::time::Duration::from_secs(seconds);
        // A server that works on the answers of others sends nothing meanwhile.
        options.idle_timeout = options.timeout;
    }
    quant_study::run_task_on_server(job, options, events, registry).map_err(Failure::of_study)
}

/// Says that this program asks no server.
#[cfg(not(feature = "server"))]
pub(super) fn run(
    _: &str,
    _: &Args,
    _: &TaskJob,
    _: &mut dyn Events,
    _: &Registry,
) -> Result<TaskOutcome, Failure> {
    Err(Failure::unsupported(
        "this program was built without --server: build it with `cargo install --path crates/ptq --features server`, or with \
         `--features tls` for https://",
    ))
}
