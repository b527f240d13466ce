use thiserror::Error;

/// What can be wrong with a number format, a scheme or an array handed to this crate.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum CoreError {
    /// A bit width outside 1..=8.
    #[error("bit width {0} is not supported: expected 1 to 8")]
    Bits(u32),
    /// A scheme string that does not read as `W<bits>[A<bits>][KV<bits>][g<size>]`.
    #[error(
        "scheme {text:?} is not understood ({reason}); write it like W4A16g128, W8A8, W8A8KV8 or W4A4KV4"
    )]
    Scheme {
        /// The text as given.
        text: String,
        /// Which part of it failed, and why.
        reason: String,
    },
    /// A convention that cannot be used at this bit width.
    #[error("convention {convention} has no grid at {bits} bit: {reason}")]
    NoGrid {
        /// The convention's recipe name.
        convention: &'static str,
        /// The bit width asked for.
        bits: u32,
        /// Why, and what to use instead.
        reason: &'static str,
    },
    /// A NaN or an infinity where a finite number is required.
    #[error("value {value} at row {row}, column {column} is not finite; nothing can be quantised from it")]
    NotFinite {
        /// The offending value.
        value: f32,
        /// Row of the matrix.
        row: usize,
        /// Column of the matrix.
        column: usize,
    },
    /// A group whose range asks for a scale beyond the largest number of its type.
    #[error(
        "the scale of row {row}, group {group} is {scale}: the range of its weights does not fit {scale_type}; use a wider \
         scale type or repair the weights"
    )]
    Scale {
        /// The scale as rounded.
        scale: f32,
        /// The type it is stored in.
        scale_type: &'static str,
        /// Row of the matrix.
        row: usize,
        /// Group within the row.
        group: usize,
    },
    /// Inputs that cannot be cut into shards.
    #[error("{module} has {inputs} inputs, which cannot be cut into {shards} shards{}; use an input_shards that fits, or 1",
        .group.map_or_else(String::new, |g| format!(" of whole groups of {g}")))]
    Shards {
        /// The linear.
        module: String,
        /// Its columns.
        inputs: usize,
        /// Shards asked for.
        shards: usize,
        /// Columns per group of its weight, where it has groups.
        group: Option<usize>,
    },
    /// Two shapes that must agree do not.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// The shape or length required.
        expected: String,
        /// The shape or length given.
        found: String,
    },
    /// A processor that runs the operators failed, or cannot do what it is asked for.
    #[error("{message}")]
    Processor {
        /// What it says.
        message: String,
        /// What kind of thing it is.
        kind: ProcessorProblem,
    },
    /// Bytes that are no value of the type they should hold.
    #[error("the bytes hold {found} where {expected} should be")]
    Encoded {
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// What kind of thing is wrong with a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessorProblem {
    /// It is not there, or lacks what it is asked for.
    Unavailable,
    /// Its memory is not enough.
    Memory,
    /// It failed at its work.
    Failed,
}

impl CoreError {
    /// The same error where the matrix it speaks of begins at row `first` of a larger one.
    #[must_use]
    pub fn in_rows_from(self, first: usize) -> Self {
        match self {
            Self::NotFinite { value, row, column } => Self::NotFinite { value, row: first + row, column },
            Self::Scale { scale, scale_type, row, group } => {
                Self::Scale { scale, scale_type, row: first + row, group }
            }
            other => other,
        }
    }
}
