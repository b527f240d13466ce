//! Log-likelihoods from `/v1/completions` with `echo`.

use crate::error::ClientError;
use crate::server::Server;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

/// A log-probability may exceed zero by rounding, not by more.
const ABOVE_ZERO: f64 = 1e-3;
/// What to do about a server that does not score prompts.
const ADVICE: &str = "vLLM and SGLang score prompts (echo with logprobs), llama.cpp's server does not; is the tokenizer the model's?";

/// How likely a continuation is behind its context.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Sum of the log-probabilities of the continuation's tokens, in nats.
    pub log_likelihood: f64,
    /// Whether each token is the most likely one at its place.
    pub greedy: bool,
    /// The tokens of the continuation one by one.
    pub tokens: Vec<TokenScore>,
}

/// How likely one token is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability. vLLM sends -9999 for one of probability zero.
    pub log_probability: f64,
    /// Whether no token is more likely. It is compared by probability: two tokens may have the same text.
    pub greedy: bool,
}

#[derive(Deserialize)]
struct Completions {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}
#[derive(Deserialize)]
struct Choice {
    logprobs: Option<Logprobs>,
}
#[derive(Deserialize)]
struct Logprobs {
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
}
#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
}

/// What was expected and what was found instead.
type Mismatch = (String, String);

impl Server {
    /// How likely `continuation` is behind `context`, both in the model's token ids.
    ///
    /// One request: the prompt echoed with its log-probabilities and one token more, which is dropped.
    ///
    /// # Errors
    ///
    /// An empty context (the first token of a prompt has no probability; give the token that begins a text) or
    /// continuation; the errors of a request; [`ClientError::Unreadable`] where the answer does not have a probability for
    /// each token that was sent, and for no other.
    pub fn score(&self, context: &[u32], continuation: &[u32]) -> Result<Scored, ClientError> {
        for (name, tokens) in [("context", context), ("continuation", continuation)] {
            if tokens.is_empty() {
                let value = "without tokens".to_owned();
                return Err(ClientError::Argument { name, value, expected: "at least one token" });
            }
        }
        let prompt: Vec<u32> = [context, continuation].concat();
        let call = self.post(
            "/v1/completions",
            &json!({
                "model": self.model(), "prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": 1,
                "temperature": 0, "stream": false,
            }),
        );
        let answer: Completions = self.json(&call, "a completion with logprobs")?;
        scored(&answer, context.len(), prompt.len())
            .map_err(|(expected, found)| call.unreadable(expected, found, ADVICE))
    }
}

