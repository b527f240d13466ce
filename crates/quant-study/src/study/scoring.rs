//! What the cells of a study will have models read and write.

use super::job::StudyJob;
use super::place::model_folder;
use crate::StudyError;
use crate::grid::GridModel;
use crate::run::{TaskTokens, task_tokens};
use quant_data::Task;
use quant_pipeline::{Forecast, Registry, Shared, open_folder_with};
use serde::{Deserialize, Serialize};

/// What scoring takes, of all cells that will be run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoringCost {
    /// Tokens that models read: prompts, choices, texts.
    pub read: u64,
    /// Tokens that they write, if every answer is as long as it may be.
    pub written: u64,
    /// Seconds of both, at most, of models that run here, with float products: codes that are executed take less. Good to a factor of
    /// about 2 where products weigh, which they do not in tiny models.
    pub seconds: f64,
    /// `TASK of MODEL` whose items, or the tokenizer for them, are not here: they are in none of the numbers.
    pub unknown: Vec<String>,
}

impl ScoringCost {
    /// Of the tasks of a study; `ways` says in how many ways the rows of a model are run, here and on servers.
    pub(super) fn new(
        job: &StudyJob,
        tasks: &[Task],
        ways: impl Fn(&GridModel) -> [u64; 2],
        registry: &Registry,
        shared: &Shared,
    ) -> Result<Self, StudyError> {
        let mut cost = Self::default();
        for model in &job.grid.models {
            let folder = model_folder(model, &job.output)?;
            // Of a model on a server the folder holds a tokenizer, and no shape.
            let spec = open_folder_with(&folder, registry).ok().map(|open| open.spec);
            let longest = spec.as_ref().map_or(usize::MAX, |spec| spec.max_position_embeddings);
            let [here, elsewhere] = ways(model);
            for task in tasks {
                let asked = job.task_job(model, &folder, &folder, task, shared);
                match task_tokens(&asked, longest) {
                    Ok(TaskTokens { read, written }) => {
                        cost.read += read * (here + elsewhere);
                        cost.written += written * (here + elsewhere);
                        if let Some(spec) = &spec {
                            let tokens = ((read + written) * here) as usize;
                            cost.seconds +=
                                Forecast::seconds_of_tokens(spec, tokens, job.grid.compute, job.threads);
                        }
                    }
                    // What is wrong with it is said where it is run.
                    Err(_) => cost.unknown.push(format!("{} of {}", task.name(), model.name)),
                }
            }
        }
        Ok(cost)
    }
}
