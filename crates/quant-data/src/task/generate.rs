//! Items that a model answers with a text.

use super::file::{Task, TaskKind};
use super::kinds::{Generation, Opening, Right};
use super::records::Record;
use crate::{ChatTemplate, Conversation, DataError, PyRandom, RenderOptions, Tokenizer};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What is said to a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Turns, for the chat template.
    Chat(Conversation),
    /// A text to be continued.
    Plain(String),
}

/// An item that asks for a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its number in the source, from 0, by which draws are keyed.
    pub number: u64,
    /// What the source calls it, else its number.
    pub id: String,
    /// The prompt.
    pub said: Said,
    /// What is right, as the scorer reads it.
    pub gold: String,
    /// Options of the question; 0 for a question without.
    pub options: usize,
    /// Where the right one stands among them, from 0: seed and number of the item draw it, and the others keep their order.
    pub place: Option<usize>,
}

/// A prompt as a model takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether the prompt opens the thought.
    pub opens_thought: bool,
}

/// Letters of options.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

impl Task {
    /// The items of a task of the kind `generate`, the first `limit` of them, with options in the order that `seed` gives them.
    ///
    /// # Errors
    /// Files that cannot be read; [`DataError::Item`] for an item that the task's templates do not fit; [`DataError::Task`] for a task of
    /// another kind.
    pub fn questions(
        &self,
        files: &[PathBuf],
        seed: u64,
        limit: Option<usize>,
    ) -> Result<Vec<Question>, DataError> {
        let TaskKind::Generate(ask) = self.kind() else { return Err(self.other_kind("generate")) };
        let records = self.records(files, limit)?;
        records.iter().map(|record| ask.question(record, seed).map_err(|e| self.at(record, e))).collect()
    }

    /// The tokens of a question for a model, whose chat template this is. A text that the chat template made gets one BOS; with
    /// `add_special_tokens: true` the tokenizer adds its own whatever the template has printed, as some harnesses do.
    ///
    /// # Errors
    /// [`DataError::Task`] for a chat without a template; what rendering and tokenising gives.
    pub fn encode_question(
        &self,
        question: &Question,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<EncodedPrompt, DataError> {
        let TaskKind::Generate(ask) = self.kind() else { return Err(self.other_kind("generate")) };
        let (text, tokens) = match &question.said {
            Said::Plain(text) => (text.clone(), tokenizer.encode(text, self.add_special_tokens())?),
            Said::Chat(conversation) => {
                let template = template.ok_or_else(|| DataError::Task {
                    task: self.name().to_owned(),
                    reason: "it asks in turns, and the model has no chat template; write `chat: false`, with a prompt that is \
                             to be continued as it stands"
                        .to_owned(),
                })?;
                let options = RenderOptions { add_generation_prompt: true, extra: Map::new() };
                let text = template.render(conversation, &options)?;
                let tokens = if self.add_special_tokens() {
                    tokenizer.encode(&text, true)?
                } else {
                    tokenizer.encode_rendered(&text)?
                };
                (text, tokens)
            }
        };
        let opens_thought = match ask.opening {
            Opening::Auto => text.trim_end().ends_with(ask.marks[0].as_str()),
            Opening::Open => true,
            Opening::None => false,
        };
        Ok(EncodedPrompt { tokens, opens_thought })
    }
}

impl Generation {
    fn question(&self, record: &Record, seed: u64) -> Result<Question, DataError> {
        let mut fields = record.fields.clone();
        let (mut count, mut right) = (0, None);
        if let Some(options) = &self.options {
            let mut options = options.texts(&record.fields)?;
            count = options.len();
            if count == 0 || count > LETTERS.len() {
                let reason = format!("{count} options; 1 to {} have letters", LETTERS.len());
                return Err(DataError::TaskTemplate { key: "options".to_owned(), reason });
            }
            // The right one moves to a place of its own; the others keep their order.
            let place = if self.shuffle { right_place(seed, record.number, count) } else { 0 };
            options[..=place].rotate_left(1);
            right = Some(place);
            let letters: Vec<&str> = LETTERS.split("").filter(|l| !l.is_empty()).take(count).collect();
            fields.insert("answer_letter".into(), letters[place].into());
            fields.insert("letters".into(), json!(letters));
            fields.insert("options".into(), json!(options));
        }
        let prompt = self.prompt.render(&fields)?;
        let said = if self.chat {
            let turn = |role: &str, text: String| json!({"role": role, "content": text});
            let mut turns = Vec::new();
            if let Some(system) = &self.system {
                turns.push(turn("system", system.render(&fields)?));
            }
            turns.push(turn("user", prompt));
            Said::Chat(Conversation::from_json(&Value::Array(turns))?)
        } else {
            Said::Plain(prompt)
        };
        let gold = match &self.gold {
            Right::Text(template) => template.render(&fields)?,
            Right::Fields(names) => {
                let field = |name: &String| match record.fields.get(name) {
                    Some(value) => Ok((name.clone(), value.clone())),
                    None => Err(DataError::TaskTemplate {
                        key: "gold_fields".to_owned(),
                        reason: format!("the item has no field {name:?}"),
                    }),
                };
                Value::Object(names.iter().map(field).collect::<Result<_, _>>()?).to_string()
            }
        };
        Ok(Question { number: record.number, id: record.id(), said, gold, options: count, place: right })
    }
}

/// Where the right option of an item stands under a seed.
fn right_place(seed: u64, number: u64, options: usize) -> usize {
    let mut random = PyRandom::seed((seed << 32) ^ number);
    random.randint(0, options as u64 - 1).map_or(0, |place| place as usize)
}
