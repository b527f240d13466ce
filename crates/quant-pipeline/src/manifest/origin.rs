//! Which model an input folder holds, as far as the folder tells, and what its card says that holds for the output too.

use serde_json::Value;
use serde_yaml_ng::{Mapping, Value as Yaml};
use std::io::Read as _;
use std::path::Path;

/// Cards beyond this size are not read.
const CARD_BYTES: u64 = 1 << 20;

/// What an output inherits, in the order of the card.
const INHERITED: [&str; 6] =
    ["library_name", "license", "license_name", "license_link", "language", "pipeline_tag"];

/// Where a model comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Origin {
    /// `base_model` of the card: an id of the hub, or else the folder's name; none where the folder is called by a revision.
    pub(crate) base_model: Option<String>,
    /// Entries of the input's front matter that hold for the output.
    pub(crate) inherited: Mapping,
}

impl Origin {
    /// Of the model in `dir` with this `config.json`. A card that cannot be read says nothing.
    ///
    /// An id in the path of a hub's cache is that of the model itself, so it comes first; a card's `base_model` and the
    /// config's `_name_or_path` may name the model it was made from.
    pub(crate) fn of(dir: &Path, config: &Value) -> Self {
        // `.` and `..` have a name only once they are resolved.
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let card = front_matter(&dir.join("README.md")).unwrap_or_default();
        let named = config.get("_name_or_path").and_then(Value::as_str);
        let folder = || dir.file_name().map(|n| n.to_string_lossy().into_owned());
        let base_model = cache_id(&dir)
            .or_else(|| card_base(&card))
            .or_else(|| named.and_then(|n| cache_id(Path::new(n))))
            .or_else(|| named.filter(|n| n.contains('/') && is_id(n)).map(str::to_owned))
            .or_else(|| folder().filter(|name| !is_revision(name)));
        let inherited = INHERITED
            .iter()
            .filter_map(|key| Some((Yaml::from(*key), card.get(*key).filter(|v| is_plain(v))?.clone())))
            .collect();
        Self { base_model, inherited }
    }

    /// The model in a title.
    pub(crate) fn name(&self) -> Option<&str> {
        self.base_model.as_deref().and_then(|id| id.rsplit('/').next())
    }
}

/// The id in a path of a hub's cache: `models--ORG--NAME/snapshots/REVISION`, or `modelscope/hub/models/ORG/NAME` with `___`
/// for dots.
fn cache_id(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let hugging_face = parts.windows(2).rev().find_map(|pair| match pair {
        [repository, "snapshots"] => repository.strip_prefix("models--").map(|id| id.replace("--", "/")),
        _ => None,
    });
    let model_scope = || match parts.as_slice() {
        [.., "modelscope", "hub", "models", org, name] | [.., "modelscope", "hub", org, name] => {
            Some(format!("{org}/{name}").replace("___", "."))
        }
        [.., "modelscope", "models", org, name] => Some(format!("{org}/{name}").replace("___", ".")),
        _ => None,
    };
    hugging_face.or_else(model_scope).filter(|id| is_id(id))
}

/// Whether a name is a commit, as in a cache of snapshots.
fn is_revision(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a text can be the id of a model on a hub, and is none of a folder of a training run.
fn is_id(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let part = |p: &&str| {
        p.starts_with(|c: char| c.is_ascii_alphanumeric())
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let last = parts.last().copied().unwrap_or_default();
    matches!(parts.len(), 1 | 2)
        && parts.iter().all(part)
        && !is_revision(last)
        && !last.starts_with("checkpoint-")
}

/// `base_model` of a card, if it names one model.
fn card_base(card: &Mapping) -> Option<String> {
    let value = match card.get("base_model")? {
        Yaml::Sequence(list) if list.len() == 1 => list.first()?,
        one => one,
    };
    value.as_str().filter(|id| is_id(id)).map(str::to_owned)
}

/// A text, or a short list of texts.
fn is_plain(value: &Yaml) -> bool {
    let text = |v: &Yaml| v.as_str().is_some_and(|t| t.len() <= 1000);
    text(value) || value.as_sequence().is_some_and(|list| list.len() <= 200 && list.iter().all(text))
}

/// The YAML between the first two lines `---` of a card.
fn front_matter(path: &Path) -> Option<Mapping> {
    if !path.is_file() {
        return None;
    }
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(CARD_BYTES).read_to_string(&mut text).ok()?;
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    lines.next().filter(|line| line.trim_end() == "---")?;
    let mut yaml = String::new();
    for line in lines {
        if line.trim_end() == "---" {
            return serde_yaml_ng::from_str(&yaml).ok();
        }
        yaml.push_str(line);
        yaml.push('\n');
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn base(dir: &Path, config: Value) -> Option<String> {
        fs::create_dir_all(dir).unwrap();
        Origin::of(dir, &config).base_model
    }

    #[test]
    fn the_base_model_is_a_model_and_no_revision() {
        let work = tempfile::tempdir().unwrap();
        let revision = "0123456789abcdef0123456789abcdef01234567";
        let snapshot = work.path().join("models--Qwen--Qwen2.5-7B-Instruct/snapshots").join(revision);
        assert_eq!(base(&snapshot, json!({})).as_deref(), Some("Qwen/Qwen2.5-7B-Instruct"));
        let scope = work.path().join("modelscope/hub/models/Qwen/Qwen2___5-7B");
        assert_eq!(base(&scope, json!({})).as_deref(), Some("Qwen/Qwen2.5-7B"));
        let bare = work.path().join(revision);
        assert_eq!(base(&bare, json!({})), None);
        assert_eq!(base(&bare, json!({"_name_or_path": "org/name"})).as_deref(), Some("org/name"));
        let nested = format!("/data/hub/models--a--b/snapshots/{revision}");
        assert_eq!(base(&bare, json!({"_name_or_path": nested})).as_deref(), Some("a/b"));
        let plain = work.path().join("my-model");
        for useless in ["", "./out", "/data/llama", "out/checkpoint-500", "a/b/c", revision, "x y/z"] {
            assert_eq!(
                base(&plain, json!({"_name_or_path": useless})).as_deref(),
                Some("my-model"),
                "{useless}"
            );
        }
        for (card, want) in [
            ("---\nbase_model: org/from-card\n---\ntext", "org/from-card"),
            ("\u{feff}---\r\nbase_model:\r\n- org/list\r\n---\r\n", "org/list"),
            ("---\nbase_model: [a/b, c/d]\n---\n", "org/name"),
            ("---\nbase_model: /data/me/model\n---\n", "org/name"),
            ("---\nbase_model: [\n---\n", "org/name"),
            ("base_model: org/from-card\n", "org/name"),
        ] {
            fs::write(plain.join("README.md"), card).unwrap();
            assert_eq!(base(&plain, json!({"_name_or_path": "org/name"})).as_deref(), Some(want), "{card:?}");
        }
    }

    #[test]
    fn licence_language_and_task_are_inherited() {
        let work = tempfile::tempdir().unwrap();
        let card = "---\nlanguage:\n- en\n- zh\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\ntags: [chat]\n\
                    pipeline_tag: text-generation\nmodel-index: {a: 1}\n---\n";
        fs::write(work.path().join("README.md"), card).unwrap();
        let inherited = Origin::of(work.path(), &json!({})).inherited;
        let keys: Vec<_> = inherited.keys().map(|k| k.as_str().unwrap()).collect();
        assert_eq!(keys, ["license", "license_name", "license_link", "language", "pipeline_tag"]);
        assert_eq!(inherited["language"].as_sequence().unwrap().len(), 2);
    }
}
