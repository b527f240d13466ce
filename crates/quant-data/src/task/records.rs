//! Items of a data set.

use super::file::Task;
use crate::DataError;
use crate::content::read_content;
use crate::documents::records;
use serde_json::{Map, Value};
use std::path::PathBuf;

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
