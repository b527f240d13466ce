//! Text files and JSON lines as one long token stream.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::content::{Content, read_content};
use crate::json::parse_line;
use crate::record::{Document, SEPARATOR};
use crate::{ChatTemplate, Conversation, DataError, Tokenizer};

/// One long token stream and what happened on the way.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) ids: Vec<u32>,
    pub(crate) warnings: Vec<String>,
    /// How the file was read, where it is not plain text.
    pub(crate) reading: Option<String>,
    /// Bytes of the longest text that was tokenised as one.
    pub(crate) longest_text: usize,
}

/// A file for calibration: plain text, or records.
///
/// Plain text is tokenised once, as it is, special tokens once at its start.
///
/// Of records, neighbouring `text` documents are joined the way the studies join rows: empty ones left out, each
/// stripped, `"\n\n"` between, tokenised once. Each conversation is rendered by the chat template, followed
/// by `"\n\n"`, and tokenised alone, because each may begin with a BOS.
pub(crate) fn calibration_stream(path: &Path, model: &Path) -> Result<Stream, DataError> {
    let content = read_content(path)?;
    if let Content::Prose(text) = content {
        return prose(&text, model);
    }
    let mut reader = Reader::new(path, model)?;
    let records = each(path, content, Document::from_json, |at, document| reader.push(at, document))?;
    let mut stream = reader.finish()?;
    stream.reading = Some(format!("{records} JSON records"));
    Ok(stream)
}

/// A file for evaluation: plain text as it is, or the field `text` of records, joined by a blank line as the rows of
/// WikiText-2 are; empty rows count. Tokenised once.
pub(crate) fn evaluation_stream(path: &Path, model: &Path) -> Result<Stream, DataError> {
    let content = read_content(path)?;
    if let Content::Prose(text) = content {
        return prose(&text, model);
    }
    let mut joined = String::new();
    let mut rows = 0;
    each(path, content, Document::text_from_json, |_, text| {
        if rows > 0 {
            joined.push_str(SEPARATOR);
        }
        joined.push_str(&text);
        rows += 1;
        Ok(())
    })?;
    let mut stream = prose(&joined, model)?;
    let reading = format!("the field 'text' of {rows} JSON records, joined by a blank line");
    stream.warnings.push(format!("{} is scored as {reading}", name(path)));
    stream.reading = Some(reading);
    Ok(stream)
}

/// A file's name without its folder: what reports may hold.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn prose(text: &str, model: &Path) -> Result<Stream, DataError> {
    // A text of blanks has nothing to learn from, whatever special tokens would surround it.
    let blank = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}').is_empty();
    let ids = if blank { Vec::new() } else { Tokenizer::from_dir(model)?.encode(text, true)? };
    Ok(Stream { ids, longest_text: text.len(), ..Stream::default() })
}

/// Where a record stands, for errors.
struct Place<'a> {
    path: &'a Path,
    line: Option<usize>,
    record: usize,
}

impl Place<'_> {
    fn error(&self, reason: String) -> DataError {
        let path = self.path.to_owned();
        match self.line {
            Some(line) => DataError::Line { path, line, reason },
            None => DataError::Record { path, record: self.record, reason },
        }
    }
}

/// Hands every record to `take`; their number.
fn each<T>(
    path: &Path,
    content: Content,
    parse: impl Fn(Value) -> Result<T, String>,
    mut take: impl FnMut(&Place<'_>, T) -> Result<(), DataError>,
) -> Result<usize, DataError> {
    let mut records = 0;
    match content {
        Content::Prose(_) => {}
        Content::Lines(text) => {
            for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
                if line.trim().is_empty() {
                    continue;
                }
                records += 1;
                let place = Place { path, line: Some(number + 1), record: records };
                let value = parse_line(line).map_err(|what| place.error(what))?;
                take(&place, parse(value).map_err(|reason| place.error(reason))?)?;
            }
        }
        Content::List(values) => {
            for value in values {
                records += 1;
                let place = Place { path, line: None, record: records };
                take(&place, parse(value).map_err(|reason| place.error(reason))?)?;
            }
        }
    }
    Ok(records)
}

/// The records of a file, each with its place in words.
pub(crate) fn records(path: &Path, content: Content) -> Result<Vec<(String, Value)>, DataError> {
    if let Content::Prose(_) = content {
        let reason = "it is plain text; the items of a task are JSON records, one a line".to_owned();
        return Err(DataError::NotText {
            path: path.to_owned(),
            what: "no list of items".to_owned(),
            advice: reason,
        });
    }
    let mut all = Vec::new();
    each(path, content, Ok, |place, value| {
        let at = match place.line {
            Some(line) => format!("{}, line {line}", name(path)),
            None => format!("{}, record {}", name(path), place.record),
        };
        all.push((at, value));
        Ok(())
    })?;
    Ok(all)
}

