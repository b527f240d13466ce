//! What tells one job from another.

use std::fmt;

/// A field of a job that is not what it was when the work began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is called.
    pub field: String,
    /// What it was; none where there was no such field.
    pub kept: Option<String>,
    /// What it is; none where there is none.
    pub given: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{} was {} and is {}", self.field, word(&self.kept), word(&self.given))
    }
}
