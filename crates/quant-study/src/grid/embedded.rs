//! The model that is part of the library, for a study that needs nothing else.

use crate::StudyError;
use crate::files::write_whole;
use std::path::{Path, PathBuf};

/// How a grid calls it.
pub(crate) const NAME: &str = "embedded:tiny-reasoner";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../assets/tiny-reasoner/", $name)))),*]
    };
}

/// Files of `assets/tiny-reasoner`.
static FILES: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tasks/calibration.jsonl",
    "tasks/test.jsonl",
];

/// Writes the model below a folder, unless it stands there already.
pub(crate) fn unpack(below: &Path) -> Result<PathBuf, StudyError> {
    let folder = below.join("tiny-reasoner");
    std::fs::create_dir_all(folder.join("tasks")).map_err(StudyError::io(&folder))?;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if std::fs::metadata(&path).map_or(0, |file| file.len()) != bytes.len() as u64 {
            write_whole(&path, bytes)?;
        }
    }
    Ok(folder)
}
