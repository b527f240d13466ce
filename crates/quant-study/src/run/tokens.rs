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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_made_once_and_again_of_other_files() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner");
        let tokenizer = Tokenizer::from_dir(&model).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("items.jsonl");
        let line = "{\"goal\": \"What is 1?\", \"sol1\": \" 1\", \"sol2\": \" 2\", \"label\": 0}\n";
        std::fs::write(&file, line.repeat(3)).unwrap();
        let task = quant_data::built_in_task("piqa").unwrap();
        let shared = Shared::new(1 << 20);
        let files = [file.clone()];
        let of = |shared: &Shared, limit| {
            let texts = Texts { shared, task: &task, files: &files, tokenizer: &tokenizer, model: &model };
            texts.choices(limit).unwrap()
        };
        let first = of(&shared, None);
        assert!(first.len() == 3 && Arc::ptr_eq(&first, &of(&shared, None)));
        assert_eq!((of(&shared, Some(2)).len(), shared.found()), (2, 1));
        assert_eq!(of(&Shared::default(), None), first);
        std::fs::write(&file, line.repeat(4)).unwrap();
        assert_eq!((of(&shared, None).len(), shared.found()), (4, 1));

        let text = quant_data::built_in_task("tiny-text").unwrap();
        let files = [model.join("tasks/test.jsonl")];
        let texts =
            Texts { shared: &shared, task: &text, files: &files, tokenizer: &tokenizer, model: &model };
        let windows = texts.windows().unwrap();
        assert!(Arc::ptr_eq(&windows, &texts.windows().unwrap()));
        assert_eq!(*windows, text.windows(&files, &tokenizer, &model, None).unwrap());
    }
}
