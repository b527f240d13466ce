//! JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it, which is what chat templates were
//! trained with.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Serialises with Python's separators (`", "` and `": "`), or over several lines with `indent` spaces.
pub(crate) fn dumps<T: Serialize>(
    value: &T,
    indent: Option<usize>,
    ensure_ascii: bool,
) -> Result<String, String> {
    let mut out = Vec::new();
    let result = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)),
        Some(n) => {
            let spaces = " ".repeat(n);
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
    };
    result.map_err(|e| e.to_string())?;
    let text = String::from_utf8(out).map_err(|e| e.to_string())?;
    Ok(if ensure_ascii { escape_non_ascii(&text) } else { text })
}

struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn escape_non_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equals_python() {
        let value = json!({"b": [1, 2.5, "<é&'>"], "a": {}, "n": null});
        assert_eq!(dumps(&value, None, false).unwrap(), r#"{"b": [1, 2.5, "<é&'>"], "a": {}, "n": null}"#);
        assert_eq!(dumps(&json!("é😀"), None, true).unwrap(), r#""\u00e9\ud83d\ude00""#);
        assert_eq!(dumps(&json!({"a": [1]}), Some(2), false).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    }
}
