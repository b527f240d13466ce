//! Where the files of a task lie: below a data folder, or in its repository.

use super::file::Source;
use crate::DataError;
use std::path::{Path, PathBuf};

impl Source {
    /// The files of this source below one of the folders, in the order of [`Source::patterns`], then of the folders: those of the first
    /// pattern that matches any, by name.
    ///
    /// # Errors
    /// [`DataError::NoItems`] that names repository, configuration, split and columns, and where was looked.
    pub fn find(&self, task: &str, folders: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
        for pattern in self.patterns() {
            for folder in folders {
                let found = matching(folder, &pattern);
                if !found.is_empty() {
                    return Ok(found);
                }
            }
        }
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        Err(DataError::NoItems {
            task: task.to_owned(),
            wanted: self.wanted(),
            looked: format!("{} in {}", self.files.join(", "), folders.join(", ")),
        })
    }

    /// Names and patterns below a data folder: `files`, then, where there is a repository, the same and the layouts of the Hugging Face hub
    /// in a folder of the repository's own name.
    ///
    /// ```
    /// let task = quant_data::built_in_task("arc-easy")?;
    /// assert!(task.source().patterns().contains(&"ai2_arc/ARC-Easy/test/*.parquet".to_owned()));
    /// # Ok::<(), quant_data::DataError>(())
    /// ```
    #[must_use]
    pub fn patterns(&self) -> Vec<String> {
        let mut all = self.files.clone();
        if let Some(name) = self.folder() {
            let below = format!("{name}/");
            let own = self.files.iter().filter(|file| !file.starts_with(&below)).cloned();
            for pattern in own.chain(self.layouts()) {
                let pattern = below.clone() + &pattern;
                if !all.contains(&pattern) {
                    all.push(pattern);
                }
            }
        }
        all
    }

    /// Name of the folder that holds what is in the repository: its own, without its owner's.
    pub(crate) fn folder(&self) -> Option<&str> {
        let name = self.repository.as_deref()?.rsplit('/').next()?;
        is_plain(name).then_some(name)
    }

    /// Where the hub has the split of a configuration: tables in a folder of the configuration's name, or in `data` for the only or the
    /// default one; a folder for a split in what the hub makes of other files; and JSON lines.
    fn layouts(&self) -> Vec<String> {
        let Some(split) = self.split.as_deref().filter(|split| is_plain(split)) else { return Vec::new() };
        let mut all = Vec::new();
        let config = self.config.as_deref().unwrap_or("default");
        if is_plain(config) {
            all.push(format!("{config}/{split}-*.parquet"));
            all.push(format!("{config}/{split}/*.parquet"));
            all.push(format!("{config}/{split}.jsonl"));
        }
        if config == "default" {
            all.extend([format!("data/{split}-*.parquet"), format!("data/{split}.jsonl")]);
            all.push(format!("{split}.jsonl"));
        }
        all
    }

    /// What is wanted, in words.
    pub(crate) fn wanted(&self) -> String {
        let mut wanted = Vec::new();
        for (name, value) in
            [("data set", &self.repository), ("configuration", &self.config), ("split", &self.split)]
        {
            wanted.extend(value.as_ref().map(|value| format!("{name} {value}")));
        }
        if !self.columns.is_empty() {
            wanted.push(format!("columns {}", self.columns.join(", ")));
        }
        wanted.join(", ")
    }
}

/// Whether a name can be a part of a path as it is.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.chars().all(plain) && !name.chars().all(|c| c == '.')
}

/// Files below `folder` that a pattern names: `*` stands for anything within a name.
fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for base in found {
            if !part.contains('*') {
                next.extend(Some(base.join(part)).filter(|path| path.exists()));
                continue;
            }
            let entries = std::fs::read_dir(&base).into_iter().flatten().flatten();
            next.extend(
                entries.filter(|e| fits(part, &e.file_name().to_string_lossy())).map(|entry| entry.path()),
            );
        }
        found = next;
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// Whether a path fits a pattern, part by part.
#[cfg(feature = "hub")]
pub(crate) fn path_fits(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if fits(pattern, part) => {}
            _ => return false,
        }
    }
}

/// Whether a name fits a pattern with stars.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything_within_a_name() {
        for (pattern, name, fit) in [
            ("test.jsonl", "test.jsonl", true),
            ("test.jsonl", "test.jsonl.gz", false),
            ("test*", "test-00000-of-00001.parquet", true),
            ("*-test*.parquet", "gsm8k-test-0.parquet", true),
            ("*a*b", "xaxb", true),
            ("*a*b", "xbxa", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }

    #[test]
    fn a_repository_adds_its_folder_and_the_layouts_of_the_hub() {
        let source = |config: Option<&str>, split: &str| Source {
            files: vec!["q.jsonl".into(), "capitals/q.jsonl".into()],
            repository: Some("us/capitals".into()),
            config: config.map(str::to_owned),
            split: Some(split.into()),
            columns: Vec::new(),
        };
        let own = ["q.jsonl", "capitals/q.jsonl"];
        assert_eq!(
            source(Some("europe"), "test").patterns(),
            [
                &own[..],
                &[
                    "capitals/europe/test-*.parquet",
                    "capitals/europe/test/*.parquet",
                    "capitals/europe/test.jsonl"
                ]
            ]
            .concat()
        );
        let only = source(None, "test").patterns();
        assert!(only.contains(&"capitals/data/test-*.parquet".to_owned()), "{only:?}");
        assert_eq!(only.last().map(String::as_str), Some("capitals/test.jsonl"));
        // What would lead elsewhere names nothing.
        for (config, split) in [(Some("europe"), "the test, mostly"), (Some("../a"), "test"), (None, "..")] {
            assert_eq!(source(config, split).patterns(), own, "{config:?} {split}");
        }
        assert_eq!(Source { repository: None, ..source(None, "test") }.patterns(), own);
    }
}
