//! What to pass in place of a path at which there is no model.

use std::path::{Path, PathBuf};

use crate::listing::list_files;

/// For a path that is no folder: how to get the model if it is the id of one on the hub.
pub(crate) fn not_a_folder(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.split_once('/') {
        // Beside what there is, it is a slip of the pen.
        Some((owner, name)) if !Path::new(owner).exists() && is_word(owner) && is_word(name) => {
            format!("if it is an id of the hub, get the model first: hf download {text} --local-dir {name}")
        }
        _ => "pass the folder that holds config.json and *.safetensors".to_owned(),
    }
}

/// A part of a hub id.
fn is_word(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// For a folder without a configuration: where below it the model is, if it is there.
pub(crate) fn model_is_elsewhere(dir: &Path) -> Option<String> {
    const SNAPSHOTS: &str = "snapshots";
    let snapshots = dir.join(SNAPSHOTS);
    if snapshots.is_dir() {
        // The revision that a client would take by default, or one that is there.
        let revision = std::fs::read_to_string(dir.join("refs/main")).ok();
        let current = revision.map(|text| snapshots.join(text.trim())).filter(|path| has_model(path));
        return Some(match current.or_else(|| models(&snapshots).into_iter().next()) {
            Some(model) => format!(
                "it is a root of the hub's cache, whose models are in {SNAPSHOTS}/<revision>: pass {}",
                model.display()
            ),
            None => format!(
                "it is a root of the hub's cache without a whole model in {SNAPSHOTS}/<revision>: hf download {} --local-dir DIR",
                hub_id(dir).unwrap_or_else(|| "ORG/NAME".to_owned())
            ),
        });
    }
    if let Some(model) = models(dir).first() {
        return Some(format!("a model is in a folder below: pass {}", model.display()));
    }
    let cached = list_files(dir).ok()?.into_iter().find(|name| name.starts_with("models--"))?;
    Some(format!("it is the hub's cache: pass {}/{SNAPSHOTS}/<revision>", dir.join(cached).display()))
}

/// Folders in `dir` that have a configuration, sorted.
fn models(dir: &Path) -> Vec<PathBuf> {
    let names = list_files(dir).unwrap_or_default();
    names.into_iter().map(|name| dir.join(name)).filter(|path| has_model(path)).collect()
}

fn has_model(path: &Path) -> bool {
    path.join("config.json").is_file()
}

/// `ORG/NAME` of a folder `models--ORG--NAME`.
fn hub_id(dir: &Path) -> Option<String> {
    let id = dir.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(id.replacen("--", "/", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_hub_are_recognised() {
        for id in ["Qwen/Qwen2.5-7B-Instruct", "HuggingFaceTB/SmolLM2-135M"] {
            let hint = not_a_folder(Path::new(id));
            assert!(hint.contains(&format!("hf download {id} --local-dir ")), "{hint}");
        }
        for path in ["model", "./a/b", "/a/b", "a/b/c", "../x", "src/lib.rs", "src/nothere"] {
            assert!(not_a_folder(Path::new(path)).starts_with("pass the folder"), "{path}");
        }
    }

    #[test]
    fn the_model_below_a_folder_is_named() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("models--org--name");
        let make = |path: &str, text: &str| {
            let path = cache.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(model_is_elsewhere(root.path()), None);
        make("snapshots/aaa/tokenizer.json", "{}");
        let says = |dir: &Path, word: &str| {
            let hint = model_is_elsewhere(dir).unwrap();
            assert!(hint.contains(word), "{hint}");
        };
        says(&cache, "hf download org/name --local-dir");
        says(root.path(), "models--org--name/snapshots/<revision>");
        make("snapshots/aaa/config.json", "{}");
        make("snapshots/bbb/config.json", "{}");
        says(&cache, "snapshots/aaa");
        make("refs/main", "bbb\n");
        says(&cache, "snapshots/bbb");
        says(&cache.join("snapshots"), "pass ");
        assert_eq!(model_is_elsewhere(&cache.join("refs")), None);
    }
}
