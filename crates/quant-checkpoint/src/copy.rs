//! Which files of a model folder belong beside quantised weights.
//!
//! The list is of what belongs: tokenizer, chat templates, generation settings, processors, licences and notices, and the
//! custom code that an `auto_map` names, with what that code imports from beside itself. Everything else stays behind and
//! is named: an adapter's config, a trainer's state or a stale description of another quantisation beside new weights
//! makes clients load another model than the one that was written.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::error::Result;
use crate::json::{SMALL_JSON_BYTES, parse_strict_json, read_json_text};
use crate::listing::list_files;

/// Files of tokenizers, templates, generation settings and processors, by the names that clients look for.
const BY_NAME: [&str; 27] = [
    "added_tokens.json",
    "bpe.codes",
    "chat_template.jinja",
    "chat_template.json",
    "feature_extractor_config.json",
    "generation_config.json",
    "image_processor_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "tokenizer_v2.model",
    "USE_POLICY.md",
    "video_preprocessor_config.json",
    "vocab.bpe",
    "vocab.json",
    "vocab.txt",
];

/// The one subfolder that belongs to a tokenizer: further chat templates.
const TEMPLATES: &str = "additional_chat_templates";

/// Files whose `auto_map` may name custom code.
const WITH_AUTO_MAP: [&str; 5] = [
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
];

/// Largest JSON file of a tokenizer that is read.
const SIDE_JSON_BYTES: u64 = 1 << 30;

/// Custom code beyond this size is copied, but not searched for imports.
const CODE_BYTES: u64 = 4 << 20;

/// What of a model folder goes with its weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideFiles {
    /// Files to copy, sorted and relative to the folder.
    pub copied: Vec<String>,
    /// Files and folders (with a final `/`) that stay behind, sorted: neither copied, nor weights, nor written anew.
    pub left: Vec<String>,
}

/// Files of tokenizers, templates, generation settings and processors in the model folder `dir` that are to be JSON and are not, each with what
/// is wrong: clients fail on them before they load a weight.
#[must_use]
pub fn broken_side_files(dir: &Path) -> Vec<String> {
    let names = BY_NAME.into_iter().filter(|name| name.ends_with(".json") && dir.join(name).is_file());
    let problem = |name: &str| {
        // Clients take keys that stand there twice.
        let read = read_json_text(&dir.join(name), name, "clients", SIDE_JSON_BYTES);
        match read.map(|bytes| serde_json::from_slice::<IgnoredAny>(&bytes)) {
            Ok(Ok(_)) => None,
            Ok(Err(fault)) => Some(format!("{name}: not JSON: {fault}")),
            Err(error) => Some(error.to_string()),
        }
    };
    names.filter_map(problem).collect()
}

/// Whether a file belongs beside quantised weights by its name alone.
#[must_use]
pub fn is_side_file(name: &str) -> bool {
    BY_NAME.contains(&name) || name.ends_with(".tiktoken") || is_legal(name)
}

/// Licences and notices, as text: `LICENSE`, `LICENSE.txt`, `NOTICE.md`, `Third_Party_Notices.txt`.
fn is_legal(name: &str) -> bool {
    const TEXTS: [&str; 6] = ["txt", "md", "rst", "pdf", "html", "rtf"];
    const ENDS: [&str; 6] = ["license", "licence", "licenses", "licences", "notice", "notices"];
    let lower = name.to_ascii_lowercase();
    let stem = match lower.rsplit_once('.') {
        Some((stem, extension)) if TEXTS.contains(&extension) => stem,
        // `LICENSE-2.0` has no extension.
        Some((stem, version)) if !version.chars().all(|c| c.is_ascii_digit()) || stem.is_empty() => {
            return false;
        }
        _ => &lower,
    };
    let words = || stem.split(|c: char| !c.is_ascii_alphanumeric());
    words().any(|w| ENDS.iter().any(|end| w.ends_with(end)) || w == "copying" || w == "copyright")
}

