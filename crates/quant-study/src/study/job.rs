//! A study to be carried out.

use crate::grid::{Grid, GridModel};
use crate::run::TaskJob;
use quant_data::{Task, TaskKind};
use quant_pipeline::Shared;
use std::path::{Path, PathBuf};

/// Bytes at most of what rows share.
const SHARED: u64 = 1 << 30;

/// A study to be carried out.
#[derive(Clone, Debug)]
pub struct StudyJob {
    /// What it is made of.
    pub grid: Grid,
    /// Folder for everything it makes.
    pub output: PathBuf,
    /// Folders with data, before those of the grid and of the models.
    pub data: Vec<PathBuf>,
    /// Threads, at least 1.
    pub threads: usize,
    /// Memory budget in bytes.
    pub memory: Option<u64>,
    /// Texts that are worked on at a time.
    pub batch: usize,
    /// Go on with what is in the output.
    pub resume: bool,
    /// Run cells again whose job has changed.
    pub restart_changed: bool,
    /// Keep the folders of quantised models.
    pub keep_folders: bool,
    /// Keep the texts of answers.
    pub with_texts: bool,
    /// Run programs that a model wrote, in a sandbox, for tasks that grade them so.
    pub allow_code_execution: bool,
    /// The interpreter of these programs; by default the system's `python3`.
    pub python: Option<PathBuf>,
}

impl StudyJob {
    /// A study with everything else as `ptq study` has it.
    #[must_use]
    pub fn new(grid: Grid, output: impl Into<PathBuf>) -> Self {
        Self {
            grid,
            output: output.into(),
            data: Vec::new(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: None,
            batch: 16,
            resume: false,
            restart_changed: false,
            keep_folders: false,
            with_texts: false,
            allow_code_execution: false,
            python: None,
        }
    }

    /// Bytes for what rows share: of a budget a sixteenth.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.memory.map_or(SHARED, |memory| (memory / 16).min(SHARED))
    }

    /// What is left of the budget for the work itself.
    pub(super) fn memory_of_work(&self) -> Option<u64> {
        self.memory.map(|memory| memory - self.shared_bytes())
    }

    /// What a cell is asked of the model in `folder`; `beside` is that of the float model.
    pub(super) fn task_job(
        &self,
        model: &GridModel,
        beside: &Path,
        folder: &Path,
        task: &Task,
        shared: &Shared,
    ) -> TaskJob {
        TaskJob {
            data: self.data_folders(beside),
            limit: match task.kind() {
                // Windows are few and cheap; a text is predicted in whole.
                TaskKind::Text(_) => None,
                _ => self.grid.limit,
            },
            seeds: self.grid.seeds.clone(),
            top_k: model.top_k,
            max_new_tokens: self.grid.max_new_tokens,
            compute: self.grid.compute,
            threads: self.threads,
            memory: self.memory_of_work(),
            batch: self.batch,
            with_texts: self.with_texts,
            allow_code_execution: self.allow_code_execution,
            python: self.python.clone(),
            shared: shared.clone(),
            ..TaskJob::new(folder, task.clone())
        }
    }

    /// Where the files of tasks are looked for.
    pub(super) fn data_folders(&self, model: &Path) -> Vec<PathBuf> {
        let mut folders = self.data.clone();
        folders.extend(self.grid.data.iter().cloned());
        folders.push(PathBuf::from("."));
        folders.push(model.to_owned());
        folders
    }
}
