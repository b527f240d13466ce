//! Where things of a study are.

use crate::StudyError;
use crate::files::slug;
use crate::grid::{self, GridModel};
use quant_model::Execution;
use std::path::{Path, PathBuf};

/// Name of an execution in reports and folders.
pub(super) fn word(execution: Execution) -> &'static str {
    match execution {
        Execution::Simulated => "sim",
        Execution::Integer => "int8",
    }
}

/// Name of the execution of a server.
pub(super) const SERVER: &str = "server";

/// What is known of the activations of a row.
pub(super) const RANGES: &str = "ranges.json";
/// What is predicted of a row without decoding.
pub(super) const PREDICTION: &str = "prediction.json";
/// Where the loss of a row comes from.
pub(super) const BLAME: &str = "blame.json";
/// What of a row failed for another reason than its setting.
pub(super) const FAILURES: &str = "failures.json";

/// The folder of a model of a grid.
pub(super) fn model_folder(model: &GridModel, output: &Path) -> Result<PathBuf, StudyError> {
    if model.path == Path::new(grid::NAME) {
        grid::unpack(&output.join("embedded"))
    } else {
        Ok(model.path.clone())
    }
}

/// The folder of a row.
pub(super) fn variant_folder(output: &Path, model: &str, recipe: Option<&str>) -> PathBuf {
    output.join("cells").join(slug(model)).join(slug(recipe.unwrap_or("float")))
}

/// Removes a folder: away at once, then gone, so that a kill leaves no half of it in its place.
pub(super) fn discard(path: &Path, output: &Path) -> Result<(), StudyError> {
    if !path.exists() {
        return Ok(());
    }
    let away = output.join("removed");
    remove_folder(&away)?;
    std::fs::rename(path, &away).map_err(StudyError::io(path))?;
    remove_folder(&away)
}

/// Removes a folder, if there is one.
pub(super) fn remove_folder(path: &Path) -> Result<(), StudyError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StudyError::io(path)(error)),
        _ => Ok(()),
    }
}

/// Removes a file, if there is one.
pub(super) fn remove_file(path: &Path) -> Result<(), StudyError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StudyError::io(path)(error)),
        _ => Ok(()),
    }
}
