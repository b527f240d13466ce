//! Tokens of tasks: those that cells ask for again are made once.
//!
//! Prompts of generated tasks are not among them: making those takes thousandths of answering them.

use crate::StudyError;
use quant_checkpoint::TensorHash;
use quant_data::{ChoiceItem, Task, Tokenizer};
use quant_pipeline::{Shared, text_identity};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where tokens are shared, and of what they are.
#[derive(Clone, Copy)]
pub(crate) struct Texts<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) task: &'a Task,
    pub(crate) files: &'a [PathBuf],
    pub(crate) tokenizer: &'a Tokenizer,
    /// The folder of the tokenizer.
    pub(crate) model: &'a Path,
}

impl Texts<'_> {
    fn key(&self, what: &str) -> Result<String, StudyError> {
        let task = TensorHash::of(self.task.written().as_bytes());
        Ok(format!(
            "{what} of the task {} {task}: {}",
            self.task.name(),
            text_identity(self.files, self.model)?
        ))
    }

    /// All windows of a task of the kind `text`.
    pub(crate) fn windows(&self) -> Result<Arc<Vec<Vec<u32>>>, StudyError> {
        let bytes = |windows: &Vec<Vec<u32>>| {
            windows.iter().map(|ids| size_of::<Vec<u32>>() + 4 * ids.len()).sum::<usize>() as u64
        };
        let make = || Ok(self.task.windows(self.files, self.tokenizer, self.model, None)?);
        self.shared.or_make(|| self.key("windows"), bytes, make)
    }

    /// The first `limit` items of a task of the kind `choice`.
    pub(crate) fn choices(&self, limit: Option<usize>) -> Result<Arc<Vec<ChoiceItem>>, StudyError> {
        let bytes = |items: &Vec<ChoiceItem>| {
            let of = |item: &ChoiceItem| {
                let choices = item.choices.iter();
                let tokens: usize = choices.map(|c| c.context.len() + c.continuation.len()).sum();
                size_of::<ChoiceItem>()
                    + item.id.len()
                    + item.choices.len() * size_of::<quant_data::Continuation>()
                    + 4 * tokens
            };
            items.iter().map(of).sum::<usize>() as u64
        };
        let make = || Ok(self.task.choices(self.files, self.tokenizer, limit)?);
        self.shared.or_make(|| self.key(&format!("the first {limit:?} choices")), bytes, make)
    }
}
