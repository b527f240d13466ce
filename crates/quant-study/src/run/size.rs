//! How much a task has a model read and write.

use super::TaskJob;
use super::tokens::Texts;
use crate::StudyError;
use quant_data::{ChatTemplate, TaskKind, Tokenizer};

/// Tokens of a task, under all its seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct TaskTokens {
    /// Those that the model reads.
    pub(crate) read: u64,
    /// Those that it writes, if every answer is as long as it may be.
    pub(crate) written: u64,
}

/// What the job's task takes of a model that can have `longest` tokens before it.
pub(crate) fn task_tokens(job: &TaskJob, longest: usize) -> Result<TaskTokens, StudyError> {
    let (task, model) = (&job.task, &job.model);
    let tokenizer = Tokenizer::from_dir(model)?;
    let files = task.source().find(task.name(), &job.data)?;
    let texts = Texts { shared: &job.shared, task, files: &files, tokenizer: &tokenizer, model };
    let mut tokens = TaskTokens::default();
    match task.kind() {
        TaskKind::Text(_) => tokens.read = texts.windows()?.iter().map(|window| window.len() as u64).sum(),
        TaskKind::Choice(_) => {
            let items = texts.choices(job.limit)?;
            let choices = items.iter().flat_map(|item| &item.choices);
            tokens.read = choices.map(|c| (c.context.len() + c.continuation.len()) as u64).sum();
        }
        TaskKind::Generate(ask) => {
            let template = ChatTemplate::from_dir(model, tokenizer.special_tokens())?;
            let seeds = job.used_seeds();
            // Options that change their places leave a prompt about as long.
            let questions = task.questions(&files, seeds.first().copied().unwrap_or(0), job.limit)?;
            for question in &questions {
                let prompt = task.encode_question(question, &tokenizer, template.as_ref())?.tokens.len();
                tokens.read += prompt as u64;
                tokens.written += job.room(ask, prompt, longest) as u64;
            }
            let times = seeds.len().max(1) as u64;
            tokens = TaskTokens { read: times * tokens.read, written: times * tokens.written };
        }
    }
    Ok(tokens)
}
