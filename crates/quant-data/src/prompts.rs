//! Prompts to be continued, and what comes back as text.

use std::path::{Path, PathBuf};

use quant_core::Foreign;
use serde_json::{Map, Value, json};

use crate::files::{MAX_FILE_BYTES, read_given, read_model_json};
use crate::json::parse_line;
use crate::tokenizer::CONFIG_LIMIT;
use crate::{ChatTemplate, Conversation, DataError, RenderOptions, Tokenizer};

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptSource {
    /// One text.
    Text(String),
    /// JSON lines, each an object with either `prompt`, a text, or `messages`, a conversation. Lines of blanks are passed over.
    Lines(PathBuf),
}

/// A prompt as a model takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its place among the prompts of its source, from 0.
    pub index: usize,
    /// Its line, where it comes from a file.
    pub line: Option<usize>,
    /// Token ids.
    pub tokens: Vec<u32>,
}

/// Reads prompts for the model in a folder, whose tokenizer this is.
///
/// A `prompt` is taken as it is written, and no special token is put around it; `messages` go through the chat template of the model,
/// which is told to begin an answer and is handed all keys of a message. With `chat` a `prompt` is one turn of a user.
///
/// # Errors
/// [`DataError::Line`] for a line that is not UTF-8, no JSON object, has another field or both, or an empty prompt;
/// [`DataError::Empty`] for no prompt; [`DataError::NoChatTemplate`] where one is needed; what tokenising gives.
pub fn load_prompts(
    source: &PromptSource,
    model: &Path,
    tokenizer: &Tokenizer,
    chat: bool,
) -> Result<Vec<Prompt>, DataError> {
    let reader = Reader { tokenizer, model, chat };
    match source {
        PromptSource::Text(text) => {
            let empty = || DataError::Empty {
                source_name: "the prompt".to_owned(),
                found: "no text".to_owned(),
                advice: "give a text to be continued",
            };
            let mut template = None;
            let tokens = reader.tokens(&Said::Text(text.clone()), &mut template)?;
            if tokens.is_empty() {
                return Err(empty());
            }
            Ok(vec![Prompt { index: 0, line: None, tokens }])
        }
        PromptSource::Lines(path) => reader.lines(path),
    }
}

/// What a line says.
enum Said {
    Text(String),
    Messages(Value),
}

struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    model: &'a Path,
    chat: bool,
}

impl Reader<'_> {
    fn lines(&self, path: &Path) -> Result<Vec<Prompt>, DataError> {
        let bytes = read_given(path, MAX_FILE_BYTES)?;
        let bytes = bytes.strip_prefix(Foreign::UTF8_MARK).unwrap_or(&bytes);
        let (mut prompts, mut template) = (Vec::new(), None);
        for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let line_number = number + 1;
            let bad = |reason: String| DataError::Line { path: path.to_owned(), line: line_number, reason };
            let line = std::str::from_utf8(line)
                .map_err(|e| bad(format!("not UTF-8 from byte {} of the line on", e.valid_up_to())))?;
            if line.trim().is_empty() {
                continue;
            }
            let said = said(line).map_err(bad)?;
            // What is wrong with a line's messages is said with the line; what is wrong with the model's files is not.
            let tokens = self.tokens(&said, &mut template).map_err(|error| match error {
                DataError::NoChatTemplate { .. } | DataError::TokenizerFile { .. } => error,
                other => bad(other.to_string()),
            })?;
            if tokens.is_empty() {
                return Err(bad("the prompt is empty; give a text to be continued".to_owned()));
            }
            prompts.push(Prompt { index: prompts.len(), line: Some(line_number), tokens });
        }
        if prompts.is_empty() {
            return Err(DataError::Empty {
                source_name: path.display().to_string(),
                found: "no prompts".to_owned(),
                advice: "write one JSON object a line, with `prompt` or `messages`",
            });
        }
        Ok(prompts)
    }

    fn tokens(&self, said: &Said, template: &mut Option<ChatTemplate>) -> Result<Vec<u32>, DataError> {
        let messages = match said {
            Said::Text(text) if text.is_empty() => return Ok(Vec::new()),
            Said::Text(text) if !self.chat => return self.tokenizer.encode(text, false),
            Said::Text(text) => json!([{"role": "user", "content": text}]),
            Said::Messages(messages) => messages.clone(),
        };
        let conversation = Conversation::from_json(&messages)?;
        let says = |message: &Map<String, Value>| {
            ["content", "tool_calls"].iter().any(|key| message.contains_key(*key))
        };
        if let Some(index) = conversation.messages.iter().position(|message| !says(message)) {
            let reason = "no `content`; other keys than `role` and `content` are handed to the chat template as they are".to_owned();
            return Err(DataError::Message { index, reason });
        }
        let template = match template {
            Some(template) => template,
            None => {
                let found = ChatTemplate::from_dir(self.model, self.tokenizer.special_tokens())?;
                let missing = || DataError::NoChatTemplate { folder: self.model.to_owned() };
                template.insert(found.ok_or_else(missing)?)
            }
        };
        let options = RenderOptions { add_generation_prompt: true, extra: Map::new() };
        self.tokenizer.encode_rendered(&template.render(&conversation, &options)?)
    }
}

