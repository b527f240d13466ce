//! A "language model" whose numbers a test can compute itself.

use serde_json::{Value, json};

/// Tokens of its vocabulary.
const VOCABULARY: u32 = 1000;
/// The token that ends a text.
pub const EOS: u32 = 0;

/// The token that is the most likely one behind another.
pub fn most_likely(previous: u32) -> u32 {
    (previous + 1) % VOCABULARY
}

/// The log-probability of a token behind another.
pub fn log_probability(previous: u32, token: u32) -> f64 {
    if token == most_likely(previous) {
        -0.125
    } else {
        -1.0 - f64::from((previous * 31 + token * 17) % 64) / 8.0
    }
}

/// The text of so many tokens behind one.
pub fn greedy_text(mut previous: u32, tokens: u32) -> String {
    let mut text = String::new();
    for _ in 0..tokens {
        previous = most_likely(previous);
        text.push_str(&piece(previous));
    }
    text
}

/// Text of a token. All tokens above 900 have the same one.
pub(super) fn piece(token: u32) -> String {
    if token > 900 { "\u{fffd}".to_owned() } else { format!("t{token} ") }
}

/// The tokens of a prompt, in ids or as text of `t5 t6 `.
pub(super) fn tokens_of(prompt: &Value) -> Vec<u32> {
    match prompt {
        Value::Array(ids) => ids.iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        other => {
            let words = other.as_str().unwrap_or_default().split_whitespace();
            words.filter_map(|word| word.trim_start_matches('t').parse().ok()).collect()
        }
    }
}

/// The answer of vLLM to a prompt with `echo`, `logprobs: 1` and `max_tokens: 1`.
pub(super) fn echoed(prompt: &[u32]) -> Value {
    let mut tokens = prompt.to_vec();
    tokens.push(most_likely(tokens.last().copied().unwrap_or(0)));
    let (mut own, mut top) = (vec![Value::Null], vec![Value::Null]);
    for pair in tokens.windows(2) {
        let best = most_likely(pair[0]);
        own.push(json!(log_probability(pair[0], pair[1])));
        let mut entries = serde_json::Map::new();
        entries.insert(piece(pair[1]), json!(log_probability(pair[0], pair[1])));
        entries.insert(piece(best), json!(log_probability(pair[0], best)));
        top.push(Value::Object(entries));
    }
    let texts: Vec<String> = tokens.iter().map(|&token| piece(token)).collect();
    json!({
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny",
        "choices": [{
            "index": 0, "text": texts.concat(), "finish_reason": "length",
            "logprobs": {"tokens": texts, "token_logprobs": own, "top_logprobs": top, "text_offset": []},
        }],
        "usage": {"prompt_tokens": prompt.len(), "completion_tokens": 1, "total_tokens": prompt.len() + 1},
    })
}
