//! Settings as tables of keys: parsing, defaults, the JSON schema and "did you mean" all come from the same rows.

use quant_core::meant;
pub use quant_core::nearest;
use serde_json::{Map, Value, json};
use thiserror::Error;

/// What is wrong with a section of settings.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum SettingsError {
    /// A key no section has.
    #[error("unknown key {key:?} in {path}{}; known keys: {known}",
        .nearest.as_ref().map_or_else(String::new, |n| format!(" (did you mean {n:?}?)")))]
    UnknownKey {
        /// The section.
        path: String,
        /// The key as written.
        key: String,
        /// The closest known key.
        nearest: Option<String>,
        /// All keys of the section.
        known: String,
    },
    /// A key that has no default.
    #[error("{path} lacks the required key {key:?}; see `ptq quantize --recipe-schema`")]
    MissingKey {
        /// The section.
        path: String,
        /// The key.
        key: String,
    },
    /// A value of the wrong kind or outside its range.
    #[error("{path}: expected {expected}, found {found}")]
    Value {
        /// Section and key.
        path: String,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// What the export format or the model cannot have.
    #[error("{path}: {problem}")]
    Unsupported {
        /// The section, or the section and key.
        path: String,
        /// What is asked for, why it cannot be had, and the ways out.
        problem: String,
    },
    /// Two keys that contradict each other.
    #[error("{path}: {problem}")]
    Conflict {
        /// The section.
        path: String,
        /// The contradiction and the ways out.
        problem: String,
    },
}

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum FieldKind {
    /// True or false.
    Bool,
    /// A number in a closed range.
    Number(f64, f64),
    /// A whole number in a closed range.
    Integer(u64, u64),
    /// A whole number in a closed range, or the word `all`.
    IntegerOrAll(u64, u64),
    /// One of these whole numbers, or the word `none`.
    SizeOrNone(&'static [u64]),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of these words, at least one and none twice.
    Words(&'static [&'static str]),
    /// A scheme string.
    Scheme,
}

impl FieldKind {
    /// What may stand there in place of `found`.
    fn expected(self, found: &Value) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Number(lo, hi) => format!("a number from {lo} to {hi}"),
            Self::Integer(lo, hi) => format!("a whole number from {lo} to {hi}"),
            Self::IntegerOrAll(lo, hi) => format!("a whole number from {lo} to {hi}, or all"),
            Self::SizeOrNone(sizes) => {
                let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
                format!("one of {}, or none", sizes.join(", "))
            }
            Self::Choice(words) => one_of(words, found),
            Self::Words(words) => {
                let unknown = |v: &&Value| !v.as_str().is_some_and(|w| words.contains(&w));
                let wrong = found.as_array().and_then(|list| list.iter().find(unknown));
                format!("a list of different words, each {}", one_of(words, wrong.unwrap_or(found)))
            }
            Self::Scheme => "a scheme like W4A16g128 or W8A8KV8".into(),
        }
    }
    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Bool => value.is_boolean(),
            Self::Number(lo, hi) => value.as_f64().is_some_and(|v| (lo..=hi).contains(&v)),
            Self::Integer(lo, hi) => value.as_u64().is_some_and(|v| (lo..=hi).contains(&v)),
            Self::IntegerOrAll(lo, hi) => {
                value.as_u64().is_some_and(|v| (lo..=hi).contains(&v)) || value.as_str() == Some("all")
            }
            Self::SizeOrNone(sizes) => {
                value.as_u64().is_some_and(|v| sizes.contains(&v)) || value.as_str() == Some("none")
            }
            Self::Choice(words) => value.as_str().is_some_and(|v| words.contains(&v)),
            Self::Words(words) => value.as_array().is_some_and(|list| {
                let known = |v: &Value| v.as_str().is_some_and(|v| words.contains(&v));
                let new = |(i, v): (usize, &Value)| known(v) && !list[..i].contains(v);
                !list.is_empty() && list.iter().enumerate().all(new)
            }),
            Self::Scheme => value.is_string(),
        }
    }
    fn schema(self) -> Value {
        match self {
            Self::Bool => json!({"type": "boolean"}),
            Self::Number(lo, hi) => json!({"type": "number", "minimum": lo, "maximum": hi}),
            Self::Integer(lo, hi) => json!({"type": "integer", "minimum": lo, "maximum": hi}),
            Self::IntegerOrAll(lo, hi) => json!({"anyOf": [
                {"type": "integer", "minimum": lo, "maximum": hi}, {"const": "all"}]}),
            Self::SizeOrNone(sizes) => json!({"anyOf": [{"enum": sizes}, {"const": "none"}]}),
            Self::Choice(words) => json!({"enum": words}),
            Self::Words(words) => {
                json!({"type": "array", "items": {"enum": words}, "minItems": 1, "uniqueItems": true})
            }
            Self::Scheme => json!({"type": "string",
                "pattern": "^[Ww](1|2|3|4|5|6|7|8|16)([Aa](4|8|16))?([Gg][1-9][0-9]*)?(KV(2|3|4|8|16))?([Gg][1-9][0-9]*)?$"}),
        }
    }
}

