//! The one error type of this crate.

use std::path::PathBuf;

/// Why a server gave no scores or no text. What arrived is shown by its first 200 characters, with the key replaced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL names no server that can be asked.
    #[error("the server's URL {url:?} {reason}; expected http://HOST:PORT, with or without /v1")]
    Url {
        /// The URL as given, without what stands before an `@`.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file with a key cannot be read.
    #[error("cannot read the key from {path}: {source}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Reason given by the operating system.
        source: std::io::Error,
    },
    /// What should be a key is none.
    #[error("the key from {from} {reason}; expected one line of visible ASCII characters")]
    Key {
        /// The file or the variable.
        from: String,
        /// What is wrong, without a character of the key.
        reason: &'static str,
    },
    /// An argument asks for something that cannot be.
    #[error("{name} is {value}, expected {expected}")]
    Argument {
        /// Name of the field.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The server has no model, or several and none was named.
    #[error("{request}: expected one model, the server has {found}; name one of them")]
    Models {
        /// Method and address.
        request: String,
        /// How many and which.
        found: String,
    },
    /// No connection, a connection that was cut, or no answer in time.
    #[error("{request}: {reason} ({attempts} attempts); {advice}")]
    Unreachable {
        /// Method and address.
        request: String,
        /// How often it was sent.
        attempts: u32,
        /// What happened.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The server answered with an error.
    #[error(
        "{request}: expected status 200, the server answered {status} ({attempts} attempts): {body}; {advice}"
    )]
    Status {
        /// Method and address.
        request: String,
        /// The status, or the code in an error that came as part of a stream.
        status: u16,
        /// How often it was sent.
        attempts: u32,
        /// Begin of the answer.
        body: String,
        /// What to do.
        advice: String,
    },
    /// The server sends the request elsewhere, where it is not taken.
    #[error(
        "{request}: the server answered {status} and points to {location:?}; redirects are not followed, \
         give the address that answers itself"
    )]
    Redirect {
        /// Method and address.
        request: String,
        /// The status.
        status: u16,
        /// Where it points to.
        location: String,
    },
    /// The answer does not say what was asked.
    #[error("{request}: expected {expected}, found {found}; {advice}")]
    Unreadable {
        /// Method and address.
        request: String,
        /// What was looked for.
        expected: String,
        /// What was there.
        found: String,
        /// What to do.
        advice: &'static str,
    },
    /// The answer goes on behind a limit.
    #[error("{request}: stopped reading an answer that does not end: {limit}; {advice}")]
    Endless {
        /// Method and address.
        request: String,
        /// Which limit, and what stood behind it.
        limit: String,
        /// What to do.
        advice: &'static str,
    },
    /// The caller does not want the answer any more.
    #[error("{request}: stopped")]
    Stopped {
        /// Method and address.
        request: String,
    },
}

impl ClientError {
    /// Whether the server could not be had: no connection, no answer in time, too many requests, an error of its own. The
    /// same request may succeed later.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => is_passing(*status),
            _ => false,
        }
    }

    /// Whether the server answered with something else than what was asked for. The same request will fail again.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::Endless { .. })
    }

    /// The same error, after so many attempts.
    pub(crate) fn after(mut self, sent: u32) -> Self {
        if let Self::Unreachable { attempts, .. } | Self::Status { attempts, .. } = &mut self {
            *attempts = sent;
        }
        self
    }
}

/// Statuses of a server that may answer later.
pub(crate) fn is_passing(status: u16) -> bool {
    status == 429 || (500..600).contains(&status)
}
