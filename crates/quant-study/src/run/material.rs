//! What a task is asked with, whatever answers.

use super::TaskJob;
use super::tokens::Texts;
use crate::StudyError;
use crate::programs::check_allowed;
use quant_data::{ChatTemplate, TaskKind, Tokenizer};
use quant_eval::Scorer;
use quant_pipeline::Registry;
use std::path::PathBuf;

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

    /// The tokens of the job's task.
    pub(super) fn texts<'a>(&'a self, job: &'a TaskJob) -> Texts<'a> {
        let Self { tokenizer, files, .. } = self;
        Texts { shared: &job.shared, task: &job.task, files, tokenizer, model: &job.model }
    }

    /// Whether answers are programs that are run.
    pub(super) fn runs_programs(&self) -> bool {
        self.scorer.is_some_and(|scorer| scorer.runs_programs)
    }
}
