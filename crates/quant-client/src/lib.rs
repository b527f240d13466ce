//! Scores and texts from OpenAI-compatible servers: vLLM, vLLM-Ascend, SGLang, llama.cpp's server.
//!
//! | what | how | servers |
//! |---|---|---|
//! | [`Server::score`]: log-likelihood of a continuation | `/v1/completions` with token ids, `echo` and `logprobs` | vLLM, SGLang |
//! | [`Server::chat`]: an answer | `/v1/chat/completions`, streamed, its thought put back | all |
//! | [`Server::complete`]: a text continued | `/v1/completions`, streamed | all |
//!
//! [`for_each_concurrently`] does so for many at a time.
//!
//! ```
//! use quant_client::{ApiKey, ClientError, ServerOptions};
//!
//! let mut options = ServerOptions::new("http://localhost:8000/v1");
//! options.model = Some("my-model".to_owned());
//! options.retries = 2;
//! let error: ClientError = ApiKey::from_variable("NO_SUCH_VARIABLE").unwrap_err();
//! assert!(error.to_string().contains("NO_SUCH_VARIABLE"));
//! ```
//!
//! What a server sends is untrusted: answers are bounded in bytes and time, a stream also by the tokens that were asked for, and
//! what does not say what was asked is refused with what it says instead. Only the given address is contacted: no redirect is
//! followed, no proxy of the environment is used. A key is shown in no message, also where a server echoes it. Requests are
//! sent again after a connection that failed or was cut, after 429 and after 500 and above; never after a time-out.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod concurrently;
mod error;
mod events;
mod generate;
mod key;
mod options;
mod pieces;
mod retry;
mod score;
mod server;
mod stream;
mod transport;

pub use concurrently::for_each_concurrently;
pub use error::ClientError;
pub use generate::{ChatRequest, Finish, Generated, Message, Prompt, Sampling, ThoughtMarks};
pub use key::ApiKey;
pub use options::ServerOptions;
pub use pieces::Piece;
pub use score::{Scored, TokenScore};
pub use server::Server;
