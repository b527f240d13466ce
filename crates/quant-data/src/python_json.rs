//! JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it, which is what chat templates were
//! trained with.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::bounded::Bounded;

/// Most spaces of one level of indentation; real templates use 2 or 4.
const MAX_INDENT: usize = 16;

/// Serialises with Python's separators (`", "` and `": "`), or over several lines with `indent` spaces (at most 16), to
/// at most `limit` bytes.
pub(crate) fn dumps<T: Serialize>(
    value: &T,
    indent: Option<usize>,
    ensure_ascii: bool,
    limit: usize,
) -> Result<String, String> {
    let mut out = Bounded::new(limit);
    let result = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)),
        Some(n) if n > MAX_INDENT => {
            return Err(format!("an indent of {n}, at most {MAX_INDENT} is supported"));
        }
        Some(n) => {
            let spaces = [b' '; MAX_INDENT];
            let pretty = PrettyFormatter::with_indent(&spaces[..n]);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
    };
    result.map_err(|e| e.to_string())?;
    let text = out.into_text()?;
    // At most three times as long: a character outside ASCII takes at least two bytes and becomes six per UTF-16 unit.
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
    fn size_and_indent_are_bounded() {
        let nested = (0..40).fold(json!([]), |inner, _| json!([inner]));
        assert!(dumps(&nested, Some(16), false, 1 << 20).is_ok());
        assert!(dumps(&nested, Some(17), false, 1 << 20).unwrap_err().contains("indent of 17"));
        assert!(dumps(&nested, Some(usize::MAX), false, 1 << 20).unwrap_err().contains("indent"));
        let error = dumps(&nested, Some(16), false, 1000).unwrap_err();
        assert!(error.contains("more than 1000 bytes"), "{error}");
        assert_eq!(dumps(&json!("abc"), None, false, 5).unwrap(), "\"abc\"");
        assert!(dumps(&json!("abc"), None, false, 4).is_err());
    }

    #[test]
    fn equals_python() {
        let value = json!({"b": [1, 2.5, "<é&'>"], "a": {}, "n": null});
        assert_eq!(
            dumps(&value, None, false, 99).unwrap(),
            r#"{"b": [1, 2.5, "<é&'>"], "a": {}, "n": null}"#
        );
        assert_eq!(dumps(&json!("é😀"), None, true, 99).unwrap(), r#""\u00e9\ud83d\ude00""#);
        assert_eq!(dumps(&json!({"a": [1]}), Some(2), false, 99).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    }
}
