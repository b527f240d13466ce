//! `--download` of `ptq eval --task` and `ptq study`

use super::Failure;
use super::progress::Progress;
use quant_data::Task;
use quant_study::StudyJob;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Fetch files of tasks that no data folder has from the Hugging Face hub into this one, and look for them in it
    #[arg(long, value_name = "DIR")]
    download: Option<PathBuf>,
    /// With --download: file that holds the hub's token, on one line
    #[arg(long, value_name = "FILE", requires = "download")]
    download_token: Option<PathBuf>,
    /// With --download: another hub, https://HOST (default: https://huggingface.co)
    #[arg(long, value_name = "URL", requires = "download")]
    download_from: Option<String>,
}

impl Args {
    /// Whether anything is to be fetched.
    pub(super) fn given(&self) -> bool {
        self.download.is_some()
    }
}

/// The hub of these arguments, if any.
#[cfg(feature = "hub")]
fn hub(args: &Args) -> Result<Option<quant_data::Hub>, Failure> {
    use quant_data::{DataError, Hub, HubToken};
    let Some(folder) = &args.download else { return Ok(None) };
    let mut hub = Hub::new(folder);
    hub.token =
        args.download_token.as_deref().map(HubToken::from_file).transpose().map_err(DataError::from)?;
    if let Some(endpoint) = &args.download_from {
        hub.endpoint.clone_from(endpoint);
    }
    Ok(Some(hub))
}

/// Shows how far a file is.
#[cfg(feature = "hub")]
fn shown(progress: &mut Progress, now: &quant_data::HubProgress<'_>) -> std::ops::ControlFlow<()> {
    use quant_pipeline::{Event, Events};
    use std::ops::ControlFlow;
    if now.done == 0 {
        let size = super::human(now.of);
        progress
            .event(Event::Part(format!("fetching {} ({size}), {} of {}", now.file, now.number, now.files)));
    }
    let megabytes = |bytes: u64| usize::try_from(bytes >> 20).unwrap_or(usize::MAX);
    progress.event(Event::Evaluated {
        what: "MiB",
        done: megabytes(now.done),
        of: megabytes(now.of),
        inside: 0.0,
    });
    if progress.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Fetches what a task needs and `data` has not, and adds the folder behind the first `given` of them.
#[cfg(feature = "hub")]
pub(super) fn for_task(
    args: &Args,
    task: &Task,
    given: usize,
    data: &mut Vec<PathBuf>,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let Some(hub) = hub(args)? else { return Ok(()) };
    hub.fetch(task, data, &mut |now| shown(progress, now))?;
    data.insert(given.min(data.len()), hub.folder);
    Ok(())
}

/// Fetches what the tasks of a study need; where it is only planned, nothing.
#[cfg(feature = "hub")]
pub(super) fn for_study(
    args: &Args,
    planned: bool,
    job: &mut StudyJob,
    progress: &mut Progress,
) -> Result<(), Failure> {
    match hub(args)? {
        None => {}
        Some(hub) if planned => job.data.push(hub.folder),
        Some(hub) => quant_study::fetch_study_data(job, &hub, &mut |now| shown(progress, now))
            .map_err(Failure::of_study)?,
    }
    Ok(())
}

/// Says that this program fetches nothing.
#[cfg(not(feature = "hub"))]
fn refuse(args: &Args) -> Result<(), Failure> {
    if !args.given() {
        return Ok(());
    }
    Err(Failure::unsupported(
        "this program was built without --download: build it with `cargo install --path crates/ptq --features hub`, or fetch the files \
         yourself and say with --data-dir where they are",
    ))
}

/// Refuses what this program does not do.
#[cfg(not(feature = "hub"))]
pub(super) fn for_task(
    args: &Args,
    _: &Task,
    _: usize,
    _: &mut Vec<PathBuf>,
    _: &mut Progress,
) -> Result<(), Failure> {
    refuse(args)
}

/// Refuses what this program does not do.
#[cfg(not(feature = "hub"))]
pub(super) fn for_study(args: &Args, _: bool, _: &mut StudyJob, _: &mut Progress) -> Result<(), Failure> {
    refuse(args)
}