/// Sorts the files of the model folder `dir` into those that go with its weights and those that stay behind. `config.json`,
/// `README.md`, safetensors and their indices are in neither list. Links to files are followed; what is no regular file
/// stays behind.
///
/// # Errors
/// [`CheckpointError::Read`](crate::CheckpointError::Read) when the folder cannot be listed.
pub fn side_files(dir: &Path) -> Result<SideFiles> {
    let regular = |name: &str| dir.join(name).is_file();
    let names = list_files(dir)?;
    let mut copied: BTreeSet<String> =
        names.iter().filter(|n| is_side_file(n) && regular(n)).cloned().collect();
    if dir.join(TEMPLATES).is_dir() {
        let inside = list_files(&dir.join(TEMPLATES))?.into_iter().filter(|n| n.ends_with(".jinja"));
        copied.extend(inside.map(|n| format!("{TEMPLATES}/{n}")).filter(|n| regular(n)));
    }
    copied.extend(custom_code(dir));
    let top = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let taken: BTreeSet<String> = copied.iter().map(top).collect();
    let weights = |n: &str| n.ends_with(".safetensors") || n.ends_with(".safetensors.index.json");
    let anew = |n: &str| n == "config.json" || n == "README.md";
    let left = names.into_iter().filter(|n| !taken.contains(n) && !weights(n) && !anew(n));
    let left = left.map(|n| if dir.join(&n).is_dir() { format!("{n}/") } else { n }).collect();
    Ok(SideFiles { copied: copied.into_iter().collect(), left })
}

/// The files that an `auto_map` names, and those that they import relatively, as far as they are there.
fn custom_code(dir: &Path) -> BTreeSet<String> {
    let mut waiting: Vec<String> = WITH_AUTO_MAP.iter().flat_map(|name| auto_map(dir, name)).collect();
    let mut found = BTreeSet::new();
    while let Some(file) = waiting.pop() {
        let path = dir.join(&file);
        if found.contains(&file) || !path.is_file() {
            continue;
        }
        let small = path.metadata().is_ok_and(|m| m.len() <= CODE_BYTES);
        // Code that is no text imports nothing that could be followed.
        let text = small.then(|| std::fs::read_to_string(&path).ok()).flatten().unwrap_or_default();
        waiting.extend(relative_imports(&file, &text));
        found.insert(file);
    }
    found
}

/// The files an `auto_map` of a JSON file names: `module.Class`, or a list of such for slow and fast tokenizers. References
/// to other repositories (`org/name--module.Class`) are not files of this one. A file that cannot be read names none: what
/// is wrong with it is said where it is needed.
fn auto_map(dir: &Path, name: &str) -> Vec<String> {
    let path = dir.join(name);
    if !path.is_file() {
        return Vec::new();
    }
    let text = read_json_text(&path, name, "custom code", SMALL_JSON_BYTES);
    let Some(value) = text.ok().and_then(|text| parse_strict_json(name, &text).ok()) else {
        return Vec::new();
    };
    let map = value.get("auto_map").and_then(Value::as_object);
    let references = map.into_iter().flat_map(|map| map.values()).flat_map(|value| match value {
        Value::Array(list) => list.iter().collect(),
        one => vec![one],
    });
    let modules = references
        .filter_map(Value::as_str)
        .filter(|reference| !reference.contains("--"))
        .filter_map(|reference| reference.rsplit_once('.'))
        .map(|(module, _)| module.replace('.', "/") + ".py");
    modules.filter(|file| is_inside(file)).collect()
}

