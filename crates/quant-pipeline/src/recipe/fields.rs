//! Recipe keys as tables: parsing, defaults, the JSON schema and "did you mean" all come from the same rows.

use super::RecipeError;
use serde_json::{Map, Value, json};

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Bool,
    /// A number in a closed range.
    Number(f64, f64),
    /// A whole number in a closed range.
    Integer(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A scheme string.
    Scheme,
}

impl Kind {
    fn expected(self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Number(lo, hi) => format!("a number from {lo} to {hi}"),
            Self::Integer(lo, hi) => format!("a whole number from {lo} to {hi}"),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Scheme => "a scheme like W4A16g128 or W8A8KV8".into(),
        }
    }
    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Bool => value.is_boolean(),
            Self::Number(lo, hi) => value.as_f64().is_some_and(|v| (lo..=hi).contains(&v)),
            Self::Integer(lo, hi) => value.as_u64().is_some_and(|v| (lo..=hi).contains(&v)),
            Self::Choice(words) => value.as_str().is_some_and(|v| words.contains(&v)),
            Self::Scheme => value.is_string(),
        }
    }
    fn schema(self) -> Value {
        match self {
            Self::Bool => json!({"type": "boolean"}),
            Self::Number(lo, hi) => json!({"type": "number", "minimum": lo, "maximum": hi}),
            Self::Integer(lo, hi) => json!({"type": "integer", "minimum": lo, "maximum": hi}),
            Self::Choice(words) => json!({"enum": words}),
            Self::Scheme => json!({"type": "string",
                "pattern": "^[Ww](1|2|3|4|5|6|7|8|16)([Aa](4|8|16))?([Gg][1-9][0-9]*)?(KV(4|8|16))?([Gg][1-9][0-9]*)?$"}),
        }
    }
}

/// One key of a recipe section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The default as JSON; `null` means it follows from other keys, as the help says. Empty: the key is required.
    pub(crate) default: &'static str,
    pub(crate) help: &'static str,
}

impl Field {
    fn default(&self) -> Option<Value> {
        serde_json::from_str(self.default).ok()
    }
}

/// The JSON schema of a section.
pub(crate) fn schema(fields: &[Field]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in fields {
        let mut entry = field.kind.schema();
        if let Some(map) = entry.as_object_mut() {
            map.insert("description".into(), field.help.into());
            match field.default() {
                Some(default) => {
                    if default.is_null() {
                        allow_null(map);
                    }
                    map.insert("default".into(), default);
                }
                None => required.push(field.name),
            }
        }
        properties.insert(field.name.into(), entry);
    }
    json!({"type": "object", "additionalProperties": false, "properties": properties, "required": required})
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
#[derive(Debug)]
pub(crate) struct Section {
    path: String,
    values: Map<String, Value>,
    fields: &'static [Field],
}

impl Section {
    pub(crate) fn new(path: &str, value: Value, fields: &'static [Field]) -> Result<Self, RecipeError> {
        let values = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            other => {
                return Err(RecipeError::Value {
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
                return Err(RecipeError::Value {
                    path: format!("{path}.{key}"),
                    expected: field.kind.expected(),
                    found: value.to_string(),
                });
            }
        }
        Ok(Self { path: path.into(), values, fields })
    }

    /// The value of a key, or its default; null where the key is open.
    fn value(&self, key: &str) -> Result<Value, RecipeError> {
        if let Some(value) = self.given(key) {
            return Ok(value.clone());
        }
        let default = self.fields.iter().find(|f| f.name == key).and_then(Field::default);
        default.ok_or_else(|| RecipeError::MissingKey { path: self.path.clone(), key: key.into() })
    }
    /// What was written for a key, if anything was.
    pub(crate) fn given(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }
    pub(crate) fn bool(&self, key: &str) -> Result<bool, RecipeError> {
        Ok(self.value(key)?.as_bool().unwrap_or_default())
    }
    pub(crate) fn bool_opt(&self, key: &str) -> Result<Option<bool>, RecipeError> {
        Ok(self.value(key)?.as_bool())
    }
    pub(crate) fn number(&self, key: &str) -> Result<f64, RecipeError> {
        Ok(self.value(key)?.as_f64().unwrap_or_default())
    }
    pub(crate) fn integer(&self, key: &str) -> Result<usize, RecipeError> {
        Ok(self.value(key)?.as_u64().unwrap_or_default() as usize)
    }
    pub(crate) fn text(&self, key: &str) -> Result<String, RecipeError> {
        Ok(self.value(key)?.as_str().unwrap_or_default().to_owned())
    }
    /// A word that is the serde name of an enum variant; none where the key is open.
    pub(crate) fn word<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, RecipeError> {
        match self.value(key)? {
            Value::Null => Ok(None),
            value => serde_json::from_value(value.clone()).map(Some).map_err(|_| RecipeError::Value {
                path: format!("{}.{key}", self.path),
                expected: self
                    .fields
                    .iter()
                    .find(|f| f.name == key)
                    .map_or_else(String::new, |f| f.kind.expected()),
                found: value.to_string(),
            }),
        }
    }
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// An unknown key with the nearest known one.
pub(crate) fn unknown_key<'a>(path: &str, key: &str, known: impl Iterator<Item = &'a str>) -> RecipeError {
    let known: Vec<&str> = known.collect();
    RecipeError::UnknownKey {
        path: path.into(),
        key: key.into(),
        nearest: nearest(key, &known).map(str::to_owned),
        known: known.join(", "),
    }
}

/// The known word with the fewest edits, if it is close enough to be meant.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let fold = |s: &str| s.to_ascii_lowercase().replace('-', "_");
    known
        .iter()
        .map(|k| (edits(&fold(word), &fold(k)), *k))
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len() / 3)
        .map(|(_, k)| k)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
