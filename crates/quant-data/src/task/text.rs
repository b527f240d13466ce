//! Texts that are predicted.

use super::ask::Expression;
use super::file::{Task, TaskKind};
use super::kinds::TextTask;
use crate::content::{Content, read_content};
use crate::{ChatTemplate, Conversation, DataError, RenderOptions, Tokenizer, consecutive_windows};
use std::path::{Path, PathBuf};

impl Task {
    /// The windows of a task of the kind `text` for the model in a folder: consecutive ones of `window` tokens, the rest dropped; the first
    /// `limit` of them. A file that is plain text is taken as it is.
    ///
    /// # Errors
    /// Files that cannot be read; [`DataError::Item`] for an item that the task's templates do not fit; [`DataError::Empty`] for a text of
    /// fewer tokens than a window; [`DataError::Task`] for a task of another kind.
    pub fn windows(
        &self,
        files: &[PathBuf],
        tokenizer: &Tokenizer,
        model: &Path,
        limit: Option<usize>,
    ) -> Result<Vec<Vec<u32>>, DataError> {
        let TaskKind::Text(ask) = self.kind() else { return Err(self.other_kind("text")) };
        let mut ids = match &ask.messages {
            Some(messages) => self.conversations(ask, messages, files, tokenizer, model)?,
            None => tokenizer.encode(&self.joined(ask, files)?, self.add_special_tokens())?,
        };
        if let Some(most) = ask.tokens {
            ids.truncate(most);
        }
        if ids.len() < ask.window {
            return Err(DataError::Empty {
                source_name: format!("the text of the task {}", self.name()),
                found: format!("{} tokens, less than one window of {}", ids.len(), ask.window),
                advice: "give a longer text, or a task with a smaller `window`",
            });
        }
        let mut windows = consecutive_windows(&ids, ask.window);
        windows.truncate(limit.unwrap_or(usize::MAX));
        Ok(windows)
    }

    /// How often `<unk>` stands in the text: tokenised releases, such as WikiText-2 without `raw` in its name, have it in place of rare
    /// words, and figures of raw text cannot be compared with theirs. None for conversations.
    ///
    /// # Errors
    /// As [`Task::windows`].
    pub fn unknown_words(&self, files: &[PathBuf]) -> Result<Option<usize>, DataError> {
        let TaskKind::Text(ask) = self.kind() else { return Err(self.other_kind("text")) };
        match ask.messages {
            Some(_) => Ok(None),
            None => Ok(Some(self.joined(ask, files)?.matches("<unk>").count())),
        }
    }

    fn joined(&self, ask: &TextTask, files: &[PathBuf]) -> Result<String, DataError> {
        if let [file] = files
            && let Content::Prose(text) = read_content(file)?
        {
            return Ok(text);
        }
        let mut joined = String::new();
        for (index, record) in self.records(files, ask.documents)?.iter().enumerate() {
            if index > 0 {
                joined.push_str(&ask.join);
            }
            joined.push_str(&ask.text.render(&record.fields).map_err(|error| self.at(record, error))?);
        }
        Ok(joined)
    }

    fn conversations(
        &self,
        ask: &TextTask,
        messages: &Expression,
        files: &[PathBuf],
        tokenizer: &Tokenizer,
        model: &Path,
    ) -> Result<Vec<u32>, DataError> {
        let template = ChatTemplate::from_dir(model, tokenizer.special_tokens())?
            .ok_or_else(|| DataError::NoChatTemplate { folder: model.to_owned() })?;
        let mut ids = Vec::new();
        for (index, record) in self.records(files, ask.documents)?.iter().enumerate() {
            let rendered = || {
                let conversation = Conversation::from_json(&messages.value(&record.fields)?)?;
                let join = if index > 0 { ask.join.as_str() } else { "" };
                let text = template.render(&conversation, &RenderOptions::default())?;
                tokenizer.encode_rendered(&format!("{join}{text}"))
            };
            ids.extend(rendered().map_err(|error| self.at(record, error))?);
        }
        Ok(ids)
    }
}
