//! One record of a data set: which of its columns are its document.

use serde_json::{Map, Value};

use crate::Conversation;

/// Between the parts of a question, and between documents.
pub(crate) const SEPARATOR: &str = "\n\n";

/// Columns that hold a question, those that may hold its answer, those that may add to the question.
const PAIRS: [(&str, &[&str], &[&str]); 5] = [
    ("instruction", &["output", "response", "completion"], &["input", "context"]),
    ("prompt", &["completion", "response", "output"], &[]),
    ("question", &["answer", "response", "solution"], &[]),
    ("problem", &["solution", "answer"], &[]),
    ("query", &["response", "answer"], &[]),
];
/// Columns with turns of `from` and `value`, or of `role` and `content`.
const SHARED: [&str; 2] = ["conversations", "conversation"];

/// What a record holds.
#[derive(Debug)]
pub(crate) enum Document {
    /// The column `text`.
    Text(String),
    /// The column `messages`.
    Messages(Conversation),
    /// Turns made from other columns; the second says which.
    Made(Conversation, String),
}

impl Document {
    /// # Errors
    /// What is wrong, without the place.
    pub(crate) fn from_json(value: Value) -> Result<Self, String> {
        let Value::Object(mut object) = value else {
            return Err("not a JSON object; expected one with a field 'text' or 'messages'".into());
        };
        // Tables have every column in every row: null is how they write that one is missing.
        drop_nulls(&mut object);
        if let Some(messages) = object.get("messages") {
            let conversation = conversation(messages, &object)?;
            return Ok(Self::Messages(conversation));
        }
        for column in SHARED {
            if let Some(turns) = object.get(column) {
                let mut conversation = conversation(&from_shared(column, turns)?, &object)?;
                prepend_system(&mut conversation, &object)?;
                return Ok(Self::Made(conversation, format!("'{column}'")));
            }
        }
        if let Some(text) = object.get("text") {
            let text = text.as_str().ok_or("'text' is not a string")?;
            return Ok(Self::Text(text.to_owned()));
        }
        match PAIRS.iter().find(|(question, ..)| object.contains_key(*question)) {
            Some((question, answers, additions)) => pair(&object, question, answers, additions),
            None => {
                let keys: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
                let found = if keys.is_empty() { "nothing but null".to_owned() } else { keys.join(", ") };
                Err(format!(
                    "expected a field 'text' or 'messages' (or conversations, instruction and output, prompt and \
                     completion, question and answer), found: {found}"
                ))
            }
        }
    }

    /// The column `text` alone, for evaluation.
    pub(crate) fn text_from_json(value: Value) -> Result<String, String> {
        let Value::Object(mut object) = value else {
            return Err("not a JSON object; expected one with a field 'text'".into());
        };
        match object.remove("text") {
            Some(Value::String(text)) => Ok(text),
            None | Some(Value::Null) => {
                drop_nulls(&mut object);
                let keys: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
                Err(format!("evaluation scores the field 'text' of JSON lines, found: {}", keys.join(", ")))
            }
            Some(_) => Err("'text' is not a string".into()),
        }
    }
}

fn drop_nulls(object: &mut Map<String, Value>) {
    object.retain(|_, value| !value.is_null());
}

/// Messages with the variables their record gives to the template.
fn conversation(messages: &Value, object: &Map<String, Value>) -> Result<Conversation, String> {
    let mut conversation = Conversation::from_json(messages).map_err(|e| e.to_string())?;
    match object.get("tools") {
        None => {}
        // Tables without nested columns hold the list as JSON text.
        Some(Value::String(text)) => {
            let tools: Value = serde_json::from_str(text)
                .map_err(|e| format!("'tools' is text, but not a JSON list: {e}"))?;
            conversation.extra.insert("tools".into(), tools);
        }
        Some(tools) => {
            conversation.extra.insert("tools".into(), tools.clone());
        }
    }
    match object.get("chat_template_kwargs") {
        None => {}
        Some(Value::Object(variables)) => {
            let mut variables = variables.clone();
            drop_nulls(&mut variables);
            conversation.extra.extend(variables);
        }
        Some(_) => return Err("'chat_template_kwargs' is not an object".into()),
    }
    Ok(conversation)
}

