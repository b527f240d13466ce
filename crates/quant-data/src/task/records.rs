//! Items of a data set: finding its file, and reading its records.

use super::file::{Source, Task};
use crate::DataError;
use crate::content::read_content;
use crate::documents::records;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A record with its place.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Its number in the files, from 0, whatever is left out.
    pub(super) number: u64,
    pub(super) place: String,
    pub(super) fields: Map<String, Value>,
}

impl Record {
    /// The `id` of an item, else its number.
    pub(super) fn id(&self) -> String {
        ["id", "unique_id", "task_id", "question_id"]
            .iter()
            .find_map(|name| match self.fields.get(*name) {
                Some(Value::String(id)) => Some(id.clone()),
                Some(Value::Number(id)) => Some(id.to_string()),
                _ => None,
            })
            .unwrap_or_else(|| self.number.to_string())
    }
}

impl Source {
    /// The files of this source below one of the folders, in the order of `files`, then of the folders: those of the first pattern that
    /// matches any, by name.
    ///
    /// # Errors
    /// [`DataError::NoItems`] that names repository, configuration, split and columns, and where was looked.
    pub fn find(&self, task: &str, folders: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
        for pattern in &self.files {
            for folder in folders {
                let found = matching(folder, pattern);
                if !found.is_empty() {
                    return Ok(found);
                }
            }
        }
        let mut wanted = Vec::new();
        for (name, value) in
            [("data set", &self.repository), ("configuration", &self.config), ("split", &self.split)]
        {
            wanted.extend(value.as_ref().map(|value| format!("{name} {value}")));
        }
        if !self.columns.is_empty() {
            wanted.push(format!("columns {}", self.columns.join(", ")));
        }
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        Err(DataError::NoItems {
            task: task.to_owned(),
            wanted: wanted.join(", "),
            looked: format!("{} in {}", self.files.join(", "), folders.join(", ")),
        })
    }
}

/// Files below `folder` that a pattern names: `*` stands for anything within a name.
fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for base in found {
            if !part.contains('*') {
                next.extend(Some(base.join(part)).filter(|path| path.exists()));
                continue;
            }
            let entries = std::fs::read_dir(&base).into_iter().flatten().flatten();
            next.extend(
                entries.filter(|e| fits(part, &e.file_name().to_string_lossy())).map(|entry| entry.path()),
            );
        }
        found = next;
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// Whether a name fits a pattern with stars.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

impl Task {
    /// The records of the task's files that its `where` takes, the first `limit` of them.
    pub(super) fn records(&self, files: &[PathBuf], limit: Option<usize>) -> Result<Vec<Record>, DataError> {
        let (mut taken, mut number) = (Vec::new(), 0_u64);
        for path in files {
            for (place, value) in records(path, read_content(path)?)? {
                if limit.is_some_and(|limit| taken.len() >= limit) {
                    return Ok(taken);
                }
                let here = number;
                number += 1;
                let bad = |reason: String| DataError::Item {
                    task: self.name().to_owned(),
                    place: place.clone(),
                    reason,
                };
                let Value::Object(fields) = value else { return Err(bad("no JSON object".to_owned())) };
                if let Some(missing) = self.source().columns.iter().find(|name| !fields.contains_key(*name)) {
                    let has: Vec<&str> = fields.keys().map(String::as_str).take(12).collect();
                    let has = has.join(", ");
                    return Err(bad(format!(
                        "the field {missing:?} is missing; it has {has}: is it the split that the task names?"
                    )));
                }
                if self.takes(&fields) {
                    // Fields whose names are no words of a template.
                    let mut fields = fields;
                    fields.insert("_item".to_owned(), Value::Object(fields.clone()));
                    taken.push(Record { number: here, place, fields });
                }
            }
        }
        if taken.is_empty() {
            let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
            return Err(DataError::Empty {
                source_name: names.join(", "),
                found: format!("no item of the task {}", self.name()),
                advice: "is it the file that the task names, and does `where` name values that occur?",
            });
        }
        Ok(taken)
    }

    /// An error with the item it speaks of.
    pub(super) fn at(&self, record: &Record, error: DataError) -> DataError {
        let (task, place) = (self.name().to_owned(), record.place.clone());
        DataError::Item { task, place, reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything_within_a_name() {
        for (pattern, name, fit) in [
            ("test.jsonl", "test.jsonl", true),
            ("test.jsonl", "test.jsonl.gz", false),
            ("test*", "test-00000-of-00001.parquet", true),
            ("*-test*.parquet", "gsm8k-test-0.parquet", true),
            ("*a*b", "xaxb", true),
            ("*a*b", "xbxa", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }
}
