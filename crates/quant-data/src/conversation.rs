//! Conversations: messages as chat templates expect them.

use serde_json::{Map, Value};

use crate::DataError;

/// A list of messages as chat templates expect it, with further template variables.
///
/// ```
/// use quant_data::Conversation;
/// let messages = serde_json::json!([{"role": "user", "content": "What is 35 + 21?"}]);
/// assert!(Conversation::from_json(&messages).is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Conversation {
    /// Messages in order. Keys a template may know besides `role` and `content` are kept.
    pub messages: Vec<Map<String, Value>>,
    /// Template variables of this conversation alone, for example `tools`.
    pub extra: Map<String, Value>,
}

impl Conversation {
    /// Checks a JSON list of messages: not empty, each an object with a string `role`.
    ///
    /// Keys with `null` count as missing, apart from `content`. Content in parts (`[{"type": "text", "text": …}, …]`)
    /// becomes the text of the parts, one after the other, as templates of multimodal models print them.
    ///
    /// # Errors
    /// [`DataError::Message`] naming the first message that has another shape, or a part that is no text.
    pub fn from_json(messages: &Value) -> Result<Self, DataError> {
        let bad = |index: usize, reason: &str| DataError::Message { index, reason: reason.to_owned() };
        let list = messages.as_array().ok_or_else(|| bad(0, "'messages' is not a list"))?;
        if list.is_empty() {
            return Err(bad(0, "the list of messages is empty"));
        }
        let mut messages = Vec::with_capacity(list.len());
        for (index, message) in list.iter().enumerate() {
            let message =
                message.as_object().ok_or_else(|| bad(index, "not an object with role and content"))?;
            if !message.get("role").is_some_and(Value::is_string) {
                return Err(bad(index, "no string 'role'"));
            }
            let mut message = message.clone();
            message.retain(|key, value| key == "content" || !value.is_null());
            if let Some(content) = message.get_mut("content")
                && let Value::Array(parts) = content
            {
                *content = text_of_parts(parts).map_err(|reason| bad(index, &reason))?.into();
            }
            messages.push(message);
        }
        Ok(Self { messages, extra: Map::new() })
    }

    pub(crate) fn messages_json(&self) -> Value {
        self.messages.iter().cloned().map(Value::Object).collect()
    }

    pub(crate) fn with_last(&self, last: Map<String, Value>) -> Self {
        let mut copy = self.clone();
        if let Some(slot) = copy.messages.last_mut() {
            *slot = last;
        }
        copy
    }
}

/// The text of a message's parts; each a string, or an object whose `type` is a kind of text.
fn text_of_parts(parts: &[Value]) -> Result<String, String> {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        let words = match kind {
            "text" | "input_text" | "output_text" => part.as_str().or_else(|| part.get("text")?.as_str()),
            _ => None,
        };
        text.push_str(words.ok_or_else(|| {
            format!("part {index} of its content is no text (type '{kind}'); only text can be used")
        })?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shapes_are_checked() {
        let message = |value: Value| Conversation::from_json(&value).unwrap_err().to_string();
        assert!(message(json!({})).contains("not a list"));
        assert!(message(json!([])).contains("empty"));
        assert!(message(json!([{"role": "user"}, 3])).starts_with("message 1"));
        assert!(message(json!([{"content": "x"}])).contains("role"));
    }

    #[test]
    fn parts_are_flattened_and_nulls_dropped() {
        let parts = json!([{"role": "user", "name": null, "content":
            [{"type": "text", "text": "a ", "image": null}, "b", {"type": "input_text", "text": "c"}]}]);
        let conversation = Conversation::from_json(&parts).unwrap();
        assert_eq!(conversation.messages_json(), json!([{"role": "user", "content": "a bc"}]));
        for part in [json!({"type": "image", "text": null}), json!({"type": "text"}), json!(3), json!(null)] {
            let messages =
                json!([{"role": "user"}, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]);
            let error = Conversation::from_json(&messages).unwrap_err().to_string();
            assert!(error.starts_with("message 1") && error.contains("part 1"), "{error}");
        }
    }
}