/// Whether a path leads to a place below the folder it starts in.
fn is_inside(path: &str) -> bool {
    !path.contains('\\') && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

/// The files that the Python file `file` may import from beside itself: for `from .a.b import c` the candidates `a/b.py`
/// and `a/b/__init__.py`, for `from . import d` those of `d`. Candidates need not exist.
fn relative_imports(file: &str, text: &str) -> Vec<String> {
    let here: Vec<&str> = file.split('/').collect();
    let mut candidates = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some(rest) = line.trim_start().strip_prefix("from ").map(str::trim_start) else { continue };
        let module = rest.trim_start_matches('.');
        let dots = rest.len() - module.len();
        // One dot is the file's own folder, each further one a folder up.
        if dots == 0 || dots > here.len() {
            continue;
        }
        let folder = &here[..here.len() - dots];
        let (module, names) = match module.split_once(" import") {
            Some((module, names)) => (module.trim().to_owned(), names),
            None => continue,
        };
        let mut modules = vec![module.clone()];
        if module.is_empty() {
            // A list in brackets may go on over lines.
            let open = names.contains('(') && !names.contains(')');
            let more = text.lines().skip(at + 1).take(if open { usize::MAX } else { 0 });
            let mut list = names.to_owned();
            for line in more {
                list.push('\n');
                list.push_str(line);
                if line.contains(')') {
                    break;
                }
            }
            let names = list.split([',', '\n', '(', ')']).filter_map(|n| n.split_whitespace().next());
            modules = names.filter(|n| !n.starts_with('#')).map(str::to_owned).collect();
        }
        for module in modules {
            let mut parts = folder.to_vec();
            parts.extend(module.split('.'));
            let path = parts.join("/");
            candidates.extend([format!("{path}.py"), format!("{path}/__init__.py")]);
        }
    }
    candidates.retain(|path| is_inside(path));
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_that_belong_and_names_that_do_not() {
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "generation_config.json",
            "vocab.json",
            "merges.txt",
            "tokenizer.model",
            "chat_template.jinja",
            "preprocessor_config.json",
            "qwen.tiktoken",
            "LICENSE",
            "LICENSE-2.0",
            "license.md",
            "LICENCE.txt",
            "NOTICE.md",
            "Third_Party_Notices.txt",
            "Open Source Software Notice.pdf",
            "COPYING",
            "USE_POLICY.md",
        ] {
            assert!(is_side_file(name), "{name}");
        }
        for name in [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "model.gguf",
            "quantize_config.json",
            "quant_model_description.json",
            "manifest.json",
            "README.md",
            ".gitattributes",
            "INCOMPLETE",
            "adapter_config.json",
            "trainer_state.json",
            "training_args.json",
            "all_results.json",
            "requirements.txt",
            "modeling_other.py",
            "license_check.py",
            "notice.json",
            "a.model",
        ] {
            assert!(!is_side_file(name), "{name}");
        }
    }

    /// A folder with everything that people leave in one.
    #[test]
    fn strangers_stay_behind_and_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "config.json",
            r#"{"auto_map": {"AutoModel": "modeling_x.Model", "AutoConfig": "configuration_x.Config",
            "AutoProcessor": "org/other--processing_y.P", "AutoOther": "../outside.Class"}}"#,
        );
        put("tokenizer_config.json", r#"{"auto_map": {"AutoTokenizer": ["tokenization_x.T", null]}}"#);
        put(
            "modeling_x.py",
            "import torch\nfrom .configuration_x import Config\n    from .parts.attention import (\n A)\n\
             from . import (\n  helpers as h,  # why\n  more)\nfrom .. import above\nfrom .missing import Z\n",
        );
        put("parts/attention.py", "from ..kernels import k\nfrom .norm import n\n");
        for name in [
            "configuration_x.py",
            "tokenization_x.py",
            "helpers.py",
            "more.py",
            "kernels.py",
            "parts/norm.py",
            "tokenizer.json",
            "LICENSE",
            "additional_chat_templates/tool.jinja",
        ] {
            put(name, "");
        }
        let strangers = [
            ".cache/huggingface/x.lock",
            ".gitattributes",
            "adapter_config.json",
            "all_results.json",
            "blob",
            "checkpoint-500/trainer_state.json",
            "convert.py",
            "eval.sh",
            "manifest.json",
            "optimizer.pt",
            "processing_y.py",
            "pytorch_model.bin.index.json",
            "quant_model_description.json",
            "requirements.txt",
            "runs/events.out",
            "trainer_state.json",
            "training_args.bin",
            "__pycache__/modeling_x.pyc",
        ];
        for name in strangers {
            put(name, "");
        }
        for name in ["README.md", "model.safetensors", "model.safetensors.index.json"] {
            put(name, "");
        }
        fs::create_dir(dir.path().join("merges.txt")).unwrap();
        std::os::unix::fs::symlink("blob", dir.path().join("vocab.json")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("vocab.txt")).unwrap();
        let found = side_files(dir.path()).unwrap();
        assert_eq!(
            found.copied,
            [
                "LICENSE",
                "additional_chat_templates/tool.jinja",
                "configuration_x.py",
                "helpers.py",
                "kernels.py",
                "modeling_x.py",
                "more.py",
                "parts/attention.py",
                "parts/norm.py",
                "tokenization_x.py",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.json",
            ]
        );
        let mut left: Vec<String> = strangers
            .iter()
            .map(|n| n.split_once('/').map_or_else(|| (*n).to_owned(), |(folder, _)| format!("{folder}/")))
            .collect();
        left.extend(["merges.txt/".to_owned(), "vocab.txt".to_owned()]);
        left.sort();
        assert_eq!(found.left, left);
    }
}
