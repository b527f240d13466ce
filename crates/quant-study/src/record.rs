//! What is known of one item, and the file that keeps it.

use crate::StudyError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Signs of a broken answer, as [`quant_eval::collapse`] finds them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signs {
    /// It did not end by itself.
    pub no_end: bool,
    /// It ended in a loop.
    pub loops: bool,
    /// Its thought was not closed.
    pub unclosed_thought: bool,
    /// Nothing stands behind the thought.
    pub empty: bool,
    /// What is right stands in the thought and was not given.
    pub seen_not_given: bool,
    /// Tokens of the thought, where they can be told.
    pub thought: Option<usize>,
}

impl Signs {
    /// Whether the answer is broken, and not only wrong.
    #[must_use]
    pub fn collapsed(&self) -> bool {
        self.no_end || self.loops || self.unclosed_thought || self.empty
    }
}

/// What became of one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Continuations were compared.
    Choice {
        /// Number of the item in its source.
        number: u64,
        /// What the source calls it.
        id: String,
        /// The right choice, from 0.
        gold: usize,
        /// Log-likelihood of every choice in nats; null where a logit was not finite.
        log_likelihoods: Vec<Option<f64>>,
        /// Whether the model itself would give the choice.
        greedy: Vec<bool>,
        /// Whether the most likely choice is right.
        acc: bool,
        /// Whether the most likely one for its characters is.
        acc_norm: bool,
    },
    /// A window of a text was predicted by a server.
    Window {
        /// Its number in the text.
        number: u64,
        /// Tokens that were predicted: all but its first.
        tokens: usize,
        /// Their log-likelihood in nats.
        log_likelihood: f64,
    },
    /// A text was asked for.
    Answer {
        /// Number of the item in its source.
        number: u64,
        /// What the source calls it.
        id: String,
        /// Seed of the draws.
        seed: u64,
        /// Where the right option stood, from 0, of a question with options.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<usize>,
        /// Whether it was graded as right.
        right: bool,
        /// What was taken as the answer.
        extracted: Option<String>,
        /// `stop`, `length`, `non_finite`, `does_not_fit` for a prompt that leaves no room, or what a server calls it.
        finish: String,
        /// The new tokens.
        tokens: Vec<u32>,
        /// Signs of a broken answer.
        signs: Signs,
        /// The text, where texts are kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
}

impl Record {
    /// By which records of a task are told apart and put in order: seed, and number of the item.
    #[must_use]
    pub fn key(&self) -> (u64, u64) {
        match self {
            Self::Choice { number, .. } | Self::Window { number, .. } => (0, *number),
            Self::Answer { number, seed, .. } => (*seed, *number),
        }
    }
}

/// Records of a task by seed and number of the item.
pub type Done = BTreeMap<(u64, u64), Record>;

/// Records as they come, on disk; none is lost to a kill but the one that is being written.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens or makes a journal; gives what it holds. A last line without its end was being written when the process was killed, and is
    /// dropped.
    pub(crate) fn open(path: &Path) -> Result<(Self, Done), StudyError> {
        let (records, whole) = Self::read(path)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(StudyError::io(path))?;
        file.set_len(whole as u64).map_err(StudyError::io(path))?;
        let mut journal = Self { path: path.to_owned(), file };
        journal.file.seek(SeekFrom::End(0)).map_err(StudyError::io(path))?;
        Ok((journal, records))
    }

    /// What a journal holds, and the bytes of it that are whole lines.
    pub(crate) fn read(path: &Path) -> Result<(Done, usize), StudyError> {
        let text = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StudyError::io(path)(error)),
        };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut records = Done::new();
        for (index, line) in text[..whole].split(|&b| b == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
            let record: Record = serde_json::from_slice(line).map_err(|e| StudyError::Journal {
                path: path.to_owned(),
                line: index + 1,
                reason: e.to_string(),
            })?;
            records.insert(record.key(), record);
        }
        Ok((records, whole))
    }

    /// Adds records, which are on disk when it returns.
    pub(crate) fn add<'r>(
        &mut self,
        records: impl IntoIterator<Item = &'r Record>,
    ) -> Result<(), StudyError> {
        self.file.write_all(&lines(records)).map_err(StudyError::io(&self.path))?;
        self.file.sync_data().map_err(StudyError::io(&self.path))
    }
}

/// Records as lines of JSON.
pub(crate) fn lines<'r>(records: impl IntoIterator<Item = &'r Record>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        // Of texts, numbers and lists: nothing in it can fail to be written.
        bytes.extend(serde_json::to_vec(record).unwrap_or_default());
        bytes.push(b'\n');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64) -> Record {
        Record::Choice {
            number,
            id: format!("i{number}"),
            gold: 0,
            log_likelihoods: vec![Some(-0.1 - 1e-17 * number as f64), None, Some(-1.0 / 3.0)],
            greedy: vec![true, false, false],
            acc: true,
            acc_norm: false,
        }
    }

    #[test]
    fn a_journal_is_read_back_and_a_torn_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("items.jsonl");
        let (mut journal, empty) = Journal::open(&path).unwrap();
        assert!(empty.is_empty());
        journal.add(&[record(3), record(1)]).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..40 {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut journal, kept) = Journal::open(&path).unwrap();
            assert_eq!(kept.values().cloned().collect::<Vec<_>>(), [record(3)]);
            journal.add([&record(1)]).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let (_, all) = Journal::open(&path).unwrap();
        assert_eq!(all.values().cloned().collect::<Vec<_>>(), [record(1), record(3)]);
        std::fs::write(&path, b"{\"kind\":\"choice\"}\n").unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("missing field"), "{error}");
    }
}