/// The scores of tokens `context..sent` of the prompt.
fn scored(answer: &Completions, context: usize, sent: usize) -> Result<Scored, Mismatch> {
    let mismatch = |expected: &str, found: &str| (expected.to_owned(), found.to_owned());
    let [choice] = answer.choices.as_slice() else {
        return Err(mismatch("one choice", &answer.choices.len().to_string()));
    };
    if let Some(tokens) = answer.usage.as_ref().and_then(|usage| usage.prompt_tokens)
        && tokens != sent as u64
    {
        return Err((format!("a prompt of the {sent} tokens sent"), format!("one of {tokens}")));
    }
    let logprobs = choice.logprobs.as_ref().ok_or_else(|| mismatch("logprobs", "none"))?;
    let (own, top) = (&logprobs.token_logprobs, &logprobs.top_logprobs);
    for (name, entries) in [("token_logprobs", own.len()), ("top_logprobs", top.len())] {
        // With the token that was generated, or without it where that ended the text.
        if !(sent..=sent + 1).contains(&entries) {
            let expected = format!("{name} of the {sent} tokens sent and of one generated");
            return Err((expected, format!("{entries} entries")));
        }
    }
    // Also in the context: a server that leaves out some is not to be believed about the others.
    if let Some(at) = (1..sent).find(|&at| own[at].is_none()) {
        return Err((format!("a log-probability of token {at}"), "null".to_owned()));
    }
    let mut tokens = Vec::with_capacity(sent - context);
    for at in context..sent {
        let likely = |found: f64, of: &str| {
            let finite = found.is_finite() && found <= ABOVE_ZERO;
            let expected = || format!("a logarithm of a probability {of} {at}");
            finite.then_some(found).ok_or_else(|| (expected(), found.to_string()))
        };
        let log_probability = likely(own[at].unwrap_or(f64::NAN), "of token")?;
        let best = top[at].iter().flat_map(BTreeMap::values).copied().max_by(f64::total_cmp);
        let best =
            best.ok_or_else(|| (format!("the most likely token in place of token {at}"), "none".to_owned()))?;
        let best = likely(best, "of the most likely token in place of token")?;
        tokens.push(TokenScore { log_probability, greedy: log_probability >= best });
    }
    Ok(Scored {
        log_likelihood: tokens.iter().map(|t| t.log_probability).sum(),
        greedy: tokens.iter().all(|t| t.greedy),
        tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn judged(own: Value, top: Value, prompt: u64) -> Result<Scored, Mismatch> {
        let answer = json!({
            "choices": [{"logprobs": {"token_logprobs": own, "top_logprobs": top}}], "usage": {"prompt_tokens": prompt},
        });
        scored(&serde_json::from_value(answer).unwrap(), 1, 3)
    }

    #[test]
    fn the_context_and_the_generated_token_do_not_count() {
        let own = json!([null, -1.0, -0.5, -9.0]);
        let top = json!([null, {"a": -1.0}, {"b": -0.25, "c": -0.5}, {"d": -9.0}]);
        let both = judged(own, top, 3).unwrap();
        assert_eq!((both.log_likelihood, both.greedy), (-1.5, false));
        assert_eq!(both.tokens.iter().map(|t| t.greedy).collect::<Vec<_>>(), [true, false]);
        // Where the generated token ended the text it may be missing.
        assert!(judged(json!([null, -1, -1]), json!([null, {"a": -1}, {"a": -1}]), 3).unwrap().greedy);
        // Two tokens of one text: the better one is what the server lists under it.
        let twins = judged(json!([null, -1, -4]), json!([null, {"a": -1}, {"\u{fffd}": -0.1}]), 3).unwrap();
        assert!(!twins.greedy);
    }

    #[test]
    fn what_is_missing_is_named() {
        let top = || json!([null, {"a": -1}, {"a": -1}, {"a": -1}]);
        let own = || json!([null, -1, -1, -1]);
        for (own, top, prompt, expected, found) in [
            (json!([null, -1]), top(), 3, "token_logprobs of the 3", "2 entries"),
            (json!([null, -1, -1, -1, -1]), top(), 3, "token_logprobs of the 3", "5 entries"),
            (own(), json!([null, {"a": -1}]), 3, "top_logprobs of the 3", "2 entries"),
            (own(), top(), 4, "3 tokens sent", "one of 4"),
            (json!([null, null, -1, -1]), top(), 3, "log-probability of token 1", "null"),
            (json!([null, -1, 0.5, -1]), top(), 3, "probability of token 2", "0.5"),
            (own(), json!([null, null, {"a": -1}, null]), 3, "in place of token 1", "none"),
            (own(), json!([null, {}, {"a": -1}, null]), 3, "in place of token 1", "none"),
        ] {
            let (wanted, seen) = judged(own, top, prompt).unwrap_err();
            assert!(wanted.contains(expected) && seen == found, "{wanted}: {seen}");
        }
        let choices: Completions = serde_json::from_value(json!({"choices": []})).unwrap();
        assert_eq!(scored(&choices, 1, 3).unwrap_err().0, "one choice");
        let choices: Completions = serde_json::from_value(json!({"choices": [{"text": "a"}]})).unwrap();
        assert_eq!(scored(&choices, 1, 3).unwrap_err().0, "logprobs");
    }
}
