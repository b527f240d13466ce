//! `tokenizer.json` of a checkpoint folder.

use std::path::Path;

use serde_json::{Map, Value};

use crate::DataError;
use crate::contain::contain;
use crate::files::{MAX_FILE_BYTES, read_model_json};
use crate::ids::{ids, surroundings};

/// Largest configuration file or chat template: 64 MiB (`tokenizer_config.json` may list every added token).
pub(crate) const CONFIG_LIMIT: u64 = 64 << 20;

/// The texts of the special tokens that matter for calibration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Token that begins a text, where the model has one.
    pub bos: Option<String>,
    /// Token that ends a text or an assistant's turn.
    pub eos: Option<String>,
}

impl SpecialTokens {
    /// Reads `bos_token` and `eos_token` from `tokenizer_config.json`, else from `special_tokens_map.json`;
    /// each is a string or an object with `content`. Missing files mean missing tokens.
    ///
    /// # Errors
    /// [`DataError`] when a file that exists is not a JSON object.
    pub fn from_dir(folder: &Path) -> Result<Self, DataError> {
        let mut special = Self::default();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let config = read_config(&folder.join(name))?;
            let text = |key: &str| match config.get(key) {
                Some(Value::String(text)) => Some(text.clone()),
                Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).map(str::to_owned),
                _ => None,
            };
            special.bos = special.bos.or_else(|| text("bos_token"));
            special.eos = special.eos.or_else(|| text("eos_token"));
        }
        Ok(special)
    }
}

/// Text to token ids and back, by the `tokenizer.json` of a checkpoint.
///
/// Truncation and padding settings stored in the file are switched off: calibration and evaluation see every
/// token of a text and no other.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    /// `add_bos_token` of the Llama tokenizer classes, which overrides the post-processor of
    /// `tokenizer.json`.
    bos_rule: Option<bool>,
    /// What the post-processor puts around a text, without and with special tokens.
    around: [Vec<u32>; 2],
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a checkpoint folder;
    /// the last two may be absent.
    ///
    /// # Errors
    /// [`DataError::NoTokenizer`] when there is no `tokenizer.json`, with the way out when the checkpoint has
    /// a SentencePiece model only; [`DataError::TokenizerFile`] when a file does not parse.
    pub fn from_dir(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join("tokenizer.json");
        // A link that leads nowhere is a broken file, not a missing one.
        if path.symlink_metadata().is_err() {
            let sentencepiece = folder.join("tokenizer.model").exists();
            return Err(DataError::NoTokenizer {
                folder: folder.to_owned(),
                found: if sentencepiece { ", only the SentencePiece file tokenizer.model" } else { "" },
                advice: if sentencepiece {
                    "tokenise with the model's own Python code and give token ids: \
                     FILE.safetensors:TENSOR, i32 or i64 [sequences, length]"
                } else {
                    "copy it from the original checkpoint, or give token ids: \
                     FILE.safetensors:TENSOR, i32 or i64 [sequences, length]"
                },
            });
        }
        let bytes = read_model_json(&path, MAX_FILE_BYTES)?;
        let bad = |reason: String| DataError::TokenizerFile { path: path.clone(), reason };
        let mut inner = contain(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|panic| bad(format!("{panic}; {REPLACE}")))?
            .map_err(|e| bad(e.to_string()))?;
        // The parsed tokenizer is a fraction of a large file.
        drop(bytes);
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        inner.with_padding(None);
        if let Some(processor) = inner.get_post_processor() {
            let processor = serde_json::to_value(processor).map_err(|e| bad(e.to_string()))?;
            check_post_processor(&processor).map_err(|reason| bad(format!("{reason}; {REPLACE}")))?;
        }
        let around = |special| {
            contain(|| surroundings(&inner, special))
                .map_err(|panic| bad(format!("{panic}; {REPLACE}")))?
                .map_err(|e| bad(e.to_string()))
        };
        let around = [around(false)?, around(true)?];
        let special = SpecialTokens::from_dir(folder)?;
        let config = read_config(&folder.join("tokenizer_config.json"))?;
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let bos_rule = matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast")
            .then(|| config.get("add_bos_token").and_then(Value::as_bool))
            .flatten();
        let id = |token: &Option<String>| token.as_ref().and_then(|text| inner.token_to_id(text));
        let (bos_id, eos_id) = (id(&special.bos), id(&special.eos));
        Ok(Self { inner, special, bos_id, eos_id, bos_rule, around })
    }

    /// Texts of the special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Id of the token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// Id of the token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// Number of tokens the tokenizer knows, added ones included. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Token ids of a text. `add_special_tokens` lets the tokenizer put its BOS (or whatever its
    /// post-processor says) around the text; special tokens written out in the text are recognised in both
    /// cases.
    ///
    /// # Errors
    /// [`DataError::Tokenize`] when the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, DataError> {
        let failed = |reason: String| {
            let start: String = text.chars().take(40).collect();
            DataError::Tokenize { what: format!("a text that begins with {start:?}"), reason }
        };
        let around = &self.around[usize::from(add_special_tokens)];
        let mut ids = contain(|| ids(&self.inner, text, around))
            .map_err(|panic| failed(format!("{panic}; {REPLACE}")))?
            .map_err(|e| failed(e.to_string()))?;
        if let (true, Some(rule), Some(bos)) = (add_special_tokens, self.bos_rule, self.bos_id) {
            // A BOS written out in the text is the text's own: only one beyond it was added.
            let own = self.special.bos.as_ref().is_some_and(|bos| text.starts_with(bos.as_str()));
            let found = ids.iter().take_while(|&&id| id == bos).count();
            let added = found > usize::from(own);
            if rule && !added {
                ids.insert(0, bos);
            } else if !rule && added {
                ids.remove(0);
            }
        }
        Ok(ids)
    }

    /// Token ids of a text rendered by a chat template, with exactly one BOS.
    ///
    /// A template that prints the BOS itself (R1-Distill) must not get a second one from the tokenizer, and
    /// one that does not (openPangu) needs the tokenizer's.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let printed = match &self.special.bos {
            Some(bos) => text.trim_start().starts_with(bos.as_str()),
            None => false,
        };
        self.encode(text, !printed)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// [`DataError::Tokenize`] when the decoder refuses the ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        let failed = |reason| DataError::Tokenize { what: format!("{} token ids", ids.len()), reason };
        contain(|| self.inner.decode(ids, skip_special_tokens))
            .map_err(|panic| failed(format!("{panic}; {REPLACE}")))?
            .map_err(|e| failed(e.to_string()))
    }
}

