//! Values as Python prints them, and JSON values as objects of the template engine that print so wherever they go.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value, ValueKind};
use serde_json::Value as Json;

/// A JSON value for a template: its lists and dictionaries print as Python's, also in the middle of `~` and `join`.
pub(crate) fn from_json(json: &Json) -> Value {
    match json {
        Json::Array(items) => list(items.iter().map(from_json).collect()),
        Json::Object(entries) => {
            from_entries(entries.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
        other => Value::from_serialize(other),
    }
}

/// A list for a template.
pub(crate) fn list(items: Vec<Value>) -> Value {
    Value::from_object(List { items, brackets: ('[', ']') })
}

/// A list that prints as a tuple; for two items or more.
pub(crate) fn tuple(items: Vec<Value>) -> Value {
    Value::from_object(List { items, brackets: ('(', ')') })
}

/// A dictionary for a template.
pub(crate) fn from_entries<'a>(entries: impl Iterator<Item = (&'a str, Value)>) -> Value {
    let (mut places, mut keys, mut values) = (HashMap::new(), Vec::new(), Vec::new());
    for (key, value) in entries {
        places.insert(key.to_owned(), values.len());
        keys.push(Value::from(key));
        values.push(value);
    }
    Value::from_object(Dict { places, keys, values })
}

#[derive(Debug)]
struct List {
    items: Vec<Value>,
    brackets: (char, char),
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_items(f, self.brackets, self.items.iter().cloned())
    }
}

/// Keys in the order of the file.
#[derive(Debug)]
struct Dict {
    places: HashMap<String, usize>,
    keys: Vec<Value>,
    values: Vec<Value>,
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }
    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.values.get(*self.places.get(key)?).cloned()
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.keys.clone())
    }
    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.keys.len())
    }
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_entries(f, self.keys.iter().cloned().zip(self.values.iter().cloned()))
    }
}

/// `str(value)`.
pub(crate) fn write_str(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::String => out.write_str(value.as_str().unwrap_or_default()),
        ValueKind::Undefined => Ok(()),
        _ => write_repr(out, value),
    }
}

/// `repr(value)`.
fn write_repr(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Number => out.write_str(&number(value)),
        ValueKind::Undefined => out.write_str("Undefined"),
        // Iterators that would be used up by printing them have no length.
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => match value.try_iter() {
            Ok(items) => {
                let own = value.downcast_object_ref::<List>();
                write_items(out, own.map_or(('[', ']'), |list| list.brackets), items)
            }
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::Map => match value.as_object().and_then(|object| object.try_iter_pairs()) {
            Some(pairs) => write_entries(out, pairs),
            None => write!(out, "{value}"),
        },
        _ => write!(out, "{value}"),
    }
}

fn write_items(
    out: &mut dyn Write,
    (open, close): (char, char),
    items: impl Iterator<Item = Value>,
) -> fmt::Result {
    out.write_char(open)?;
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.write_str(", ")?;
        }
        write_repr(out, &item)?;
    }
    out.write_char(close)
}

fn write_entries(out: &mut dyn Write, entries: impl Iterator<Item = (Value, Value)>) -> fmt::Result {
    out.write_char('{')?;
    for (index, (key, value)) in entries.enumerate() {
        if index > 0 {
            out.write_str(", ")?;
        }
        write_repr(out, &key)?;
        out.write_str(": ")?;
        write_repr(out, &value)?;
    }
    out.write_char('}')
}

/// `repr` of an integer or float.
pub(crate) fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

/// `repr` of a float: the shortest digits that give it back, an exponent from `1e16` on and below `1e-4`. Rust chooses the
/// same digits and bounds, and writes the exponent without sign and padding.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    let text = format!("{x:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `repr` of a string: single quotes unless only they occur in it, escapes for what cannot be printed.
fn write_quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            ' '..='~' => out.write_char(c)?,
            c if printable(c) => out.write_char(c)?,
            c => match u32::from(c) {
                code @ ..=0xff => write!(out, "\\x{code:02x}")?,
                code @ ..=0xffff => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

/// Whether Python prints a character outside ASCII as it is. The standard library's rule for debug texts is made from the
/// same classes of Unicode; behind another character it leaves combining marks alone, as Python does.
fn printable(c: char) -> bool {
    let mut bytes = [0; 5];
    bytes[0] = b'a';
    let length = 1 + c.encode_utf8(&mut bytes[1..]).len();
    let text = std::str::from_utf8(&bytes[..length]).unwrap_or_default();
    // Two quotes around what is left as it is.
    text.escape_debug().count() == text.chars().count()
}
