//! Tokenisers, chat templates, calibration and evaluation token streams.
//!
//! Everything that turns a file into token ids lives here. What calibrates or is scored is always a
//! [`TokenSet`], a list of token sequences with a description of how they were drawn.
//!
//! | input | calibration | evaluation |
//! |---|---|---|
//! | `FILE.safetensors:TENSOR`, i32/i64 `[sequences, length]` | every row in order | every row scored alone |
//! | JSON lines with `text` | random windows of one stream | consecutive windows of the texts, a blank line between |
//! | JSON lines with `messages`, or with columns that become turns | random windows of one stream | - |
//! | any other text | random windows of one stream | consecutive windows (WikiText-2 protocol) |
//!
//! Prompts to be continued are [`load_prompts`]; tokens become text again by [`TextStream`].
//!
//! A file's bytes decide what it is, not its name: JSON lines, a JSON list of records, text, each also packed with gzip; with the feature
//! `parquet` also tables as the Hugging Face hub publishes them (snappy and zstd). With the feature `hub`, `Hub::fetch` brings the files of a
//! task from there; nothing else of this library opens a network connection.
//!
//! Random windows are drawn exactly as the `get_loaders` function of the Quantized-Reasoning-Models study
//! draws them, with CPython's generator reimplemented bit for bit ([`PyRandom`]), so that a calibration set
//! can be reproduced from its seed.
//!
//! ```
//! use quant_data::PyRandom;
//!
//! let mut random = PyRandom::seed(0);
//! assert_eq!(random.randint(0, 2_497_951), Some(1_615_835));
//! ```
//!
//! Files are untrusted: sizes are bounded before anything is read, token ids are checked against the model's
//! vocabulary, chat templates run in a sandbox with limits on steps and text, and a panic of the tokenizer or template
//! library is an error.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod bounded;
mod calibration;
mod clock;
mod contain;
mod content;
mod conversation;
mod documents;
mod error;
mod evaluation;
mod files;
mod filters;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod hub_error;
mod ids;
mod json;
#[cfg(feature = "parquet")]
mod parquet;
mod prompts;
mod python_json;
mod python_methods;
mod python_value;
mod random;
mod record;
mod set;
mod task;
mod template;
mod thoughts;
mod token_tensor;
mod tokenizer;
mod windows;

pub use calibration::{CalibrationSpec, DEFAULT_SAMPLES, DEFAULT_SEQUENCE_LENGTH, LoadOptions, load};
pub use conversation::Conversation;
pub use error::DataError;
pub use evaluation::{EvalLoadOptions, load_eval_text, load_eval_tokens};
#[cfg(feature = "hub")]
pub use hub::{Hub, HubProgress, HubToken};
#[cfg(feature = "hub")]
pub use hub_error::HubError;
pub use ids::tokenising_bytes;
pub use prompts::{Prompt, PromptSource, TextStream, end_tokens, load_prompts};
pub use random::PyRandom;
pub use set::{Sampling, TokenSet};
pub use task::{
    BuiltIn, ChoiceItem, ChoiceMetric, Choices, Continuation, EncodedPrompt, Expression, Generation, Opening,
    Question, Said, Source, TASKS, Task, TaskKind, TaskSampling, TextTask, TextTemplate, built_in_task,
    split_continuation, task_schema,
};
pub use template::{ChatTemplate, RenderOptions};
pub use thoughts::RenderedConversation;
pub use tokenizer::{SpecialTokens, Tokenizer};
pub use windows::{consecutive_windows, random_windows};
