//! What is wrong with a task file.

use crate::DataError;

/// What is wrong with a task file.
pub(super) enum Fault {
    Written(String),
    Template(DataError),
}

impl Fault {
    pub(super) fn new(path: &str, reason: String) -> Self {
        Self::Written(if path.is_empty() { reason } else { format!("{path}: {reason}") })
    }
}

impl From<DataError> for Fault {
    fn from(error: DataError) -> Self {
        Self::Template(error)
    }
}
