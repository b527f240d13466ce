//! The folder of a task that is run: its identity, the items as they come, the result.

use super::material::Material;
use super::{TaskJob, TaskOutcome, TaskResult};
use crate::StudyError;
use crate::files::{Lock, check_own, read_json, write_whole};
use crate::record::{Done, Journal, lines};
use quant_checkpoint::TensorHash;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What a result depends on.
const JOB: &str = "job.json";
/// Items as they come; of a finished task in their order.
const ITEMS: &str = "items.jsonl";
const RESULT: &str = "result.json";
const RUN: &str = "run.json";

/// What a result depends on: names and values.
pub(crate) type Identity = Vec<(String, String)>;

#[derive(Debug)]
pub(super) struct Home {
    folder: PathBuf,
    finished: Option<TaskOutcome>,
    _lock: Lock,
}

#[derive(Serialize, Deserialize)]
struct Finished {
    result: TaskResult,
}

impl Home {
    /// Makes the folder of a job, or opens it to go on; none for a job of which nothing is kept. `model` is what tells the model
    /// and its execution apart from others.
    pub(super) fn of(
        job: &TaskJob,
        material: &Material,
        model: impl FnOnce() -> Result<Identity, StudyError>,
    ) -> Result<Option<Self>, StudyError> {
        let Some(folder) = job.output.clone() else { return Ok(None) };
        if !folder.join(JOB).exists() {
            check_own(&folder, |name| [ITEMS, RESULT].contains(&name), "run of a task")?;
        }
        let lock = Lock::take(&folder)?;
        let mut identity = identity(job, &material.seeds, &material.files, material.runs_programs())?;
        identity.extend(model()?);
        let kept: Option<Identity> = read_json(&folder.join(JOB))?;
        match kept {
            None => {
                let strange = folder.join(ITEMS).exists() || folder.join(RESULT).exists();
                if strange {
                    return Err(StudyError::Changed {
                        path: folder,
                        differences: format!("there is no {JOB} beside its items"),
                        advice: "give another --output",
                    });
                }
            }
            // Nothing was finished under it.
            Some(_) if is_bare(&folder) => {}
            Some(_) if job.restart => clear(&folder)?,
            Some(kept) => {
                let differences = differing(&kept, &identity);
                if !differences.is_empty() && job.restart_changed {
                    clear(&folder)?;
                } else if !differences.is_empty() {
                    return Err(StudyError::Changed {
                        path: folder,
                        differences,
                        advice: "give another --output, or --restart to throw it away",
                    });
                }
                if !job.resume && !job.restart_changed && !is_finished(&folder) {
                    return Err(StudyError::Changed {
                        path: folder,
                        differences: "an unfinished run of the same job".to_owned(),
                        advice: "give --resume to go on with it, or --restart to throw it away",
                    });
                }
            }
        }
        write_whole(&folder.join(JOB), &pretty(&identity))?;
        let finished = finished_in(&folder)?;
        Ok(Some(Self { folder, finished, _lock: lock }))
    }

    /// What an earlier run has finished.
    pub(super) fn finished(&self) -> Option<TaskOutcome> {
        self.finished.clone()
    }

    /// Items that an earlier run has finished, and the file for others.
    pub(super) fn journal(&self) -> Result<(Journal, Done), StudyError> {
        Journal::open(&self.folder.join(ITEMS))
    }

    /// Writes everything in its order; the result last, by which the task is known to be finished.
    pub(super) fn finish(&self, outcome: &TaskOutcome) -> Result<(), StudyError> {
        write_whole(&self.folder.join(ITEMS), &lines(&outcome.records))?;
        write_whole(&self.folder.join(RUN), &pretty(&outcome.run))?;
        let finished = Finished { result: outcome.result.clone() };
        write_whole(&self.folder.join(RESULT), &pretty(&finished))
    }
}

/// What has changed of the job of a task since items of it were finished, in words; empty where nothing has, or nothing is finished. Of a
/// model behind a server, which is not asked here, what the job says of it.
pub(crate) fn changed(
    job: &TaskJob,
    seeds: &[u64],
    files: &[PathBuf],
    programs: bool,
    runs_here: bool,
) -> Result<String, StudyError> {
    let Some(folder) = &job.output else { return Ok(String::new()) };
    let kept = read_json::<Identity>(&folder.join(JOB))?.filter(|_| !is_bare(folder));
    let Some(mut kept) = kept else { return Ok(String::new()) };
    let mut now = identity(job, seeds, files, programs)?;
    if runs_here {
        now.extend(in_process(job));
    } else {
        kept.retain(|(name, _)| now.iter().any(|(other, _)| other == name));
    }
    Ok(differing(&kept, &now))
}

