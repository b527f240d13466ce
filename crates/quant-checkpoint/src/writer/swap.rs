//! The swap at the end: the finished folder to its place, what stood there out of the way.
//!
//! Two renames cannot be one step, so the marker is a journal. Once everything is synced it gains a line that says so,
//! with the number of the sibling `NAME.old-N` to which the folder being replaced moves and what becomes of it. A run
//! that is killed then leaves one of these states, and [`recover`] finishes each:
//!
//! | `NAME` | `NAME.old-N` | `NAME.partial` | recovery |
//! |---|---|---|---|
//! | as before | - | marked, complete | both renames, then as below |
//! | - | what was there | marked, complete | the second rename, then as below |
//! | new, marked, complete | what was there, or a part of it | - | it is deleted or kept as decided, the journal goes, then the mark |
//!
//! Readers refuse a marked folder at every moment.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::paths::{sibling, sync_dir};
use super::storage::Storage;
use crate::error::{CheckpointError, Result};
use crate::marker::{JOURNAL, MARKER, MARKER_TEXT};

/// How the line begins by which a folder is known to be complete.
const COMPLETE: &str = "Complete";

/// What becomes of a folder that the output replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is an output of ours.
    Delete,
    /// It may hold anything.
    Keep,
}

/// What remains of the folder that an output replaced, at its new place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// It was no output of this program and is kept.
    Kept(PathBuf),
    /// It was an output of this program and could not be deleted.
    Undeleted(PathBuf),
}

impl Leftover {
    /// Where it is now.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Kept(path) | Self::Undeleted(path) => path,
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path().display();
        match self {
            Self::Kept(_) => {
                write!(
                    f,
                    "the folder that stood at the output was not made by this program: it is now {path}"
                )
            }
            Self::Undeleted(_) => write!(f, "the replaced folder could not be deleted: {path}"),
        }
    }
}

/// Where a replaced folder goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Old {
    number: u32,
    fate: Fate,
}

impl Old {
    /// A place that nothing has yet.
    fn unused(target: &Path, fate: Fate) -> Self {
        let mut old = Self { number: 1, fate };
        while old.path(target).symlink_metadata().is_ok() {
            old.number += 1;
        }
        old
    }
    fn path(self, target: &Path) -> PathBuf {
        sibling(target, &format!(".old-{}", self.number))
    }
}

/// The journal's line.
fn line(old: Option<Old>) -> String {
    match old {
        None => format!("{COMPLETE}\n"),
        Some(Old { number, fate: Fate::Delete }) => format!("{COMPLETE} delete {number}\n"),
        Some(Old { number, fate: Fate::Keep }) => format!("{COMPLETE} keep {number}\n"),
    }
}

/// What a marker says; none if the folder is unfinished. A line that was cut off says nothing: it is synced before the
/// first rename.
fn parse(text: &str) -> Option<Option<Old>> {
    let line = text.strip_prefix(MARKER_TEXT)?.strip_suffix('\n')?;
    let mut words = line.split(' ');
    if words.next() != Some(COMPLETE) {
        return None;
    }
    let fate = match words.next() {
        None => return Some(None),
        Some("delete") => Fate::Delete,
        Some("keep") => Fate::Keep,
        Some(_) => return None,
    };
    let number = words.next()?.parse().ok()?;
    Some(Some(Old { number, fate }))
}

fn marker_text(dir: &Path) -> Option<String> {
    let path = dir.join(MARKER);
    let short = |m: fs::Metadata| m.is_file() && m.len() < 4096;
    if !path.symlink_metadata().is_ok_and(short) {
        return None;
    }
    fs::read_to_string(path).ok()
}

/// Whether `dir` holds a marker that this program wrote.
pub(super) fn is_marked(dir: &Path) -> bool {
    marker_text(dir).is_some_and(|text| text.starts_with(MARKER_TEXT))
}

/// Finishes what a run that was killed in [`commit`] left. A run that lives is left alone.
pub(super) fn recover(storage: &dyn Storage, target: &Path, partial: &Path) -> Result<()> {
    let journal = |dir: &Path| -> Result<Option<(File, Option<Old>)>> {
        let Some(old) = marker_text(dir).as_deref().and_then(parse) else { return Ok(None) };
        let path = dir.join(MARKER);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None), // its run has just ended
            Err(e) => return Err(CheckpointError::read(&path, e)),
        };
        if matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return Err(CheckpointError::OutputBusy { path: dir.to_path_buf() });
        }
        Ok(Some((file, old)))
    };
    if let Some((_lock, old)) = journal(target)? {
        return finish(storage, target, old).map(drop);
    }
    let Some((_lock, old)) = journal(partial)? else { return Ok(()) };
    let there = target.symlink_metadata().is_ok();
    // Something that nobody decided to replace came to stand there since.
    let in_the_way = there && old.is_none() && storage.remove_dir(target).is_err();
    if in_the_way {
        return Ok(());
    }
    let moves = old.filter(|_| there);
    swap(storage, target, partial, moves)?;
    finish(storage, target, old).map(drop)
}

