//! What a data file is: its bytes decide, whatever its name says.

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use quant_core::{Foreign, ForeignKind};
use serde_json::Value;

use crate::DataError;
use crate::files::{MAX_FILE_BYTES, read_bytes};

/// Content of a text-like data file.
#[derive(Debug)]
pub(crate) enum Content {
    /// Text that is no JSON.
    Prose(String),
    /// One JSON value per line; blank lines count in line numbers.
    Lines(String),
    /// The elements of a JSON list, or one JSON object over several lines.
    List(Vec<Value>),
}

/// What can be done about a data file that is not read.
fn advice(kind: ForeignKind, path: &Path) -> String {
    let shown = path.display();
    match kind {
        ForeignKind::Table(name) => to_json_lines(name, path),
        ForeignKind::Packed(command) => format!("unpack it first: {command} '{shown}'"),
        ForeignKind::Utf16 => format!("convert it: iconv -f UTF-16 -t UTF-8 '{shown}' > text.txt"),
        ForeignKind::LfsPointer => "get the real one with: git lfs pull".into(),
        ForeignKind::Page => {
            "download it again, logged in if it asks for that; a page that is meant is read as FILE.html"
                .into()
        }
        ForeignKind::Other => "give plain text, JSON lines, or token ids (FILE.safetensors:TENSOR)".into(),
    }
}

/// One line that turns a table into JSON lines.
pub(crate) fn to_json_lines(reader: &str, path: &Path) -> String {
    let (from, to) = (path.display(), path.with_extension("jsonl"));
    format!(
        "convert it once: python3 -c \"import pandas; pandas.read_{reader}('{from}').to_json('{}', orient='records', \
         lines=True, force_ascii=False)\"",
        to.display()
    )
}

/// The extension in lower case, that of the packed file for `.gz`.
pub(crate) fn extension(path: &Path) -> String {
    let of = |path: &Path| path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match of(path).as_str() {
        "gz" => of(&path.with_extension("")),
        other => other.to_owned(),
    }
}

/// Reads a file, unpacks gzip, and finds out what it is. Both sizes are bounded by 1 GiB.
pub(crate) fn read_content(path: &Path) -> Result<Content, DataError> {
    read_bounded(path, MAX_FILE_BYTES)
}

fn read_bounded(path: &Path, limit: u64) -> Result<Content, DataError> {
    let mut bytes = read_bytes(path, limit)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(&bytes[..]).take(limit + 1).read_to_end(&mut unpacked).map_err(|e| {
            foreign(path, format!("a gzip file that cannot be unpacked ({e})"), "it may be cut off".into())
        })?;
        if unpacked.len() as u64 > limit {
            return Err(DataError::TooLarge { path: path.to_owned(), limit });
        }
        bytes = unpacked;
    }
    #[cfg(feature = "parquet")]
    if bytes.starts_with(crate::parquet::MARK) {
        return crate::parquet::rows(path, bytes, limit).map(Content::List);
    }
    if let Some(Foreign { what, kind }) = Foreign::recognise(&bytes) {
        // Pages may be the text that someone wants; their name then says so.
        let page = kind == ForeignKind::Page;
        if !(page && matches!(extension(path).as_str(), "html" | "htm")) {
            return Err(foreign(path, what.into(), advice(kind, path)));
        }
    }
    if is_safetensors(&bytes) {
        let advice = format!("name its tensor of token ids: {}:TENSOR", path.display());
        return Err(foreign(path, "a safetensors file".into(), advice));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| DataError::NotUtf8 { path: path.to_owned(), offset: e.utf8_error().valid_up_to() })?;
    classify(path, text)
}

fn foreign(path: &Path, what: String, advice: String) -> DataError {
    DataError::NotText { path: path.to_owned(), what, advice }
}

/// Eight bytes of header length, then the header's brace.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    length >= 2 && length <= rest.len() as u64 && rest.starts_with(b"{\"")
}

/// Prose or JSON. Text that begins as JSON begins and is none is an error: JSON must not be taken for prose.
fn classify(path: &Path, text: String) -> Result<Content, DataError> {
    let start = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let first = start.lines().next().unwrap_or_default();
    // Names that promise JSON lines; other text under them is more likely a mistake than a corpus.
    let promised = matches!(extension(path).as_str(), "jsonl" | "ndjson" | "jsonlines" | "json");
    if start.is_empty() {
        return Ok(if promised { Content::Lines(text) } else { Content::Prose(text) });
    }
    let object = serde_json::from_str::<serde_json::Map<String, Value>>(first).is_ok();
    if object {
        return Ok(Content::Lines(text));
    }
    if start.starts_with(['{', '[']) {
        match serde_json::from_str::<Value>(start) {
            Ok(Value::Array(list)) if promised || !list.iter().all(Value::is_number) => {
                return Ok(Content::List(list));
            }
            Ok(value @ Value::Object(_)) => return Ok(Content::List(vec![value])),
            Ok(_) => {}
            // A list per line, or JSON with a fault: read as lines, whose errors name the place.
            Err(_) if promised || opens_json(start) => return Ok(Content::Lines(text)),
            Err(_) => {}
        }
    }
    Ok(if promised { Content::Lines(text) } else { Content::Prose(text) })
}

