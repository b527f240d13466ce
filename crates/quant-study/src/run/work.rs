//! A task that is being run, whatever answers.

use super::home::Home;
use super::kept::{Kept, Speed};
use super::material::Material;
use super::{TaskJob, TaskOutcome, TaskResult, TaskRun, version};
use crate::StudyError;
use crate::programs::Programs;
use std::time::Instant;

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
