//! JSON as Python's `json.dumps` writes it, which is what chat templates were trained with.

use std::io::Write;

use minijinja::value::{Value, ValueKind};

use crate::bounded::Bounded;
use crate::python_value::number;

/// Most characters of one level of indentation; real templates use 2 or 4.
const MAX_INDENT: usize = 16;

/// The arguments of `json.dumps`, as `transformers` gives them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Style {
    pub(crate) ensure_ascii: bool,
    /// The text of one level, or one line.
    pub(crate) indent: Option<String>,
    /// Between items, and between key and value; by default `", "` (without the blank where lines end) and `": "`.
    pub(crate) separators: Option<(String, String)>,
    pub(crate) sort_keys: bool,
}

/// Serialises to at most `limit` bytes.
pub(crate) fn dumps(value: &Value, style: &Style, limit: usize) -> Result<String, String> {
    if let Some(indent) = &style.indent
        && indent.len() > MAX_INDENT
    {
        return Err(format!("an indent of {}, at most {MAX_INDENT} is supported", indent.len()));
    }
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (if style.indent.is_some() { "," } else { ", " }, ": "),
    };
    let mut writer = Writer { out: Bounded::new(limit), style, item, key };
    writer.value(value, 0)?;
    writer.out.into_text()
}

struct Writer<'a> {
    out: Bounded,
    style: &'a Style,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    fn put(&mut self, text: &str) -> Result<(), String> {
        self.out.write_all(text.as_bytes()).map_err(|e| e.to_string())
    }

    fn value(&mut self, value: &Value, level: usize) -> Result<(), String> {
        match value.kind() {
            ValueKind::None => self.put("null"),
            ValueKind::Bool => self.put(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.put(&json_number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter().map_err(|e| e.to_string())?;
                self.put("[")?;
                let mut any = false;
                for item in items {
                    self.next(any, level + 1)?;
                    any = true;
                    self.value(&item, level + 1)?;
                }
                self.close(any, level, "]")
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
                let mut entries = Vec::new();
                for (key, value) in pairs.ok_or("a dictionary that cannot be listed")? {
                    entries.push((key_text(&key)?, value));
                }
                if self.style.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.put("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    self.next(index > 0, level + 1)?;
                    self.string(key)?;
                    self.put(self.key)?;
                    self.value(value, level + 1)?;
                }
                self.close(!entries.is_empty(), level, "}")
            }
            kind => Err(format!("a value of kind {kind} cannot be written as JSON")),
        }
    }

    /// What stands before an item.
    fn next(&mut self, any: bool, level: usize) -> Result<(), String> {
        if any {
            self.put(self.item)?;
        }
        self.line(level)
    }

    fn close(&mut self, any: bool, level: usize, bracket: &str) -> Result<(), String> {
        if any {
            self.line(level)?;
        }
        self.put(bracket)
    }

    fn line(&mut self, level: usize) -> Result<(), String> {
        let Some(indent) = &self.style.indent else { return Ok(()) };
        self.put("\n")?;
        (0..level).try_for_each(|_| self.put(indent))
    }

    fn string(&mut self, text: &str) -> Result<(), String> {
        self.put("\"")?;
        // Runs of plain characters go out in one piece.
        let mut start = 0;
        for (at, c) in text.char_indices() {
            let plain = !matches!(c, '"' | '\\') && c >= ' ' && (c.is_ascii() || !self.style.ensure_ascii);
            if plain {
                continue;
            }
            self.put(&text[start..at])?;
            start = at + c.len_utf8();
            match c {
                '"' => self.put("\\\"")?,
                '\\' => self.put("\\\\")?,
                '\n' => self.put("\\n")?,
                '\r' => self.put("\\r")?,
                '\t' => self.put("\\t")?,
                '\u{8}' => self.put("\\b")?,
                '\u{c}' => self.put("\\f")?,
                c => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.put(&format!("\\u{unit:04x}"))?;
                    }
                }
            }
        }
        self.put(&text[start..])?;
        self.put("\"")
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        other => other.into(),
    }
}

fn key_text(key: &Value) -> Result<String, String> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::Number => Ok(json_number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::None => Ok("null".into()),
        kind => Err(format!("a key of kind {kind} cannot be written as JSON")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python_value::from_json;
    use serde_json::json;

    fn indented(spaces: usize) -> Style {
        Style { indent: Some(" ".repeat(spaces)), ..Style::default() }
    }

    #[test]
    fn size_and_indent_are_bounded() {
        let nested = from_json(&(0..40).fold(json!([]), |inner, _| json!([inner])));
        assert!(dumps(&nested, &indented(16), 1 << 20).is_ok());
        assert!(dumps(&nested, &indented(17), 1 << 20).unwrap_err().contains("indent of 17"));
        let error = dumps(&nested, &indented(16), 1000).unwrap_err();
        assert!(error.contains("more than 1000 bytes"), "{error}");
        assert_eq!(dumps(&Value::from("abc"), &Style::default(), 5).unwrap(), "\"abc\"");
        assert!(dumps(&Value::from("abc"), &Style::default(), 4).is_err());
        assert!(dumps(&Value::UNDEFINED, &Style::default(), 99).unwrap_err().contains("undefined"));
    }

    #[test]
    fn numbers_that_are_not_finite_are_pythons() {
        let values = Value::from(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e22]);
        assert_eq!(dumps(&values, &Style::default(), 99).unwrap(), "[NaN, Infinity, -Infinity, 1e+22]");
    }
}