/// Whether a text begins as an object with a key, or as a list of objects. `{x}`, `[1] Smith` and `[note]` do not.
fn opens_json(text: &str) -> bool {
    let inside = text.trim_start_matches(|c: char| c == '[' || c.is_whitespace());
    inside.strip_prefix('{').is_some_and(|key| key.trim_start().starts_with('"'))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// The bytes as one gzip member.
    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn of(name: &str, bytes: &[u8]) -> Result<Content, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_bounded(&path, 4096)
    }

    #[test]
    fn bytes_decide_and_not_names() {
        let lines = b"\xef\xbb\xbf\n{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
        for name in ["a.ndjson", "a.jsonlines", "a.jsonl.bak", "a.txt", "a.json", "a", "a.bin.gz"] {
            assert!(matches!(of(name, lines), Ok(Content::Lines(_))), "{name}");
            assert!(matches!(of(name, &gzip(lines)), Ok(Content::Lines(_))), "{name}, packed");
        }
        let list = b"[\n {\"text\": \"a\"},\n {\"text\": \"b\"}]";
        assert!(matches!(of("a.txt", list), Ok(Content::List(list)) if list.len() == 2));
        assert!(matches!(of("a", b"{\n \"text\": \"a\"\n}\n"), Ok(Content::List(list)) if list.len() == 1));
        // Faulty JSON is read as lines, so that an error names the line.
        for faulty in [
            &b"{\"text\": \"a\"\n"[..],
            b"[{\"text\": 1},\n",
            b"[{\"role\": \"user\"}]\n[{\"role\": \"user\"}]\n",
        ] {
            assert!(matches!(of("a", faulty), Ok(Content::Lines(_))), "{}", String::from_utf8_lossy(faulty));
        }
        for prose in
            ["", "{x} and {y}", "[1] Smith et al.", "[note]", "[1]\n", "\"a\"\n", "a {\"b\": 1}", "{", "{}x"]
        {
            assert!(matches!(of("a.txt", prose.as_bytes()), Ok(Content::Prose(_))), "{prose}");
            let promised = of("a.jsonl", prose.as_bytes());
            assert!(matches!(promised, Ok(Content::Lines(_) | Content::List(_))), "{prose} in a .jsonl");
        }
    }

    #[test]
    fn what_is_no_text_is_named_with_the_way_out() {
        let mut safetensors = 20_u64.to_le_bytes().to_vec();
        safetensors.extend(b"{\"a\":{}}            ");
        // With the feature a whole table is read; what is left of one says so.
        let table: &[&str] = if cfg!(feature = "parquet") {
            &["a parquet file", "cut off"]
        } else {
            &["a parquet file", "read_parquet('", "a.jsonl'", "lines=True"]
        };
        for (bytes, expected) in [
            (&b"PAR1\x15\0"[..], table),
            (b"ARROW1\0\0", &["an Arrow file", "read_feather"]),
            (b"\x28\xb5\x2f\xfd..", &["zstd -d"]),
            (b"\xff\xfea\0", &["UTF-16", "iconv"]),
            (b"version https://git-lfs.github.com/spec/v1\n", &["Git-LFS pointer", "git lfs pull"]),
            (&safetensors, &["a safetensors file", ":TENSOR"]),
            (b"<!DOCTYPE html><html>", &["a web page", "download it again"]),
            (b"\x1f\x8b\x08", &["cannot be unpacked", "cut off"]),
        ] {
            for name in ["a.jsonl", "a.txt", "a"] {
                let error = of(name, bytes).unwrap_err();
                assert!(matches!(error, DataError::NotText { .. }), "{error:?}");
                let text = error.to_string();
                assert!(expected.iter().all(|part| text.contains(part)), "{text}");
            }
        }
        let text = of("a.txt.gz", &gzip(b"PAR1")).unwrap_err().to_string();
        assert!(text.contains("a parquet file"), "{text}");
        assert!(matches!(of("a.html", b"<html>text"), Ok(Content::Prose(_))));
        assert!(matches!(of("a", b"a\xffb"), Err(DataError::NotUtf8 { offset: 1, .. })));
    }

    #[test]
    fn unpacked_size_is_bounded_and_members_are_joined() {
        assert!(matches!(of("a.gz", &gzip(&[b'a'; 4097])), Err(DataError::TooLarge { limit: 4096, .. })));
        let two = [gzip(b"a b "), gzip(b"c")].concat();
        assert!(matches!(of("a.gz", &two), Ok(Content::Prose(text)) if text == "a b c"));
    }
}
