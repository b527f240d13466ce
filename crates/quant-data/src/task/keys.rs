//! The keys of a task file: one table, by which files are checked and the schema is printed.

use super::fault::Fault;
use quant_core::meant;
use serde_json::{Map, Value, json};

/// A key, the kinds of tasks that have it (none: all), and what it is.
pub(super) struct Key {
    pub(super) name: &'static str,
    kinds: &'static [&'static str],
    schema: &'static str,
    help: &'static str,
}

const fn key(
    name: &'static str,
    kinds: &'static [&'static str],
    schema: &'static str,
    help: &'static str,
) -> Key {
    Key { name, kinds, schema, help }
}

pub(super) const KINDS: [&str; 3] = ["choice", "generate", "text"];
const CHOICE: &[&str] = &["choice"];
const GENERATE: &[&str] = &["generate"];
const TEXT: &[&str] = &["text"];
const PROMPTED: &[&str] = &["choice", "generate"];

#[rustfmt::skip]
pub(super) static KEYS: &[Key] = &[
    key("version", &[], "integer", "1"),
    key("name", &[], "string", "letters, digits, - and _"),
    key("summary", &[], "string", "one line"),
    key("kind", &[], "string", "choice, generate or text"),
    key("source", &[], "object", "where items come from"),
    key("where", &[], "object", "fields and the values that an item must have to be taken"),
    key("wording", &[], "string", "whose words the prompt has, for reports (default: ours)"),
    key("group", &[], "object", "a column of a report that several tasks make together: name, and the weight of this one"),
    key("add_special_tokens", &[], "boolean", "put the tokenizer's special tokens around a text (default: false; text: true)"),
    key("context", CHOICE, "string", "template of what comes before; may use choice and index"),
    key("choices", CHOICE, "string", "expression: the list of choices (default: one empty choice)"),
    key("continuation", CHOICE, "string", "template of what is scored; may use choice and index (default: a blank and the choice)"),
    key("metric", CHOICE, "string", "acc, acc_norm or greedy: the figure of the task (default: acc)"),
    key("prompt", GENERATE, "string", "template of the question; options and letters where there are options"),
    key("system", GENERATE, "string", "template of a system turn"),
    key("chat", GENERATE, "boolean", "the prompt is a turn of a user (default: true)"),
    key("options", GENERATE, "string", "expression: the list of options, the right one first"),
    key("shuffle", GENERATE, "boolean", "put options in an order drawn by the seed and the item's number (default: true)"),
    key("scorer", GENERATE, "string", "what grades an answer (`ptq list`)"),
    key("thought", GENERATE, "string", "whether the prompt opens the thought: auto, open or none (default: auto)"),
    key("thought_marks", GENERATE, "array", "marks around a thought (default: <think>, </think>)"),
    key("max_tokens", GENERATE, "integer", "tokens of prompt and answer together (default: 32768)"),
    key("max_new_tokens", GENERATE, "integer", "tokens of an answer (default: as many as fit)"),
    key("sampling", GENERATE, "object", "temperature, top_p, top_k (default: greedy)"),
    key("seeds", GENERATE, "array", "seeds of the draws (default: 42, 43, 44; greedy: 42)"),
    key("gold", PROMPTED, "string", "what is right: an expression, the place of a choice; or a template, the text of an answer"),
    key("gold_fields", GENERATE, "array", "fields that are right together, as an object in JSON, in place of gold"),
    key("text", TEXT, "string", "template of an item's text (default: {{ text }})"),
    key("messages", TEXT, "string", "expression: a conversation, which the chat template renders, instead of text"),
    key("join", TEXT, "string", "what stands between the texts of items (default: a blank line)"),
    key("window", TEXT, "integer", "tokens of a window (default: 2048)"),
    key("documents", TEXT, "integer", "items taken at most"),
    key("tokens", TEXT, "integer", "tokens scored at most"),
];

/// Keys of `source`.
#[rustfmt::skip]
pub(super) static SOURCE: &[Key] = &[
    key("files", &[], "array", "names or * patterns tried in this order below the data folder"),
    key("repository", &[], "string", "of the Hugging Face hub"),
    key("config", &[], "string", "configuration of the data set"),
    key("split", &[], "string", "split of the data set"),
    key("columns", &[], "array", "fields that an item must have"),
];

pub(super) static SAMPLING: &[Key] = &[
    key("temperature", &[], "number", "divides the logits (default: 1)"),
    key("top_p", &[], "number", "least share of probability that is kept (default: 1)"),
    key("top_k", &[], "integer", "most tokens that are kept (default: all)"),
];

pub(super) static GROUP: &[Key] =
    &[key("name", &[], "string", "of the column"), key("weight", &[], "number", "of this task in it")];

/// Refuses a key that is not in the table, or not of this kind.
pub(super) fn check(
    path: &str,
    written: &Map<String, Value>,
    known: &[Key],
    kind: Option<&str>,
) -> Result<(), Fault> {
    let of_kind = |key: &&Key| key.kinds.is_empty() || kind.is_none_or(|kind| key.kinds.contains(&kind));
    let names: Vec<&str> = known.iter().filter(of_kind).map(|key| key.name).collect();
    if let Some(name) = written.keys().find(|name| !names.contains(&name.as_str())) {
        if let (Some(kind), Some(key)) = (kind, known.iter().find(|key| key.name == name)) {
            let kinds = key.kinds.join(" and ");
            return Err(Fault::new(
                path,
                format!("{name:?} belongs to tasks of the kind {kinds}, this one is of the kind {kind}"),
            ));
        }
        let meant = meant(name, &names);
        return Err(Fault::new(
            path,
            format!("unknown key {name:?}{meant}; known keys: {}", names.join(", ")),
        ));
    }
    Ok(())
}

/// The JSON schema of a task file.
///
/// ```
/// let schema = quant_data::task_schema();
/// assert_eq!(schema["properties"]["kind"]["enum"][0], "choice");
/// ```
#[must_use]
pub fn task_schema() -> Value {
    fn object(keys: &[Key]) -> Value {
        let property = |key: &Key| {
            let mut value = json!({"type": key.schema, "description": key.help});
            if !key.kinds.is_empty() {
                value["description"] = format!("{} ({})", key.help, key.kinds.join(", ")).into();
            }
            match key.name {
                "kind" => value["enum"] = json!(KINDS),
                "version" => value["const"] = json!(1),
                "source" => return object(SOURCE),
                "sampling" => return object(SAMPLING),
                "group" => return object(GROUP),
                _ => {}
            }
            value
        };
        let properties: Map<String, Value> = keys.iter().map(|k| (k.name.to_owned(), property(k))).collect();
        json!({"type": "object", "additionalProperties": false, "properties": properties})
    }
    let mut schema = object(KEYS);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "A task of ptq eval and ptq study".into();
    schema["required"] = json!(["version", "name", "kind", "source"]);
    schema
}
