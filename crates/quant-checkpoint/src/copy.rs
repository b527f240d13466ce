//! Which files of a model folder accompany the weights.

use std::path::Path;

use crate::error::Result;
use crate::source::list_files;
use crate::writer::MARKER;

/// Files that describe the weights or another quantisation of them, and so must be written anew or not at all.
/// A stale `quant_model_description.json` or `quantize_config.json` makes loaders choose the wrong format.
const NEVER: [&str; 9] = [
    "config.json", // edited by the caller
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
    "hf_quant_config.json",
    "quantization_report.json",
    "manifest.json",
    "awq_config.json",
    MARKER,
];

/// Extensions that are copied: tokenizers, generation settings, chat templates, remote code.
const EXTENSIONS: [&str; 7] = [".json", ".py", ".txt", ".jinja", ".model", ".tiktoken", ".bpe"];

/// The one subfolder that belongs to a tokenizer: further chat templates.
const TEMPLATES: &str = "additional_chat_templates";

/// Whether a file of a model folder, called `name`, is copied beside quantised weights.
#[must_use]
pub fn is_side_file(name: &str) -> bool {
    let hidden = name.starts_with('.');
    let index = name.ends_with("index.json");
    let description = name.starts_with("quant_model_description");
    let licence = name.starts_with("LICENSE") || name.starts_with("NOTICE");
    let wanted = licence || EXTENSIONS.iter().any(|e| name.ends_with(e));
    wanted && !hidden && !index && !description && !NEVER.contains(&name)
}

/// Names, sorted and relative to `dir`, of the files to copy beside quantised weights: tokenizer, generation
/// settings, chat templates, remote code and licences. `config.json`, indices, weights, descriptions of another
/// quantisation and subfolders (but for additional chat templates) are left out. Links to files are followed.
///
/// # Errors
/// [`CheckpointError::Read`](crate::CheckpointError::Read) when the folder cannot be listed.
pub fn side_files(dir: &Path) -> Result<Vec<String>> {
    let regular = |name: &String| dir.join(name).is_file();
    let mut names: Vec<String> =
        list_files(dir)?.into_iter().filter(|n| is_side_file(n)).filter(regular).collect();
    let templates = dir.join(TEMPLATES);
    if templates.is_dir() {
        let inside = list_files(&templates)?.into_iter().filter(|n| n.ends_with(".jinja"));
        names.extend(inside.map(|n| format!("{TEMPLATES}/{n}")).filter(regular));
        names.sort();
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn wanted_and_unwanted_names() {
        for name in [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "generation_config.json",
            "vocab.json",
            "merges.txt",
            "tokenizer.model",
            "chat_template.jinja",
            "modeling_openpangu_dense.py",
            "qwen.tiktoken",
            "LICENSE",
            "NOTICE.md",
        ] {
            assert!(is_side_file(name), "{name}");
        }
        for name in [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "pytorch_model.bin",
            "model.gguf",
            "quantize_config.json",
            "quant_model_description.json",
            "quant_model_description_w8a8.json",
            "manifest.json",
            "README.md",
            ".gitattributes",
            ".hidden.json",
            "INCOMPLETE",
        ] {
            assert!(!is_side_file(name), "{name}");
        }
    }

    #[test]
    fn lists_regular_files_sorted() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        for name in [
            "tokenizer.json",
            "a.py",
            "config.json",
            "model.safetensors",
            "tasks/test.json",
            ".git/config.json",
            "additional_chat_templates/tool.jinja",
            "additional_chat_templates/readme.md",
            "blob",
        ] {
            put(name);
        }
        fs::create_dir(dir.path().join("folder.json")).unwrap();
        std::os::unix::fs::symlink("blob", dir.path().join("vocab.json")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling.json")).unwrap();
        assert_eq!(
            side_files(dir.path()).unwrap(),
            ["a.py", "additional_chat_templates/tool.jinja", "tokenizer.json", "vocab.json"]
        );
    }
}
