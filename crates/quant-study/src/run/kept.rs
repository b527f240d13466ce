//! What is kept of a task while it is run.

use crate::StudyError;
use crate::record::{Done, Journal, Record};

/// What decoding took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speed {
    pub(super) tokens: usize,
    pub(super) seconds: f64,
    pub(super) first_token: Option<f64>,
}

/// Records, and the file that keeps them.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) done: Done,
    pub(super) journal: Option<Journal>,
}

impl Kept {
    /// Keeps records, which are on disk when it returns.
    pub(super) fn add(&mut self, records: Vec<Record>) -> Result<(), StudyError> {
        if let Some(journal) = &mut self.journal {
            journal.add(&records)?;
        }
        self.done.extend(records.into_iter().map(|record| (record.key(), record)));
        Ok(())
    }
}