fn said(line: &str) -> Result<Said, String> {
    const EXPECTED: &str = "expected an object with `prompt`, a text, or `messages`, a list";
    let value = parse_line(line).map_err(|what| format!("{what}; {EXPECTED}"))?;
    let Value::Object(mut fields) = value else { return Err(format!("no object; {EXPECTED}")) };
    let (prompt, messages) = (fields.remove("prompt"), fields.remove("messages"));
    if let Some(other) = fields.keys().next() {
        return Err(format!("unknown field `{other}`; {EXPECTED}"));
    }
    match (prompt, messages) {
        (Some(Value::String(text)), None) => Ok(Said::Text(text)),
        (None, Some(messages)) => Ok(Said::Messages(messages)),
        (Some(_), None) => Err(format!("`prompt` is no text; {EXPECTED}")),
        (Some(_), Some(_)) => Err(format!("both `prompt` and `messages`; {EXPECTED}")),
        (None, None) => Err(format!("neither `prompt` nor `messages`; {EXPECTED}")),
    }
}

/// The tokens that end a text of the model in a folder: `eos_token_id` of `generation_config.json`, a number or a list, else that of
/// `config.json`, else the tokenizer's.
///
/// # Errors
/// [`DataError::TokenizerFile`] for a file that is no JSON object, or an `eos_token_id` of another kind.
pub fn end_tokens(model: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>, DataError> {
    for name in ["generation_config.json", "config.json"] {
        let path = model.join(name);
        if path.symlink_metadata().is_err() {
            continue;
        }
        let bad = |reason: String| DataError::TokenizerFile { path: path.clone(), reason };
        let config: Map<String, Value> = serde_json::from_slice(&read_model_json(&path, CONFIG_LIMIT)?)
            .map_err(|e| bad(format!("not a JSON object: {e}")))?;
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| bad(format!("eos_token_id {value} is no token id")))
        };
        match config.get("eos_token_id") {
            None | Some(Value::Null) => {}
            Some(Value::Array(ids)) => return ids.iter().map(id).collect(),
            Some(one) => return Ok(vec![id(one)?]),
        }
    }
    Ok(tokenizer.eos_id().into_iter().collect())
}

/// The text of tokens as they come, special tokens left out: a piece as soon as no later token can change it.
///
/// A token may end inside a character, and a decoder may drop a leading blank at the beginning of a text alone; so a few tokens
/// before the new ones are decoded with them.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// Where decoding begins, and where what was not told yet begins.
    from: usize,
    told: usize,
}