/// Turns of `from` and `value` as messages. Turns that have a `role` are messages already.
fn from_shared(column: &str, turns: &Value) -> Result<Value, String> {
    let list = turns.as_array().ok_or_else(|| format!("'{column}' is not a list"))?;
    let turn = |(index, turn): (usize, &Value)| {
        if turn.get("role").is_some_and(Value::is_string) {
            return Ok(turn.clone());
        }
        let from = turn.get("from").and_then(Value::as_str);
        let from = from.ok_or_else(|| format!("'{column}', turn {index}: no string 'from' or 'role'"))?;
        let role = match from.to_ascii_lowercase().as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" | "bot" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function_response" => "tool",
            _ => {
                return Err(format!(
                    "'{column}', turn {index}: from '{from}', expected human, gpt, system or tool"
                ));
            }
        };
        let value = turn.get("value").cloned().unwrap_or(Value::Null);
        if value.is_null() {
            return Err(format!("'{column}', turn {index}: no 'value'"));
        }
        Ok(serde_json::json!({"role": role, "content": value}))
    };
    list.iter().enumerate().map(turn).collect()
}

/// A column `system` beside turns that have no system turn.
fn prepend_system(conversation: &mut Conversation, object: &Map<String, Value>) -> Result<(), String> {
    let Some(system) = object.get("system") else { return Ok(()) };
    let system = system.as_str().ok_or("'system' is not a string")?;
    let first = conversation.messages.first().and_then(|m| m.get("role"));
    if !system.is_empty() && first.is_some_and(|role| role != "system") {
        let message = [("role".to_owned(), "system".into()), ("content".to_owned(), system.into())];
        conversation.messages.insert(0, message.into_iter().collect());
    }
    Ok(())
}

/// A question and its answer as two turns; each may be a list of messages.
fn pair(
    object: &Map<String, Value>,
    question: &str,
    answers: &[&str],
    additions: &[&str],
) -> Result<Document, String> {
    let answer = answers.iter().find(|name| object.contains_key(**name));
    let answer = answer.ok_or_else(|| format!("'{question}' without '{}'", answers.join("' or '")))?;
    let mut columns = vec![question];
    let mut messages = turns(object, question, "user")?;
    for name in additions {
        let Some(addition) = object.get(*name) else { continue };
        let addition = addition.as_str().ok_or_else(|| format!("'{name}' is not a string"))?;
        columns.push(name);
        if let (false, Some(Value::String(text))) =
            (addition.is_empty(), messages.last_mut().and_then(|m| m.get_mut("content")))
        {
            text.push_str(SEPARATOR);
            text.push_str(addition);
        }
    }
    columns.push(answer);
    messages.extend(turns(object, answer, "assistant")?);
    let messages = messages.into_iter().map(Value::Object).collect();
    let mut conversation = conversation(&messages, object)?;
    prepend_system(&mut conversation, object)?;
    Ok(Document::Made(conversation, format!("'{}'", columns.join("', '"))))
}

