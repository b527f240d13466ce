//! Which files of a data set belong to a task.

use crate::task::{Source, is_plain, path_fits};

/// Names of a list that an error shows.
const SHOWN: usize = 10;

/// The files of the first pattern of the task that any fits, by name. What has a part that is no name is left out: it would lead out of the
/// folder.
pub(super) fn choose(source: &Source, files: &[String]) -> Vec<String> {
    let Some(folder) = source.folder() else { return Vec::new() };
    let below = format!("{folder}/");
    for pattern in source.patterns().iter().filter_map(|pattern| pattern.strip_prefix(&below)) {
        let fits = |file: &&String| is_path(file) && path_fits(pattern, file);
        let mut chosen: Vec<String> = files.iter().filter(fits).cloned().collect();
        if !chosen.is_empty() {
            chosen.sort();
            chosen.dedup();
            return chosen;
        }
    }
    Vec::new()
}

/// Whether every part is a name.
fn is_path(file: &str) -> bool {
    let name = |part: &str| {
        let odd = |c: char| c.is_control() || matches!(c, '\\' | ':');
        !part.is_empty() && part.len() <= 200 && !part.contains(odd) && !part.starts_with('.')
    };
    file.split('/').all(name)
}

/// The files of a data set in words: ten of them, tables and JSON first.
pub(super) fn shown(files: &[String]) -> String {
    let is_data =
        |file: &&String| [".parquet", ".jsonl", ".json", ".gz"].iter().any(|end| file.ends_with(end));
    let (data, other): (Vec<_>, Vec<_>) = files.iter().partition(is_data);
    let mut names: Vec<String> =
        data.into_iter().chain(other).take(SHOWN).map(|name| one_line(name)).collect();
    match files.len().checked_sub(names.len()) {
        Some(0) | None if names.is_empty() => return "no files".to_owned(),
        Some(0) | None => {}
        Some(more) => names.push(format!("and {more} more")),
    }
    names.join(", ")
}

/// A name from elsewhere as a message shows it.
fn one_line(name: &str) -> String {
    name.chars()
        .take(120)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// Owner and name of a repository, if it is one.
pub(super) fn repository(source: &Source) -> Option<&str> {
    let repository = source.repository.as_deref()?;
    let (owner, name) = repository.split_once('/')?;
    (is_plain(owner) && is_plain(name)).then_some(repository)
}