/// Moves `partial` to `target`. The marker of `partial`, which is complete and synced, is the file that the caller has locked.
///
/// On an error everything is as it was, except that the marker may say that the folder is complete, and that a mark that
/// cannot be removed stays: [`recover`] finishes both.
pub(super) fn commit(
    storage: &dyn Storage,
    target: &Path,
    partial: &Path,
    fate: Option<Fate>,
) -> Result<Option<Leftover>> {
    let old = fate.map(|fate| Old::unused(target, fate));
    let marker = partial.join(MARKER);
    storage
        .reopen(&marker)
        .and_then(|mut file| {
            // A line that was cut off would show behind a shorter one.
            file.truncate(MARKER_TEXT.len() as u64)?;
            file.write_all_at(line(old).as_bytes(), MARKER_TEXT.len() as u64)?;
            file.sync()
        })
        .map_err(|e| CheckpointError::write(&marker, e))?;
    swap(storage, target, partial, old)?;
    finish(storage, target, old)
}

/// The renames: what stands at `target` to `old`, `partial` to `target`.
fn swap(storage: &dyn Storage, target: &Path, partial: &Path, old: Option<Old>) -> Result<()> {
    let rename = |from: &Path, to: &Path| storage.rename(from, to).map_err(|e| CheckpointError::write(to, e));
    if let Some(old) = old {
        rename(target, &old.path(target))?;
    }
    let moved = rename(partial, target).and_then(|()| {
        let synced = target.parent().map_or(Ok(()), |parent| sync_dir(storage, parent));
        synced.inspect_err(|_| drop(storage.rename(target, partial)))
    });
    moved.inspect_err(|_| {
        if let Some(old) = old {
            drop(storage.rename(&old.path(target), target));
        }
    })
}

/// The steps after the renames, which may be repeated.
fn finish(storage: &dyn Storage, target: &Path, old: Option<Old>) -> Result<Option<Leftover>> {
    let gone = |removed: io::Result<()>| match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    let leftover = match old {
        None => None,
        Some(old) => {
            let path = old.path(target);
            match old.fate {
                Fate::Keep => Some(Leftover::Kept(path)),
                // The new output stands; a leftover is worth a remark, not a failure.
                Fate::Delete => {
                    let removed = gone(storage.remove_dir_all(&path));
                    removed.is_err().then_some(Leftover::Undeleted(path))
                }
            }
        }
    };
    let journal = target.join(JOURNAL);
    if journal.symlink_metadata().is_ok() {
        gone(storage.remove_dir_all(&journal)).map_err(|e| CheckpointError::write(&journal, e))?;
        // So that no folder without a mark has a journal.
        sync_dir(storage, target)?;
    }
    let marker = target.join(MARKER);
    storage.remove_file(&marker).map_err(|e| CheckpointError::write(&marker, e))?;
    sync_dir(storage, target)?;
    Ok(leftover)
}

