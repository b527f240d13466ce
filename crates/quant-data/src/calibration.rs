//! Calibration data: what `--calibration`, `--num-samples`, `--max-seq-len` and `--seed` mean.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::content::{extension, to_json_lines};
use crate::documents::{Stream, calibration_stream, name};
use crate::set::check_vocabulary;
use crate::token_tensor::read_rows;
use crate::windows::random_windows;
use crate::{DataError, Sampling, TokenSet};

/// Windows drawn from a text stream when `num_samples` is not given.
pub const DEFAULT_SAMPLES: usize = 128;
/// Tokens of a window when no length is given.
pub const DEFAULT_SEQUENCE_LENGTH: usize = 2048;

/// Most tokens of all windows together: 2^28, a GiB of ids. Their activations alone would take hundreds of times that.
const MAX_TOKENS: usize = 1 << 28;

/// Where token data comes from: `FILE.safetensors:TENSOR` or `FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CalibrationSpec {
    /// Token ids in a tensor `[sequences, length]` of i32 or i64; needs no tokenizer.
    Tokens {
        /// The safetensors file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// Text or JSON records, also packed with gzip: the bytes decide, not the name.
    File {
        /// The file.
        path: PathBuf,
    },
}

impl CalibrationSpec {
    /// Parses the argument without touching the file system.
    ///
    /// # Errors
    /// [`DataError::Spec`] for an empty argument, a safetensors file without a tensor name, and tables
    /// (`.parquet`, `.csv`, `.tsv`), with the line that converts them.
    pub fn parse(argument: &str) -> Result<Self, DataError> {
        let bad = |reason: &str| DataError::Spec { argument: argument.to_owned(), reason: reason.to_owned() };
        const MARK: &str = ".safetensors:";
        if let Some(at) = argument.find(MARK) {
            let (path, tensor) = (&argument[..at + MARK.len() - 1], &argument[at + MARK.len()..]);
            if tensor.is_empty() || path.starts_with(MARK.trim_end_matches(':')) {
                return Err(bad("write FILE.safetensors:TENSOR, both not empty"));
            }
            return Ok(Self::Tokens { path: path.into(), tensor: tensor.to_owned() });
        }
        if argument.is_empty() {
            return Err(bad("a file is needed"));
        }
        let path = PathBuf::from(argument);
        match extension(&path).as_str() {
            "safetensors" => Err(bad("name the tensor of token ids: FILE.safetensors:TENSOR")),
            // The bytes of these would tell nothing, or nothing better.
            "parquet" => Err(bad(&to_json_lines("parquet", &path))),
            "csv" => Err(bad(&to_json_lines("csv", &path))),
            "tsv" => Err(bad(&to_json_lines("table", &path))),
            _ => Ok(Self::File { path }),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Tokens { path, .. } | Self::File { path } => path,
        }
    }
}

impl fmt::Display for CalibrationSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens { path, tensor } => write!(f, "{}:{tensor}", path.display()),
            Self::File { path } => write!(f, "{}", path.display()),
        }
    }
}

/// How much of the source is taken, and what the model can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Sequences: the first rows of a tensor (default all), random windows of a text (default
    /// [`DEFAULT_SAMPLES`]).
    pub num_samples: Option<usize>,
    /// Tokens per sequence: rows are cut to it (default: not cut), windows have it (default
    /// [`DEFAULT_SEQUENCE_LENGTH`], never more than `max_position_embeddings`).
    pub max_seq_len: Option<usize>,
    /// Seed of the window positions.
    pub seed: u64,
    /// Ids the model has embeddings for.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
}

