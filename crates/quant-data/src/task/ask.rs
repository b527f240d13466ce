//! Templates and expressions over the fields of an item.

use crate::{ChatTemplate, DataError, SpecialTokens};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A template that makes a text of an item's fields.
#[derive(Clone, Debug)]
pub struct TextTemplate(Arc<ChatTemplate>);

impl TextTemplate {
    /// Compiles a template; `origin` names it in errors.
    ///
    /// # Errors
    /// [`DataError::TaskTemplate`] when the source does not parse.
    pub fn new(source: &str, origin: &str) -> Result<Self, DataError> {
        let compiled = ChatTemplate::new(source, origin, SpecialTokens::default()).map_err(of_a_task)?;
        Ok(Self(Arc::new(compiled.strict())))
    }

    /// The text for these fields.
    ///
    /// # Errors
    /// [`DataError::TaskTemplate`] when it raises an exception, prints a field that the item has not, or exceeds the bounds of chat
    /// templates.
    pub fn render(&self, fields: &Map<String, Value>) -> Result<String, DataError> {
        self.0.render_with(fields).map_err(|error| match of_a_task(error) {
            DataError::TaskTemplate { key, reason } if reason.starts_with("undefined value") => {
                let fields: Vec<&str> = fields.keys().map(String::as_str).collect();
                let reason = format!("{reason}: a name that is none of {}", fields.join(", "));
                DataError::TaskTemplate { key, reason }
            }
            other => other,
        })
    }
}

/// An error of a template, as one of a task.
fn of_a_task(error: DataError) -> DataError {
    match error {
        // The engine calls every template `chat`, and says the line behind it.
        DataError::Template { origin, reason } => {
            DataError::TaskTemplate { key: origin, reason: reason.replace("(in chat:", "(in line ") }
        }
        other => other,
    }
}

/// An expression with a value of any kind: what would stand between the braces of a template.
#[derive(Clone, Debug)]
pub struct Expression {
    template: TextTemplate,
    origin: String,
}

impl Expression {
    /// Compiles an expression; `origin` names it in errors.
    ///
    /// # Errors
    /// [`DataError::TaskTemplate`] when the source does not parse.
    pub fn new(source: &str, origin: &str) -> Result<Self, DataError> {
        // A statement would end the braces early.
        if source.contains("}}") || source.contains("{%") {
            let reason = "an expression stands without braces, as in `choices.text`".to_owned();
            return Err(DataError::TaskTemplate { key: origin.to_owned(), reason });
        }
        let template = TextTemplate::new(&format!("{{{{ ({source}) | tojson }}}}"), origin)?;
        Ok(Self { template, origin: origin.to_owned() })
    }

    /// Its value for these fields.
    ///
    /// # Errors
    /// As [`TextTemplate::render`]; fields that it names and the item has not.
    pub fn value(&self, fields: &Map<String, Value>) -> Result<Value, DataError> {
        let text = self.template.render(fields)?;
        serde_json::from_str(&text).map_err(|_| DataError::TaskTemplate {
            key: self.origin.clone(),
            reason: "it has no value for this item: a field that it names is missing".to_owned(),
        })
    }

    /// Its value as a list of texts; numbers count as their text.
    ///
    /// # Errors
    /// As [`Expression::value`]; another kind of value.
    pub fn texts(&self, fields: &Map<String, Value>) -> Result<Vec<String>, DataError> {
        let value = self.value(fields)?;
        let texts = value.as_array().and_then(|list| list.iter().map(as_text).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| DataError::TaskTemplate {
            key: self.origin.clone(),
            reason: format!("a list of texts is expected, it is {}", shortened(&value)),
        })
    }

    /// Its value as a number from 0 on; digits in a text count.
    ///
    /// # Errors
    /// As [`Expression::value`]; another kind of value.
    pub fn place(&self, fields: &Map<String, Value>) -> Result<usize, DataError> {
        let value = self.value(fields)?;
        let number = match &value {
            Value::String(digits) => digits.trim().parse().ok(),
            other => other.as_u64(),
        };
        number.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| DataError::TaskTemplate {
            key: self.origin.clone(),
            reason: format!("a number from 0 on is expected, it is {}", shortened(&value)),
        })
    }
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A value in an error.
pub(super) fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
