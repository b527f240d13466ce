//! Range-checked access to the values of an untrusted JSON object.

use crate::ModelError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// One JSON object; `null` counts as missing everywhere.
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Prefix of keys in messages: empty at the top level.
    path: &'static str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(value: &'a Value, path: &'static str) -> Result<Self, ModelError> {
        let map = value.as_object().ok_or_else(|| ModelError::Config {
            key: if path.is_empty() { "(top level)".into() } else { path.into() },
            expected: "an object".into(),
            found: shorten(value),
        })?;
        Ok(Self { map, path })
    }
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }
    pub(crate) fn values(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.map.values()
    }
    /// An error about `key`, quoting what is there.
    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> ModelError {
        ModelError::Config {
            key: self.name(key),
            expected: expected.into(),
            found: self.map.get(key).map_or_else(|| "nothing".into(), shorten),
        }
    }
    /// A refusal of `key`, quoting what is there.
    pub(crate) fn unsupported(&self, key: &str, reason: impl Into<String>) -> ModelError {
        ModelError::Unsupported {
            key: self.name(key),
            found: self.map.get(key).map_or_else(|| "nothing".into(), shorten),
            reason: reason.into(),
        }
    }
    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }
    /// An integer in `range`, or the default where the key is missing; no default makes it required.
    pub(crate) fn count(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Result<usize, ModelError> {
        let expected = || format!("an integer in {}..={}", range.start(), range.end());
        match (self.get(key), default) {
            (None, Some(value)) => Ok(value),
            (None, None) => Err(self.wrong(key, expected())),
            (Some(value), _) => value
                .as_u64()
                .and_then(|v| usize::try_from(v).ok())
                .filter(|v| range.contains(v))
                .ok_or_else(|| self.wrong(key, expected())),
        }
    }
    /// A number in `range`, with a default as in [`Self::count`].
    pub(crate) fn real(
        &self,
        key: &str,
        range: RangeInclusive<f64>,
        default: Option<f64>,
    ) -> Result<f64, ModelError> {
        let expected = || format!("a number in {:e}..={:e}", range.start(), range.end());
        match (self.get(key), default) {
            (None, Some(value)) => Ok(value),
            (None, None) => Err(self.wrong(key, expected())),
            (Some(value), _) => {
                value.as_f64().filter(|v| range.contains(v)).ok_or_else(|| self.wrong(key, expected()))
            }
        }
    }
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }
    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, "a list")),
        }
    }
    /// Whether a key announces a feature: present and not null, false or zero.
    pub(crate) fn announces(&self, key: &str) -> bool {
        match self.get(key) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Number(n)) => n.as_f64() != Some(0.0),
            Some(_) => true,
        }
    }
}

/// A JSON value for a message; files are untrusted, so never more than a line of it.
fn shorten(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
