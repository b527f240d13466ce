//! Range-checked access to the values of an untrusted JSON object.

use crate::ModelError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// What a config says of a key. A class in Python fills in its default for a missing key only: null stays null there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stated<T> {
    /// The key is not there.
    Missing,
    /// The key is there and null.
    Null,
    /// The key has a value.
    Value(T),
}

/// One JSON object.
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
    /// The value of a key, unless it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }
    fn stated(&self, key: &str) -> Stated<&'a Value> {
        match self.map.get(key) {
            None => Stated::Missing,
            Some(Value::Null) => Stated::Null,
            Some(value) => Stated::Value(value),
        }
    }
    /// Keys and values that are not null.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.as_str(), v))
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
    /// A key with its value, for messages.
    pub(crate) fn quote(&self, key: &str) -> String {
        match self.map.get(key) {
            Some(value) => format!("`{}` = {}", self.name(key), shorten(value)),
            None => format!("no `{}`", self.name(key)),
        }
    }
    /// A refusal of two statements that contradict each other, quoting both.
    pub(crate) fn conflict(&self, key: &str, other: &str, advice: impl Into<String>) -> ModelError {
        ModelError::Conflict { one: self.quote(key), other: self.quote(other), advice: advice.into() }
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
    /// An integer in `range` or null, if the key is there.
    pub(crate) fn stated_count(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Stated<usize>, ModelError> {
        match self.stated(key) {
            Stated::Missing => Ok(Stated::Missing),
            Stated::Null => Ok(Stated::Null),
            Stated::Value(value) => value
                .as_u64()
                .and_then(|v| usize::try_from(v).ok())
                .filter(|v| range.contains(v))
                .map(Stated::Value)
                .ok_or_else(|| self.wrong_count(key, &range)),
        }
    }
    /// An integer in `range`, or the default where the key is missing; null is refused.
    pub(crate) fn count(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
        default: usize,
    ) -> Result<usize, ModelError> {
        match self.stated_count(key, range.clone())? {
            Stated::Missing => Ok(default),
            Stated::Null => Err(self.wrong_count(key, &range)),
            Stated::Value(value) => Ok(value),
        }
    }
    fn wrong_count(&self, key: &str, range: &RangeInclusive<usize>) -> ModelError {
        self.wrong(key, format!("an integer in {}..={}", range.start(), range.end()))
    }
    /// A number in `range` or null, if the key is there.
    pub(crate) fn stated_real(
        &self,
        key: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Stated<f64>, ModelError> {
        match self.stated(key) {
            Stated::Missing => Ok(Stated::Missing),
            Stated::Null => Ok(Stated::Null),
            Stated::Value(value) => value
                .as_f64()
                .filter(|v| range.contains(v))
                .map(Stated::Value)
                .ok_or_else(|| self.wrong_real(key, &range)),
        }
    }
    /// A number in `range`, or the default where the key is missing (no default makes it required); null is refused.
    pub(crate) fn real(
        &self,
        key: &str,
        range: RangeInclusive<f64>,
        default: Option<f64>,
    ) -> Result<f64, ModelError> {
        match (self.stated_real(key, range.clone())?, default) {
            (Stated::Value(value), _) | (Stated::Missing, Some(value)) => Ok(value),
            _ => Err(self.wrong_real(key, &range)),
        }
    }
    fn wrong_real(&self, key: &str, range: &RangeInclusive<f64>) -> ModelError {
        self.wrong(key, format!("a number in {:e}..={:e}", range.start(), range.end()))
    }
    /// A truth value, if the key is there; null is false, as it is where Python tests it.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.stated(key) {
            Stated::Missing => Ok(None),
            Stated::Null => Ok(Some(false)),
            Stated::Value(Value::Bool(flag)) => Ok(Some(*flag)),
            Stated::Value(_) => Err(self.wrong(key, "true or false")),
        }
    }
    /// A string, unless the key is missing or null.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }
    /// A list, unless the key is missing or null.
    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, "a list")),
        }
    }
    /// `count` numbers, each in `range`; a missing key and null are refused.
    pub(crate) fn reals(
        &self,
        key: &str,
        count: usize,
        range: RangeInclusive<f64>,
    ) -> Result<Vec<f64>, ModelError> {
        let list = self.list(key)?.unwrap_or_default();
        let numbers: Vec<f64> =
            list.iter().filter_map(Value::as_f64).filter(|number| range.contains(number)).collect();
        if numbers.len() == list.len() && numbers.len() == count {
            return Ok(numbers);
        }
        Err(self.wrong(
            key,
            format!(
                "a list of {count} numbers in {:e}..={:e}, not {}",
                range.start(),
                range.end(),
                list.len()
            ),
        ))
    }
    /// Whether a key is there and null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.stated(key) == Stated::Null
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
