//! JSON from untrusted files: size limits and no repeated keys.
//!
//! `serde_json` keeps the last of two equal keys without a word, other parsers keep the first: a file with repeated
//! keys means different things to different readers, so it is refused. The typed reason travels beside serde's own
//! error type (which can only hold text) in a [`Fault`] slot.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use quant_core::Foreign;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{CheckpointError, Result};

/// Largest file of settings that is read (`config.json`): 8 MiB. Real ones have a few KB; a parsed value takes many times
/// the bytes of its text.
pub(crate) const SMALL_JSON_BYTES: u64 = 8 << 20;
/// Largest file with an entry or more per tensor that is read (an index, a description, a manifest). The largest real
/// ones are a few MB.
pub(crate) const LARGE_JSON_BYTES: u64 = 100_000_000;

/// The slot in which a visitor leaves the typed reason of a failure.
pub(crate) struct Fault<'a> {
    /// Name of the file, for messages.
    pub(crate) file: &'a str,
    slot: RefCell<Option<CheckpointError>>,
}

impl<'a> Fault<'a> {
    pub(crate) fn new(file: &'a str) -> Self {
        Self { file, slot: RefCell::new(None) }
    }

    /// Stores `error` and returns the placeholder that unwinds serde.
    pub(crate) fn raise<E: de::Error>(&self, error: impl Into<CheckpointError>) -> E {
        let error = error.into();
        let text = error.to_string();
        *self.slot.borrow_mut() = Some(error);
        E::custom(text)
    }

    pub(crate) fn duplicate<E: de::Error>(&self, scope: &str, key: &str) -> E {
        self.raise(CheckpointError::DuplicateKey {
            file: self.file.to_owned(),
            scope: scope.to_owned(),
            key: key.to_owned(),
        })
    }

    /// Parses all of `bytes` with `seed`; trailing whitespace is allowed, anything else after the value is not.
    pub(crate) fn parse<'de, S: DeserializeSeed<'de>>(&self, bytes: &'de [u8], seed: S) -> Result<S::Value> {
        let mut de = serde_json::Deserializer::from_slice(bytes);
        seed.deserialize(&mut de).and_then(|value| de.end().map(|()| value)).map_err(|e| {
            self.slot.borrow_mut().take().unwrap_or_else(|| CheckpointError::Json {
                file: self.file.to_owned(),
                detail: e.to_string(),
            })
        })
    }
}

/// Reads a whole JSON file as text, refusing what is not a regular file of at most `limit` bytes.
pub(crate) fn read_json_text(path: &Path, file: &str, role: &'static str, limit: u64) -> Result<Vec<u8>> {
    let handle = open_regular(path, role)?;
    let length = handle.metadata().map_err(|e| CheckpointError::read(path, e))?.len();
    if length > limit {
        return Err(CheckpointError::JsonTooLarge { file: file.to_owned(), limit, found: length });
    }
    let mut bytes = Vec::new();
    // `take` bounds the read even if the file grows meanwhile.
    handle.take(limit).read_to_end(&mut bytes).map_err(|e| CheckpointError::read(path, e))?;
    match foreign_content(path, &bytes) {
        Some(error) => Err(error),
        None if bytes.starts_with(Foreign::UTF8_MARK) => Err(CheckpointError::ForeignContent {
            path: path.to_path_buf(),
            what: Foreign::MARKED,
            advice: Foreign::without_mark(&path.display().to_string()),
        }),
        None => Ok(bytes),
    }
}

/// The error for a file that begins as something else begins.
pub(crate) fn foreign_content(path: &Path, beginning: &[u8]) -> Option<CheckpointError> {
    let found = Foreign::recognise(beginning)?;
    let advice = found.advice_in_model(&path.display().to_string());
    Some(CheckpointError::ForeignContent { path: path.to_path_buf(), what: found.what, advice })
}

/// Opens `path` if it is a regular file once links are followed. The type is checked before opening, because opening
/// a pipe blocks.
pub(crate) fn open_regular(path: &Path, role: &'static str) -> Result<File> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => File::open(path).map_err(|e| CheckpointError::read(path, e)),
        Ok(_) => Err(CheckpointError::NotARegularFile { path: path.to_path_buf() }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.is_symlink() => {
            Err(CheckpointError::NotARegularFile { path: path.to_path_buf() })
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(CheckpointError::MissingFile { path: path.to_path_buf(), role })
        }
        Err(e) => Err(CheckpointError::read(path, e)),
    }
}

/// Parses a JSON document, keeping the order of keys and refusing repeated ones at every depth.
///
/// # Errors
/// [`CheckpointError::Json`] for malformed text, [`CheckpointError::DuplicateKey`] for a repeated key. `file` is the
/// name that messages show.
pub fn parse_strict_json(file: &str, bytes: &[u8]) -> Result<Value> {
    let fault = Fault::new(file);
    fault.parse(bytes, Strict { fault: &fault, scope: "the top level" })
}

/// Seed for one strictly parsed value; `scope` is the key under which it stands.
#[derive(Clone, Copy)]
struct Strict<'a> {
    fault: &'a Fault<'a>,
    scope: &'a str,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> std::result::Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> std::result::Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(self.fault.duplicate(self.scope, &key));
            }
            let value = map.next_value_seed(Strict { fault: self.fault, scope: &key })?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_values_survive() {
        let text = r#"{"z": 1, "a": [true, null, -2, 1e-06, "x"], "m": {"b": 18446744073709551615}}"#;
        let value = parse_strict_json("config.json", text.as_bytes()).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
        let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["z", "a", "m"]);
    }

    #[test]
    fn repeated_keys_are_refused_at_every_depth() {
        for (text, scope, key) in [
            (r#"{"a": 1, "a": 1}"#, "the top level", "a"),
            (r#"{"m": {"k": 1, "j": 2, "k": 3}}"#, "m", "k"),
            (r#"{"l": [{"k": 1, "k": 3}]}"#, "l", "k"),
            (r#"{"a": 1, "\u0061": 1}"#, "the top level", "a"),
        ] {
            match parse_strict_json("config.json", text.as_bytes()) {
                Err(CheckpointError::DuplicateKey { file, scope: s, key: k }) => {
                    assert_eq!((file.as_str(), s.as_str(), k.as_str()), ("config.json", scope, key));
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn malformed_text_is_refused() {
        let deep = "[".repeat(100_000);
        for text in ["", "{", "{} x", "nul", "{\"a\": NaN}", "\u{feff}{}", deep.as_str()] {
            assert!(
                matches!(parse_strict_json("f", text.as_bytes()), Err(CheckpointError::Json { .. })),
                "{text:.20}"
            );
        }
        assert!(matches!(parse_strict_json("f", b"\"\xff\""), Err(CheckpointError::Json { .. })));
    }
}