/// Removes a marked folder, the journal first and the mark last: killed on the way, it is still known, and nothing goes on
/// with half of it.
pub(super) fn remove_marked(storage: &dyn Storage, dir: &Path) -> io::Result<()> {
    let journal = dir.join(JOURNAL);
    if journal.symlink_metadata().is_ok() {
        storage.remove_dir_all(&journal)?;
        storage.sync_dir(dir)?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type()?.is_dir() {
            storage.remove_dir_all(&entry.path())?;
        } else {
            storage.remove_file(&entry.path())?;
        }
    }
    storage.remove_dir_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::storage::Disk;

    fn marker(line: &str) -> String {
        format!("{MARKER_TEXT}{line}")
    }

    #[test]
    fn the_journal_reads_back() {
        let old = |number, fate| Some(Old { number, fate });
        for state in [None, old(1, Fate::Delete), old(27, Fate::Keep)] {
            assert_eq!(parse(&marker(&line(state))), Some(state));
            let text = marker(&line(state));
            for cut in 0..text.len() {
                assert_eq!(parse(&text[..cut]), None, "{:?}", &text[..cut]);
            }
        }
        for other in ["", "Complete", "Complete burn 1\n", "Complete keep -1\n", "Complete keep\n", "x\n"] {
            assert_eq!(parse(&marker(other)), None, "{other:?}");
        }
        assert_eq!(parse("Complete\n"), None);
    }

    /// Names below a folder, with `/` after those of folders.
    fn tree(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                found.extend(tree(&path).into_iter().map(|inner| format!("{name}/{inner}")));
            } else {
                found.push(name);
            }
        }
        found.sort();
        found
    }

    struct State {
        root: tempfile::TempDir,
    }

    impl State {
        /// Folders with one file each, named after their first word; `journal` marks it.
        fn new(folders: &[(&str, &str, Option<&str>)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            for (folder, file, journal) in folders {
                let dir = root.path().join(folder);
                fs::create_dir(&dir).unwrap();
                fs::write(dir.join(file), "").unwrap();
                if let Some(journal) = journal {
                    fs::write(dir.join(MARKER), marker(journal)).unwrap();
                }
            }
            Self { root }
        }
        fn recover(&self) -> Result<()> {
            recover(&Disk, &self.root.path().join("out"), &self.root.path().join("out.partial"))
        }
        #[track_caller]
        fn recovers_to(&self, expected: &[&str]) {
            // Twice: what recovery itself leaves needs no more.
            for _ in 0..2 {
                self.recover().unwrap();
                assert_eq!(tree(self.root.path()), expected);
            }
        }
    }

    #[test]
    fn every_state_of_a_killed_swap_is_finished() {
        for (fate, kept) in [("delete", &[][..]), ("keep", &["out.old-1/was"][..])] {
            let journal = format!("Complete {fate} 1\n");
            let journal = Some(journal.as_str());
            let finished = [kept, &["out/new"]].concat();
            // Before the first rename.
            State::new(&[("out", "was", None), ("out.partial", "new", journal)]).recovers_to(&finished);
            // Between the renames.
            State::new(&[("out.old-1", "was", None), ("out.partial", "new", journal)]).recovers_to(&finished);
            // After both.
            State::new(&[("out.old-1", "was", None), ("out", "new", journal)]).recovers_to(&finished);
        }
        // After the old folder went.
        State::new(&[("out", "new", Some("Complete delete 1\n"))]).recovers_to(&["out/new"]);
        State::new(&[("out", "new", Some("Complete\n"))]).recovers_to(&["out/new"]);
        State::new(&[("out.partial", "new", Some("Complete\n"))]).recovers_to(&["out/new"]);
        // With a journal, wherever it is.
        for folder in ["out", "out.partial"] {
            let state = State::new(&[(folder, "new", Some("Complete\n"))]);
            fs::create_dir_all(state.root.path().join(folder).join(JOURNAL).join("x")).unwrap();
            state.recovers_to(&["out/new"]);
        }
        // What came to stand at the output since is not replaced, unless it is an empty folder.
        let state = State::new(&[("out", "other", None), ("out.partial", "new", Some("Complete\n"))]);
        state.recovers_to(&["out.partial/INCOMPLETE", "out.partial/new", "out/other"]);
        fs::remove_file(state.root.path().join("out/other")).unwrap();
        state.recovers_to(&["out/new"]);
        // A mark that says nothing of a swap is no journal of one, wherever it is.
        State::new(&[("out.old-1", "was", None), ("out", "half", Some(""))]).recovers_to(&[
            "out.old-1/was",
            "out/INCOMPLETE",
            "out/half",
        ]);
        State::new(&[("out.old-1", "was", None), ("out.partial", "half", Some("Complete del"))])
            .recovers_to(&["out.old-1/was", "out.partial/INCOMPLETE", "out.partial/half"]);
    }

    #[test]
    fn a_living_swap_is_left_alone() {
        for folder in ["out", "out.partial"] {
            let state =
                State::new(&[("out.old-1", "was", None), (folder, "new", Some("Complete delete 1\n"))]);
            let before = tree(state.root.path());
            let living = File::open(state.root.path().join(folder).join(MARKER)).unwrap();
            living.try_lock().unwrap();
            assert!(matches!(state.recover(), Err(CheckpointError::OutputBusy { .. })));
            assert_eq!(tree(state.root.path()), before);
        }
    }

    #[test]
    fn a_failed_second_rename_is_undone() {
        let state = State::new(&[("out", "was", None)]);
        let (target, partial) = (state.root.path().join("out"), state.root.path().join("out.partial"));
        // There is no partial folder to move.
        let old = Some(Old::unused(&target, Fate::Delete));
        assert!(swap(&Disk, &target, &partial, old).is_err());
        assert_eq!(tree(state.root.path()), ["out/was"]);
    }

    #[test]
    fn the_mark_is_removed_last() {
        let state = State::new(&[("out.partial", "half", Some(""))]);
        let partial = state.root.path().join("out.partial");
        fs::create_dir(partial.join("inner")).unwrap();
        remove_marked(&Disk, &partial).unwrap();
        assert!(tree(state.root.path()).is_empty() && !partial.exists());
    }
}