/// Turns documents into tokens as they come.
struct Reader<'a> {
    path: &'a Path,
    model: &'a Path,
    tokenizer: Tokenizer,
    /// Read when the first conversation comes; the inner `None`: the model has none.
    template: Option<Option<ChatTemplate>>,
    run: TextRun,
    ids: Vec<u32>,
    longest_text: usize,
    conversations: usize,
    restored: usize,
    /// How many records were made into turns from which columns.
    made: BTreeMap<String, usize>,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, model: &'a Path) -> Result<Self, DataError> {
        Ok(Self {
            path,
            model,
            tokenizer: Tokenizer::from_dir(model)?,
            template: None,
            run: TextRun::default(),
            ids: Vec::new(),
            longest_text: 0,
            conversations: 0,
            restored: 0,
            made: BTreeMap::new(),
        })
    }

    fn push(&mut self, at: &Place<'_>, document: Document) -> Result<(), DataError> {
        match document {
            Document::Text(text) => {
                self.run.push(&text);
                Ok(())
            }
            Document::Messages(conversation) => match self.template()? {
                Some(_) => self.render(at, &conversation),
                None => Err(DataError::NoChatTemplate { folder: self.model.to_owned() }),
            },
            Document::Made(conversation, columns) => {
                *self.made.entry(columns).or_default() += 1;
                if self.template()?.is_some() {
                    return self.render(at, &conversation);
                }
                // A base model has no form for turns; its own is plain text.
                let contents = conversation.messages.iter().filter_map(|m| m.get("content")?.as_str());
                let text =
                    contents.map(str::trim).filter(|t| !t.is_empty()).collect::<Vec<_>>().join(SEPARATOR);
                self.run.push(&text);
                Ok(())
            }
        }
    }

    fn template(&mut self) -> Result<Option<&ChatTemplate>, DataError> {
        if self.template.is_none() {
            self.template = Some(ChatTemplate::from_dir(self.model, self.tokenizer.special_tokens())?);
        }
        Ok(self.template.as_ref().and_then(Option::as_ref))
    }

    fn render(&mut self, at: &Place<'_>, conversation: &Conversation) -> Result<(), DataError> {
        self.flush()?;
        let Some(template) = self.template()? else { return Ok(()) };
        let rendered = template.render_conversation(conversation).map_err(|e| at.error(e.to_string()))?;
        self.conversations += 1;
        self.restored += usize::from(rendered.thoughts_restored);
        let text = rendered.text + SEPARATOR;
        self.longest_text = self.longest_text.max(text.len());
        self.ids.extend(self.tokenizer.encode_rendered(&text)?);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DataError> {
        self.longest_text = self.longest_text.max(self.run.text.len());
        self.run.flush(&self.tokenizer, &mut self.ids)
    }

    fn finish(mut self) -> Result<Stream, DataError> {
        self.flush()?;
        let mut warnings = Vec::new();
        let through = match &self.template {
            Some(Some(_)) => "turns through the chat template",
            _ => "plain text, because the model has no chat template",
        };
        for (columns, count) in &self.made {
            let records = if *count == 1 { "record" } else { "records" };
            warnings
                .push(format!("{}: {columns} of {count} {records} are read as {through}", name(self.path)));
        }
        if self.restored > 0 {
            warnings.push(format!(
                "the chat template drops the thoughts of {} of {} conversations; they were put \
                 back between the generation prompt and the answer",
                self.restored, self.conversations
            ));
        }
        Ok(Stream { ids: self.ids, warnings, reading: None, longest_text: self.longest_text })
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
    use crate::content::tests::gzip;
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
        assert_eq!(calibration_stream(&path, folder.path()).unwrap().ids, [0, 2, 3]);
        let path = folder.path().join("a.txt");
        std::fs::write(&path, "a\nb").unwrap();
        assert_eq!(calibration_stream(&path, folder.path()).unwrap().ids, [0, 2, 3]);
    }

    #[test]
    fn every_conversation_has_its_own_bos() {
        let folder = model(PLAIN);
        let chat = r#"{"messages": [{"role": "user", "content": "q"}]}"#;
        let path = lines(&folder, &format!("{chat}\n{chat}\n{{\"text\": \"a\"}}\n"));
        assert_eq!(calibration_stream(&path, folder.path()).unwrap().ids, [0, 5, 4, 6, 0, 5, 4, 6, 0, 2]);
        let folder = model(&format!("{{{{ bos_token }}}}{PLAIN}"));
        let path = lines(&folder, chat);
        assert_eq!(calibration_stream(&path, folder.path()).unwrap().ids, [0, 5, 4, 6]);
    }

    #[test]
    fn restored_thoughts_are_reported() {
        let folder = model("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}");
        let path = lines(
            &folder,
            r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a</think>b"}]}"#,
        );
        let stream = calibration_stream(&path, folder.path()).unwrap();
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
        assert_eq!(calibration_stream(&path, folder.path()).unwrap().ids, [0, 7]);
    }

    #[test]
    fn bad_lines_are_named() {
        let folder = model(PLAIN);
        for (line, expected) in [
            ("[1]", "not a JSON object"),
            ("{\"text\": 3}", "'text' is not a string"),
            ("{\"chosen\": \"x\"}", "found: chosen"),
            ("{\"messages\": []}", "empty"),
            ("{\"messages\": [{\"role\": \"user\"}], \"chat_template_kwargs\": 1}", "not an object"),
        ] {
            let path = lines(&folder, &format!("{{\"text\": \"a\"}}\n\n{line}\n"));
            let error = calibration_stream(&path, folder.path()).err().unwrap().to_string();
            assert!(error.contains("line 3") && error.contains(expected), "{error}");
        }
        let folder = model("{{ raise_exception('no') }}");
        let path = lines(&folder, r#"{"messages": [{"role": "user"}]}"#);
        assert!(calibration_stream(&path, folder.path()).err().unwrap().to_string().contains("line 1"));
        std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
        assert!(matches!(calibration_stream(&path, folder.path()), Err(DataError::NoChatTemplate { .. })));
    }

    #[test]
    fn turns_of_other_columns_go_through_the_template_or_are_plain_text() {
        let folder = model(PLAIN);
        let path = lines(
            &folder,
            "{\"question\": \"q\", \"answer\": \"a\"}\n{\"question\": \"b\", \"answer\": \"a\"}\n",
        );
        let stream = calibration_stream(&path, folder.path()).unwrap();
        // 7: "][" is one unknown word.
        assert_eq!(stream.ids, [0, 5, 4, 7, 2, 6, 0, 5, 3, 7, 2, 6]);
        assert_eq!(
            stream.warnings,
            ["data.jsonl: 'question', 'answer' of 2 records are read as turns through the chat template"]
        );
        std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
        let stream = calibration_stream(&path, folder.path()).unwrap();
        assert_eq!(stream.ids, [0, 4, 2, 3, 2]);
        assert!(stream.warnings[0].contains("no chat template"), "{:?}", stream.warnings);
    }

    #[test]
    fn a_list_of_records_and_packed_lines_are_read_as_lines_are() {
        let folder = model(PLAIN);
        let records = ["{\"text\": \"a\"}", "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}"];
        let expected = calibration_stream(&lines(&folder, &records.join("\n")), folder.path()).unwrap().ids;
        assert_eq!(expected, [0, 2, 0, 5, 4, 6]);
        let path = folder.path().join("data.gz");
        std::fs::write(&path, gzip(records.join("\r\n").as_bytes())).unwrap();
        assert_eq!(calibration_stream(&path, folder.path()).unwrap().ids, expected);
        let path = folder.path().join("list.json");
        std::fs::write(&path, format!("[\n{}\n]", records.join(",\n"))).unwrap();
        let stream = calibration_stream(&path, folder.path()).unwrap();
        assert_eq!((stream.ids, stream.reading.as_deref()), (expected, Some("2 JSON records")));
        std::fs::write(&path, "[{\"text\": \"a\"}, {\"text\": 3}]").unwrap();
        let error = calibration_stream(&path, folder.path()).unwrap_err().to_string();
        assert!(error.contains("record 2: 'text' is not a string"), "{error}");
    }

    #[test]
    fn evaluation_joins_texts_as_they_are() {
        let folder = model(PLAIN);
        // A tokenizer that keeps blank lines would see them; this one shows that nothing is left out.
        let path = lines(&folder, "{\"text\": \" a\"}\n{\"text\": \"\"}\n{\"text\": \"b\", \"id\": null}\n");
        let stream = evaluation_stream(&path, folder.path()).unwrap();
        assert_eq!((stream.ids, stream.longest_text), (vec![0, 2, 3], " a\n\n\n\nb".len()));
        assert!(stream.warnings[0].contains("data.jsonl is scored as the field 'text' of 3 JSON records"));
        std::fs::write(&path, "{\"text\": \"a\"}\n{\"messages\": []}\n").unwrap();
        let error = evaluation_stream(&path, folder.path()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("found: messages"), "{error}");
    }
}