/// Loads calibration sequences. `model_dir` gives tokenizer and chat template; it is not read for token
/// tensors.
///
/// # Errors
/// [`DataError`]: unreadable files, empty data, ids outside the vocabulary, a missing tokenizer or chat
/// template, lines without documents.
pub fn load(spec: &CalibrationSpec, options: &LoadOptions, model_dir: &Path) -> Result<TokenSet, DataError> {
    at_least("--num-samples", options.num_samples, 1)?;
    at_least("--max-seq-len", options.max_seq_len, 1)?;
    let source = spec.to_string();
    if let CalibrationSpec::Tokens { path, tensor } = spec {
        let rows = read_rows(path, tensor, options.num_samples, options.max_seq_len, options.vocab_size)?;
        let mut warnings = too_long(&rows.sampling, options.max_position_embeddings);
        let length = ("--max-seq-len", options.max_seq_len);
        warnings.extend(beyond_rows(path, &rows.sampling, options.num_samples, length));
        return Ok(rows.into_set(source, warnings));
    }
    let mut warnings = Vec::new();
    let cap = options.max_position_embeddings;
    let length = window_length("--max-seq-len", options.max_seq_len, 1, cap, &mut warnings)?;
    let count = options.num_samples.unwrap_or(DEFAULT_SAMPLES);
    // Before anything is read: a slip in the number should not cost the time of tokenising.
    if count.checked_mul(length).is_none_or(|tokens| tokens > MAX_TOKENS) {
        return Err(DataError::TooManyTokens { samples: count, length, limit: MAX_TOKENS });
    }
    let Stream { ids, warnings: notices, reading, longest_text } =
        calibration_stream(spec.path(), model_dir)?;
    warnings.extend(notices);
    if ids.is_empty() {
        return Err(DataError::Empty {
            source_name: source,
            found: "no token".into(),
            advice: "calibration needs at least one document with text",
        });
    }
    check_vocabulary(&source, 0, &ids, options.vocab_size)?;
    let sampling = if ids.len() > length {
        Sampling::RandomWindows { seed: options.seed, length, stream: ids.len() }
    } else {
        warnings.push(format!(
            "{} has {} tokens, not more than one window of {length}: they are used as one sequence in place of \
             {count} windows; give more text or a smaller --max-seq-len",
            name(spec.path()),
            ids.len()
        ));
        Sampling::Whole { stream: ids.len() }
    };
    let sequences = random_windows(&ids, count, length, options.seed);
    Ok(TokenSet { sequences, source, reading, longest_text, sampling, warnings })
}

/// Refuses an option below its minimum.
pub(crate) fn at_least(option: &'static str, value: Option<usize>, minimum: usize) -> Result<(), DataError> {
    match value {
        Some(value) if value < minimum => Err(DataError::Option { option, value, minimum }),
        _ => Ok(()),
    }
}

/// Window length asked for (default 2048), capped by what the model was made for.
pub(crate) fn window_length(
    option: &'static str,
    asked: Option<usize>,
    minimum: usize,
    cap: usize,
    warnings: &mut Vec<String>,
) -> Result<usize, DataError> {
    let length = asked.unwrap_or(DEFAULT_SEQUENCE_LENGTH).min(cap);
    at_least("max_position_embeddings", Some(cap), minimum)?;
    if let Some(asked) = asked.filter(|&asked| asked > cap) {
        warnings.push(format!("{option} {asked} is more than the model's {cap} positions: {cap} is used"));
    }
    Ok(length)
}

/// Rows are never cut without being told to, but the person hears that they are too long.
pub(crate) fn too_long(sampling: &Sampling, cap: usize) -> Vec<String> {
    match sampling {
        Sampling::Rows { length, .. } if *length > cap => {
            vec![format!("sequences of {length} tokens are longer than the model's {cap} positions")]
        }
        _ => Vec::new(),
    }
}