/// One key of a section.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The key.
    pub name: &'static str,
    /// What it may hold.
    pub kind: FieldKind,
    /// The default as JSON; `null` means it follows from other keys, as the help says. Empty: the key is required.
    pub default: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Whether it is a setting of the whole run, which no override of single linears can change.
    pub run_wide: bool,
}

impl Field {
    fn default(&self) -> Option<Value> {
        serde_json::from_str(self.default).ok()
    }
}

/// The JSON schema of a section.
#[must_use]
pub fn schema(fields: &[Field]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in fields {
        let mut entry = property(field);
        match field.default() {
            Some(default) => {
                if default.is_null() {
                    allow_null(&mut entry);
                }
                entry.insert("default".into(), default);
            }
            None => required.push(field.name),
        }
        properties.insert(field.name.into(), entry.into());
    }
    json!({"type": "object", "additionalProperties": false, "properties": properties, "required": required})
}

/// The JSON schema of exceptions to sections: any key that is no setting of the whole run, and no defaults, because what
/// is left out stays as the section has it.
#[must_use]
pub fn override_schema<'f>(fields: impl IntoIterator<Item = &'f Field>) -> Value {
    let fields = fields.into_iter().filter(|f| !f.run_wide);
    let properties: Map<String, Value> = fields.map(|f| (f.name.into(), property(f).into())).collect();
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

fn property(field: &Field) -> Map<String, Value> {
    let mut entry = match field.kind.schema() {
        Value::Object(entry) => entry,
        _ => Map::new(),
    };
    entry.insert("description".into(), field.help.into());
    entry
}

/// Lets a key whose default follows from other keys hold that default, `null`.
fn allow_null(entry: &mut Map<String, Value>) {
    if let Some(kind) = entry.get("type").cloned() {
        entry.insert("type".into(), json!([kind, "null"]));
    }
    if let Some(Value::Array(words)) = entry.get_mut("enum") {
        words.push(Value::Null);
    }
}

/// A parsed section: every key checked against its table, defaults filled in on reading.
#[derive(Clone, Debug)]
pub struct Settings {
    path: String,
    values: Map<String, Value>,
    fields: &'static [Field],
}

impl Settings {
    /// Checks a section that stands at `path` of a document; nothing at all means all defaults.
    ///
    /// # Errors
    /// [`SettingsError::UnknownKey`], [`SettingsError::Value`].
    pub fn new(path: &str, value: Value, fields: &'static [Field]) -> Result<Self, SettingsError> {
        let values = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => {
                return Err(SettingsError::Value {
                    path: path.into(),
                    expected: "a mapping of keys to values".into(),
                    found: other.to_string(),
                });
            }
        };
        for (key, value) in &values {
            let Some(field) = fields.iter().find(|f| f.name == key) else {
                return Err(unknown_key(path, key, fields.iter().map(|f| f.name)));
            };
            // An explicit null is a key left at its default.
            let left_open = value.is_null() && !field.default.is_empty();
            if !left_open && !field.kind.accepts(value) {
                return Err(SettingsError::Value {
                    path: format!("{path}.{key}"),
                    expected: field.kind.expected(value),
                    found: value.to_string(),
                });
            }
        }
        Ok(Self { path: path.into(), values, fields })
    }

    /// The value of a key, or its default; null where the key is open.
    fn value(&self, key: &str) -> Result<Value, SettingsError> {
        if let Some(value) = self.given(key) {
            return Ok(value.clone());
        }
        let default = self.fields.iter().find(|f| f.name == key).and_then(Field::default);
        default.ok_or_else(|| SettingsError::MissingKey { path: self.path.clone(), key: key.into() })
    }
    /// What was written for a key, if anything was.
    #[must_use]
    pub fn given(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }
    /// A key that is true or false.
    ///
    /// # Errors
    /// [`SettingsError::MissingKey`], as for all keys.
    pub fn bool(&self, key: &str) -> Result<bool, SettingsError> {
        Ok(self.value(key)?.as_bool().unwrap_or_default())
    }
    /// A key that is true, false, or open.
    ///
    /// # Errors
    /// [`SettingsError::MissingKey`].
    pub fn bool_opt(&self, key: &str) -> Result<Option<bool>, SettingsError> {
        Ok(self.value(key)?.as_bool())
    }
    /// A number.
    ///
    /// # Errors
    /// [`SettingsError::MissingKey`].
    pub fn number(&self, key: &str) -> Result<f64, SettingsError> {
        Ok(self.value(key)?.as_f64().unwrap_or_default())
    }
    /// A whole number.
    ///
    /// # Errors
    /// [`SettingsError::MissingKey`].
    pub fn integer(&self, key: &str) -> Result<usize, SettingsError> {
        Ok(self.value(key)?.as_u64().unwrap_or_default() as usize)
    }
    /// A whole number, or [`usize::MAX`] for all.
    ///
    /// # Errors
    /// [`SettingsError::MissingKey`].
    pub fn integer_or_all(&self, key: &str) -> Result<usize, SettingsError> {
        Ok(self.value(key)?.as_u64().map_or(usize::MAX, |v| v as usize))
    }
    /// One of some whole numbers; nothing for `none`.
    ///
    /// # Errors
    /// As [`Settings::bool`].
    pub fn size_or_none(&self, key: &str) -> Result<Option<usize>, SettingsError> {
        let value = self.value(key)?;
        Ok(value.as_u64().and_then(|size| usize::try_from(size).ok()))
    }
    /// A text.
    ///
    /// # Errors
    /// [`SettingsError::MissingKey`].
    pub fn text(&self, key: &str) -> Result<String, SettingsError> {
        Ok(self.value(key)?.as_str().unwrap_or_default().to_owned())
    }
    /// A word that is the serde name of an enum variant; none where the key is open.
    ///
    /// # Errors
    /// [`SettingsError::MissingKey`]; [`SettingsError::Value`] for a word that no variant has.
    pub fn word<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, SettingsError> {
        match self.value(key)? {
            Value::Null => Ok(None),
            value => serde_json::from_value(value.clone()).map(Some).map_err(|_| SettingsError::Value {
                path: format!("{}.{key}", self.path),
                expected: self
                    .fields
                    .iter()
                    .find(|f| f.name == key)
                    .map_or_else(String::new, |f| f.kind.expected(&value)),
                found: value.to_string(),
            }),
        }
    }
    /// A list of words, each the serde name of an enum variant.
    ///
    /// # Errors
    /// [`SettingsError::MissingKey`]; [`SettingsError::Value`] for a word that no variant has.
    pub fn words<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Vec<T>, SettingsError> {
        let value = self.value(key)?;
        serde_json::from_value(value.clone()).map_err(|_| SettingsError::Value {
            path: format!("{}.{key}", self.path),
            expected: "a list of words".into(),
            found: value.to_string(),
        })
    }
    /// Where the section stands.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
    /// All keys with what was written or their defaults, for reports; open keys are null.
    #[must_use]
    pub fn resolved(&self) -> Value {
        let value = |f: &Field| self.given(f.name).cloned().or_else(|| f.default()).unwrap_or(Value::Null);
        self.fields.iter().map(|f| (f.name.to_owned(), value(f))).collect::<Map<_, _>>().into()
    }
}

/// An unknown key with the nearest known one.
#[must_use]
pub fn unknown_key<'a>(path: &str, key: &str, known: impl Iterator<Item = &'a str>) -> SettingsError {
    let known: Vec<&str> = known.collect();
    SettingsError::UnknownKey {
        path: path.into(),
        key: key.into(),
        nearest: nearest(key, &known).map(str::to_owned),
        known: known.join(", "),
    }
}

/// What may stand in place of `found`, with the nearest of the words.
#[must_use]
pub fn one_of(words: &[&str], found: &Value) -> String {
    let hint = found.as_str().map_or_else(String::new, |found| meant(found, words));
    format!("one of {}{hint}", words.join(", "))
}
