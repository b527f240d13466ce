//! Models of a grid that are behind servers.

use std::path::PathBuf;

/// A model behind an OpenAI-compatible server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GridServer {
    /// Its name in reports and folders.
    pub name: String,
    /// `http://HOST:PORT`.
    pub url: String,
    /// What the server calls the model; none takes its only one.
    pub model: Option<String>,
    /// Bits of weights, activations and cache, for the report: `8-8-16`.
    pub bits: Option<String>,
    /// File that holds the key of this server, on one line.
    pub key_file: Option<PathBuf>,
}
