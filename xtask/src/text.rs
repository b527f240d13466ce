//! `cargo xtask check-text`: words that must not be in tracked files.

use crate::Findings;
use crate::files::repository_files;
use std::path::Path;

/// Where the words below may stand.
const THIS_FILE: &str = "xtask/src/text.rs";

/// Folders of one machine. They count at the start of a path only: `tests/work/x` is none.
const HOME_PATHS: [&str; 3] = ["/root/", "/home/", "/work/"];
/// Marks of unfinished work, in any file.
const MARKERS: [&str; 2] = ["TODO", "FIXME"];
/// Marks of unfinished work in Rust.
const RUST_MARKERS: [&str; 3] = ["todo!(", "unimplemented!(", "#[ignore"];

pub(crate) fn check_text(root: &Path) -> Result<Findings, String> {
    let mut findings = Findings::default();
    let mut texts = 0;
    for path in repository_files(root)?.into_iter().filter(|p| p != THIS_FILE) {
        let bytes = std::fs::read(root.join(&path)).map_err(|e| format!("{path}: {e}"))?;
        // Weights, tokens and the like are not prose.
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        if text.contains('\0') {
            continue;
        }
        texts += 1;
        for (number, line) in text.lines().enumerate() {
            findings
                .faults
                .extend(words_in(&path, line).map(|word| format!("{path}:{}: {word}", number + 1)));
        }
    }
    findings.summary = format!("{texts} text files");
    Ok(findings)
}

/// The forbidden words of a line.
fn words_in<'a>(path: &str, line: &'a str) -> impl Iterator<Item = &'static str> + use<'a> {
    let rust: &[&'static str] = if path.ends_with(".rs") { &RUST_MARKERS } else { &[] };
    let homes = HOME_PATHS.iter().filter(|home| starts_a_path(line, home));
    let markers = MARKERS.iter().filter(|word| is_word(line, word));
    homes.chain(markers).chain(rust.iter().filter(|word| line.contains(**word))).copied()
}

/// Whether `home` occurs where no other path leads up to it.
fn starts_a_path(line: &str, home: &str) -> bool {
    line.match_indices(home).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-' | '/' | '~' | '}' | '*'))
    })
}

/// Whether `word` occurs as a word of its own.
fn is_word(line: &str, word: &str) -> bool {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !letter(line[..at].chars().next_back()) && !letter(line[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, line: &str) -> Vec<&'static str> {
        words_in(path, line).collect()
    }

    #[test]
    fn what_must_not_be_there_is_found() {
        for (line, word) in [
            ("see /root/notes", "/root/"),
            ("\"/home/someone/x\"", "/home/"),
            ("path=/work/x", "/work/"),
            ("// TODO: later", "TODO"),
            ("FIXME(me)", "FIXME"),
            ("    todo!()", "todo!("),
            ("unimplemented!(\"x\")", "unimplemented!("),
            ("#[ignore = \"slow\"]", "#[ignore"),
        ] {
            assert_eq!(found("src/x.rs", line), [word], "{line}");
        }
    }

    #[test]
    fn what_only_looks_alike_is_not() {
        for line in [
            "tests/work/x",
            "~/home/x",
            "todo = \"warn\"",
            "unfinished",
            "../work/x",
            "MASTODON",
            "TODOS_LIST",
        ] {
            assert!(found("src/x.rs", line).is_empty(), "{line}");
        }
        assert!(found("README.md", "`todo!(` is a macro").is_empty());
    }
}
