//! Items whose continuations are compared.

use super::file::{Task, TaskKind};
use crate::{DataError, Tokenizer};
use std::path::PathBuf;

/// A text and one that may follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// Token ids before; may be empty.
    pub context: Vec<u32>,
    /// Token ids that are scored, at least one.
    pub continuation: Vec<u32>,
    /// Characters of the continuation without the blanks it begins with, by which `acc_norm` divides.
    pub characters: usize,
}

/// An item with choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceItem {
    /// Its number in the source, from 0.
    pub number: u64,
    /// What the source calls it, else its number.
    pub id: String,
    /// A context and a continuation for every choice.
    pub choices: Vec<Continuation>,
    /// The right one.
    pub gold: usize,
}

/// Tokens of a context and of what follows it: those of both together, cut where the context ends alone. Blanks at the end of the context
/// belong to what follows, as tokenizers put them. An empty context becomes the token that begins or ends texts. This is how lm-eval cuts.
///
/// ```
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
/// let tokenizer = quant_data::Tokenizer::from_dir(model.as_ref())?;
/// let (context, continuation) = quant_data::split_continuation(&tokenizer, "What is ", "74?", false)?;
/// assert_eq!(tokenizer.decode(&context, false)?, "What is");
/// assert_eq!(tokenizer.decode(&continuation, false)?, " 74?");
/// # Ok::<(), quant_data::DataError>(())
/// ```
///
/// # Errors
/// [`DataError::Tokenize`] when the tokenizer refuses, or nothing is left to be scored.
pub fn split_continuation(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    add_special_tokens: bool,
) -> Result<(Vec<u32>, Vec<u32>), DataError> {
    let kept = context.trim_end();
    let moved = &context[kept.len()..];
    let whole = tokenizer.encode(&format!("{kept}{moved}{continuation}"), add_special_tokens)?;
    let before = if kept.is_empty() && !add_special_tokens {
        0
    } else {
        tokenizer.encode(kept, add_special_tokens)?.len()
    };
    if before >= whole.len() {
        return Err(DataError::Tokenize {
            what: "a context and its continuation".to_owned(),
            reason: format!("together they have {} tokens, the context alone {before}", whole.len()),
        });
    }
    let (context, continuation) = whole.split_at(before);
    let mut context = context.to_vec();
    if context.is_empty() {
        // Something must stand before the first token that is predicted.
        let first = tokenizer.bos_id().or_else(|| tokenizer.eos_id());
        context.push(first.ok_or_else(|| DataError::Tokenize {
            what: "a continuation without a context".to_owned(),
            reason: "the tokenizer has no token that begins or ends a text, to stand before it".to_owned(),
        })?);
    }
    Ok((context, continuation.to_vec()))
}

impl Task {
    /// The items of a task of the kind `choice`, the first `limit` of them.
    ///
    /// # Errors
    /// Files that cannot be read; [`DataError::Item`] for an item that the task's templates do not fit; [`DataError::Task`] for a task of
    /// another kind.
    pub fn choices(
        &self,
        files: &[PathBuf],
        tokenizer: &Tokenizer,
        limit: Option<usize>,
    ) -> Result<Vec<ChoiceItem>, DataError> {
        let TaskKind::Choice(ask) = self.kind() else { return Err(self.other_kind("choice")) };
        let mut items = Vec::new();
        for record in self.records(files, limit)? {
            let item = || -> Result<ChoiceItem, DataError> {
                let choices = match &ask.choices {
                    Some(choices) => choices.texts(&record.fields)?,
                    None => vec![String::new()],
                };
                let gold = ask.gold.as_ref().map_or(Ok(0), |gold| gold.place(&record.fields))?;
                if gold >= choices.len() {
                    let reason = format!("the right choice is number {gold} of {} (from 0)", choices.len());
                    return Err(DataError::TaskTemplate { key: "gold".to_owned(), reason });
                }
                let of = |(index, choice): (usize, &String)| {
                    let mut fields = record.fields.clone();
                    fields.insert("choice".into(), choice.as_str().into());
                    fields.insert("index".into(), index.into());
                    let (before, after) = (ask.context.render(&fields)?, ask.continuation.render(&fields)?);
                    let (context, continuation) =
                        split_continuation(tokenizer, &before, &after, self.add_special_tokens())?;
                    let characters = after.trim_start().chars().count();
                    Ok(Continuation { context, continuation, characters })
                };
                let choices = choices.iter().enumerate().map(of).collect::<Result<_, DataError>>()?;
                Ok(ChoiceItem { number: record.number, id: record.id(), choices, gold })
            };
            items.push(item().map_err(|error| self.at(&record, error))?);
        }
        Ok(items)
    }
}
