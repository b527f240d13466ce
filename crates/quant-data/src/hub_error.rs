//! Why no files came from the hub.

use std::path::PathBuf;

/// Why the files of a task could not be had from the hub. No message holds a token, or what a server wrote but names of files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The file with the token is none.
    #[error("cannot read the token from {path}: {reason}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without a character of it.
        reason: String,
    },
    /// The address of the hub is none.
    #[error("the hub's address {endpoint:?} {reason}; expected https://HOST")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No connection, no answer in time, a connection that was cut, or a server that cannot answer now.
    #[error(
        "{url}: {reason} ({attempts} attempts); is there a way to it from here? What was fetched meanwhile was removed"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What happened.
        reason: String,
        /// How often it was asked for.
        attempts: u32,
    },
    /// The hub knows no such data set, or does not show it.
    #[error("task {task} needs {wanted}: {url} answers {status}; {advice}")]
    Refused {
        /// Name of the task.
        task: String,
        /// Data set, configuration, split and columns.
        wanted: String,
        /// What was asked for.
        url: String,
        /// 401, 403 or 404.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// The data set has no file for configuration and split.
    #[error(
        "task {task} needs {wanted}: the data set has none of {looked}; it has {there}; name its files in \
         `source.files` of the task"
    )]
    NothingFits {
        /// Name of the task.
        task: String,
        /// Data set, configuration, split and columns.
        wanted: String,
        /// Patterns that were tried.
        looked: String,
        /// Files that it has, ten of them.
        there: String,
    },
    /// An answer is not what was asked for.
    #[error("{url}: expected {expected}, found {found}; is it a Hugging Face hub?")]
    Unreadable {
        /// What was asked for.
        url: String,
        /// What was expected.
        expected: &'static str,
        /// What arrived.
        found: String,
    },
    /// The answer lies with somebody who is not asked.
    #[error(
        "{url}: the server points to {location}, and only hosts of the hub are asked, by https:// where it is; \
         give the address that answers itself"
    )]
    Redirect {
        /// What was asked for.
        url: String,
        /// Scheme and host that it points to.
        location: String,
    },
    /// More than is fetched for one task, or than is read from one file.
    #[error(
        "{url} has {found} bytes, at most {limit} more are fetched for this task; fetch it yourself and name it with --data-dir"
    )]
    TooLarge {
        /// The file.
        url: String,
        /// Its size.
        found: u64,
        /// Bytes that were left.
        limit: u64,
    },
    /// More files than are fetched for one task.
    #[error(
        "the task's patterns name {files} files of the data set, at most {limit} are fetched; name fewer in `source.files`"
    )]
    TooMany {
        /// How many there are.
        files: usize,
        /// How many may be.
        limit: usize,
    },
    /// A full disk, or a folder that cannot be written.
    #[error("cannot write {path}: {source}; what was fetched meanwhile was removed")]
    CannotWrite {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Whoever was told how far it is wanted no more.
    #[error("stopped; what was fetched meanwhile was removed")]
    Stopped,
}