/// A tensor that holds less than was asked for gives what it holds, and the person hears of it.
pub(crate) fn beyond_rows(
    path: &Path,
    sampling: &Sampling,
    samples: Option<usize>,
    (option, length): (&str, Option<usize>),
) -> Vec<String> {
    let Sampling::Rows { rows, stored_length, .. } = sampling else { return Vec::new() };
    let file = name(path);
    let mut warnings = Vec::new();
    if let Some(asked) = samples.filter(|asked| asked > rows) {
        warnings.push(format!("--num-samples {asked}: {file} holds {rows} sequences; all of them are used"));
    }
    if let Some(asked) = length.filter(|asked| asked > stored_length) {
        warnings.push(format!("{option} {asked}: the sequences of {file} have {stored_length} tokens"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::write_word_tokenizer;
    use serde_json::json;

    #[test]
    fn arguments_are_parsed() {
        let parse = |s: &str| CalibrationSpec::parse(s);
        let tokens =
            |path: &str, tensor: &str| CalibrationSpec::Tokens { path: path.into(), tensor: tensor.into() };
        assert_eq!(parse("a/b.safetensors:calib").unwrap(), tokens("a/b.safetensors", "calib"));
        assert_eq!(parse("b.safetensors:x:y").unwrap(), tokens("b.safetensors", "x:y"));
        for file in ["b.JSONL", "c:/b.txt", "corpus", "a.json", "a.jsonl.gz", "a.ndjson"] {
            assert_eq!(parse(file).unwrap(), CalibrationSpec::File { path: file.into() });
        }
        let text = parse("x/a.parquet").unwrap_err().to_string();
        assert!(text.contains("read_parquet('x/a.parquet').to_json('x/a.jsonl'"), "{text}");
        for bad in ["", "a.safetensors", "a.safetensors:", ".safetensors:x", "a.parquet", "a.csv", "a.TSV.gz"]
        {
            assert!(matches!(parse(bad), Err(DataError::Spec { .. })), "{bad}");
        }
        assert_eq!(parse("b.safetensors:x").unwrap().to_string(), "b.safetensors:x");
    }

    fn options() -> LoadOptions {
        LoadOptions {
            num_samples: None,
            max_seq_len: None,
            seed: 0,
            vocab_size: 5,
            max_position_embeddings: 4,
        }
    }

    fn model(words: usize) -> (tempfile::TempDir, CalibrationSpec) {
        let folder = tempfile::tempdir().unwrap();
        write_word_tokenizer(folder.path(), &["a", "b"], false, json!({}));
        let path = folder.path().join("text.txt");
        std::fs::write(&path, "a b ".repeat(words / 2)).unwrap();
        (folder, CalibrationSpec::File { path })
    }

    #[test]
    fn text_gives_random_windows_capped_by_the_model() {
        let (folder, spec) = model(40);
        let set = load(&spec, &options(), folder.path()).unwrap();
        assert_eq!((set.sequences.len(), set.max_length()), (128, 4));
        assert_eq!(set.sampling, Sampling::RandomWindows { seed: 0, length: 4, stream: 40 });
        assert!(set.warnings.is_empty());
        let asked = LoadOptions { max_seq_len: Some(9), num_samples: Some(2), ..options() };
        let set = load(&spec, &asked, folder.path()).unwrap();
        assert_eq!((set.sequences.len(), set.max_length()), (2, 4));
        assert!(set.warnings[0].contains("--max-seq-len 9"), "{:?}", set.warnings);
        let other = load(&spec, &LoadOptions { seed: 1, ..asked }, folder.path()).unwrap();
        assert_eq!(other.sequences.len(), 2);
    }

    #[test]
    fn short_text_is_one_sequence_with_a_warning() {
        let (folder, spec) = model(4);
        let set = load(&spec, &options(), folder.path()).unwrap();
        assert_eq!(set.sequences, [[2, 3, 2, 3]]);
        assert_eq!(set.sampling, Sampling::Whole { stream: 4 });
        assert!(set.warnings[0].contains("4 tokens"), "{:?}", set.warnings);
    }

    #[test]
    fn empty_and_foreign_data_are_errors() {
        let (folder, spec) = model(0);
        assert!(matches!(load(&spec, &options(), folder.path()), Err(DataError::Empty { .. })));
        // A tokenizer that adds a BOS would make one token of nothing.
        write_word_tokenizer(folder.path(), &["a", "b"], true, json!({"bos_token": "<s>"}));
        std::fs::write(spec.path(), " \n\t\u{feff}\n").unwrap();
        assert!(matches!(load(&spec, &options(), folder.path()), Err(DataError::Empty { .. })));
        let (folder, spec) = model(4);
        let small = LoadOptions { vocab_size: 3, ..options() };
        let error = load(&spec, &small, folder.path()).unwrap_err();
        assert!(matches!(error, DataError::OutOfVocabulary { column: 1, id: 3, vocab_size: 3, .. }));
        for bad in [
            LoadOptions { num_samples: Some(0), ..options() },
            LoadOptions { max_seq_len: Some(0), ..options() },
            LoadOptions { max_position_embeddings: 0, ..options() },
        ] {
            assert!(matches!(load(&spec, &bad, folder.path()), Err(DataError::Option { .. })));
        }
    }

    #[test]
    fn counts_beyond_memory_are_refused_before_the_text_is_read() {
        let (folder, _) = model(4);
        let absent = folder.path().join("absent");
        for (samples, length) in [(usize::MAX, None), (MAX_TOKENS / 4 + 1, None), (usize::MAX / 2, Some(2))] {
            let many = LoadOptions { num_samples: Some(samples), max_seq_len: length, ..options() };
            let error =
                load(&CalibrationSpec::File { path: absent.clone() }, &many, folder.path()).unwrap_err();
            assert!(matches!(error, DataError::TooManyTokens { .. }), "{error:?}");
            assert!(error.to_string().contains("smaller --num-samples"), "{error}");
        }
        let most = LoadOptions { num_samples: Some(MAX_TOKENS / 4), ..options() };
        let text = CalibrationSpec::File { path: absent };
        assert!(matches!(load(&text, &most, folder.path()), Err(DataError::Io { .. })));
    }

    #[test]
    fn a_tensor_with_less_than_asked_for_warns() {
        let sampling = Sampling::Rows { rows: 3, length: 4, stored_length: 4 };
        let warnings =
            |samples, length| beyond_rows(Path::new("x/a"), &sampling, samples, ("--max-seq-len", length));
        assert_eq!(
            warnings(Some(5), Some(9)),
            [
                "--num-samples 5: a holds 3 sequences; all of them are used",
                "--max-seq-len 9: the sequences of a have 4 tokens"
            ]
        );
        assert!(warnings(Some(3), Some(4)).is_empty() && warnings(None, None).is_empty());
    }
}