/// What to do about a `tokenizer.json` that contradicts itself.
const REPLACE: &str =
    "tokenizer.json is damaged: take it from the original checkpoint again, or give token ids";

/// Refuses a post-processor that names what it does not define: the tokenizer library indexes without a check when it
/// encodes. `processor` is one as the library writes it; sequences of processors are searched.
fn check_post_processor(processor: &Value) -> Result<(), String> {
    for inner in processor.get("processors").and_then(Value::as_array).into_iter().flatten() {
        check_post_processor(inner)?;
    }
    let defined = processor.get("special_tokens").and_then(Value::as_object);
    for piece in processor.get("single").and_then(Value::as_array).into_iter().flatten() {
        let id = |kind: &str| piece.get(kind).and_then(|p| p.get("id")).and_then(Value::as_str);
        if let Some(token) = id("SpecialToken")
            && !defined.is_some_and(|tokens| tokens.contains_key(token))
        {
            return Err(format!("the post-processor adds {token:?}, which its special_tokens do not define"));
        }
        if id("Sequence").is_some_and(|sequence| sequence != "A") {
            return Err("the post-processor of a single text uses a second one".to_owned());
        }
    }
    Ok(())
}

/// A JSON object file, or an empty object when the file does not exist.
pub(crate) fn read_config(path: &Path) -> Result<Map<String, Value>, DataError> {
    if path.symlink_metadata().is_err() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&read_model_json(path, CONFIG_LIMIT)?).map_err(|e| DataError::TokenizerFile {
        path: path.to_owned(),
        reason: format!("not a JSON object: {e}"),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A word-level tokenizer: `<s>`, `</s>`, then the words, then `<unk>`; `post` adds a BOS.
    pub(crate) fn write_word_tokenizer(folder: &Path, words: &[&str], post: bool, config: Value) {
        let mut vocabulary = Map::new();
        for (id, word) in ["<s>", "</s>"].iter().chain(words).chain(&["<unk>"]).enumerate() {
            vocabulary.insert((*word).to_owned(), id.into());
        }
        let added = |id: u32, content: &str| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        };
        let processor = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
        let tokenizer = json!({"version": "1.0",
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": null, "added_tokens": [added(0, "<s>"), added(1, "</s>")], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": if post { processor } else { Value::Null },
            "decoder": null, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}});
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    }

    fn tokenizer(post: bool, config: Value) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        write_word_tokenizer(folder.path(), &["a", "b"], post, config);
        Tokenizer::from_dir(folder.path()).unwrap()
    }

    #[test]
    fn special_tokens_are_strings_or_objects() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("tokenizer_config.json"),
            r#"{"bos_token": null, "eos_token": "</s>"}"#,
        )
        .unwrap();
        std::fs::write(
            folder.path().join("special_tokens_map.json"),
            r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "other"}"#,
        )
        .unwrap();
        let special = SpecialTokens::from_dir(folder.path()).unwrap();
        assert_eq!(special, SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()) });
        std::fs::write(folder.path().join("tokenizer_config.json"), "[]").unwrap();
        assert!(SpecialTokens::from_dir(folder.path()).is_err());
    }

    #[test]
    fn stored_truncation_is_ignored_and_bos_is_the_processors() {
        let with = tokenizer(true, json!({"bos_token": "<s>", "eos_token": "</s>"}));
        assert_eq!(with.encode("a b a b a", true).unwrap(), [0, 2, 3, 2, 3, 2]);
        assert_eq!(with.encode("a </s>", false).unwrap(), [2, 1]);
        assert_eq!((with.bos_id(), with.eos_id(), with.vocab_size()), (Some(0), Some(1), 5));
        assert_eq!(with.decode(&[2, 3], false).unwrap(), "a b");
    }

    #[test]
    fn llama_classes_obey_add_bos_token() {
        let config = |add: bool| json!({"bos_token": "<s>", "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": add});
        assert_eq!(tokenizer(false, config(true)).encode("a", true).unwrap(), [0, 2]);
        assert_eq!(tokenizer(false, config(true)).encode("<s>a", true).unwrap(), [0, 0, 2]);
        assert_eq!(tokenizer(false, config(true)).encode("a", false).unwrap(), [2]);
        assert_eq!(tokenizer(true, config(false)).encode("a", true).unwrap(), [2]);
        assert_eq!(tokenizer(true, config(false)).encode("<s>a", true).unwrap(), [0, 2]);
        assert_eq!(tokenizer(true, config(true)).encode("a", true).unwrap(), [0, 2]);
    }

    #[test]
    fn rendered_text_has_one_bos() {
        let with = tokenizer(true, json!({"bos_token": "<s>"}));
        assert_eq!(with.encode_rendered("<s>a").unwrap(), [0, 2]);
        assert_eq!(with.encode_rendered("a").unwrap(), [0, 2]);
        let without = tokenizer(false, json!({}));
        assert_eq!(without.encode_rendered("a b").unwrap(), [2, 3]);
    }

    /// Loads a word tokenizer whose file was changed by `edit`.
    fn edited(edit: impl FnOnce(&mut Value)) -> Result<Tokenizer, DataError> {
        let folder = tempfile::tempdir().unwrap();
        write_word_tokenizer(folder.path(), &["a", "b"], true, json!({}));
        let path = folder.path().join("tokenizer.json");
        let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut file);
        std::fs::write(&path, file.to_string()).unwrap();
        Tokenizer::from_dir(folder.path())
    }

    #[test]
    fn a_post_processor_with_undefined_names_is_refused() {
        let refused = |edit: fn(&mut Value), expected: &str| {
            let error = edited(edit).unwrap_err();
            assert!(matches!(error, DataError::TokenizerFile { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains("original checkpoint"), "{text}");
        };
        refused(
            |file| file["post_processor"]["single"][0]["SpecialToken"]["id"] = "<other>".into(),
            "adds \"<other>\"",
        );
        refused(|file| file["post_processor"]["single"][1]["Sequence"]["id"] = "B".into(), "second one");
        refused(
            |file| {
                let mut inner = file["post_processor"].take();
                inner["special_tokens"] = json!({});
                file["post_processor"] = json!({"type": "Sequence", "processors": [inner]});
            },
            "adds \"<s>\"",
        );
        let sound = edited(|file| {
            file["post_processor"] =
                json!({"type": "Sequence", "processors": [file["post_processor"].take()]});
        });
        assert_eq!(sound.unwrap().encode("a", true).unwrap(), [0, 2]);
    }

    #[test]
    fn a_panic_of_the_library_is_an_error() {
        let mut tokenizer = tokenizer(true, json!({}));
        // Set behind the check, as a fault that the check does not know of would be.
        let broken = json!({"type": "TemplateProcessing", "special_tokens": {},
            "single": [{"SpecialToken": {"id": "<other>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]});
        let processor: tokenizers::PostProcessorWrapper = serde_json::from_value(broken).unwrap();
        tokenizer.inner.with_post_processor(Some(processor));
        assert!(contain(|| surroundings(&tokenizer.inner, true)).is_err());
        assert_eq!(tokenizer.encode("a b", false).unwrap(), [2, 3], "still usable");
    }

    /// Processors that put tokens before, after and around a text, and the text twice.
    #[test]
    fn ids_are_those_of_the_librarys_encode() {
        let special = json!({"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                             "end": {"id": "end", "ids": [1, 4], "tokens": ["</s>", "<unk>"]}});
        let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = || json!({"Sequence": {"id": "A", "type_id": 0}});
        let template = |single: Value| {
            json!({"type": "TemplateProcessing", "special_tokens": special, "single": single,
                   "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]})
        };
        let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0],
                             "trim_offsets": true, "add_prefix_space": false});
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        for processor in [
            Value::Null,
            template(json!([token("<s>"), text()])),
            template(json!([text(), token("end")])),
            template(json!([token("<s>"), text(), token("end"), text(), token("end")])),
            template(json!([token("<s>")])),
            roberta,
            byte_level.clone(),
            json!({"type": "Sequence", "processors": [byte_level, template(json!([token("<s>"), text()]))]}),
        ] {
            let tokenizer = edited(|file| file["post_processor"] = processor.clone()).unwrap();
            for text in ["", "a", "a b </s> a", "<s><s>b", " unknown  a\n"] {
                for special in [false, true] {
                    let theirs = tokenizer.inner.encode_fast(text, special).unwrap();
                    let ours = tokenizer.encode(text, special).unwrap();
                    assert_eq!(ours, theirs.get_ids(), "{text:?} {special} {processor}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn ids_of_any_text_are_those_of_the_librarys_encode(
            text in "(\\PC|[ \n\t]|<\\|end\\|>|<think>|[a-z]{1,9}|[0-9]){0,60}",
        ) {
            static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner");
            let tokenizer = TOKENIZER.get_or_init(|| Tokenizer::from_dir(&folder).unwrap());
            let theirs = tokenizer.inner.encode_fast(text.as_str(), true).unwrap();
            prop_assert_eq!(tokenizer.encode(&text, true).unwrap(), theirs.get_ids());
        }
    }

    #[test]
    fn missing_and_broken_files_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tokenizer::from_dir(folder.path()).unwrap_err().to_string();
        assert!(error.contains("copy it from the original checkpoint"), "{error}");
        std::fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
        let error = Tokenizer::from_dir(folder.path()).unwrap_err().to_string();
        assert!(error.contains("SentencePiece") && error.contains("FILE.safetensors:TENSOR"), "{error}");
        std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
        assert!(matches!(Tokenizer::from_dir(folder.path()), Err(DataError::TokenizerFile { .. })));
    }
}
