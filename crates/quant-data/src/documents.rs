//! Text files and JSONL files as one long token stream.

use std::path::Path;

use serde_json::{Map, Value};

use crate::files::{MAX_FILE_BYTES, read_text};
use crate::{ChatTemplate, Conversation, DataError, Tokenizer};

/// What separates documents of a stream, in the published calibration sets as well.
const SEPARATOR: &str = "\n\n";

/// One long token stream and what happened on the way.
pub(crate) struct Stream {
    pub(crate) ids: Vec<u32>,
    pub(crate) warnings: Vec<String>,
}

/// A text file: tokenised once, as it is, special tokens once at its start.
pub(crate) fn text_stream(path: &Path, model: &Path) -> Result<Stream, DataError> {
    let text = read_text(path, MAX_FILE_BYTES)?;
    // A text of blanks has nothing to learn from, whatever special tokens would surround it.
    let blank = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}').is_empty();
    let ids = if blank { Vec::new() } else { Tokenizer::from_dir(model)?.encode(&text, true)? };
    Ok(Stream { ids, warnings: Vec::new() })
}

/// A JSONL file.
///
/// Neighbouring `text` documents are joined the way the studies join rows: empty ones left out, each
/// stripped, `"\n\n"` between, tokenised once. Each conversation is rendered by the chat template, followed
/// by `"\n\n"`, and tokenised alone, because each may begin with a BOS.
pub(crate) fn jsonl_stream(path: &Path, model: &Path) -> Result<Stream, DataError> {
    let file = read_text(path, MAX_FILE_BYTES)?;
    let tokenizer = Tokenizer::from_dir(model)?;
    let mut template: Option<ChatTemplate> = None;
    let mut ids = Vec::new();
    let mut run = TextRun::default();
    let (mut conversations, mut restored) = (0_usize, 0_usize);
    for (number, line) in file.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let at = |reason: String| DataError::Line { path: path.to_owned(), line: number + 1, reason };
        match Document::parse(line).map_err(at)? {
            Document::Text(text) => run.push(&text),
            Document::Messages(conversation) => {
                run.flush(&tokenizer, &mut ids)?;
                let template = match &template {
                    Some(template) => template,
                    None => {
                        let found = ChatTemplate::from_dir(model, tokenizer.special_tokens())?;
                        let found =
                            found.ok_or_else(|| DataError::NoChatTemplate { folder: model.to_owned() })?;
                        template.insert(found)
                    }
                };
                let rendered = template.render_conversation(&conversation).map_err(|e| at(e.to_string()))?;
                conversations += 1;
                restored += usize::from(rendered.thoughts_restored);
                ids.extend(tokenizer.encode_rendered(&(rendered.text + SEPARATOR))?);
            }
        }
    }
    run.flush(&tokenizer, &mut ids)?;
    let mut warnings = Vec::new();
    if restored > 0 {
        warnings.push(format!(
            "the chat template drops the thoughts of {restored} of {conversations} conversations; they were put \
             back between the generation prompt and the answer"
        ));
    }
    Ok(Stream { ids, warnings })
}

enum Document {
    Text(String),
    Messages(Conversation),
}

impl Document {
    fn parse(line: &str) -> Result<Self, String> {
        let object: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| format!("not a JSON object: {e}"))?;
        if let Some(messages) = object.get("messages") {
            let mut conversation = Conversation::from_json(messages).map_err(|e| e.to_string())?;
            if let Some(tools) = object.get("tools") {
                conversation.extra.insert("tools".into(), tools.clone());
            }
            match object.get("chat_template_kwargs") {
                None | Some(Value::Null) => {}
                Some(Value::Object(variables)) => conversation.extra.extend(variables.clone()),
                Some(_) => return Err("'chat_template_kwargs' is not an object".into()),
            }
            return Ok(Self::Messages(conversation));
        }
        match object.get("text") {
            Some(Value::String(text)) => Ok(Self::Text(text.clone())),
            Some(_) => Err("'text' is not a string".into()),
            None => {
                let keys: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
                Err(format!("expected a field 'text' or 'messages', found: {}", keys.join(", ")))
            }
        }
    }
}

/// Neighbouring text documents, not yet tokenised.
#[derive(Default)]
struct TextRun {
    text: String,
    documents: usize,
}