impl<'t> TextStream<'t> {
    /// The beginning of a text.
    #[must_use]
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), from: 0, told: 0 }
    }

    /// Takes in a token; gives what has become certain of the text, which may be nothing.
    ///
    /// # Errors
    /// [`DataError::Tokenize`] when the decoder refuses the ids.
    pub fn push(&mut self, id: u32) -> Result<String, DataError> {
        self.ids.push(id);
        let (told, all) = self.decoded()?;
        // A character that is not complete yet shows as a replacement.
        if all.ends_with('\u{FFFD}') || all.len() <= told.len() {
            return Ok(String::new());
        }
        (self.from, self.told) = (self.told, self.ids.len());
        Ok(all.get(told.len()..).unwrap_or_default().to_owned())
    }

    /// The rest, when no token follows.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(self) -> Result<String, DataError> {
        let (told, all) = self.decoded()?;
        Ok(all.get(told.len()..).unwrap_or_default().to_owned())
    }

    fn decoded(&self) -> Result<(String, String), DataError> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, true);
        Ok((decode(&self.ids[self.from..self.told])?, decode(&self.ids[self.from..])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::write_word_tokenizer;

    fn model() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner")
    }

    fn load(source: &PromptSource, model: &Path, chat: bool) -> Result<Vec<Prompt>, DataError> {
        load_prompts(source, model, &Tokenizer::from_dir(model)?, chat)
    }

    fn file(text: &[u8]) -> (tempfile::TempDir, PromptSource) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.jsonl");
        std::fs::write(&path, text).unwrap();
        (folder, PromptSource::Lines(path))
    }

    #[test]
    fn lines_become_tokens() {
        let (_folder, source) = file(
            b"{\"prompt\": \"What is 74 + 51?\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"What is 74 + 51?\"}]}\n",
        );
        let prompts = load(&source, &model(), false).unwrap();
        let tokenizer = Tokenizer::from_dir(&model()).unwrap();
        assert_eq!(prompts.len(), 2);
        assert_eq!(prompts[0].tokens, tokenizer.encode("What is 74 + 51?", false).unwrap());
        assert_eq!((prompts[1].index, prompts[1].line), (1, Some(3)));
        // A chat makes a turn of a prompt.
        let chat = load(&source, &model(), true).unwrap();
        assert_eq!(chat[0].tokens, prompts[1].tokens);
        let text = tokenizer.decode(&chat[0].tokens, false).unwrap();
        assert!(text.contains("What is 74 + 51?") && text.len() > "What is 74 + 51?".len(), "{text}");
        let single = PromptSource::Text("What is 74 + 51?".to_owned());
        assert_eq!(load(&single, &model(), true).unwrap()[0].tokens, chat[0].tokens);
    }

    #[test]
    fn bad_lines_are_named() {
        let good = b"{\"prompt\": \"a\"}\n";
        for (bad, words) in [
            (&b"{\"prompt\": \"\"}"[..], "the prompt is empty"),
            (b"{\"prompt\": \"a\xff\"}", "not UTF-8 from byte 13"),
            (b"{\"prompt\": \"a\", \"max\": 3}", "unknown field `max`"),
            (b"{\"prompt\": 3}", "`prompt` is no text"),
            (b"{\"prompt\": \"a\", \"messages\": []}", "both"),
            (b"{}", "neither"),
            (b"[1]", "no object"),
            (b"{\"prompt", "not JSON: EOF while parsing a string at column 8;"),
            (b"{\"prompt\": \"a\", \"prompt\": \"b\"}", "'prompt' stands there twice"),
            (b"{\"messages\": []}", "the list of messages is empty"),
            (b"{\"messages\": [{\"role\": \"user\", \"contnet\": \"a\"}]}", "no `content`"),
        ] {
            let (_folder, source) = file(&[&good[..], bad].concat());
            let error = load(&source, &model(), false).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(words), "{error}");
        }
        let (_folder, source) = file(b"\n \n");
        assert!(load(&source, &model(), false).unwrap_err().to_string().contains("no prompts"));
        let none = load(&PromptSource::Text(String::new()), &model(), false);
        assert!(none.unwrap_err().to_string().contains("no text"));
    }

    #[test]
    fn a_model_without_a_template_has_no_chat() {
        let folder = tempfile::tempdir().unwrap();
        write_word_tokenizer(folder.path(), &["hello"], false, json!({}));
        let source = PromptSource::Text("hello".to_owned());
        assert_eq!(load(&source, folder.path(), false).unwrap()[0].tokens, [2]);
        let refused = load(&source, folder.path(), true);
        assert!(matches!(refused, Err(DataError::NoChatTemplate { .. })));
    }

    #[test]
    fn all_ends_of_a_generation_config_count() {
        let folder = tempfile::tempdir().unwrap();
        write_word_tokenizer(folder.path(), &["hello"], false, json!({"eos_token": "</s>"}));
        let tokenizer = Tokenizer::from_dir(folder.path()).unwrap();
        let ends = || end_tokens(folder.path(), &tokenizer);
        assert_eq!(ends().unwrap(), [1]);
        std::fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 7}"#).unwrap();
        assert_eq!(ends().unwrap(), [7]);
        std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [3, 4]}"#).unwrap();
        assert_eq!(ends().unwrap(), [3, 4]);
        std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": "x"}"#).unwrap();
        assert!(ends().unwrap_err().to_string().contains("eos_token_id"));
    }

    /// Pieces together are the text, cut wherever characters of several bytes allow.
    #[test]
    fn a_stream_tells_the_text() {
        let tokenizer = Tokenizer::from_dir(&model()).unwrap();
        for text in ["What is 74 + 51?\nwrite 5", "caf\u{e9} \u{1F600} na\u{ef}ve \u{4F60}", " a  b"] {
            let ids = tokenizer.encode(text, false).unwrap();
            let mut stream = TextStream::new(&tokenizer);
            let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
            pieces.push(stream.finish().unwrap());
            assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).unwrap());
        }
    }
}
