//! The product of this crate: sequences of token ids and where they come from.

use std::fmt;

use serde::Serialize;

use crate::DataError;

/// Token sequences for calibration or evaluation, each meant to be run alone from position 0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenSet {
    /// The sequences, none of them empty; lengths may differ.
    pub sequences: Vec<Vec<u32>>,
    /// File (and tensor) the tokens come from.
    pub source: String,
    /// How the file was read, where it is neither plain text nor a tensor.
    pub reading: Option<String>,
    /// Bytes of the longest text that was tokenised as one, 0 for a tensor; see [`crate::tokenising_bytes`].
    pub longest_text: usize,
    /// How the sequences were cut from the source.
    pub sampling: Sampling,
    /// What the person should know: a cap that was applied, a source shorter than asked for.
    pub warnings: Vec<String>,
}

impl TokenSet {
    /// Token ids that a program has already; empty sequences are left out. `source` says in reports where they come from.
    ///
    /// ```
    /// use quant_data::TokenSet;
    ///
    /// let tokens = TokenSet::from_sequences(vec![vec![1, 2, 3], vec![4, 5]], "two prompts");
    /// assert_eq!((tokens.tokens(), tokens.max_length()), (5, 3));
    /// ```
    #[must_use]
    pub fn from_sequences(mut sequences: Vec<Vec<u32>>, source: impl Into<String>) -> Self {
        sequences.retain(|ids| !ids.is_empty());
        let length = sequences.iter().map(Vec::len).max().unwrap_or(0);
        let sampling = Sampling::Rows { rows: sequences.len(), length, stored_length: length };
        let source = source.into();
        Self { sequences, source, reading: None, longest_text: 0, sampling, warnings: Vec::new() }
    }

    /// Number of tokens over all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    /// Length of the longest sequence, 0 for an empty set.
    pub fn max_length(&self) -> usize {
        self.sequences.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// One line for reports and manifests, for example
    /// `128 random windows of 2048 tokens (seed 0) from a stream of 2500000, data.jsonl`.
    pub fn describe(&self) -> String {
        let n = self.sequences.len();
        let plural = if n == 1 { "" } else { "s" };
        let reading = self.reading.as_ref().map(|how| format!(" ({how})")).unwrap_or_default();
        format!("{n} {}, {}{reading}", self.sampling.phrase(plural), self.source)
    }
}

impl fmt::Display for TokenSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// How sequences were cut from their source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Sampling {
    /// Rows of a token tensor in order.
    Rows {
        /// Rows in the tensor.
        rows: usize,
        /// Length of every sequence after truncation, in tokens.
        length: usize,
        /// Length of the stored rows, in tokens.
        stored_length: usize,
    },
    /// Random windows of one stream ([`crate::random_windows`]).
    RandomWindows {
        /// Seed of the generator.
        seed: u64,
        /// Tokens per window.
        length: usize,
        /// Tokens of the stream.
        stream: usize,
    },
    /// Windows one after the other, tail dropped ([`crate::consecutive_windows`]).
    ConsecutiveWindows {
        /// Tokens per window.
        length: usize,
        /// Tokens of the stream.
        stream: usize,
    },
    /// The stream was shorter than a window and is taken whole.
    Whole {
        /// Tokens of the stream.
        stream: usize,
    },
}

impl Sampling {
    fn phrase(&self, plural: &str) -> String {
        match self {
            Self::Rows { rows, length, stored_length } => format!(
                "sequence{plural} of {length} tokens (rows of a [{rows}, {stored_length}] tensor, in order)"
            ),
            Self::RandomWindows { seed, length, stream } => {
                format!("random window{plural} of {length} tokens (seed {seed}) from a stream of {stream}")
            }
            Self::ConsecutiveWindows { length, stream } => format!(
                "consecutive window{plural} of {length} tokens from a stream of {stream} (tail of {} dropped)",
                stream % (*length).max(1)
            ),
            Self::Whole { stream } => format!("sequence{plural} with the whole stream of {stream} tokens"),
        }
    }
}

/// Refuses ids the model has no embedding for; `row` is what the error calls the sequence.
pub(crate) fn check_vocabulary(
    source: &str,
    row: usize,
    ids: &[u32],
    vocab_size: usize,
) -> Result<(), DataError> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(column) => Err(DataError::OutOfVocabulary {
            source_name: source.to_owned(),
            row,
            column,
            id: i64::from(ids[column]),
            vocab_size,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_read_well() {
        let set = TokenSet {
            sequences: vec![vec![1, 2], vec![3, 4]],
            source: "a.txt".into(),
            reading: None,
            longest_text: 0,
            sampling: Sampling::RandomWindows { seed: 3, length: 2, stream: 9 },
            warnings: vec![],
        };
        assert_eq!(set.describe(), "2 random windows of 2 tokens (seed 3) from a stream of 9, a.txt");
        let lines = TokenSet { reading: Some("3 JSON records".into()), ..set.clone() };
        assert!(lines.describe().ends_with(", a.txt (3 JSON records)"), "{}", lines.describe());
        assert_eq!((set.tokens(), set.max_length()), (4, 2));
        let json = serde_json::to_string(&set.sampling).unwrap();
        assert_eq!(json, r#"{"kind":"random_windows","seed":3,"length":2,"stream":9}"#);
    }

    #[test]
    fn vocabulary_errors_name_the_place() {
        assert!(check_vocabulary("f", 0, &[0, 9], 10).is_ok());
        let error = check_vocabulary("f", 4, &[0, 10], 10).unwrap_err().to_string();
        assert!(error.contains("token id 10 at sequence 4, position 1"), "{error}");
        assert!(error.contains("vocabulary of 10"), "{error}");
    }
}
