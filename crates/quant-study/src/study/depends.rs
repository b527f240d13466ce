//! What findings of a row depend on beside the row itself, so that none outlives a change of it.

use super::compare::is_greedy;
use super::place::variant_folder;
use crate::StudyError;
use crate::files::{read_json, slug};
use crate::run::home::{identity_of, is_finished};
use quant_checkpoint::TensorHash;
use quant_data::Task;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A finding as it is kept.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Dependent<T> {
    /// A hash of what it depends on beside its row.
    #[serde(default)]
    pub(super) of: String,
    #[serde(flatten)]
    pub(super) found: T,
}

/// What the greedy answers of the float model, and all that is read from them, depend on; none where there are none.
pub(super) fn of_answers(output: &Path, model: &str, tasks: &[Task]) -> Result<Option<String>, StudyError> {
    let home = variant_folder(output, model, None).join("sim");
    let mut all = String::new();
    for task in tasks.iter().filter(|task| is_greedy(task)) {
        let folder = home.join(slug(task.name()));
        if is_finished(&folder) {
            all += &identity_of(&folder)?.unwrap_or_default();
        }
    }
    Ok((!all.is_empty()).then(|| TensorHash::of(all.as_bytes()).short()))
}

/// What the search for the causes of a loss depends on: the cell of the text on which it is made. None where there is no such text, or its
/// cell was not begun.
pub(super) fn of_blame(
    cells: &Path,
    tasks: &[Task],
    blame: Option<&str>,
) -> Result<Option<String>, StudyError> {
    match tasks.iter().find(|task| Some(task.name()) == blame) {
        Some(task) => identity_of(&cells.join(slug(task.name()))),
        None => Ok(None),
    }
}

/// Whether a finding is there and still stands.
pub(super) fn stands(path: &Path, of: Option<&str>) -> Result<bool, StudyError> {
    #[derive(Deserialize)]
    struct Kept {
        #[serde(default)]
        of: String,
    }
    let kept: Option<Kept> = read_json(path)?;
    Ok(kept.is_some_and(|kept| Some(kept.of.as_str()) == of))
}

/// The finding, if it still stands.
pub(super) fn standing<T: serde::de::DeserializeOwned>(
    path: &Path,
    of: Option<&str>,
) -> Result<Option<T>, StudyError> {
    if of.is_none() || !stands(path, of)? {
        return Ok(None);
    }
    Ok(read_json::<Dependent<T>>(path)?.map(|kept| kept.found))
}