impl TextRun {
    fn push(&mut self, document: &str) {
        if document.is_empty() {
            return;
        }
        if self.documents > 0 {
            self.text.push_str(SEPARATOR);
        }
        self.text.push_str(document.trim());
        self.documents += 1;
    }

    fn flush(&mut self, tokenizer: &Tokenizer, ids: &mut Vec<u32>) -> Result<(), DataError> {
        let run = std::mem::take(self);
        if !run.text.trim().is_empty() {
            ids.extend(tokenizer.encode(&run.text, true)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::write_word_tokenizer;
    use serde_json::json;
    use std::path::PathBuf;

    /// Words a=2, b=3, q=4, [=5, ]=6; BOS=0 by the post-processor, EOS=1.
    fn model(template: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
        write_word_tokenizer(folder.path(), &["a", "b", "q", "[", "]"], true, config);
        folder
    }

    fn lines(folder: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        path
    }

    const PLAIN: &str = "{% for m in messages %}[ {{ m.content }} ]{% endfor %}";

    #[test]
    fn texts_are_joined_and_tokenised_once() {
        let folder = model(PLAIN);
        let path = lines(&folder, "{\"text\": \" a\"}\n\n{\"text\": \"\"}\n{\"text\": \"b \", \"n\": 1}\n");
        assert_eq!(jsonl_stream(&path, folder.path()).unwrap().ids, [0, 2, 3]);
        let path = folder.path().join("a.txt");
        std::fs::write(&path, "a\nb").unwrap();
        assert_eq!(text_stream(&path, folder.path()).unwrap().ids, [0, 2, 3]);
    }

    #[test]
    fn every_conversation_has_its_own_bos() {
        let folder = model(PLAIN);
        let chat = r#"{"messages": [{"role": "user", "content": "q"}]}"#;
        let path = lines(&folder, &format!("{chat}\n{chat}\n{{\"text\": \"a\"}}\n"));
        assert_eq!(jsonl_stream(&path, folder.path()).unwrap().ids, [0, 5, 4, 6, 0, 5, 4, 6, 0, 2]);
        let folder = model(&format!("{{{{ bos_token }}}}{PLAIN}"));
        let path = lines(&folder, chat);
        assert_eq!(jsonl_stream(&path, folder.path()).unwrap().ids, [0, 5, 4, 6]);
    }

    #[test]
    fn restored_thoughts_are_reported() {
        let folder = model("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}");
        let path = lines(
            &folder,
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a</think>b"}]}"#,
        );
        let stream = jsonl_stream(&path, folder.path()).unwrap();
        assert!(stream.warnings[0].contains("thoughts of 1 of 1"), "{:?}", stream.warnings);
        assert!(stream.ids.contains(&2));
    }

    #[test]
    fn line_variables_reach_the_template() {
        let folder = model("{% if flag %}a{% endif %}{% if tools %}b{% endif %}");
        let path = lines(
            &folder,
            r#"{"messages": [{"role": "user"}], "tools": [{}], "chat_template_kwargs": {"flag": true}}"#,
        );
        // "ab" is one unknown word.
        assert_eq!(jsonl_stream(&path, folder.path()).unwrap().ids, [0, 7]);
    }

    #[test]
    fn bad_lines_are_named() {
        let folder = model(PLAIN);
        for (line, expected) in [
            ("[1]", "not a JSON object"),
            ("{\"text\": 3}", "'text' is not a string"),
            ("{\"prompt\": \"x\"}", "found: prompt"),
            ("{\"messages\": []}", "empty"),
            ("{\"messages\": [{\"role\": \"user\"}], \"chat_template_kwargs\": 1}", "not an object"),
        ] {
            let path = lines(&folder, &format!("{{\"text\": \"a\"}}\n\n{line}\n"));
            let error = jsonl_stream(&path, folder.path()).err().unwrap().to_string();
            assert!(error.contains("line 3") && error.contains(expected), "{error}");
        }
        let folder = model("{{ raise_exception('no') }}");
        let path = lines(&folder, r#"{"messages": [{"role": "user"}]}"#);
        assert!(jsonl_stream(&path, folder.path()).err().unwrap().to_string().contains("line 1"));
        std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
        assert!(matches!(jsonl_stream(&path, folder.path()), Err(DataError::NoChatTemplate { .. })));
    }
}
