//! What a task is asked with and what is kept of it, whatever answers.

use super::answer::Speed;
use super::home::Home;
use super::{TaskJob, TaskOutcome, TaskResult, TaskRun, version};
use crate::StudyError;
use crate::programs::{Programs, check_allowed};
use crate::record::{Done, Journal, Record};
use quant_data::{ChatTemplate, Task, TaskKind, Tokenizer};
use quant_eval::Scorer;
use quant_pipeline::Registry;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What everything about a task is read from.
pub(super) struct Material {
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    pub(super) files: Vec<PathBuf>,
    /// Of the draws; none where nothing is drawn.
    pub(super) seeds: Vec<u64>,
    /// What grades texts, where texts are asked for.
    pub(super) scorer: Option<&'static Scorer>,
    /// Tokens that the model can have before it.
    pub(super) longest: usize,
}

impl Material {
    /// Reads what is beside the model, and refuses what is not to be run.
    pub(super) fn read(job: &TaskJob, longest: usize, registry: &Registry) -> Result<Self, StudyError> {
        let (mut seeds, mut scorer) = (Vec::new(), None);
        if let TaskKind::Generate(ask) = job.task.kind() {
            seeds = job.used_seeds();
            let own = quant_eval::scorer_of(&ask.scorer, registry.scorers())?;
            if own.runs_programs {
                check_allowed(&job.task, job.allow_code_execution)?;
            }
            scorer = Some(own);
        }
        let tokenizer = Tokenizer::from_dir(&job.model)?;
        let template = ChatTemplate::from_dir(&job.model, tokenizer.special_tokens())?;
        let files = job.task.source().find(job.task.name(), &job.data)?;
        Ok(Self { tokenizer, template, files, seeds, scorer, longest })
    }

    /// Whether answers are programs that are run.
    pub(super) fn runs_programs(&self) -> bool {
        self.scorer.is_some_and(|scorer| scorer.runs_programs)
    }
}

/// Records, and the file that keeps them.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) done: Done,
    journal: Option<Journal>,
}

impl Kept {
    /// Keeps records, which are on disk when it returns.
    pub(super) fn add(&mut self, records: Vec<Record>) -> Result<(), StudyError> {
        if let Some(journal) = &mut self.journal {
            journal.add(&records)?;
        }
        self.done.extend(records.into_iter().map(|record| (record.key(), record)));
        Ok(())
    }
}

/// A task that is being run.
pub(super) struct Work {
    began: Instant,
    home: Option<Home>,
    pub(super) kept: Kept,
    /// What runs programs, where answers are programs.
    pub(super) programs: Option<Programs>,
    pub(super) speed: Speed,
}

impl Work {
    /// Begins, or goes on with what an earlier run has kept.
    pub(super) fn begin(
        job: &TaskJob,
        material: &Material,
        home: Option<Home>,
        began: Instant,
    ) -> Result<Self, StudyError> {
        let programs = match material.scorer {
            Some(scorer) if scorer.runs_programs => {
                Some(Programs::find(&job.task, job.python.as_deref(), job.threads)?)
            }
            _ => None,
        };
        let kept = match &home {
            Some(home) => {
                let (journal, done) = home.journal()?;
                Kept { done, journal: Some(journal) }
            }
            None => Kept::default(),
        };
        Ok(Self { began, home, kept, programs, speed: Speed::default() })
    }

    /// Writes the result down.
    pub(super) fn finish(self, job: &TaskJob, result: TaskResult) -> Result<TaskOutcome, StudyError> {
        let run = TaskRun {
            seconds: self.began.elapsed().as_secs_f64(),
            new_tokens: self.speed.tokens,
            decode_seconds: self.speed.seconds,
            first_token: self.speed.first_token,
            threads: job.threads,
            version: version(),
        };
        let Kept { done, journal } = self.kept;
        drop(journal);
        let outcome = TaskOutcome { result, records: done.into_values().collect(), run };
        if let Some(home) = self.home {
            home.finish(&outcome)?;
        }
        Ok(outcome)
    }
}

/// Whether the answers of a task are programs.
pub(crate) fn runs_programs(task: &Task, registry: &Registry) -> Result<bool, StudyError> {
    let TaskKind::Generate(ask) = task.kind() else { return Ok(false) };
    Ok(quant_eval::scorer_of(&ask.scorer, registry.scorers())?.runs_programs)
}

/// Refuses tasks whose answers are programs where these may not or cannot be run.
pub(crate) fn check_programs(
    tasks: &[Task],
    allowed: bool,
    python: Option<&Path>,
    registry: &Registry,
) -> Result<(), StudyError> {
    let mut found = false;
    for task in tasks {
        if runs_programs(task, registry)? {
            check_allowed(task, allowed)?;
            // It is the same one for all of them.
            if !found {
                Programs::find(task, python, 1)?;
                found = true;
            }
        }
    }
    Ok(())
}