fn turns(object: &Map<String, Value>, column: &str, role: &str) -> Result<Vec<Map<String, Value>>, String> {
    match object.get(column) {
        Some(Value::String(text)) => {
            let message = [("role".to_owned(), role.into()), ("content".to_owned(), text.as_str().into())];
            Ok(vec![message.into_iter().collect()])
        }
        Some(list @ Value::Array(_)) => {
            let conversation = Conversation::from_json(list).map_err(|e| format!("'{column}': {e}"))?;
            Ok(conversation.messages)
        }
        _ => Err(format!("'{column}' is neither a string nor a list of messages")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Roles and contents, and the columns they come from.
    fn made(value: Value) -> (Vec<(String, String)>, String) {
        let Document::Made(conversation, columns) = Document::from_json(value).unwrap() else {
            panic!("not made of columns");
        };
        let text = |m: &Map<String, Value>, key: &str| m[key].as_str().unwrap().to_owned();
        (conversation.messages.iter().map(|m| (text(m, "role"), text(m, "content"))).collect(), columns)
    }

    #[test]
    fn columns_of_public_data_sets_become_turns() {
        let turn = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        let qa = vec![turn("user", "q"), turn("assistant", "a")];
        for (record, columns) in [
            (
                json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "id": 1}),
                "'conversations'",
            ),
            (
                json!({"conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
                "'conversation'",
            ),
            (
                json!({"instruction": "q", "input": "", "output": "a", "text": null}),
                "'instruction', 'input', 'output'",
            ),
            (json!({"instruction": "q", "context": null, "response": "a"}), "'instruction', 'response'"),
            (json!({"prompt": "q", "completion": "a"}), "'prompt', 'completion'"),
            (
                json!({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}),
                "'prompt', 'completion'",
            ),
            (json!({"question": "q", "answer": "a"}), "'question', 'answer'"),
            (json!({"problem": "q", "solution": "a", "answer": "7"}), "'problem', 'solution'"),
        ] {
            assert_eq!(made(record.clone()), (qa.clone(), columns.to_owned()), "{record}");
        }
        let (turns, _) = made(json!({"instruction": "q", "input": "i", "output": "a", "system": "s"}));
        assert_eq!(turns, [turn("system", "s"), turn("user", "q\n\ni"), turn("assistant", "a")]);
        let (turns, _) = made(
            json!({"system": "s", "conversations": [{"from": "system", "value": "t"}, {"from": "human", "value": "q"}]}),
        );
        assert_eq!(turns, [turn("system", "t"), turn("user", "q")]);
    }

    #[test]
    fn null_is_missing() {
        let both = json!({"text": null, "messages": [{"role": "assistant", "content": null, "name": null}],
            "tools": null, "chat_template_kwargs": {"a": null, "b": 1}});
        let Document::Messages(conversation) = Document::from_json(both).unwrap() else { panic!() };
        assert_eq!(
            Value::Object(conversation.messages[0].clone()),
            json!({"role": "assistant", "content": null})
        );
        assert_eq!(Value::Object(conversation.extra), json!({"b": 1}));
        assert!(matches!(Document::from_json(json!({"text": "a", "messages": null})), Ok(Document::Text(_))));
        assert_eq!(Document::text_from_json(json!({"text": "", "id": null})), Ok(String::new()));
    }

    #[test]
    fn tools_may_be_json_text() {
        let record = json!({"messages": [{"role": "user"}], "tools": "[{\"name\": \"f\"}]"});
        let Document::Messages(conversation) = Document::from_json(record).unwrap() else { panic!() };
        assert_eq!(conversation.extra["tools"], json!([{"name": "f"}]));
    }

    #[test]
    fn refusals_say_what_was_found() {
        for (record, expected) in [
            (json!([1]), "not a JSON object"),
            (json!({"text": 3}), "'text' is not a string"),
            (json!({"text": null, "messages": null}), "nothing but null"),
            (json!({"chosen": "x"}), "found: chosen"),
            (json!({"question": "x"}), "'question' without 'answer' or 'response' or 'solution'"),
            (json!({"instruction": "x", "input": 1, "output": "y"}), "'input' is not a string"),
            (json!({"prompt": 1, "completion": "y"}), "'prompt' is neither"),
            (json!({"conversations": [{"from": "narrator", "value": "x"}]}), "turn 0: from 'narrator'"),
            (json!({"conversations": [{"from": "human"}]}), "no 'value'"),
            (json!({"conversations": "x"}), "not a list"),
            (json!({"messages": [{"role": "user"}], "tools": "x"}), "not a JSON list"),
            (json!({"messages": [{"role": "user"}], "chat_template_kwargs": 1}), "not an object"),
        ] {
            let reason = Document::from_json(record.clone()).unwrap_err();
            assert!(reason.contains(expected), "{record}: {reason}");
        }
        let reason = Document::text_from_json(json!({"text": null, "messages": []})).unwrap_err();
        assert!(reason.contains("found: messages"), "{reason}");
    }
}