/// A hash of what the result in a folder of a task depends on; none where it was not begun.
pub(crate) fn identity_of(folder: &Path) -> Result<Option<String>, StudyError> {
    match std::fs::read(folder.join(JOB)) {
        Ok(bytes) => Ok(Some(TensorHash::of(&bytes).short())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StudyError::io(folder.join(JOB))(error)),
    }
}

/// What tells a model that runs in this process apart: how it runs, and what the job says of it.
pub(super) fn in_process(job: &TaskJob) -> Identity {
    let mut fields = vec![
        ("--execute".to_owned(), format!("{:?}", job.execution)),
        ("--compute".to_owned(), job.compute.name().to_owned()),
    ];
    // Of its name the kind: no result depends on its instructions or number.
    let kind = |name: String| name.split([':', ' ']).next().unwrap_or_default().to_owned();
    fields.extend(job.processor.iter().map(|processor| ("--backend".to_owned(), kind(processor.name()))));
    fields.extend(job.identity.iter().flatten().cloned());
    fields
}

/// The result in a folder of a task, if it is finished.
pub(crate) fn finished_in(folder: &Path) -> Result<Option<TaskOutcome>, StudyError> {
    let Some(Finished { result }) = read_json(&folder.join(RESULT))? else { return Ok(None) };
    let (done, _) = Journal::read(&folder.join(ITEMS))?;
    let run = read_json(&folder.join(RUN))?.unwrap_or_default();
    Ok(Some(TaskOutcome { result, records: done.into_values().collect(), run }))
}

/// Whether a folder of a task holds neither an item nor a result.
fn is_bare(folder: &Path) -> bool {
    let items = std::fs::metadata(folder.join(ITEMS)).map_or(0, |items| items.len());
    items == 0 && !is_finished(folder)
}

/// Whether the task of a folder is finished.
pub(crate) fn is_finished(folder: &Path) -> bool {
    folder.join(RESULT).exists()
}

/// Throws away what a folder of a task holds: the result first, and last the job, by which the others are known.
pub(crate) fn clear(folder: &Path) -> Result<(), StudyError> {
    for path in [RESULT, RUN, ITEMS, JOB].map(|name| folder.join(name)) {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StudyError::io(path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn identity(job: &TaskJob, seeds: &[u64], files: &[PathBuf], programs: bool) -> Result<Identity, StudyError> {
    let mut fields = Identity::new();
    let mut field = |name: &str, value: String| fields.push((name.to_owned(), value));
    field("the program", super::version());
    field("the task", TensorHash::of(job.task.written().as_bytes()).short());
    for path in files {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        field(&format!("the data {name}"), hash_of(path)?);
    }
    let or_all = |n: Option<usize>| n.map_or_else(|| "not given".to_owned(), |n| n.to_string());
    field("--limit", or_all(job.limit));
    field("--max-new-tokens", or_all(job.max_new_tokens));
    field("the seeds", format!("{seeds:?}"));
    if let Some(top_k) = job.top_k {
        field("top-k", top_k.to_string());
    }
    field("--with-texts", job.with_texts.to_string());
    if programs {
        let python = job.python.as_ref().map(|path| path.display().to_string());
        field("--python", python.unwrap_or_else(|| "not given".to_owned()));
    }
    Ok(fields)
}

/// What a file holds, for an identity.
pub(crate) fn hash_of(path: &Path) -> Result<String, StudyError> {
    let hash = File::open(path).and_then(TensorHash::of_reader).map_err(StudyError::io(path))?;
    Ok(hash.short())
}

/// The fields that are not the same, in words.
pub(crate) fn differing(kept: &Identity, now: &Identity) -> String {
    let value = |fields: &Identity, name: &str| fields.iter().find(|f| f.0 == name).map(|f| f.1.clone());
    let mut names: Vec<&String> = kept.iter().chain(now).map(|f| &f.0).collect();
    names.dedup();
    let mut words: Vec<String> = Vec::new();
    for name in names {
        let (was, is) = (value(kept, name), value(now, name));
        let said = |v: Option<String>| v.unwrap_or_else(|| "nothing".to_owned());
        let word = format!("{name} was {} and is {}", said(was.clone()), said(is.clone()));
        if was != is && !words.contains(&word) {
            words.push(word);
        }
    }
    words.join(", ")
}
