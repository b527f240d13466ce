//! Data of a study from the Hugging Face hub.

use super::job::StudyJob;
use super::plan::tasks;
use crate::StudyError;
use quant_data::{Hub, HubProgress};
use std::ops::ControlFlow;

/// Fetches the files of the grid's tasks that lie in none of the folders where they are looked for, and adds [`Hub::folder`] to them
/// ([`StudyJob::data`]). Tasks without a repository are left to be found later. `tell` says whether to go on.
///
/// ```
/// use quant_study::{Grid, StudyJob, fetch_study_data};
/// use std::ops::ControlFlow;
///
/// // Nothing is asked of anybody: its one task has no repository.
/// let grid = "version: 1\nname: mine\nmodels: ['embedded:tiny-reasoner']\nrecipes: [w4a16g128]\ntasks: [tiny-word]\n";
/// let mut job = StudyJob::new(Grid::parse(grid, "a grid")?, "study");
/// fetch_study_data(&mut job, &quant_data::Hub::new("data"), &mut |_| ControlFlow::Continue(()))?;
/// assert_eq!(job.data, [std::path::Path::new("data")]);
/// # Ok::<(), quant_study::StudyError>(())
/// ```
///
/// # Errors
/// A task that cannot be read, and those of [`Hub::fetch`].
pub fn fetch_study_data(
    job: &mut StudyJob,
    hub: &Hub,
    tell: &mut dyn FnMut(&HubProgress<'_>) -> ControlFlow<()>,
) -> Result<(), StudyError> {
    for task in tasks(&job.grid)?.iter().filter(|task| task.source().repository.is_some()) {
        for model in &job.grid.models {
            hub.fetch(task, &job.data_folders(&model.path), tell)?;
        }
    }
    job.data.push(hub.folder.clone());
    Ok(())
}
