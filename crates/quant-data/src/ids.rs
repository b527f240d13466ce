//! The ids of a text and nothing else.
//!
//! The library's own `encode` keeps a string, offsets and masks for every token until the text is done: 140 bytes for
//! each byte of a small-vocabulary text, measured. Here the same steps run with the same objects, and of each piece only the
//! ids are kept; what remains is the library's list of pieces.

use tokenizers::{
    Encoding, Model as _, OffsetReferential, OffsetType, PreTokenizer as _, Result, Token, Tokenizer,
};

/// Bytes that tokenising holds at once for each byte of a text, the text and the ids included: 95 were measured on English
/// text with byte-level pieces. Most of it is the list of pieces, so a text of shorter words costs more.
const BYTES_PER_BYTE: u64 = 100;

/// An estimate of the memory, in bytes, that tokenising a text or JSONL file of `file_bytes` takes at its peak. A
/// token file takes its own size.
#[must_use]
pub fn tokenising_bytes(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(BYTES_PER_BYTE)
}

/// Stands for the text's ids among those of the post-processor. No vocabulary reaches it.
const TEXT: u32 = u32::MAX;

/// What the post-processor puts around the ids of one text: its own ids, and [`TEXT`] where the text's go.
pub(crate) fn surroundings(tokenizer: &Tokenizer, add_special_tokens: bool) -> Result<Vec<u32>> {
    let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
    Ok(tokenizer.post_process(text, None, add_special_tokens)?.get_ids().to_vec())
}

/// The ids that the library's `encode` gives, with `around` from [`surroundings`].
pub(crate) fn ids(tokenizer: &Tokenizer, text: &str, around: &[u32]) -> Result<Vec<u32>> {
    let mut pieces = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
    if let Some(splitter) = tokenizer.get_pre_tokenizer() {
        splitter.pre_tokenize(&mut pieces)?;
    }
    let model = tokenizer.get_model();
    let mut own = Vec::new();
    for (piece, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
        match tokens {
            // A token of the added vocabulary, found before the text was cut.
            Some(tokens) => own.extend(tokens.iter().map(|token| token.id)),
            None => own.extend(model.tokenize(piece)?.iter().map(|token| token.id)),
        }
    }
    drop(pieces);
    if around == [TEXT] {
        return Ok(own);
    }
    let mut out = Vec::with_capacity(own.len() + around.len());
    for &id in around {
        if id == TEXT {
            out.extend_from_slice(&own);
        } else {
            out.push(id);
        }
    }
    Ok(out)
}
