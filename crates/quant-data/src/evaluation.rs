//! Evaluation data: what `--tokens`, `--text` and `--seq-len` mean.

use std::path::Path;

use crate::calibration::{at_least, beyond_rows, too_long, window_length};
use crate::documents::{Stream, evaluation_stream};
use crate::set::check_vocabulary;
use crate::token_tensor::read_rows;
use crate::windows::consecutive_windows;
use crate::{CalibrationSpec, DataError, Sampling, TokenSet};

/// How evaluation sequences are cut, and what the model can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalLoadOptions {
    /// Tokens per sequence, at least 2: text windows have it (default [`crate::DEFAULT_SEQUENCE_LENGTH`],
    /// never more than `max_position_embeddings`), rows are cut to it (default: not cut).
    pub seq_len: Option<usize>,
    /// Ids the model has embeddings for.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
}

/// A token tensor `[sequences, length]`, each row scored alone.
///
/// # Errors
/// [`DataError`]: unreadable files, another shape or dtype, ids outside the vocabulary, rows of fewer than
/// two tokens; [`DataError::Spec`] when `spec` names no tensor.
pub fn load_eval_tokens(spec: &CalibrationSpec, options: &EvalLoadOptions) -> Result<TokenSet, DataError> {
    at_least("--seq-len", options.seq_len, 2)?;
    let source = spec.to_string();
    let CalibrationSpec::Tokens { path, tensor } = spec else {
        let reason = "token ids are needed here: FILE.safetensors:TENSOR".to_owned();
        return Err(DataError::Spec { argument: source, reason });
    };
    let rows = read_rows(path, tensor, None, options.seq_len, options.vocab_size)?;
    let mut warnings = too_long(&rows.sampling, options.max_position_embeddings);
    warnings.extend(beyond_rows(path, &rows.sampling, None, ("--seq-len", options.seq_len)));
    if rows.sequences.iter().any(|row| row.len() < 2) {
        return Err(nothing_to_predict(source, "rows of one token"));
    }
    Ok(rows.into_set(source, warnings))
}

/// A text by the WikiText-2 protocol: tokenised once as it is (special tokens once at the very start), cut
/// into `floor(N / L)` windows without overlap, tail dropped, each window run alone without a BOS of its own.
///
/// Of a file with JSON records (one per line, whatever the file's name) the field `text` is scored, joined by blank lines;
/// [`TokenSet::reading`] and a warning say so. Gzip is unpacked.
///
/// A text of 2 to `L - 1` tokens is one window with a warning.
///
/// # Errors
/// [`DataError`]: unreadable file, missing tokenizer, fewer than two tokens, ids outside the vocabulary.
pub fn load_eval_text(
    path: &Path,
    options: &EvalLoadOptions,
    model_dir: &Path,
) -> Result<TokenSet, DataError> {
    at_least("--seq-len", options.seq_len, 2)?;
    let source = path.display().to_string();
    let Stream { ids, mut warnings, reading, longest_text } = evaluation_stream(path, model_dir)?;
    if ids.len() < 2 {
        return Err(nothing_to_predict(source, "fewer than two tokens"));
    }
    check_vocabulary(&source, 0, &ids, options.vocab_size)?;
    let length =
        window_length("--seq-len", options.seq_len, 2, options.max_position_embeddings, &mut warnings)?;
    let sampling = if ids.len() < length {
        warnings.push(format!(
            "{source} has {} tokens, less than one window of {length}: perplexities of short texts are not comparable",
            ids.len()
        ));
        Sampling::Whole { stream: ids.len() }
    } else {
        Sampling::ConsecutiveWindows { length, stream: ids.len() }
    };
    Ok(TokenSet {
        sequences: consecutive_windows(&ids, length),
        source,
        reading,
        longest_text,
        sampling,
        warnings,
    })
}

fn nothing_to_predict(source_name: String, found: &str) -> DataError {
    DataError::Empty {
        source_name,
        found: found.to_owned(),
        advice: "evaluation predicts every token but the first, so two are needed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::write_word_tokenizer;
    use safetensors::{Dtype, tensor::TensorView};
    use serde_json::json;

    fn options() -> EvalLoadOptions {
        EvalLoadOptions { seq_len: None, vocab_size: 5, max_position_embeddings: 3 }
    }

    fn text(words: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        write_word_tokenizer(folder.path(), &["a", "b"], true, json!({"bos_token": "<s>"}));
        let path = folder.path().join("wiki.txt");
        std::fs::write(&path, "a ".repeat(words)).unwrap();
        (folder, path)
    }

    #[test]
    fn text_follows_the_wikitext_protocol() {
        let (folder, path) = text(7);
        let set = load_eval_text(&path, &options(), folder.path()).unwrap();
        assert_eq!(set.sequences, [[0, 2, 2], [2, 2, 2]], "one BOS at the very start, tail of 2 dropped");
        assert_eq!(set.sampling, Sampling::ConsecutiveWindows { length: 3, stream: 8 });
        let set =
            load_eval_text(&path, &EvalLoadOptions { seq_len: Some(2), ..options() }, folder.path()).unwrap();
        assert_eq!(set.sequences.len(), 4);
        let set =
            load_eval_text(&path, &EvalLoadOptions { seq_len: Some(9), ..options() }, folder.path()).unwrap();
        assert!(set.warnings[0].contains("--seq-len 9") && set.max_length() == 3);
    }

    #[test]
    fn short_texts_warn_and_empty_ones_fail() {
        let (folder, path) = text(1);
        let set = load_eval_text(&path, &options(), folder.path()).unwrap();
        assert_eq!((set.sequences, set.warnings.len()), (vec![vec![0, 2]], 1));
        let (folder, path) = text(0);
        assert!(matches!(load_eval_text(&path, &options(), folder.path()), Err(DataError::Empty { .. })));
        let one = EvalLoadOptions { seq_len: Some(1), ..options() };
        assert!(matches!(load_eval_text(&path, &one, folder.path()), Err(DataError::Option { .. })));
    }

    #[test]
    fn token_rows_are_sequences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let data: Vec<u8> = [0_i32, 1, 2, 3, 4, 0, 1, 2].iter().flat_map(|v| v.to_le_bytes()).collect();
        let views = [
            ("ids", TensorView::new(Dtype::I32, vec![2, 4], &data).unwrap()),
            ("one", TensorView::new(Dtype::I32, vec![8, 1], &data).unwrap()),
        ];
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let spec = |tensor: &str| CalibrationSpec::parse(&format!("{}:{tensor}", path.display())).unwrap();
        let set = load_eval_tokens(&spec("ids"), &options()).unwrap();
        assert_eq!(set.sequences, [[0, 1, 2, 3], [4, 0, 1, 2]]);
        assert!(set.warnings[0].contains("longer than the model's 3 positions"));
        let cut = EvalLoadOptions { seq_len: Some(2), ..options() };
        assert_eq!(load_eval_tokens(&spec("ids"), &cut).unwrap().sequences, [[0, 1], [4, 0]]);
        assert!(matches!(load_eval_tokens(&spec("one"), &options()), Err(DataError::Empty { .. })));
        let text = CalibrationSpec::parse("a.txt").unwrap();
        assert!(matches!(load_eval_tokens(&text, &options()), Err(DataError::Spec { .. })));
    }
}
